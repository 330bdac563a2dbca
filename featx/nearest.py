# Nearest names: what was probably meant by a name that does not exist, for models, families, options and their values.
"""Finding the existing names that are nearest to the one that was typed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher

from featx.text import listed

# The most names that are suggested, and how similar their letters must be to what was typed, from 0 to 1.
SUGGESTIONS, ALIKE = 3, 0.65

# A shorter word than this matches only at the beginning of a word: the b of ViT-B is base.
SHORT = 3

Weight = Callable[[str], int]


def nearest(asked: str, names: Iterable[str], weight: Weight = lambda _: 0) -> list[str]:
    """Return the names that were most probably meant, the likeliest first.

    These are the names that differ from `asked` only in case and separators; failing that, those that contain all of
    its words; failing that, those with the most similar letters. Among equals, names with more weight come first.
    """
    names = list(dict.fromkeys(names))
    return named_alike(asked, names, weight) or _similar(asked, names, weight)


def named_alike(asked: str, names: Iterable[str], weight: Weight = lambda _: 0) -> list[str]:
    """Return the names that differ from `asked` only in case and separators, or else those that contain its words."""
    names, letters, words = list(names), _letters(asked), _words(asked)
    if not letters:
        return []
    same = [name for name in names if _letters(name) == letters]
    patterns = [_pattern(word) for word in words]
    having = [name for name in names if all(pattern.search(name.lower()) for pattern in patterns)]
    return (same or sorted(having, key=lambda name: _distance(name, words[0], weight)))[:SUGGESTIONS]


def did_you_mean(asked: str, names: Iterable[str]) -> str:
    """Ask whether one of the nearest names was meant; empty if none is near."""
    near = nearest(asked, names)
    return f"Did you mean {listed(near)}?" if near else ""


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def _pattern(word: str) -> re.Pattern[str]:
    """Match a word in names that may separate its letters and digits; numbers match whole, short words at a start."""
    parts = re.findall(r"\d+|\D+", word)
    before = r"(?<!\d)" if parts[0].isdigit() else r"(?<![^\W\d_])" if len(parts[0]) < SHORT else ""
    after = r"(?!\d)" if parts[-1].isdigit() else ""
    return re.compile(before + r"[\W_]*".join(map(re.escape, parts)) + after)


def _distance(name: str, first: str, weight: Weight) -> tuple[bool, bool, bool, int, int]:
    """Sort names with any weight first, then those that begin with the first word typed, then short ones."""
    words = _words(name)
    return weight(name) == 0, words[0] != first, not words[0].startswith(first), len(words), -weight(name)


def _similar(asked: str, names: list[str], weight: Weight) -> list[str]:
    matcher = SequenceMatcher(b=_letters(asked))  # which caches its analysis of b
    found = []
    for name in names:
        matcher.set_seq1(_letters(name))
        if matcher.quick_ratio() >= ALIKE and (ratio := matcher.ratio()) >= ALIKE:
            found.append((-ratio, -weight(name), name))
    return [name for *_, name in sorted(found, key=lambda entry: entry[:2])[:SUGGESTIONS]]

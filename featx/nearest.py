# Nearest names: what was probably meant by a name that does not exist, for models, families, options and their values.
"""Matching a name that somebody typed with the names that there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher

from featx.text import listed

# Names that are suggested at most, and how alike their letters must be to those that were typed.
SUGGESTIONS, ALIKE = 3, 0.65

# A word that is shorter than this counts where a word begins with it: the b of ViT-B is base.
SHORT = 3

Weight = Callable[[str], int]


def nearest(asked: str, names: Iterable[str], weight: Weight = lambda _: 0) -> list[str]:
    """Return the names that were most probably meant, the likeliest first.

    They are the names that are the same but for case and separators; or else those that have every word of what was
    typed; or else those with the most similar letters. Of equals, the heavier come first.
    """
    names = list(dict.fromkeys(names))
    return named_alike(asked, names, weight) or _similar(asked, names, weight)


def named_alike(asked: str, names: Iterable[str], weight: Weight = lambda _: 0) -> list[str]:
    """Return the names that are the same but for case and separators, or else those that have every word of `asked`."""
    names, letters, words = list(names), _letters(asked), _words(asked)
    if not letters:
        return []
    same = [name for name in names if _letters(name) == letters]
    patterns = [_pattern(word) for word in words]
    having = [name for name in names if all(pattern.search(name.lower()) for pattern in patterns)]
    return (same or sorted(having, key=lambda name: _distance(name, words[0], weight)))[:SUGGESTIONS]


def did_you_mean(asked: str, names: Iterable[str]) -> str:
    """Ask whether one of the nearest names was meant; empty where none is near."""
    near = nearest(asked, names)
    return f"Did you mean {listed(near)}?" if near else ""


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def _pattern(word: str) -> re.Pattern[str]:
    """Find a word within names, where its letters and digits may be apart; numbers are whole, short words begin one."""
    parts = re.findall(r"\d+|\D+", word)
    before = r"(?<!\d)" if parts[0].isdigit() else r"(?<![^\W\d_])" if len(parts[0]) < SHORT else ""
    after = r"(?!\d)" if parts[-1].isdigit() else ""
    return re.compile(before + r"[\W_]*".join(map(re.escape, parts)) + after)


def _distance(name: str, first: str, weight: Weight) -> tuple[bool, bool, bool, int, int]:
    """Sort names that begin with the word that was typed first before others, and short ones before long ones."""
    words = _words(name)
    return weight(name) == 0, words[0] != first, not words[0].startswith(first), len(words), -weight(name)


def _similar(asked: str, names: list[str], weight: Weight) -> list[str]:
    matcher = SequenceMatcher(b=_letters(asked))  # which remembers what it knows of b
    found = []
    for name in names:
        matcher.set_seq1(_letters(name))
        if matcher.quick_ratio() >= ALIKE and (ratio := matcher.ratio()) >= ALIKE:
            found.append((-ratio, -weight(name), name))
    return [name for *_, name in sorted(found, key=lambda entry: entry[:2])[:SUGGESTIONS]]

# Text for people: counts and lists as English writes them, and names that cannot move a terminal's cursor.
"""Small pieces of prose."""

from __future__ import annotations

from collections.abc import Sequence


def count_of(count: int, noun: str, plural: str = "") -> str:
    """Count things in English: ``1 image``, ``2 images``, ``3 batches``."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def images(count: int) -> str:
    """Count images."""
    return count_of(count, "image")


def listed(words: Sequence[str], conjunction: str = "or") -> str:
    """Write words as English has them: ``fp32, bf16 or fp16``."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def spacing(value: float | Sequence[float] | None) -> str:
    """Write a stride or an offset, which may differ between y and x."""
    if value is None:
        return "?"
    return f"{value:g}" if isinstance(value, (int, float)) else " x ".join(f"{number:g}" for number in value)


def printable(text: str) -> str:
    """Escape characters that would move a terminal's cursor, or change its colours."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def amount_of(count: int) -> str:
    """Write a number of bytes: ``512 B``, ``76.8 kB``, ``9.20 MB``, and GB from 10,000 MB on."""
    if count < 1000:
        return f"{count} B"
    scales = (("kB", 1e3, 1e5), ("MB", 1e6, 1e10), ("GB", 1e9, 1e13), ("TB", 1e12, float("inf")))
    unit, size, _ = next(scale for scale in scales if count < scale[2])
    number = count / size
    return f"{number:.{2 if number < 10 else 1}f} {unit}" if number < 1000 else f"{number:,.0f} {unit}"

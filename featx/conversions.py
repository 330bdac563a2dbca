# Converting what was given for an option, typed text or a value, to the option's value, or saying what was expected.
"""What options expect."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from math import inf, isfinite, nan
from operator import index
from pathlib import Path
from reprlib import repr as quoted  # which shortens long values
from typing import Any

from featx.errors import UsageError
from featx.nearest import did_you_mean
from featx.paths import is_url
from featx.stores import Store
from featx.text import listed

# Converts what was given, text or a value, to the option's value; it gets the option's name for its error messages.
Convert = Callable[[str, Any], Any]

# Suffixes of counts, and units of numbers of bytes.
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_DECIMAL = {f"{prefix}{unit}": 1000**power for power, prefix in enumerate("kmgt", 1) for unit in ("", "b")}
_BYTES = {"": 1, "b": 1, **_DECIMAL, **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)}}

# The most seconds that every clock and timer can represent: eleven days.
_MOST_SECONDS = 1_000_000


def as_text(_: str, value: Any) -> str:
    """Accept any text."""
    return str(value)


def texts(example: str) -> Convert:
    """Expect texts: comma-separated, or as a sequence."""

    def convert(name: str, value: Any) -> tuple[str, ...]:
        pieces = value.split(",") if isinstance(value, str) else value if isinstance(value, Iterable) else ()
        found = tuple(piece.strip() for piece in pieces if isinstance(piece, str) and piece.strip())
        if not found:
            raise UsageError(f"{name}: expected names, such as {example}, not {quoted(value)}")
        return found

    return convert


def as_path(name: str, value: Any) -> Path:
    """Expect a path."""
    try:
        return Path(value)
    except TypeError as error:
        raise UsageError(f"{name}: expected a path, not {quoted(value)}") from error


def as_place(name: str, value: Any) -> Path | str:
    """Expect a path, or a URL as text."""
    if isinstance(value, str) and is_url(value):
        return Store.of(value).url
    path = as_path(name, value)
    if isinstance(value, Path) and len(path.parts) > 1 and path.parts[0].endswith(":") and not path.exists():
        raise UsageError(f"{name}: {value} is what pathlib makes of a URL", "Give the URL as text")
    return path


def switch(name: str, value: Any) -> bool:
    """Expect a truth value."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}: expected True or False, not {quoted(value)}")
    return value


def one_of(*choices: str) -> Convert:
    """Expect one of several words."""

    def convert(name: str, value: Any) -> str:
        if value not in choices:
            hint = did_you_mean(str(value), choices)
            raise UsageError(f"{name}: expected {listed(choices)}, not {value!r}", hint)
        return str(value)

    return convert


def whole(least: int, most: int = 1 << 62, *, auto: bool = False) -> Convert:
    """Expect a whole number from `least` to `most`; or, if `auto`, the word for None."""
    limits = f"from {least} to {most}" if most < 1 << 62 else f"of at least {least}"
    expected = ("a whole number that fits into 64 bits" if least < -(1 << 62) else f"a whole number {limits}") + (
        " or auto" if auto else ""
    )

    def convert(name: str, value: Any) -> int | None:
        if auto and value == "auto":
            return None
        if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]{1,30}", str(value)) or not least <= int(value) <= most:
            raise UsageError(f"{name}: expected {expected}, not {quoted(value)}")
        return int(value)

    return convert


def seconds(least: float) -> Convert:
    """Expect a time in seconds."""
    expected = f"seconds, from {least:g} to {_MOST_SECONDS}"
    return _number(lambda number: least <= number <= _MOST_SECONDS, expected)


def share(example: str) -> Convert:
    """Expect a number above 0, up to 1."""
    return _number(lambda number: 0 < number <= 1, f"a number above 0, up to 1, such as {example}")


def above_zero(example: str) -> Convert:
    """Expect a finite number above 0."""
    return _number(lambda number: 0 < number < inf, f"a number above 0, such as {example}")


def _number(allows: Callable[[float], bool], expected: str) -> Convert:
    """Expect a number that a comparison allows, which is false for NaN."""

    def convert(name: str, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = nan
        if not allows(number):
            raise UsageError(f"{name}: expected {expected}, not {quoted(value)}")
        return number

    return convert


def amount(example: str) -> Convert:
    """Expect a whole number of at least 1, which may be abbreviated: 30M, 1.5G, 250k, 1_000_000."""
    return _abbreviated(_COUNTS, f"a whole number of at least 1, such as {example}")


def size_in_bytes(example: str) -> Convert:
    """Expect a number of bytes of at least 1, with or without a unit: 500000, 500 kB, 1.5GB, 4GiB."""
    return _abbreviated(_BYTES, f"a number of bytes, such as {example}")


def _abbreviated(scales: Mapping[str, int], expected: str) -> Convert:
    def convert(name: str, value: Any) -> int:
        found = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*|\.[0-9]+) ?([a-z]*)", str(value).lower())
        scale = scales.get(found[2]) if found else None
        number = Decimal(found[1]) * scale if found and scale else Decimal(0)
        if not 1 <= number < 1 << 63 or number % 1:
            raise UsageError(f"{name}: expected {expected}, not {quoted(value)}")
        return int(number)

    return convert


def numbers(kind: type[int] | type[float], example: str, *words: str) -> Convert:
    """Expect numbers: comma-separated, as a sequence, or a single one; or one of `words` instead."""
    exact: Callable[[Any], Any] = index if kind is int else float  # 2.5 is not silently cut to an index

    def convert(name: str, value: Any) -> Any:
        if isinstance(value, str) and value in words:
            return value
        try:
            pieces = value.split(",") if isinstance(value, str) else value if isinstance(value, Iterable) else (value,)
            return tuple(kind(piece) if isinstance(piece, str) else exact(piece) for piece in pieces)
        except (TypeError, ValueError, OverflowError) as error:
            other = "".join(f", or {word}" for word in words)
            raise UsageError(
                f"{name}: expected comma-separated numbers, such as {example}{other}, not {quoted(value)}"
            ) from error

    return convert


def coordinates(example: str) -> Convert:
    """Expect as many finite numbers as the example has, in text with commas or as a sequence."""
    count = example.count(",") + 1

    def convert(name: str, value: Any) -> tuple[float, ...]:
        pieces = value.split(",") if isinstance(value, str) else value
        try:
            found = tuple(float(piece) for piece in pieces)
        except (TypeError, ValueError):
            found = ()
        if len(found) != count or not all(map(isfinite, found)):
            expected = f"expected {count} comma-separated numbers, such as {example}"
            raise UsageError(f"{name}: {expected}, not {quoted(value)}")
        return found

    return convert


def size(
    name: str, value: Any, expected: str = "one side (384) or height x width (256x320) in pixels"
) -> tuple[int, int]:
    """Expect one side, or height and width: 384, 256x320, (256, 320)."""
    pieces = value.lower().split("x") if isinstance(value, str) else value if isinstance(value, Sequence) else (value,)
    texts = [str(piece) for piece in pieces]
    if not 1 <= len(texts) <= 2 or not all(re.fullmatch("0*[1-9][0-9]{0,8}", text) for text in texts):
        raise UsageError(f"{name}: expected {expected}, not {quoted(value)}")
    return int(texts[0]), int(texts[-1])


def bins(name: str, value: Any) -> tuple[int, int]:
    """Expect height and width of what a box is to give: 7, 7x5, (7, 5)."""
    return size(name, value, "one side (7) or height x width (7x5)")

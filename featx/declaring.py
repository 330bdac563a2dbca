# Declaring an option: everything about it is in one place, where the command line, Python and the docs read it.
"""How `featx.options` declares options, and how text or Python values given for one are converted to its type."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from decimal import Decimal
from functools import wraps
from math import inf, isfinite, nan
from operator import index
from pathlib import Path
from reprlib import repr as quoted  # which shortens long values
from typing import Any, ClassVar, TypeVar, cast, dataclass_transform

from featx.errors import UsageError
from featx.nearest import did_you_mean
from featx.paths import is_url
from featx.stores import Store
from featx.text import listed

# Converts what was given, text or a value, to the option's value; it gets the option's name for its error messages.
Convert = Callable[[str, Any], Any]

Group = TypeVar("Group")
Function = TypeVar("Function", bound=Callable[..., Any])

# Suffixes of counts, and units of numbers of bytes.
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_DECIMAL = {f"{prefix}{unit}": 1000**power for power, prefix in enumerate("kmgt", 1) for unit in ("", "b")}
_BYTES = {"": 1, "b": 1, **_DECIMAL, **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)}}

# The most seconds that every clock and timer can represent: eleven days.
_MOST_SECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Declaration:
    """Everything there is to know about an option.

    Attributes
    ----------
    help : str
        One line for the command line's help, the reference and the docstrings.
    convert : callable or None
        Checks and converts what was given; None takes a flag as it is.
    metavar : str
        Placeholder for the value in the help.
    flags : tuple of str
        Other spellings on the command line (``-o``), or all of them if one is long (``--maps/--no-maps``).
    shown : str
        The default as the help shows it; empty to show the value itself.
    accepts : str
        The types that Python callers may pass; empty means those of the field.
    repeated : bool
        Whether it may be given several times, which is the same as once with commas.
    in_recipe : bool
        Whether the option changes the numbers, so that features made with another value never mix.
    """

    help: str
    convert: Convert | None = None
    metavar: str = ""
    flags: tuple[str, ...] = ()
    shown: str = ""
    accepts: str = ""
    repeated: bool = False
    in_recipe: bool = False


def option(
    *,
    help: str,  # noqa: A002 - as it is read
    default: Any = MISSING,
    kw_only: bool = True,
    convert: Convert | None = None,
    **more: Any,
) -> Any:
    """Declare an option as a field of a group; one without a default is required. See `Declaration`."""
    return field(default=default, kw_only=kw_only, metadata={"declaration": Declaration(help, convert, **more)})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option,))
def group(made: type[Group]) -> type[Group]:
    """Make a class a group of options, or of groups."""
    return dataclass(frozen=True, kw_only=True)(made)


@group
class Options:
    """A group of options: frozen, and every value checked and converted when it is made.

    Attributes
    ----------
    panel : str
        The heading under which the help lists them.
    """

    panel: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check and convert what was given.

        Raises
        ------
        UsageError
            Naming the option, and what was expected.
        """
        for each in declared(type(self)):
            if (value := getattr(self, each.name)) is not None:
                object.__setattr__(self, each.name, converted(each, value, spellings(each)[0]))


def declared(of: type[Options], *, without: Sequence[str] = ()) -> list[Field[Any]]:
    """Return the options of a group, in order of declaration."""
    return [each for each in fields(of) if "declaration" in each.metadata and each.name not in without]


def declaration(each: Field[Any]) -> Declaration:
    """Return the declaration of an option."""
    found: Declaration = each.metadata["declaration"]
    return found


def converted(each: Field[Any], value: Any, name: str) -> Any:
    """Check and convert what was given for an option, which error messages call by that name."""
    return (declaration(each).convert or _switch)(name, value)


def spellings(each: Field[Any]) -> tuple[str, ...]:
    """Return an option's spellings on the command line, the one that messages use first: ``--image-size``."""
    flags = declaration(each).flags
    return flags if any(text.startswith("--") for text in flags) else (f"--{each.name.replace('_', '-')}", *flags)


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


def _switch(name: str, value: Any) -> bool:
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


def keywords(*groups: type[Options], without: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Give a public function the options of some groups as keywords: in its signature, docstring and refusals."""
    chosen = {each.name: each for group in groups for each in declared(group, without=without)}

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]

        @wraps(function)
        def call(*values: Any, **options: Any) -> Any:
            unknown = options.keys() - chosen.keys() - {each.name for each in own}
            if unknown:
                name = min(unknown)
                what = f"{function.__name__}() got an unexpected keyword argument {name!r}"
                raise TypeError(". ".join(filter(None, (what, did_you_mean(name, chosen)))))
            return function(*values, **options)

        more = [_keyword(each) for each in chosen.values()]
        vars(call)["__signature__"] = signature.replace(parameters=[*own, *more])
        call.__doc__ = _documented(function.__doc__ or "", chosen.values())
        return cast(Function, call)

    return decorate


def accepted(each: Field[Any]) -> str:
    """Return the types that Python callers may pass for an option, as written in code."""
    return declaration(each).accepts or str(each.type)


def _keyword(each: Field[Any]) -> inspect.Parameter:
    return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=accepted(each))


def _documented(text: str, options: Iterable[Field[Any]]) -> str:
    """Replace ``**options`` in a docstring with the declaration of each option."""
    entries = []
    for each in options:
        shown = f" Default: {declaration(each).shown}." if declaration(each).shown else ""
        entries += [f"    {each.name} : {accepted(each)}", f"        {declaration(each).help}{shown}"]
    return re.sub(r"    \*\*options\n(?:        .*\n)+", lambda _: "\n".join(entries) + "\n", text)

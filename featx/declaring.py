# Declaring an option: everything about it is in one place, where the command line, Python and the docs read it.
"""How `featx.options` declares options; `featx.conversions` has what each of them expects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from typing import Any, ClassVar, TypeVar, cast, dataclass_transform

from featx.conversions import Convert, switch
from featx.nearest import did_you_mean

Group = TypeVar("Group")
Function = TypeVar("Function", bound=Callable[..., Any])


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
    words : tuple of str
        Choices to complete, where there are too many for `metavar`.
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
    words: tuple[str, ...] = ()
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
    return (declaration(each).convert or switch)(name, value)


def spellings(each: Field[Any]) -> tuple[str, ...]:
    """Return an option's spellings on the command line, the one that messages use first: ``--image-size``."""
    flags = declaration(each).flags
    return flags if any(text.startswith("--") for text in flags) else (f"--{each.name.replace('_', '-')}", *flags)


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

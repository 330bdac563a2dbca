# Arguments: the parameters of commands, made from the declared options.
"""From `featx.options` to the command line, and from typed arguments to options."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from featx.declaring import Options, declaration, declared, spellings
from featx.errors import UsageError


def switch(*spellings: str, help: str, **more: Any) -> Any:  # noqa: A002 - as typer has it
    """Declare an option of a command that takes no value."""
    return typer.Option(*spellings, metavar="", help=help, **more)


Json = Annotated[bool, switch("--json", help="Print one JSON document to standard output, and nothing else.")]
Debug = Annotated[bool, switch("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, switch("--quiet", "-q", help="Print nothing but failures and errors.")]


def takes(
    *groups: type[Options], only: Sequence[str] = (), without: Sequence[str] = (), optional: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some groups; those that were typed are passed as its argument ``options``.

    Parameters
    ----------
    groups : types
        In the order of the help.
    only, without : sequence of str
        Names of the only options that it takes, or of those that it does not.
    optional : sequence of str
        Names of options without a default that need not be typed.
    """
    chosen = {
        each.name: _parameter(group, each, needed=each.name not in optional)
        for group in groups
        for each in declared(group, without=without)
        if not only or each.name in only
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def run(**values: Any) -> None:
            typed = {name: values.pop(name) for name in chosen}
            command(
                options={name: _joined(value) for name, value in typed.items() if value not in (None, [])}, **values
            )

        rest = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own if each.name != "options"]
        parameters = [*chosen.values(), *rest]
        vars(run)["__signature__"] = inspect.Signature(parameters)  # which is what typer reads
        return run

    return decorate


def _joined(value: Any) -> Any:
    return ",".join(value) or None if isinstance(value, list) else value


def _parameter(group: type[Options], each: Field[Any], *, needed: bool) -> inspect.Parameter:
    """Make the parameter of an option; it is None if it was not typed and has no default to show."""
    about = declaration(each)
    is_flag = about.convert is None
    default = None if each.default is MISSING and not needed else each.default
    if about.repeated:
        default = None
    elif not is_flag and default is not None and default is not MISSING:
        default = about.shown or str(default)  # as text, which is converted as if it had been typed
    given = typer.Option(
        *spellings(each),
        help=about.help,
        metavar=about.metavar,
        rich_help_panel=group.panel or None,
        show_default=about.shown or False if default in (None, MISSING) else default is not False,
    )
    kind: Any = bool if is_flag else list[str] if about.repeated else str
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind | None if default is None else kind, given],
    )


def one_model(name: str | None, options: dict[str, Any]) -> str:
    """Return the model given as an argument or with --model.

    Raises
    ------
    UsageError
        If it is named twice, or not at all.
    """
    named = [text for text in (name, options.get("model")) if text is not None]
    if len(named) != 1:
        raise UsageError("Expected one model, such as featx info resnet50")
    return str(named[0])


def read_lists(inputs: Sequence[str], from_file: Path | None) -> tuple[str, ...]:
    """Read the lists of paths: standard input where an input is ``-``, and the file."""
    from featx.images import lists

    listed: tuple[str, ...] = ()
    if "-" in inputs and sys.stdin:  # which is None where it was closed
        listed = lists.read_stream(sys.stdin.buffer, "The list on standard input")
    return listed + (lists.read_file(from_file) if from_file is not None else ())

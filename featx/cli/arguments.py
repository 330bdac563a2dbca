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

from featx.cli import completion
from featx.cli.usage import MESSAGES
from featx.command_options import FilterOptions, OrderOptions, VerifyOptions, ViewOptions
from featx.declaring import Options, declaration, declared, spellings
from featx.errors import UsageError
from featx.options import GROUPS, OutputOptions


def switch(*spellings: str, help: str, **more: Any) -> Any:  # noqa: A002 - as typer has it
    """Declare an option of a command that takes no value."""
    return typer.Option(*spellings, metavar="", help=help, **more)


def written_to(metavar: str, help: str, default: str = "") -> Any:  # noqa: A002 - as typer has it
    """Declare the --output of a command that writes no run; the default is only shown."""
    panel = OutputOptions.panel
    return typer.Option(
        "--output", "-o", metavar=metavar, help=help, show_default=default or False, rich_help_panel=panel
    )


# In the order of the help.
SHOWN: tuple[type[Options], ...] = (FilterOptions, OrderOptions, ViewOptions, *GROUPS, VerifyOptions)
PANELS = list(dict.fromkeys([*(group.panel for group in SHOWN), MESSAGES]))

Json = Annotated[
    bool,
    switch("--json", help="Print one JSON document to standard output, and nothing else.", rich_help_panel=MESSAGES),
]
Debug = Annotated[bool, switch("--debug", help="Show the traceback of an error.", rich_help_panel=MESSAGES)]
Quiet = Annotated[
    bool, switch("--quiet", "-q", help="Print nothing but failures and errors.", rich_help_panel=MESSAGES)
]
Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="The model, as for --model.", autocompletion=completion.models),
]


def takes(
    *groups: type[Options],
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    bare: bool = False,
    optional: Sequence[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some groups; those that were typed are passed as its argument ``options``.

    Parameters
    ----------
    groups : types
        In the order of the help.
    only, without : sequence of str
        Names of the only options that it takes, or of those that it does not.
    bare : bool
        Whether the model may be named without --model, as an argument.
    optional : sequence of str
        Names of options that this command can do without, though they are required elsewhere.
    """
    free = [*optional, *(["model"] if bare else [])]
    chosen = {
        each.name: _parameter(group, each, needed=each.name not in free)
        for group in groups
        for each in declared(group, without=without)
        if not only or each.name in only
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            if bare:
                values["model"] = _one_model(command.__name__, values.pop("name"), values["model"])
            found = {name: _joined(values.pop(name)) for name in chosen}
            typed = [name for name in found if _is_typed(context, name) or (bare and name == "model")]
            command(options={name: found[name] for name in typed}, **values)

        name = inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Name)
        rest = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own if each.name != "options"]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [context, *sorted([*([name] if bare else []), *chosen.values(), *rest], key=_place)]
        vars(run)["__signature__"] = inspect.Signature(parameters)  # which is what typer reads
        return run

    return decorate


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _joined(value: Any) -> Any:
    return ",".join(value) if isinstance(value, list) else value


def _place(parameter: inspect.Parameter) -> int:
    """Order the panels of the help: arguments, the groups in their order, and what every command has."""
    panel = parameter.annotation.__metadata__[0].rich_help_panel
    return PANELS.index(panel) if panel in PANELS else -1


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
        autocompletion=completion.completing(each.name, about.words or about.metavar.split("|")),
        show_default=about.shown or False if default in (None, MISSING) else default is not False,
    )
    kind: Any = bool if is_flag else list[str] if about.repeated else str
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind | None if default is None else kind, given],
    )


def _one_model(command: str, *named: str | None) -> str:
    """Return the model given as an argument or with --model.

    Raises
    ------
    UsageError
        If it is named twice, or not at all.
    """
    models = [name for name in named if name is not None]
    if not models:
        raise UsageError(f"{command} needs the name of a model", f"Write, for example, featx {command} resnet50")
    if len(models) > 1:
        raise UsageError(f"Two models are named: {models[0]} and --model {models[1]}", "Name one")
    return models[0]


def read_lists(inputs: Sequence[str], from_file: Path | None) -> tuple[str, ...]:
    """Read the lists of paths: standard input where an input is ``-``, and the file."""
    from featx.images import lists

    listed: tuple[str, ...] = ()
    if "-" in inputs and sys.stdin:  # which is None where it was closed
        listed = lists.read_stream(sys.stdin.buffer, "The list on standard input")
    return listed + (lists.read_file(from_file) if from_file is not None else ())

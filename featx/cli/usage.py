# Usage: the layout of help, and the errors for a wrong command line, in place of typer's own.
"""typer's commands and groups, with help that shows no Python types, and typer's errors as featx's."""

from __future__ import annotations

from functools import partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from featx.errors import UsageError
from featx.nearest import did_you_mean

# The panel of the options that every command has.
MESSAGES = "Messages"

# What typer raises for a wrong command line: a class of click, which typer imports or has a copy of.
_WRONG_USAGE: Any = typer.BadParameter.__bases__[0]


class Command(TyperCommand):
    """A command of featx."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with --help among the options that every command has."""
        found = _adapted(super().get_params(ctx), ctx)
        for each in found:
            if "--help" in each.opts:
                vars(each)["rich_help_panel"] = MESSAGES
        return found


class Group(TyperGroup):
    """All commands of featx."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _adapted(super().get_params(ctx), ctx)


def _adapted(parameters: list[Any], ctx: Any) -> list[Any]:
    """Keep Python types out of the help: flags have none, and an argument's name says what it is.

    ``featx --help`` fits on a screen of 24 lines only if every option takes one line. Values are not converted for a
    shell that asks for completions: it is waiting, and converting would load pydantic.
    """
    for each in parameters:
        if ctx.resilient_parsing:
            vars(each)["process_value"] = lambda _, value: value
        if each.param_type_name == "argument":
            vars(each)["display_type_rich"] = lambda **_: None
            if each.required:  # typer would put it in braces
                vars(each)["_usage_display_name"] = partial(str, each.metavar)
        elif each.is_flag and each.metavar is None:
            each.metavar = ""
        if each.name in ("install_completion", "show_completion"):  # the README has them, and the screen is full
            each.hidden = True
    return parameters


def original(error: Exception) -> Exception:
    """Return the error that typer hid: an EOFError becomes its own `Abort`."""
    hidden = error.__cause__
    return hidden if isinstance(error, typer.Abort) and isinstance(hidden, Exception) else error


def wrong_usage(error: Exception) -> UsageError | None:
    """Turn typer's error for a wrong command line into one of featx's; None for any other error."""
    if not isinstance(error, _WRONG_USAGE):
        return None
    wrong: Any = error
    command, path = (wrong.ctx.info_name, wrong.ctx.command_path) if wrong.ctx else ("featx", "featx")
    if hasattr(wrong, "option_name") and hasattr(wrong, "possibilities"):
        flags = [
            text for each in wrong.ctx.command.get_params(wrong.ctx) for text in (*each.opts, *each.secondary_opts)
        ]
        hint = did_you_mean(wrong.option_name, [text for text in flags if text.startswith("--")])
        return UsageError(f"{command} has no option {wrong.option_name}", hint or f"See `{path} --help`")
    if hasattr(wrong, "param_type") and wrong.param is not None:
        is_argument = wrong.param.param_type_name == "argument"
        missing = wrong.param.metavar if is_argument else f"{wrong.param.opts[0]} {wrong.param.metavar}"
        return UsageError(f"{command} needs {missing}", wrong.ctx.command.epilog or "")
    said = wrong.format_message().strip()
    return UsageError(said.rstrip("."), "" if said.endswith("?") else f"See `{path} --help`")

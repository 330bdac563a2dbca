# The application: what all commands share, from the help without a command to the signals that stop them.
"""The application that commands are added to."""

from __future__ import annotations

import os
import secrets
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx.cli.arguments import switch
from featx.cli.usage import Command, Group
from featx.engine.stopping import Stop
from featx.version import __version__

if TYPE_CHECKING:
    from featx.requests import Job

app = typer.Typer(
    name="featx",
    help="Turn image files into the multi-scale feature maps of any timm backbone. "
    "Example: featx extract photo.jpg --model resnest26d",
    cls=Group,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

command = partial(app.command, cls=Command)

STOP = Stop()


def lock_ray(job: Job) -> None:
    """Have a Ray that is started for this command answer nobody else: it listens on all of the machine's addresses.

    In a program, that is for the program to decide, since Ray reads it only once.
    """
    if job.engine == "ray" and job.ray_address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def has_option(spelling: str) -> bool:
    """Whether the command that was typed has an option."""
    group: Any = typer.main.get_command(app)
    command = next((group.commands[text] for text in sys.argv[1:] if text in group.commands), group)
    return any(spelling in each.opts for each in command.params)


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, switch("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Print the version, or the help if no command was given."""
    if version:
        print(f"featx {__version__}")  # noqa: T201 - data, for scripts
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.get_help()  # which prints it
        raise typer.Exit(2)

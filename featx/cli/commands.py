# The commands of featx, all of them: importing this adds them to the application, in the order of its help.
"""Commands of featx."""

from __future__ import annotations

from featx.cli import model_commands, run_commands  # noqa: F401 - which add theirs
from featx.cli.application import STOP, app, has_option

__all__ = ["STOP", "app", "has_option"]

# Entry point of the command line: signals, streams, and every error as one line and an exit status.
"""What ``featx`` and ``python -m featx`` run."""

from __future__ import annotations

import gc
import os
import re
import sys
import traceback
import warnings

from featx.cli import commands, progress, streams, tables, usage
from featx.engine.stopping import InterruptedByError
from featx.errors import LESS, FeatxError, StoppedError, StuckError, UsageError, is_out_of_memory

# Thresholds of Python's cycle collector. The last, 10 by default, makes full collections rare: while torch and timm are
# imported, they find next to nothing, and take a second.
COLLECT = 700, 10, 1000

# Hints to give instead where a command lacks an option that a hint names.
OTHERWISE = {LESS: ("Use a smaller --image-size", "Close other programs, or use a machine with more memory")}


def main() -> None:
    """Run the command line, and turn every error into one line and an exit status."""
    gc.set_threshold(*COLLECT)
    streams.protect()
    commands.STOP.on_first, commands.STOP.on_second = progress.acknowledge, progress.say_stopped
    commands.STOP.listen()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with an image goes into its line
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # and download errors into one of featx's
    streams.leave(_status())


def _status() -> int:
    """Run a command, and return its exit status."""
    try:
        _require_words(sys.argv[1:])
        status = commands.app(prog_name="featx", standalone_mode=False)  # errors are ours to show
        return status if isinstance(status, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except InterruptedByError:
        return _fail(StoppedError("Stopped", signal=commands.STOP.signal))
    except Exception as error:  # noqa: BLE001 - outermost: the user gets one line, not a traceback
        return _fail(usage.wrong_usage(error) or _described(usage.original(error)))


def _require_words(arguments: list[str]) -> None:
    """Refuse an empty argument, which would be taken for the current folder, or ignored.

    Raises
    ------
    UsageError
        If there is one.
    """
    empty = next((text for text in arguments if re.fullmatch(r"(--[\w-]+=)?", text)), None)
    if empty is not None:
        what = f"{empty.removesuffix('=')} has an empty value" if empty else "One of the arguments is empty"
        raise UsageError(what, "Check the quotes, and variables that may not be set")


def _described(error: Exception) -> FeatxError:
    """Describe an error that has not been described anywhere else."""
    if isinstance(error, FeatxError):
        error.hint = _suited(error.hint)
        return error
    if is_out_of_memory(error):
        described = FeatxError("There is not enough memory", _suited(LESS))
    elif isinstance(error, StuckError):
        described = FeatxError(f"{error.item.path} {error}", "Leave that image out")
    elif isinstance(error, OSError):
        reason = error.strerror or str(error)
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        described = FeatxError(f"{where}{reason}", "Check the path and the disk")
    else:
        described = FeatxError(
            f"Unexpected {type(error).__name__}: {error}", "Run it again with --debug, and report it"
        )
    described.__cause__ = error
    return described


def _suited(hint: str) -> str:
    """Return a hint, or an alternative if the command lacks an option that it names."""
    hints = (hint, *OTHERWISE.get(hint, ()))
    return next((each for each in hints if all(map(commands.has_option, re.findall("--[a-z-]+", each)))), hint)


def _fail(error: FeatxError) -> int:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    else:
        tables.error(error)
    return error.exit_status

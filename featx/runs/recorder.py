# The recorder of a run that is going on: a line an image, and the summary that counts them.
"""What is written while a run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.errors import OutputError
from featx.paths import path_text
from featx.runs.layout import SUFFIX
from featx.runs.summary import FORMAT
from featx.values import Outcome, Stat

if TYPE_CHECKING:
    from featx.runs.lock import Hold

ROOM = "Make room or mend the disk, and run the same command to resume"


class Ledger:
    """The books of a run that is going on: a line an image, and the summary that counts them.

    Parameters
    ----------
    folder : Path
        The run's folder.
    hold : Hold
        The hold on it.
    facts : dict
        What the summary says besides state, counts and seconds.
    done, failed : int
        Images whose lines stand from earlier calls.
    to_do : int
        Images still to come.
    earlier : dict or None
        The summary that an earlier call left.
    """

    def __init__(
        self,
        folder: Path,
        hold: Hold,
        facts: dict[str, Any],
        done: int,
        failed: int,
        to_do: int,
        earlier: dict[str, Any] | None,
    ) -> None:
        self._folder, self._hold, self.facts = folder, hold, facts
        self._done, self._failed = done, failed
        self._total = done + failed + to_do
        self._before = float(earlier["seconds"]) if earlier else 0.0
        self._began = time.monotonic()
        self.summary: dict[str, Any] = {}

    @property
    def progress(self) -> str:
        """How far the run has got, in words."""
        return f"{self._done} of {self._total} done"

    def enter(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Add the lines of images whose outputs are in place; of those that failed nothing stays.

        Returns
        -------
        list of Outcome
            The same, but that an image whose line cannot be written for what is in it has failed.

        Raises
        ------
        OutputError
            If there is no room for all the lines. Then as many are added as find room, and outputs without a line are
            removed: nobody would know them, and their room may be what the other lines need.
        """
        entries = [_line_of(outcome) for outcome in outcomes]
        entered, failure = len(entries), None
        for before, (outcome, _) in zip(outcomes, entries, strict=True):
            if not outcome.done:
                self._remove(before.output or outcome.item.alias)
        while entered:
            try:
                self._hold.append(b"".join(line for _, line in entries[:entered]))
                break
            except OSError as error:
                failure = failure or error
                entered -= 1
                self._remove(entries[entered][0].output)
        self._done += sum(outcome.done for outcome, _ in entries[:entered])
        self._failed += sum(not outcome.done for outcome, _ in entries[:entered])
        if failure:
            raise OutputError(f"The manifest in {self._folder} cannot be written: {failure.strerror}", ROOM)
        return [outcome for outcome, _ in entries]

    def _remove(self, output: str) -> None:
        if output.endswith(SUFFIX):  # rows in a file that others share are cleared away by whoever writes there next
            with suppress(OSError, OutputError):  # what leads elsewhere is none of ours
                self._hold.remove(output)

    def save(self, state: str) -> None:
        """Replace the summary: ``running``, ``stopped`` or ``done``."""
        self.summary = {
            "featx_format": FORMAT,
            "state": state,
            **self.facts,
            "counts": {"done": self._done, "failed": self._failed, "total": self._total},
            "seconds": round(self._before + time.monotonic() - self._began, 3),
        }
        try:
            self._hold.save(self.summary)
        except OSError as error:
            raise OutputError(f"The summary in {self._folder} cannot be written: {error.strerror}", ROOM) from error


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Lay out the line of one image."""
    line: dict[str, Any] = {
        "key": outcome.item.key,
        "path": path_text(outcome.item.path),
        "status": "done" if outcome.done else "failed",
        "input": _stat_to_json(outcome.stat) if outcome.stat else None,
    }
    if outcome.done:
        line["size"] = list(outcome.size or ())
        line["frame"] = outcome.frame
        line["output"] = outcome.output
        line["bytes"] = outcome.bytes
        line["sha256"] = outcome.sha256
    else:
        line["stage"], line["error"] = outcome.stage, outcome.error
    if outcome.messages:
        line["messages"] = outcome.messages
    return line


def _line_of(outcome: Outcome) -> tuple[Outcome, bytes]:
    """Lay out an image's line; one that cannot be written is a failure of the image, not of the run."""
    try:
        return outcome, json.dumps(outcome_to_json(outcome), separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        return _line_of(Outcome(outcome.item, outcome.stat, stage="write", error=f"no line can be made: {error}"))


def _stat_to_json(stat: Stat) -> dict[str, Any]:
    value: dict[str, Any] = {"bytes": stat.bytes, "mtime_ns": stat.mtime_ns}
    return {**value, "sha256": stat.sha256} if stat.sha256 else value

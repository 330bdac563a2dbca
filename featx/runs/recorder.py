# The recorder of a running extraction: one line per image, and the summary that counts them.
"""What is written while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.errors import ROOM, OutputError
from featx.runs import formats, manifest
from featx.runs.summary import FORMAT
from featx.values import Outcome

if TYPE_CHECKING:
    from featx.runs.lock import LockedFolder


class Recorder:
    """Writes the manifest and the summary of a running extraction: one line per image, and the counts.

    Parameters
    ----------
    folder : Path
        The run's folder.
    locked : LockedFolder
        The same, locked.
    facts : dict
        What the summary says in addition to state, counts and seconds.
    done, failed, size : int
        Images whose lines are kept from earlier calls, and the bytes of their outputs.
    to_do : int
        Images still to come.
    earlier : dict or None
        The summary that an earlier call left.
    elsewhere : int
        Images of other shards.
    numbers : mapping or None
        Of a shard's images, by their paths; see `featx.runs.manifest.encoded`.
    """

    def __init__(
        self,
        folder: Path,
        locked: LockedFolder,
        facts: dict[str, Any],
        done: int,
        failed: int,
        size: int,
        to_do: int,
        earlier: dict[str, Any] | None,
        elsewhere: int = 0,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        self._folder, self._locked, self.facts = folder, locked, facts
        self._done, self._failed, self._bytes = done, failed, size
        self._total, self._elsewhere, self._numbers = done + failed + to_do, elsewhere, numbers or {}
        self._call = {"done": 0, "failed": 0, "bytes": 0}
        self._before = float(earlier["seconds"]) if earlier else 0.0
        self._began = time.monotonic()
        self.summary: dict[str, Any] = {}

    @property
    def progress(self) -> str:
        """Progress of the run, such as ``3 of 5 done``."""
        return f"{self._done + self._call['done']} of {self._total} done"

    def enter(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Add the lines of images whose outputs are in place; of those that failed nothing is left.

        Returns
        -------
        list of Outcome
            The same, but that an image whose line cannot be written for what is in it has failed.

        Raises
        ------
        OutputError
            If the disk has no room for all the lines. Then as many are added as fit, and outputs without a line are
            removed: nothing would refer to them, and the other lines may need their room.
        """
        entries = [_line_of(outcome, self._numbers.get(outcome.item.path)) for outcome in outcomes]
        entered, failure = len(entries), None
        for before, (outcome, _) in zip(outcomes, entries, strict=True):
            if not outcome.done:
                self._remove(before.output or outcome.item.alias)
        while entered:
            try:
                self._locked.append(b"".join(line for _, line in entries[:entered]))
                break
            except OSError as error:
                failure = failure or error
                entered -= 1
                self._remove(entries[entered][0].output)
        for outcome, _ in entries[:entered]:
            self._call["done" if outcome.done else "failed"] += 1
            self._call["bytes"] += outcome.bytes
        if failure:
            raise OutputError(f"The manifest in {self._folder} cannot be written: {failure.strerror}", ROOM)
        return [outcome for outcome, _ in entries]

    def _remove(self, output: str) -> None:
        if output.endswith(formats.OF_ONE_IMAGE):  # rows of shared files are removed by the next writer
            with suppress(OSError, OutputError):  # what leads elsewhere is not ours
                self._locked.remove(output)

    def save(self, state: str) -> None:
        """Replace the summary: ``running``, ``stopped`` or ``done``."""
        seconds, call = time.monotonic() - self._began, self._call
        summary = {
            "featx_format": FORMAT,
            "state": state,
            **self.facts,
            "counts": {
                "done": self._done + call["done"],
                "failed": self._failed + call["failed"],
                "total": self._total + self._elsewhere,
            },
            "bytes": self._bytes + call["bytes"],
            "seconds": round(self._before + seconds, 3),
            "call": {**call, "seconds": round(seconds, 3)},
        }
        try:
            self.summary = self._locked.save(summary)
        except OSError as error:
            raise OutputError(f"The summary in {self._folder} cannot be written: {error.strerror}", ROOM) from error


def _line_of(outcome: Outcome, number: int | None) -> tuple[Outcome, bytes]:
    """Lay out an image's line; one that cannot be written is a failure of the image, not of the run."""
    try:
        return outcome, manifest.encoded(outcome, number)
    except (TypeError, ValueError) as error:
        failed = Outcome(outcome.item, outcome.stat, stage="write", error=f"no line can be made: {error}")
        return _line_of(failed, number)

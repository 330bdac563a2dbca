# The execution of a run: processes its images until they are done or something stops it.
"""Processing the images of a call, and recording each in the run."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featx.engine.events import Listener
from featx.engine.resources import Workers
from featx.engine.stopping import InterruptedByError, Stop
from featx.errors import OutputError, StoppedError, StuckError
from featx.images import locators
from featx.runs import formats
from featx.runs.recorder import Recorder
from featx.values import Item, Note, Outcome

if TYPE_CHECKING:
    from featx.engine.computing import Computer
    from featx.engine.isolation import Reader
    from featx.engine.room import Room


@dataclass(frozen=True, slots=True)
class Execution:
    """What works on the images, and what may stop it."""

    computers: list[Computer]
    writer: formats.Writer
    workers: Workers
    reader: Reader
    stop: Stop
    notes: deque[str]
    unfinished: Path
    suspects: dict[bytes, bytes]
    room: Callable[[], Room | None]

    def outcomes(self, items: list[Item]) -> Generator[list[Outcome]]:
        """Have the pipeline process items; see `featx.engine.pipeline.run`."""
        from featx.engine import pipeline

        return pipeline.run(
            self.computers,
            locators.in_order(items),
            self.writer,
            self.workers,
            self.reader,
            self.stop.asked,
            self.room(),
        )

    def passes(self) -> int:
        """Count the forward passes that are under way."""
        return sum(computer.passes for computer in self.computers)

    def clear(self, outcomes: Sequence[Outcome]) -> None:
        """Clear images of suspicion, now that they have their lines."""
        from featx.runs.suspects import mark_of, save_suspects

        cleared = {mark_of(outcome.item) for outcome in outcomes} & self.suspects.keys() if self.suspects else ()
        for mark in cleared:
            del self.suspects[mark]
        if cleared:
            save_suspects(self.unfinished, self.suspects)


def execute(items: list[Item], execution: Execution, recorder: Recorder, listener: Listener) -> list[Outcome]:
    """Have the pipeline process the items, and record the outcome of each; returns those that failed."""
    from featx.engine.work import stat_within

    left = {item.key: item for item in items}
    failures = []

    def enter(group: Sequence[Outcome]) -> None:
        entered = recorder.enter(group)
        execution.clear(entered)
        for outcome in entered:
            del left[outcome.item.key]
            listener(outcome)
            if not outcome.done:
                failures.append(outcome)

    while left and not execution.stop.asked():
        outcomes = execution.outcomes(list(left.values()))
        try:
            with closing(outcomes), execution.stop.gently(execution.passes):
                for group in outcomes:
                    while execution.notes:
                        listener(Note(execution.notes.popleft()))
                    enter(group)
        except StuckError as stuck:
            if stuck.item.key in left:
                enter([Outcome(stuck.item, stat_within(stuck.item.path), stage="decode", error=str(stuck))])
            listener(Note("An image hung: images are now decoded in separate processes"))
            execution.reader.give_up()
    if left:
        raise InterruptedByError
    return failures


@contextmanager
def recording(recorder: Recorder, execution: Execution) -> Iterator[None]:
    """Leave manifest and summary consistent, however the work ends."""
    try:
        yield
    except BaseException as error:
        with suppress(OutputError):  # the disk may be the problem; the run is valid without it
            recorder.save("stopped")
        if isinstance(error, KeyboardInterrupt | InterruptedByError):
            raise StoppedError(
                f"Stopped: {recorder.progress}",
                "Run the same command to resume",
                execution.stop.signal or signal.SIGINT,
            ) from error
        if isinstance(error, OutputError):
            raise type(error)(f"{error.message} ({recorder.progress})", error.hint) from error
        raise
    finally:
        execution.reader.close()

# The execution of a run: an engine processes its images, until they are done or something stops it.
"""Processing the images of a call, and recording each in the run."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featx.engine.events import Listener
from featx.engine.stopping import InterruptedByError, Stop
from featx.errors import OutputError, StoppedError
from featx.runs.recorder import Recorder
from featx.values import Item, Note, Outcome

if TYPE_CHECKING:
    from featx.engine.boxes import Boxes
    from featx.engine.setting import Setting
    from featx.runs import formats

# Where each engine is.
ENGINES = {"local": "featx.engine.local:LocalEngine", "ray": "featx.engine.ray:RayEngine"}


@dataclass(frozen=True, slots=True)
class Callers:
    """What a caller of `featx.engine.extract.run` passed in: whom to tell, when to stop, and what libraries wrote."""

    listener: Listener
    stop: Stop
    captured: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine puts outputs, and what it has to know of earlier calls.

    Attributes
    ----------
    folder, unfinished : Path
        The run's folder, and the one inside it for what is not complete yet.
    writer : Writer
        Writes into them.
    suspected : set of bytes
        Marks of images to process that an earlier call ended with.
    apart : frozenset of bytes
        Marks of images that are read in isolation.
    """

    folder: Path
    unfinished: Path
    writer: formats.Writer
    suspected: set[bytes] = field(default_factory=set)
    apart: frozenset[bytes] = frozenset()


class Engine(Protocol):
    """What processes the images of a call; made before anything in the run's folder is touched.

    Attributes
    ----------
    setting : Setting
        How the call runs; replaced, before images are processed, by what a rehearsal has found out.
    """

    setting: Setting

    def __init__(self, setting: Setting, boxes: Boxes | None, callers: Callers, notes: deque[str]) -> None: ...

    def processed(self, items: list[Item], place: Place) -> Generator[list[Outcome]]:
        """Process images, and yield their outcomes, group by group, once their outputs are in place.

        Ends early, without an error, where a signal stopped it. An image that hangs or crashes fails, and the others go
        on.
        """
        ...

    @property
    def largest_pass(self) -> int:
        """The most images in one pass of the size that took the fewest."""
        ...

    @property
    def deviation(self) -> dict[str, float] | None:
        """By how much maps of tiles differ from those of one pass, by level; None where none were put together."""
        ...

    def close(self) -> None:
        """End what the engine has begun."""
        ...


def engine_of(setting: Setting, boxes: Boxes | None, callers: Callers, notes: deque[str]) -> Engine:
    """Make the engine of a job."""
    module, _, name = ENGINES[setting.job.engine].partition(":")
    made: Engine = getattr(import_module(module), name)(setting, boxes, callers, notes)
    return made


@dataclass(frozen=True, slots=True)
class Execution:
    """An engine at work on the images of a call.

    Attributes
    ----------
    engine : Engine
        Processes them.
    place : Place
        Where their outputs go.
    recorder : Recorder
        Records them.
    suspects : dict
        Images that earlier calls ended with: their marks and paths.
    notes : deque of str
        What the engine has to say.
    callers : Callers
        Whom to tell, and when to stop.
    """

    engine: Engine
    place: Place
    recorder: Recorder
    suspects: dict[bytes, bytes]
    notes: deque[str]
    callers: Callers

    def run(self, items: list[Item]) -> list[Outcome]:
        """Have the images processed, and record the outcome of each; returns those that failed."""
        failures, left = [], len(items)
        with closing(self.engine.processed(items, self.place)) as groups:
            for group in groups:
                self._say_notes()
                entered = self.recorder.enter(group)
                self._clear(entered)
                left -= len(entered)
                for outcome in entered:
                    self.callers.listener(outcome)
                    if not outcome.done:
                        failures.append(outcome)
        self._say_notes()
        if left:
            raise InterruptedByError
        return failures

    def _say_notes(self) -> None:
        while self.notes:
            self.callers.listener(Note(self.notes.popleft()))

    def _clear(self, outcomes: Sequence[Outcome]) -> None:
        """Clear images of suspicion, now that they have their lines."""
        from featx.runs.suspects import mark_of, save_suspects

        cleared = {mark_of(outcome.item) for outcome in outcomes} & self.suspects.keys() if self.suspects else ()
        for mark in cleared:
            del self.suspects[mark]
        if cleared:
            save_suspects(self.place.unfinished, self.suspects)


@contextmanager
def recording(recorder: Recorder, stop: Stop) -> Iterator[None]:
    """Leave manifest and summary consistent, however the work ends."""
    try:
        yield
    except BaseException as error:
        with suppress(OutputError):  # the disk may be the problem; the run is valid without it
            recorder.save("stopped")
        if isinstance(error, KeyboardInterrupt | InterruptedByError):
            raise StoppedError(
                f"Stopped: {recorder.progress}", "Run the same command to resume", stop.signal or signal.SIGINT
            ) from error
        if isinstance(error, OutputError):
            raise type(error)(f"{error.message} ({recorder.progress})", error.hint) from error
        raise

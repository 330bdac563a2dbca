# Progress: what the user sees during a run, on a terminal and without one.
"""Listeners that write to standard error."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from featx.cli.descriptions import CONFIGURATIONS, size_of
from featx.cli.rates import Rates
from featx.cli.reports import forecast_lines
from featx.cli.streams import captured_libraries, interject, stderr
from featx.engine.events import Checked, Event, Foreseen, Listener, Phase, Planned
from featx.text import count_of, images, printable
from featx.values import Note, Outcome, SearchListener, Surveyed

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from featx.cli.streams import CapturedOutput


# Seconds between lines of progress when there is no terminal to draw on.
LINE_EVERY = 10.0


# How lines of Ray's own log begin, which it also keeps in a file.
OF_RAY = re.compile(r"\[[0-9-]+ [0-9:,]+ [A-Z] [0-9]+ [0-9]+\] \w+\.cc:[0-9]+: ")


# Characters of libraries' messages that are remembered while a run goes on, and lines of the rest that are shown.
REMEMBERED, WARNINGS = 100_000, 5


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show a spinner while something slow runs, on a terminal."""
    with stderr().status(text):
        yield


@contextmanager
def searching() -> Iterator[SearchListener]:
    """Give a listener for model look-ups: notes are printed, models that have to be measured are counted."""
    console = stderr()
    last = time.monotonic()
    status = console.status("")  # which is started by the first model that has to be measured

    def handle(event: Note | Surveyed) -> None:
        nonlocal last
        if isinstance(event, Note):
            console.print(event.text, markup=False, highlight=False, soft_wrap=True)
            return
        text = f"{event.done} of {event.total} models measured"
        if console.is_terminal:
            status.update(text)
            status.start()
        elif time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            console.print(text, soft_wrap=True)

    try:
        yield handle
    finally:
        status.stop()


def acknowledge(passes: int) -> None:
    """Acknowledge a signal at once, and say what is still being finished."""
    work = f"Finishing {count_of(passes, 'batch', 'batches')}" if passes else "Stopping"
    interject(f"{work}; press Ctrl-C again to stop now")


def say_stopped() -> None:
    """Say that a second signal ended the process."""
    interject("Stopped at once: images that were not finished are computed again by the same command")


@contextmanager
def progress(*, quiet: bool, libraries: CapturedOutput, forecasts: bool = True) -> Iterator[Listener]:
    """Yield a listener that shows events as they come: a bar on a terminal, plain lines elsewhere.

    Whatever libraries wrote meanwhile that is not recorded with an image is shown at the end.
    """
    console = stderr()
    recorded = ""

    def handle(event: Event) -> None:
        nonlocal recorded
        if isinstance(event, Outcome) and event.messages:
            recorded = f"{recorded}\n{event.messages}"[-REMEMBERED:]
        if forecasts or not isinstance(event, Foreseen):
            shown.handle(event)

    try:
        with _Bar(console) if console.is_terminal and not quiet else _Lines(console, quiet=quiet) as shown:
            yield handle
    finally:
        written = [] if quiet else libraries.lines()
        unrecorded = [line for line in written if line not in recorded and not OF_RAY.match(line)]
        for line in unrecorded[:WARNINGS]:
            console.print(f"library warning: {printable(line)}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def extracting(*, quiet: bool) -> Iterator[Listener]:
    """Show the progress of an extraction that another command begins with."""
    with captured_libraries() as libraries, progress(quiet=quiet, libraries=libraries, forecasts=False) as listener:
        yield listener


@contextmanager
def counting(text: str, *, quiet: bool) -> Iterator[Callable[[Checked], None]]:
    """Give a listener that counts what is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=stderr(), transient=True, disable=quiet or not stderr().is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda event: bar.update(task, completed=event.done, total=event.total)


class _Lines:
    """Progress without a terminal: what is planned, a line every ten seconds, and the failures."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._rates = Rates()
        self._last = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to clean up."""

    def handle(self, event: Event) -> None:
        if isinstance(event, Planned):
            self._rates = Rates(event.to_do, event.summary["recipe"]["batch_size"])
            self._say(_opening(event))
            for outcome in event.failures if self._quiet else ():  # otherwise the report counts them
                self._print(_failure(outcome, "earlier and unchanged"))
        elif isinstance(event, Outcome):
            self._rates.enter(event)
            if not event.done:
                self._print(_failure(event))
            if time.monotonic() - self._last >= LINE_EVERY:
                self._last = time.monotonic()
                self._say(self._rates.line())
        elif isinstance(event, Foreseen):
            for line in forecast_lines(event.forecast):
                self._say(line)
        elif isinstance(event, Note):
            self._say(event.text)

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._print(printable(text))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Bar:
    """Progress on a terminal: what is being prepared, then a bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rates = Rates()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._waiting = console.status("")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.stop()
        if self._progress:
            self._progress.stop()

    def handle(self, event: Event) -> None:
        if isinstance(event, Planned):
            self._begin(event)
        elif isinstance(event, Phase):
            self._waiting.update(f"{printable(event.name)} …")
            self._waiting.start()
        elif isinstance(event, Foreseen):
            for line in forecast_lines(event.forecast):
                self._console.print(printable(line), markup=False, highlight=False, style="dim")
        elif isinstance(event, Note):
            self._console.print(printable(event.text), markup=False, highlight=False)
        elif self._progress and self._task is not None:
            self._rates.enter(event)
            if not event.done:
                self._fail(_failure(event))
            self._progress.update(self._task, advance=1, rates=self._rates.text(), left=self._rates.left())

    def _fail(self, text: str) -> None:
        self._console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    def _begin(self, plan: Planned) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._waiting.stop()
        self._console.print(printable(_opening(plan)), markup=False, highlight=False)
        if not plan.to_do:
            return
        self._rates = Rates(plan.to_do, plan.summary["recipe"]["batch_size"])
        texts = (TextColumn("{task.fields[rates]}"), TextColumn("{task.fields[left]}"))
        columns = (BarColumn(bar_width=None), MofNCompleteColumn(), *texts)
        self._progress = Progress(*columns, console=self._console, transient=True, expand=True)
        self._task = self._progress.add_task("", total=plan.to_do, rates="", left="")
        self._progress.start()


def _opening(plan: Planned) -> str:
    earlier = f"; {plan.done} done before" if plan.done else ""
    failed = f", {len(plan.failures)} failed before (--retry-failed)" if plan.failures else ""
    work = f"{images(plan.to_do)} to compute" if plan.to_do else "nothing to compute"
    feed = plan.summary["input"]
    at = size_of(feed) if feed["height"] is None else f"{size_of(feed)}, {CONFIGURATIONS[feed['configuration']]}"
    return f"{plan.summary['model']} at {at}: {work}{earlier}{failed}"


def _failure(outcome: Outcome, when: str = "") -> str:
    messages = f" ({outcome.messages})" if outcome.messages else ""
    return printable(
        f"failed{f' {when}' if when else ''}: {outcome.item.key}: {outcome.stage}: {outcome.error}{messages}"
    )

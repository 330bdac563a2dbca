# Events: what an engine reports to its listener.
"""Events of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.values import Note, Outcome

if TYPE_CHECKING:
    from featx.engine.forecast import Forecast


@dataclass(frozen=True, slots=True)
class Phase:
    """Something slow begins before the first image: what it is, such as "loading the weights"."""

    name: str


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The forecast of the run is known.

    Attributes
    ----------
    forecast : featx.engine.forecast.Forecast
        Images, bytes and memory.
    """

    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Planned:
    """Work is about to begin.

    Attributes
    ----------
    summary : dict
        The run's summary as it stands.
    output : Path or str
        The run's folder, or its URL.
    to_do, done : int
        Images to compute now; images that an earlier call finished.
    failures : tuple of Outcome
        Images that an earlier call failed on, and that are unchanged since.
    """

    summary: dict[str, Any]
    output: Path | str
    to_do: int
    done: int
    failures: tuple[Outcome, ...]


Event = Note | Phase | Foreseen | Planned | Outcome


Listener = Callable[[Event], None]


def naming(listener: Listener, folder: Path, url: str) -> Listener:
    """Have events name a URL instead of the folder that stands for it."""

    def listen(event: Event) -> None:
        if isinstance(event, Note):
            event = replace(event, text=event.text.replace(str(folder), url))
        elif isinstance(event, Planned):
            event = replace(event, output=url)
        listener(event)

    return listen


@dataclass(frozen=True, slots=True)
class Checked:
    """One of a run's outputs, or photos, was looked at: `done` of `total`."""

    done: int
    total: int

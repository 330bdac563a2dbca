# A worker of the Ray engine: the local pipeline in a process of its own, on images that come in blocks.
"""What runs where the processors and GPUs are."""

from __future__ import annotations

import os
import pickle
import stat
import warnings
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import numpy as np

from featx.engine.cluster import Layout
from featx.engine.isolation import Reader
from featx.engine.local import processed
from featx.engine.resources import STREAMS, Workers, spread, use_backend
from featx.engine.room import shared
from featx.engine.stopping import Stop
from featx.errors import ROOM, FeatxError, OutputError
from featx.models.devices import choose_devices
from featx.models.pyramid import build, draw_up
from featx.requests import Job
from featx.runs import formats
from featx.runs.basis import read
from featx.runs.layout import OF_WORKER
from featx.runs.recipe import differences, recipe_of
from featx.text import images
from featx.values import Item, Outcome

if TYPE_CHECKING:
    from featx.engine.boxes import Boxes
    from featx.engine.computing import Computer
    from featx.models.pyramid import Blueprint

# The file that asks the workers to stop, among what is unfinished.
STOPPED = "stopped"

# How often a block is begun: the second time in isolation, if it was an image's fault.
ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Assignment:
    """What all workers of a run are told.

    Attributes
    ----------
    job : Job
        With whole paths, and without its images.
    facts : dict
        Of the run's summary: its recipe and weights, which are to be those of the worker.
    folder, unfinished : Path
        The run's folder, and the one inside it for what is not complete yet.
    images : int
        How many images all workers have together.
    device : str
        Kind of device.
    layout : Layout
        What each worker has of it.
    boxes : Boxes or None
        The boxes of the images.
    apart : frozenset of bytes
        Marks of images that are read in isolation.
    """

    job: Job
    facts: dict[str, Any]
    folder: Path
    unfinished: Path
    images: int
    device: str
    layout: Layout
    boxes: Boxes | None
    apart: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says of a block of images.

    Attributes
    ----------
    number : int
        Of the block.
    outcomes : list of Outcome
        Of the images whose outputs are in place, and of those that failed.
    notes : tuple of str
        What it has to say.
    largest_pass : int
        The most images in one pass of the size that took the fewest so far.
    error : FeatxError or None
        What ends the run.
    """

    number: int
    outcomes: list[Outcome]
    notes: tuple[str, ...] = ()
    largest_pass: int = 0
    error: FeatxError | None = None


class Block(NamedTuple):
    """Images that one worker processes at a time."""

    number: int
    items: list[Item]


class Equipment(NamedTuple):
    """A loaded model, and what brings images to it and arrays to the disk."""

    blueprint: Blueprint
    computers: list[Computer]
    workers: Workers
    reader: Reader
    writer: formats.Writer


class Worker:
    """A callable class for Ray Data: takes blocks of images, and answers with their outcomes.

    Its temporary files are in a folder of its own. Whoever removes that keeps it from putting anything in place.
    """

    def __init__(self, assignment: Assignment) -> None:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with an image goes into its line
        self._assignment = assignment
        self._folder = assignment.unfinished / f"{uuid4().hex}{OF_WORKER}"
        self._notes: deque[str] = deque()
        self._equipment: Equipment | None = None
        self._stop = _StopFile(assignment.unfinished / STOPPED)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Process one block; errors that end the run are in the answer, since Ray would try the others again."""
        blocks = [pickle.loads(block) for block in batch["block"]]  # noqa: S301 - the engine's own
        answers = [self._answer(block) for block in blocks]
        return {"answer": np.array([pickle.dumps(answer) for answer in answers], dtype=object)}

    def _answer(self, block: Block) -> Answer:
        items, outcomes = block.items, list[Outcome]()
        error: FeatxError | None = None
        smallest = 0
        try:
            if self._equipment is None:
                self._require_folder()
            if not self._stop.asked():
                kit = self._equipment = self._equipment or self._equipped()
                if self._begin(block) > 1 and not kit.reader.isolate:
                    self._notes.append("A worker ended without warning: images are now decoded in separate processes")
                    kit.reader.isolate = True
                room = partial(self._room, kit)
                every = (items, kit.computers, kit.writer, kit.workers, kit.reader, room, self._stop, self._notes)
                for group in processed(*every):
                    outcomes += group
                smallest = min(computer.smallest for computer in kit.computers)
        except FeatxError as found:
            error = found
        except OSError as found:
            error = OutputError(f"Outputs cannot be written: {found.strerror or found}", ROOM)
        notes = tuple(self._notes)
        self._notes.clear()
        return Answer(block.number, outcomes, notes, smallest, error)

    def _require_folder(self) -> None:
        """Refuse to work where the run's folder cannot be seen."""
        if not self._assignment.unfinished.is_dir():
            raise OutputError(
                f"The worker on {os.uname().nodename} does not see {self._assignment.folder}",
                "Choose a folder with --output that all nodes share",
            )

    def _begin(self, block: Block) -> int:
        """Count how often a block was begun: its images, or the memory that they take, may end worker after worker.

        Raises
        ------
        FeatxError
            If that has happened too often.
        """
        with mark_of(self._assignment.unfinished, block.number).open("ab") as file:
            file.write(b".")
            begun = file.tell()
        if begun > ATTEMPTS:
            first = block.items[0].key
            raise FeatxError(
                f"A worker ended without warning {ATTEMPTS} times at the same {images(len(block.items))}, from {first}",
                "It may need more memory: use fewer --ray-workers, or a smaller --batch-size",
            )
        return begun

    def _equipped(self) -> Equipment:
        """Load the model, and make sure that it gives the numbers of the run."""
        told = self._assignment
        job, layout = told.job, told.layout
        blueprint = draw_up(job.request)
        devices = choose_devices("all" if told.device == "cuda" else told.device)
        pyramids = [build(blueprint, device) for device in devices]
        expected = told.facts["recipe"]
        basis = read(job.basis) if job.basis else None
        computers, workers = spread(pyramids, job, told.images, expected, self._notes.append, told.boxes, basis)
        digests = told.boxes.digest if told.boxes else None, basis.sha256 if basis else None
        recipe = recipe_of(pyramids[0], job, workers.batch_size, workers.threads, *digests)
        if changes := differences(told.facts, recipe, pyramids[0].architecture):
            raise FeatxError(
                f"The worker on {os.uname().nodename} has another recipe ({', '.join(changes.values())})",
                "Give all nodes the same libraries and weights",
            )
        passes = STREAMS * len(pyramids) if layout.gpus else max(1, layout.cpus // workers.threads)
        workers = replace(workers, forwards=job.workers or passes, readers=layout.cpus, writers=layout.cpus)
        use_backend(computers, workers)
        self._folder.mkdir()
        reader = Reader(
            pyramids[0].preprocessor,
            job.limits,
            self._folder,
            told.apart,
            isolate=job.isolate,
            hashed=job.hash_inputs,
            captured=_captured,
        )
        writer = formats.writer(job.format, told.folder, self._folder, computers[0].fields)
        return Equipment(blueprint, computers, workers, reader, writer)

    def _room(self, kit: Equipment) -> Any:
        """Measure the memory that photos share; None where all have one size."""
        share = 1 / self._assignment.layout.on_one_node
        device = kit.computers[0].pyramid.device
        return shared(self._assignment.job, kit.blueprint, kit.workers.batch_size, device, share)


def mark_of(unfinished: Path, number: int | str) -> Path:
    """Return the file that says how often a block was begun; it goes when the answer has come."""
    return unfinished / f"block-{number}"


class _StopFile(Stop):
    """A request to stop that all workers see."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def asked(self) -> bool:
        """Whether there is the file, or no longer the folder that it would be in."""
        return self._file.exists() or not self._file.parent.exists()


def _captured() -> int:
    """Count what libraries have written to standard error, which Ray keeps in a file."""
    found = os.fstat(2)
    return found.st_size if stat.S_ISREG(found.st_mode) else 0

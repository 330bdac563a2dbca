# Inputs of view: a run and some of its photos, or photos, which are extracted to a temporary run first.
"""From the paths on a command line to a run and the photos to show."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from featx import files
from featx.command_options import ViewOptions
from featx.engine.events import Listener
from featx.errors import FeatxError, UsageError
from featx.paths import is_url
from featx.requests import Job
from featx.runs.layout import SUMMARY
from featx.runs.reading import Run, open_run
from featx.values import Note


@contextmanager
def opened(
    paths: Sequence[str], options: Mapping[str, Any], wanted: ViewOptions, listener: Listener
) -> Iterator[tuple[Run, list[str]]]:
    """Open a run and name some of its photos, or extract photos to a run that is removed in the end.

    Parameters
    ----------
    paths : sequence of str
        A run's folder, then any of its photos; or images, folders and patterns.
    options : dict
        Options of ``featx extract``, for photos only: ``model``, and those that go with it.
    wanted : ViewOptions
        What is shown; no more photos are extracted than that.
    listener : callable
        Called with each event of the extraction.

    Raises
    ------
    UsageError
        If photos come without a model, or a run with one.
    FeatxError
        If the photos cannot be extracted, none of them can be read, or `featx.engine.extract.run` fails otherwise.
    """
    if (Path(paths[0]) / SUMMARY).exists() or (is_url(paths[0]) and "model" not in options):
        if options:
            name = f"--{next(iter(options)).replace('_', '-')}"
            raise UsageError(f"{name} is for photos, but {paths[0]} is a run", "Leave it out")
        yield open_run(paths[0]), list(paths[1:])
    elif "model" not in options:
        if not os.path.lexists(paths[0]):
            raise UsageError(f"There is no run or photo {paths[0]}", "Check the path")
        raise UsageError(f"{paths[0]} is not a run, and photos need a model", "Add a model, such as --model resnet50")
    else:
        with files.temporary_folder() as folder:
            job = Job(inputs=tuple(paths), output=folder / "run", attention=wanted.attention, **options)
            yield _extracted(job, wanted.most, listener), []


def _extracted(job: Job, most: int, listener: Listener) -> Run:
    from featx.engine.extract import run
    from featx.images import sources

    items = sources.find(job.inputs).items
    if len(items) > most:
        listener(Note(f"only the first {most} of {len(items)} photos; raise --max-photos for more"))
        job = replace(job, inputs=(), listed=tuple(item.path for item in items[:most]))
    extracted = open_run(run(job, listener).output)
    if not len(extracted):
        raise FeatxError("None of the photos could be read", "Give other photos")
    return extracted

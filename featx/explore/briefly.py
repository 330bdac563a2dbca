# Briefly: a run of a few photos that lasts as long as it is looked at; or the run, and its photos, that were named.
"""From what a person wants to see to a run and the keys of its photos."""

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
from featx.errors import UsageError
from featx.paths import refuse_url
from featx.requests import Job
from featx.runs.layout import SUMMARY
from featx.runs.reading import Run, open_run
from featx.values import Note


@contextmanager
def opened(
    paths: Sequence[str], options: Mapping[str, Any], wanted: ViewOptions, listener: Listener
) -> Iterator[tuple[Run, list[str]]]:
    """Open what is to be seen: a run, and the keys of its photos that follow it; or photos, which are extracted first.

    Parameters
    ----------
    paths : sequence of str
        A run's folder, and keys of its photos; or images, folders and patterns.
    options : dict
        Options of ``featx extract`` for photos: ``model``, and those that go with it.
    wanted : ViewOptions
        What is to be seen of them; of more photos than are shown, only the first ones are extracted.
    listener : callable
        Called with each event of the extraction.

    Raises
    ------
    UsageError
        If photos come without a model, or a run with one.
    FeatxError
        If they cannot be extracted; as `featx.engine.extract.run` does.
    """
    if (Path(paths[0]) / SUMMARY).exists():
        if options:
            name = f"--{next(iter(options)).replace('_', '-')}"
            raise UsageError(f"{name} is for photos, and {paths[0]} is a run that was made already", "Leave it out")
        yield open_run(paths[0]), list(paths[1:])
    elif "model" not in options:
        refuse_url(paths[0])
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
        listener(Note(f"the first {most} of {len(items)} photos; --max-photos takes more"))
        job = replace(job, inputs=(), listed=tuple(item.path for item in items[:most]))
    return open_run(run(job, listener).output)

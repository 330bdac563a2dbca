#!/usr/bin/env python3
# The catalogue's making: every architecture of the installed timm, measured on the meta device, into featx/models/data.
"""Measure the models of the installed timm, and write ``featx/models/data/catalogue.json``."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from dataclasses import replace

import torch

from featx.engine import resources
from featx.models import catalogue
from featx.models.catalogue import Entry
from featx.models.timm import survey

PARTIAL = catalogue.PACKAGED.with_suffix(".partial.json")


def main() -> None:
    """Measure with one process a core; what is not complete goes into a file beside, where ``--missing`` finds it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--missing", action="store_true", help="keep the entries that are there, and add the others")
    parser.add_argument("--levels", action="store_true", help="keep all of the entries that are there but their levels")
    parser.add_argument("--jobs", type=int, default=resources.cores(), help="processes")
    options = parser.parse_args()
    book = survey.empty_catalogue()
    earlier = catalogue.read(PARTIAL) or catalogue.read()
    if (
        (options.missing or options.levels)
        and earlier
        and (earlier.source, earlier.version) == (book.source, book.version)
    ):
        book.entries.update(earlier.entries)
    names = [name for name in book.names if options.levels or name not in book.entries]
    tasks = [(name, book.entries.get(name)) for name in names]
    failures = []
    try:
        with multiprocessing.get_context("fork").Pool(options.jobs, torch.set_num_threads, (1,)) as pool:
            for done, (name, entry) in enumerate(pool.imap_unordered(measure, tasks), 1):
                if isinstance(entry, str):
                    failures.append(f"{name}: {entry}")
                else:
                    book.entries[name] = entry
                print(f"\r{done} of {len(names)} {name:60}", end="", file=sys.stderr, flush=True)
    finally:
        entries = {name: book.entries[name] for name in book.names if name in book.entries}
        complete = len(entries) == len(book.names)
        path = catalogue.PACKAGED if complete else PARTIAL
        catalogue.write(replace(book, entries=entries), path)
        if complete:
            PARTIAL.unlink(missing_ok=True)
        print(
            f"\r{path}: {len(entries)} of {len(book.names)} architectures of timm {book.version}{'':60}",
            file=sys.stderr,
        )
    if failures:
        sys.exit("\n".join(failures))


def measure(task: tuple[str, Entry | None]) -> tuple[str, Entry | str]:
    """Measure one architecture, or the levels alone where the rest is known; an error comes back as its text."""
    name, known = task
    try:
        return name, survey.with_levels(name, known) if known else survey.entry(name)
    except Exception as error:  # noqa: BLE001 - one model that trips timm must not cost the others
        return name, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()

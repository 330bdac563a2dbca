# Files that appear under their name complete or not at all.
"""Writing files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Any) -> None:
    """Let `write(file)` fill a temporary file beside `path`, and give it its name when it is safely on the disk."""
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            write(file)
        settle({temporary: path})
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """Return the name under which a file is written before it gets its own, in the same folder."""
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")


def settle(written: dict[Path, Path]) -> None:
    """Give temporary files their names when they, and then the names, are safely on the disk.

    All files are synchronised before the first is renamed, and each folder once: the disk works on them together.
    """
    for temporary in written:
        _synchronise(temporary)
    for temporary, path in written.items():
        temporary.replace(path)
    for folder in {path.parent for path in written.values()}:
        _synchronise(folder)


def remove(paths: Iterable[Path]) -> None:
    """Remove files that may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

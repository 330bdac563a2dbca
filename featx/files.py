# Files that appear under their name complete or not at all.
"""Writing files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Any) -> None:
    """Let `write(file)` fill a temporary file beside `path`, and give it its name when it is safely on the disk."""
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

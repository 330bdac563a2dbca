# Clearing up: rows that the manifest does not vouch for.
"""What interrupted calls left in files that images share."""

from __future__ import annotations

from pathlib import Path

from featx import files
from featx.errors import OutputError
from featx.runs import formats, manifest, recorder
from featx.runs.layout import MANIFEST
from featx.values import EMBEDDING, Field

# What a format for vectors is told where it only has to clear up.
ANY_VECTOR = (Field(EMBEDDING, (1,)),)


def clear_up(writer: formats.Writer, output: Path, name: str) -> None:
    """Have what the manifest does not vouch for cleared away."""
    if not formats.vectors_only(name):  # files of their own are replaced one by one
        return
    try:
        files.synchronise(output / MANIFEST)  # what it says is not to be lost after what it no longer vouches for
        writer.tidy(manifest.outputs(output), lambda: manifest.digests(output))
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}", recorder.ROOM) from error

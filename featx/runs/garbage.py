# Garbage: rows that are not in the manifest.
"""What interrupted calls left in files that images share."""

from __future__ import annotations

from pathlib import Path

from featx import files
from featx.errors import ROOM, OutputError
from featx.runs import formats, manifest, parts
from featx.values import EMBEDDING, Field

# Fields for a writer that only has to collect garbage.
ANY_VECTOR = (Field(EMBEDDING, (1,)),)


def collect_garbage(writer: formats.Writer, output: Path, name: str) -> None:
    """Have a writer of the named format remove what is not in the manifest."""
    if not formats.shares_files(name):  # files of their own are replaced one by one
        return
    try:
        # The manifest must be safe on the disk before rows that it no longer names are removed.
        for path in parts.manifests(output):
            files.synchronise(path)
        writer.collect_garbage(manifest.outputs(output), lambda: manifest.digests(output))
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}", ROOM) from error

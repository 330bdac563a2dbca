# Fetching: a model's weights and configuration as a folder, for machines that have no network.
"""``featx fetch`` as a function."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import timm
from msgspec import Struct
from msgspec.json import Decoder

from featx.errors import ModelError, OutputError
from featx.files import write_atomically
from featx.models.checkpoints import is_safetensors
from featx.models.libraries import library_of
from featx.models.timm import loading
from featx.models.timm.reference import CONFIGURATION, Reference, resolve
from featx.naming import folder_name, model_name

# What a fetched folder is allowed to hold.
OURS = (CONFIGURATION, "model.safetensors", "pytorch_model.bin")


class _Fetched(Struct):
    """What featx writes into the configuration of a model that it fetches, as far as it is read again."""

    source: str


class _Configuration(Struct):
    featx: _Fetched


_DECODE = Decoder(_Configuration).decode


def fetch(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Put a model's pretrained weights and its configuration into a folder.

    The folder is one of timm's: ``local-dir:FOLDER`` names it, in featx and in timm. The weights stay the file that was
    published; the configuration, which is written first, has its sha256, and featx checks it on every reading.

    Parameters
    ----------
    name : str
        ``arch``, ``arch.tag``, ``hf-hub:org/name`` or ``local-dir:path``.
    folder : Path or None
        Created if it does not exist; ``models/NAME`` by default. If it already holds the same model, damaged or missing
        files are replaced.

    Returns
    -------
    dict
        ``model, architecture, source, file, bytes, sha256, output``.

    Raises
    ------
    ModelError, WeightsError
        If there is no such model, or its weights cannot be found.
    OutputError
        If the folder cannot be written, or holds something else.
    """
    name = model_name(name)
    if library_of(name) != "timm":
        raise ModelError(
            f"Only timm models can be fetched, not {name}",
            f"Get {name}.pt from ultralytics, and give it to extract with --weights {name}.pt",
        )
    folder = folder or Path("models", folder_name(name))
    reference = resolve(name)
    _require_free(folder)
    found, source = loading.locate(reference)
    path, sha256 = found.path, found.sha256
    _require_same(folder, source)
    target = folder / ("model.safetensors" if is_safetensors(path) else "pytorch_model.bin")
    fetched = {"source": source, "file": target.name, "bytes": path.stat().st_size, "sha256": sha256}
    text = json.dumps({**_configuration(reference), "featx": {**fetched, "timm": timm.__version__}}, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIGURATION, [text.encode()])  # first: it says which model the folder is for
        with path.open("rb") as weights:
            write_atomically(target, iter(partial(weights.read, 1 << 16), b""))
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}", "Free some disk space, or choose another --output"
        ) from error
    return {"model": name, "architecture": reference.architecture, **fetched, "output": str(folder)}


def _require_free(folder: Path) -> None:
    """Refuse a folder that holds anything but what a fetch leaves, finished or interrupted."""
    is_folder = os.path.isdir(folder)  # noqa: PTH112 - a Path raises where the name is too long
    if os.path.lexists(folder) and not is_folder:
        raise OutputError(f"{folder} is not a folder", "Choose another folder with --output")
    names = [path.name for path in folder.iterdir()] if is_folder else []
    if any(name not in OURS and not (name.startswith(".") and name.endswith(".tmp")) for name in names):
        raise OutputError(f"{folder} holds unexpected files", "Choose another folder with --output")


def _require_same(folder: Path, source: str) -> None:
    """Refuse a folder that holds a model from elsewhere."""
    try:
        earlier = _DECODE((folder / CONFIGURATION).read_bytes()).featx.source
    except FileNotFoundError:
        if not any((folder / name).exists() for name in OURS):
            return
        earlier = f"a model without {CONFIGURATION}"
    except (OSError, ValueError, RecursionError):
        earlier = "a model that featx did not fetch"
    if earlier != source:
        raise OutputError(f"{folder} holds {earlier}, not {source}", "Choose another folder with --output")


def _configuration(reference: Reference) -> dict[str, Any]:
    """Make up timm's configuration file; a repository's or folder's own is kept."""
    prefix, _, location = reference.timm_name.partition(":")
    if prefix == "local-dir":
        return dict(json.loads((Path(location) / CONFIGURATION).read_bytes()))
    return {
        "architecture": reference.architecture,
        "num_classes": reference.config.get("num_classes"),
        "pretrained_cfg": reference.config,
    }

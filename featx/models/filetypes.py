# File types: what was given in place of a checkpoint by mistake, recognised by its first bytes.
"""Telling pointers, pages, archives and other libraries' files from checkpoints."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from featx.signatures import HEAD, archive_kind, is_image, is_text

CONVERT = "Convert it to a state dict of torch, with the names of the model"
WHICH = "Give the checkpoint itself"
UNPACK = "Unpack it, and give the checkpoint in it"

# First bytes of what is not a checkpoint: what it is, and what to do.
BEGINNINGS = (
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, not the weights themselves",
        "Run `git lfs pull` in its repository",
    ),
    (
        rb"\s*<(?i:!doctype|html|head|body|!--)",
        "an HTML page, not the weights themselves",
        "Use the download link of the file, not the link of its page",
    ),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes them", CONVERT),
    (rb"\x93NUMPY", "a NumPy array", CONVERT),
    (rb"(?s:.{4})TFL3|\x08\x01\x12", "a TensorFlow model", CONVERT),
    (rb"\x08[\x02-\x20][\x12\x1a\x22\x3a\x42]", "an ONNX model", CONVERT),
    (rb"GGUF|ggml|lmgg", "a GGUF file", CONVERT),
    (rb"[\x81-\x8f][\xa1-\xbf\xd9]|\xde..[\xa1-\xbf\xd9]", "a MessagePack file, as Flax writes them", CONVERT),
)


def mistaken(path: Path) -> tuple[str, str] | None:
    """Say what a file is that is not a checkpoint, and what to do; None if it may be one.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "empty", "Fetch or save it again"
    if head[4:9] == b"\0\0\0\0{":  # safetensors, whose first bytes, a length, may be anything
        return None
    known = ((what, hint) for beginning, what, hint in BEGINNINGS if re.match(beginning, head))
    return next(known, None) or _image_or_archive(path, head) or _text(path, head)


def _text(path: Path, head: bytes) -> tuple[str, str] | None:
    """Recognise a text; the index of a checkpoint in several files is one."""
    if not is_text(head):
        return None
    if head.lstrip()[:1] not in (b"{", b"["):
        return "a text file", WHICH
    try:
        facts = json.loads(path.read_bytes())
    except ValueError:
        facts = None
    if isinstance(facts, dict) and isinstance(facts.get("weight_map"), dict):
        parts = sorted({str(name) for name in facts["weight_map"].values()})
        return f"the index of a checkpoint in {len(parts)} files", f"Join them into one: {', '.join(parts[:3])} …"
    return "a JSON file", WHICH


def _image_or_archive(path: Path, head: bytes) -> tuple[str, str] | None:
    """Recognise an image or an archive; torch's own checkpoints are zip archives."""
    if is_image(head):
        return "an image", WHICH
    kind = archive_kind(head)
    if kind != "zip":
        return (f"a {kind if kind == 'tar' else 'compressed'} archive", UNPACK) if kind else None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive", "Save its parameters alone: torch.save(torch.jit.load(…).state_dict(), …)"
    if not any(name.endswith("data.pkl") for name in names):
        return "a zip archive that torch did not save", UNPACK
    return None

# Weights: the file that a checkpoint is, its hash, and what a network must find in it.
"""Checkpoints as files, compared with what a network needs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from featx.errors import WeightsError
from featx.files import sha256_of

# The names that timm's own loaders look for in a folder, in their order.
FOLDER_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True, slots=True)
class Found:
    """A file on this machine, and its sha256."""

    path: Path
    sha256: str


def hashed(path: Path) -> Found:
    """Hash a file.

    Raises
    ------
    WeightsError
        If it cannot be read.
    """
    try:
        return Found(path, sha256_of(path))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", "Check its permissions") from error


def folder_file(folder: Path) -> Path:
    """Return the checkpoint that timm would load from a folder.

    Raises
    ------
    WeightsError
        If there is none.
    """
    named = [folder / name for name in FOLDER_FILES]
    others = [
        path for suffix in (".safetensors", ".pth", ".pth.tar", ".bin") for path in sorted(folder.glob(f"*{suffix}"))
    ]
    for path in (*named, *others):
        if path.is_file():
            return path
    raise WeightsError(f"{folder} holds no checkpoint", "Put model.safetensors into it")


def require_complete(
    what: str,
    expected: dict[str, Tensor],
    loaded: dict[str, Tensor],
    source: str,
    of_another_size: str = "",
    infinite: Collection[str] = (),
) -> None:
    """Refuse a checkpoint that leaves anything to chance.

    Parameters
    ----------
    what : str
        What the network is called in errors.
    expected, loaded : dict of str to Tensor
        What it needs, and what the checkpoint has.
    source : str
        Where the checkpoint came from, for people.
    of_another_size : str
        The hint where shapes differ because the network was built for another input size.
    infinite : collection of str
        Names of bounds that are infinite in an untrained network, and are allowed to stay so.

    Raises
    ------
    WeightsError
        If something is missing, has a different shape, or is not finite.
    """
    there = [name for name in expected if name in loaded]
    misshapen = [name for name in there if loaded[name].shape != expected[name].shape]
    faults = (
        ([name for name in expected if name not in loaded], "is missing from", "are missing from"),
        (misshapen, "has a different shape in", "have a different shape in"),
        (
            [name for name in there if name not in infinite and not is_finite(loaded[name])],
            "is not finite in",
            "are not finite in",
        ),
    )
    for names, one, several in faults:
        if names:
            first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            verb = one if len(names) == 1 else several
            raise WeightsError(
                f"{len(names)} of {len(expected)} parameters of {what} {verb} {source}: {first}",
                (of_another_size if names is misshapen else "")
                or "This is not a complete checkpoint of that model; check --model and --weights",
            )


def is_finite(values: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    return not values.is_floating_point() or bool(torch.isfinite(values).all())


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Hexadecimal sha256 over names, shapes, types and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

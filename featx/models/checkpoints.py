# Checkpoints: from a file to the tensors of the network in it that is meant, without running any code.
"""Reading checkpoints."""

from __future__ import annotations

import os
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from featx.errors import WeightsError, first_line, is_out_of_memory
from featx.files import sha256_of
from featx.models import filetypes
from featx.paths import expanded
from featx.process import quiet, safe_globals

# Where trainers keep the parameters inside a checkpoint; averaged ones first, as timm has it.
CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "encoder")

# Others that hold averages of the parameters next to them.
AVERAGED = ("params_ema", "ema_model", "ema", "averaged_model")

# Others that hold a network; of several, any may be the one that is meant.
NETWORKS = (
    *("net", "network", "params", "weights", "backbone", "module", "generator", "classifier", "net_state_dict"),
    *("teacher", "student", "target_encoder", "online_network", "target_network", "momentum_encoder"),
)

# How deep containers are searched for others, and how many at most.
DEEPEST, CONTAINERS_AT_MOST = 4, 1000

# A container, with those around it, and the tensors that each holds.
Place = tuple[str, ...]
Found = dict[Place, dict[str, Tensor]]

SAVE_AGAIN = "Save its state dict alone: torch.save(model.state_dict(), …)"


class StandIn:
    """A stand-in for an object next to the weights: whatever it is given, it holds nothing and does nothing.

    So a checkpoint never makes, calls or fills any class but torch's own.
    """

    def __new__(cls, *_: object) -> StandIn:
        """Accept what the object is made of."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Accept what the object held."""


def empty_dict(*_: object) -> dict[Any, Any]:
    """Stand in for a subclass of dict."""
    return {}


def empty_list(*_: object) -> list[Any]:
    """Stand in for a relative of list."""
    return []


# What trainers keep next to the weights, by its names in pickles.
COMPANIONS = (
    *("argparse.Namespace", "types.SimpleNamespace", "copyreg._reconstructor", "uuid.UUID", "fractions.Fraction"),
    *(f"builtins.{name}" for name in ("object", "int", "float", "str", "bool", "bytes", "tuple", "list", "dict")),
    *(f"builtins.{name}" for name in ("slice", "range", "frozenset")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "float64", "float32", "int64", "int32", "bool_", "str_")),
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
)
STAND_INS: tuple[tuple[Any, str], ...] = (
    *((StandIn, name) for name in COMPANIONS),
    (empty_dict, "collections.defaultdict"),
    (empty_list, "collections.deque"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Names as the file has them.
    source : str
        Where the file came from, for people.
    sha256 : str
        Of the file.
    part : str
        The container in the file that was taken, with those around it (``state_dict.teacher``); empty where the
        file is a plain state dict.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str
    part: str


def split_part(text: str) -> tuple[Path, str]:
    """Split ``file.pth:teacher`` into the file and the container in it; a file with the whole name comes first."""
    path = expanded(text)
    before, colon, part = text.rpartition(":")
    if os.path.lexists(path) or not colon or "/" in part or not os.path.isfile(expanded(before)):  # noqa: PTH113
        return Path(path), ""
    return Path(expanded(before)), part


def require_file(path: Path) -> None:
    """Refuse a checkpoint that does not exist.

    Raises
    ------
    WeightsError
        If it is missing, or a folder.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - a Path raises where the name is too long
        what = f"{path} is a folder" if os.path.isdir(path) else f"There is no checkpoint {path}"  # noqa: PTH112
        raise WeightsError(what, "Check the path given to --weights")


def read_checkpoint(path: Path, source: str, sha256: str = "", part: str = "") -> Checkpoint:
    """Read a ``.safetensors`` file or a pickled state dict; no code in it is run.

    Parameters
    ----------
    path : Path
        The file.
    source : str
        What to call it.
    sha256 : str
        Of the file, if it is known already.
    part : str
        The container to take, or the prefix of its tensors' names; empty takes the only one that there is, an averaged
        one before others.

    Raises
    ------
    WeightsError
        If the file is missing, is not a checkpoint, is a pickle that calls for anything but tensors and harmless
        companions, has no such container, or several of which none was chosen.
    """
    require_checkpoint(path)
    loaded = _read_safetensors(path) if is_safetensors(path) else _read_pickle(path)
    found = _networks(loaded)
    place, tensors = _taken(found, part, path) if part else _chosen(found, (), path)
    if not tensors:
        raise WeightsError(
            f"{path} holds no tensors", "Give a state dict, as torch.save(model.state_dict(), …) makes it"
        )
    return Checkpoint(tensors, source, sha256 or sha256_of(path), place)


def require_checkpoint(path: Path) -> None:
    """Refuse a file that does not begin like a checkpoint, and say what it is.

    Raises
    ------
    WeightsError
        If it is missing, or something else.
    """
    require_file(path)
    try:
        found = filetypes.mistaken(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", "Check its permissions") from error
    if found:
        raise WeightsError(f"{path} is not a readable checkpoint: it is {found[0]}", found[1])


def is_safetensors(path: Path) -> bool:
    """Whether it is one: it starts with the length of its JSON header, then the header's brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(safetensors.torch.load_file(path))
    except Exception as error:  # the format's own error is not an OSError
        if is_out_of_memory(error):
            raise
        raise WeightsError(
            f"{path} is not a readable safetensors file: {first_line(error)}", "Fetch it again"
        ) from error


def _read_pickle(path: Path) -> dict[str, Any]:
    """Load with torch's restricted unpickler; an explicit `weights_only` overrides every environment variable."""
    try:
        with safe_globals(STAND_INS), quiet():
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        message = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        refused = re.search(r"(?:GLOBAL|class) ([\w.]+)", message)
        if refused:
            raise WeightsError(
                f"{path} was refused: it is a pickle that asks to run {refused[1]}", SAVE_AGAIN
            ) from error
        raise WeightsError(
            f"{path} is not a readable checkpoint: {_cause(message)}", "Fetch or save it again"
        ) from error
    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise WeightsError(f"{path} holds a value of type {kind}, not a state dict", "Save model.state_dict() instead")
    return loaded


def _cause(message: str) -> str:
    """Return the first sentence of torch's message, but no internals, and no advice to load the file unsafely."""
    cause = re.split(r"\. |\.?\n", f"{message}\n")[0]
    if not cause or re.search(r"operand|load failed|weights.only|torch\.load", cause, re.IGNORECASE):
        return "it is damaged, or not what torch saves by itself"
    return cause.rstrip(".:?")


def _chosen(found: Found, place: Place, path: Path) -> tuple[str, dict[str, Tensor]]:
    """Find the network that a checkpoint is about: its container with those around it, and its tensors."""
    own = found.get(place, {})
    sizes = _sizes(found, place)
    first = [name for name in CONTAINERS if name in sizes]
    if not first and len(own) < max(sizes.values(), default=0):
        first = [name for name in AVERAGED if name in sizes]
        several = [name for name in sizes if name in NETWORKS] or list(sizes)
        if not first and len(several) > 1:
            names = [".".join((*place, name)) for name in several]
            raise WeightsError(
                f"{path} holds several networks: {_listed(names)}", f"Choose one: --weights {path}:{names[0]}"
            )
        first = first or several
    return _chosen(found, (*place, first[0]), path) if first else (".".join(place), own)


def _taken(found: Found, part: str, path: Path) -> tuple[str, dict[str, Tensor]]:
    """Find the container that was asked for, or the network whose names have that prefix."""
    there = list(dict.fromkeys(place[:end] for place in found for end in range(1, len(place) + 1)))
    for place in there:
        if part == ".".join(place):
            return _chosen(found, place, path)
    for place, tensors in found.items():
        outer = "".join(f"{name}." for name in place)
        for whole in (part, outer + part):
            inside = whole.removeprefix(outer) + "."
            named = {name.removeprefix(inside): value for name, value in tensors.items() if name.startswith(inside)}
            if named:
                return (outer + inside)[:-1], named
    names = [".".join(place) for place in there]
    raise WeightsError(f"{path} holds no {part!r}", f"It holds {_listed(names)}" if names else "Leave it out")


def _networks(loaded: dict[Any, Any]) -> Found:
    """Find the dictionaries that hold tensors by name; an optimiser's are numbered.

    Depth and number are bounded, since what a pickle holds may contain itself.
    """
    found: Found = {}
    waiting: deque[tuple[Place, dict[Any, Any]]] = deque([((), loaded)])
    for _ in range(CONTAINERS_AT_MOST):
        if not waiting:
            break
        place, level = waiting.popleft()
        named = {name: value for name, value in level.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if tensors:
            found[place] = tensors
        if len(place) < DEEPEST:
            waiting += [((*place, name), inner) for name, inner in named.items() if isinstance(inner, dict)]
    return found


def _sizes(found: Found, place: Place) -> dict[str, int]:
    """Count the tensors in each container at a place."""
    sizes: dict[str, int] = {}
    depth = len(place)
    for inner, tensors in found.items():
        if inner[:depth] == place and len(inner) > depth:
            sizes[inner[depth]] = sizes.get(inner[depth], 0) + len(tensors)
    return sizes


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")

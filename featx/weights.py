# Weights: from a hub, an address, a folder or a file to hashed tensors in memory, without running any code in them.
"""Locating and reading checkpoints.

A checkpoint is found on the disk first and on the network second, and the network gets ten seconds to answer.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import threading
import urllib.request
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import tqdm
from torch import Tensor

from featx.errors import WeightsError, first_line
from featx.files import sha256_of

# Seconds that a hub or server has to answer at all; a download in progress is not bounded by it. With the time that
# torch takes to load, a command without a network ends within ten.
ANSWER_TIMEOUT = 4.0
WAYS_ON = (
    "Use a machine or cache that has them (HF_HOME), give a checkpoint with --weights FILE, "
    "or take --weights random for shapes and dry runs"
)

# Where trainers keep the parameters inside a checkpoint; averaged ones first, as timm has it.
CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "encoder")

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
        The container inside the file that was taken; empty where the file is a plain state dict.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str
    part: str


def hub_file(repository: str, names: Iterable[str], revision: str | None = None) -> Path:
    """Return the first of `names` that a Hugging Face repository has, from the cache if it is there.

    Raises
    ------
    WeightsError
        If the cache lacks it and the hub does not answer within seconds, or has no such repository or file.
    """
    names = tuple(names)
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        try:
            _await_hub(huggingface_hub.hf_hub_url(repository, name, revision=revision))
            path = huggingface_hub.hf_hub_download(repository, name, revision=revision, tqdm_class=_TerminalProgress)
        except hub_errors.EntryNotFoundError:
            continue
        except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError) as error:
            raise WeightsError(
                f"The hub has no public repository {_with_revision(repository, revision)}",
                "Check the name, or log in with `hf auth login` if it is private",
            ) from error
        except hub_errors.HFValidationError as error:
            raise WeightsError(f"{repository!r} is no name of a hub repository", "Write hf-hub:owner/name") from error
        except Exception as error:  # the hub client and its transport raise a dozen classes
            raise WeightsError(f"{repository} could not be fetched: {first_line(error)}", WAYS_ON) from error
        _check_against_name(Path(path))
        return Path(path)
    raise WeightsError(f"{_with_revision(repository, revision)} holds none of {', '.join(names)}", WAYS_ON)


def url_file(url: str) -> Path:
    """Return the file at `url` out of torch's checkpoint cache, downloading it if it is not there.

    A name such as ``net-0123abcd.pth`` carries the start of its own sha256, which is checked.

    Raises
    ------
    WeightsError
        If there is no answer within seconds, or the file comes incomplete or changed.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    stated = torch.hub.HASH_REGEX.search(target.name)
    sizes: list[str | None] = []
    try:
        _run_with_deadline(lambda: sizes.append(_content_length(url)))
        # torch's own download: a temporary name, the hash, then the final name.
        torch.hub.download_url_to_file(url, str(target), stated and stated.group(1), progress=sys.stderr.isatty())
        if sizes[0] is not None and target.stat().st_size != int(sizes[0]):
            target.unlink()
            raise WeightsError(f"{url} arrived incomplete", "Try again")
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong hash is a RuntimeError
        raise WeightsError(f"{url} could not be fetched: {first_line(error)}", WAYS_ON) from error
    return target


def folder_file(folder: Path) -> Path:
    """Return the checkpoint that timm would load from a model folder.

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


def read_checkpoint(path: Path, source: str) -> Checkpoint:
    """Read a ``.safetensors`` file or a pickled state dict; no code in it is run.

    Parameters
    ----------
    path : Path
        The file.
    source : str
        What to call it.

    Raises
    ------
    WeightsError
        If the file is missing, is no checkpoint, or is a pickle that calls for anything but tensors.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - a Path raises where the name is too long
        raise WeightsError(f"There is no checkpoint {path}", "Check the path given to --weights")
    loaded = _read_safetensors(path) if is_safetensors(path) else _read_pickle(path)
    part = next((name for name in CONTAINERS if isinstance(loaded.get(name), dict)), "")
    tensors = {
        str(name): value for name, value in (loaded[part] if part else loaded).items() if isinstance(value, Tensor)
    }
    if not tensors:
        raise WeightsError(
            f"{path} holds no tensors", "Give a state dict, as torch.save(model.state_dict(), …) makes it"
        )
    return Checkpoint(tensors, source, sha256_of(path), part)


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
        The network, in words.
    expected, loaded : dict of str to Tensor
        What it needs, and what the checkpoint has.
    source : str
        What to call the checkpoint.
    of_another_size : str
        The way out where shapes differ because the network was built for another input size.
    infinite : collection of str
        Of bounds that are infinite in a network that was never trained, and may stay so.

    Raises
    ------
    WeightsError
        If something is missing, of another shape, or not finite.
    """
    faults = {
        "missing": [name for name in expected if name not in loaded],
        "of another shape": [
            name for name in expected if name in loaded and loaded[name].shape != expected[name].shape
        ],
        "not finite": [
            name for name in expected if name in loaded and name not in infinite and not is_finite(loaded[name])
        ],
    }
    for fault, names in faults.items():
        if names:
            first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise WeightsError(
                f"{len(names)} of {len(expected)} parameters of {what} are {fault} in {source}: {first}",
                (of_another_size if fault == "of another shape" else "")
                or "This is no sound checkpoint of that model; check --model and --weights",
            )


def is_finite(values: Tensor) -> bool:
    """Whether all numbers of a tensor are."""
    return not values.is_floating_point() or bool(torch.isfinite(values).all())


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Hexadecimal sha256 over names, shapes, types and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_safetensors(path: Path) -> bool:
    """Whether it is one: it starts with the length of its JSON header, then the header's brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(safetensors.torch.load_file(path))
    except Exception as error:  # the format's own error is no subclass of OSError
        raise WeightsError(f"{path} is no readable safetensors file: {first_line(error)}", "Fetch it again") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    """Load with torch's restricted unpickler; passing `weights_only` outranks every environment variable."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # trainers keep their arguments beside the weights
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = re.search(r"(?:GLOBAL|global:?|class) ([\w.]+\.[\w.]+)", str(error))
        if refused:
            raise WeightsError(
                f"{path} is a pickle that asks to run {refused.group(1)}, and was refused",
                "Save its state dict alone: torch.save(model.state_dict(), …)",
            ) from error
        raise WeightsError(
            f"{path} is no readable checkpoint: {first_line(error)}", "Fetch or save it again"
        ) from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, no state dict", "Save model.state_dict() instead")
    return loaded


def _await_hub(url: str) -> None:
    """Ask for a file's headers once, without the client's own minute of retries."""
    _run_with_deadline(lambda: huggingface_hub.get_hf_file_metadata(url, timeout=ANSWER_TIMEOUT))


def _run_with_deadline(ask: Any) -> None:
    """Run `ask`, giving up after the time allowed even where name resolution hangs, which no socket timeout bounds."""
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            ask()
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(ANSWER_TIMEOUT)
    if thread.is_alive():
        raise TimeoutError("no answer")
    if failures:
        raise failures[0]


def _check_against_name(path: Path) -> None:
    """A hub's cache names large files by their sha256; a file that does not match its name is not used."""
    stated = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", stated) and sha256_of(path) != stated:
        path.resolve().unlink()
        raise WeightsError(f"{path.name} does not match the sha256 that the hub states", "Try again; it was damaged")


class _TerminalProgress(tqdm):  # type: ignore[misc]  # the hub client is not typed here
    """A download's progress bar, drawn on terminals only."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "disable": not sys.stderr.isatty()})


def _content_length(url: str) -> str | None:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - addresses come from timm's own registry
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT) as response:  # noqa: S310
        length: str | None = response.headers.get("Content-Length")
        return length


def _with_revision(repository: str, revision: str | None) -> str:
    return f"{repository}@{revision}" if revision else repository

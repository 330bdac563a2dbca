# Weights: from a hub, an address or a folder to a file that is what its name says; and what a network must find in one.
"""Locating checkpoints, and holding them against what was published and what is needed.

A checkpoint is found on the disk first and on the network second, and the network gets ten seconds to answer.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import tqdm
from torch import Tensor

from featx.errors import WeightsError, first_line
from featx.files import settle, sha256_of

# Seconds that a hub or server has to answer at all; a download in progress is not bounded by it. With the time that
# torch takes to load, a command without a network ends within ten.
ANSWER_TIMEOUT = 4.0
WAYS_ON = (
    "Use a machine or cache that has them (HF_HOME), give a checkpoint with --weights FILE, "
    "or take --weights random for shapes and dry runs"
)

# Shorter ends of names are no hashes: I-JEPA's count epochs (``-600e.pth.tar``).
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")

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


def hub_file(repository: str, names: Iterable[str], revision: str | None = None) -> Found:
    """Return the first of `names` that a Hugging Face repository has, from the cache if it is there.

    Raises
    ------
    WeightsError
        If the cache lacks it and the hub does not answer within seconds, or has no such repository or file; or if the
        file is not what its name in the cache says.
    """
    names = tuple(names)
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return _held_against_name(Path(cached))
    _require_home(Path(constants.HF_HUB_CACHE), "HF_HOME")
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
        return _held_against_name(Path(path), fresh=True)
    raise WeightsError(f"{_with_revision(repository, revision)} holds none of {', '.join(names)}", WAYS_ON)


def url_file(url: str) -> Found:
    """Return the file at `url` out of torch's checkpoint cache, downloading it if it is not there.

    A name such as ``net-0123abcd.pth`` carries the start of its own sha256, which is checked.

    Raises
    ------
    WeightsError
        If there is no answer within seconds, the file comes incomplete or changed, or the cache cannot be written.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    stated = HASH_IN_NAME.search(target.name)
    if target.is_file():
        found = hashed(target)
        if stated and not found.sha256.startswith(stated[1]):
            raise _damaged(target)
        return found
    _require_home(target, "TORCH_HOME")
    sizes: list[str | None] = []
    try:
        _run_with_deadline(lambda: sizes.append(_content_length(url)))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".featx-", dir=target.parent) as place:
            arrived = Path(place) / target.name
            torch.hub.download_url_to_file(url, str(arrived), progress=sys.stderr.isatty())
            if sizes[0] is not None and arrived.stat().st_size != int(sizes[0]):
                raise WeightsError(f"{url} arrived incomplete", "Try again")
            found = Found(target, sha256_of(arrived))
            if stated and not found.sha256.startswith(stated[1]):
                raise WeightsError(f"{url} does not match the sha256 in its name", "Try again; it was damaged")
            settle({arrived: target})
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        raise WeightsError(f"{url} could not be fetched: {first_line(error)}", WAYS_ON) from error
    return found


def hashed(path: Path) -> Found:
    """Return a file with its sha256.

    Raises
    ------
    WeightsError
        If it cannot be read.
    """
    try:
        return Found(path, sha256_of(path))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", "Check who may read it") from error


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


def _held_against_name(path: Path, *, fresh: bool = False) -> Found:
    """Hash a file in a hub's cache, which calls large files by their sha256, small ones as git does.

    What has just come damaged is removed; what has lain there may be somebody's, and is only refused.
    """
    found = hashed(path)
    stated, blob = path.resolve().name, path.resolve()
    large = re.fullmatch(r"[0-9a-f]{64}", stated)
    small = re.fullmatch(r"[0-9a-f]{40}", stated)
    if (large and found.sha256 != stated) or (small and stated not in _sha1s(blob.read_bytes())):
        if not fresh:
            raise _damaged(blob)
        blob.unlink()
        raise WeightsError(f"{path.name} does not match the sha256 that the hub states", "Try again; it was damaged")
    return found


def _sha1s(data: bytes) -> set[str]:
    """What git calls a file, and the sha1 alone, which mirrors of the hub may have instead."""
    pieces = (b"blob %d\0" % len(data) + data, data)
    return {hashlib.sha1(piece, usedforsecurity=False).hexdigest() for piece in pieces}


def _damaged(path: Path) -> WeightsError:
    return WeightsError(
        f"{path.name} in the cache is damaged: it does not match the hash in its name",
        f"Delete {path}, and run the command again",
    )


def _require_home(cache: Path, variable: str) -> None:
    """Refuse to make a folder that is called ``~``, which caches are in where there is no home."""
    if cache.parts[:1] == ("~",):
        raise WeightsError("There is no home folder to keep fetched weights in", f"Set {variable} to a folder")


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

# The hub and other addresses: a checkpoint is found in a cache first and on the network second, and checked either way.
"""Fetching checkpoints. The network gets a few seconds to answer; a download in progress gets all the time it needs."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import tqdm

from featx.errors import UnavailableError, WeightsError, first_line
from featx.files import commit, sha256_of
from featx.models.weights import Found, hashed

# Seconds that a hub or server has to answer at all; a download in progress is not bounded by it. With the time that
# torch takes to load, a command without a network ends within ten.
ANSWER_TIMEOUT = 4.0

# Shorter endings are not hashes: I-JEPA's count epochs (``-600e.pth.tar``).
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


def hub_file(repository: str, names: Iterable[str], revision: str | None = None) -> Found:
    """Return the first of `names` that a Hugging Face repository has, from the cache if it is there.

    Raises
    ------
    WeightsError
        If it is not in the cache and the hub does not answer within seconds, or has no such repository or file; or if
        the file does not match its name in the cache.
    """
    names = tuple(names)
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return _checked_against_name(Path(cached))
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
            raise WeightsError(
                f"{repository!r} is not the name of a hub repository", "Write it as hf-hub:owner/name"
            ) from error
        except Exception as error:  # the hub client and its transport raise a dozen classes
            raise _unavailable(repository, error, "HF_HOME") from error
        return _checked_against_name(Path(path), fresh=True)
    raise UnavailableError(
        f"{_with_revision(repository, revision)} has none of {', '.join(names)}", "Check that it is a timm model"
    )


def url_file(url: str) -> Found:
    """Return the file at `url` from torch's checkpoint cache, downloading it if necessary.

    A name such as ``net-0123abcd.pth`` carries the start of its own sha256, which is checked.

    Raises
    ------
    WeightsError
        If there is no answer within seconds, the file arrives incomplete or damaged, or the cache cannot be written.
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
                raise WeightsError(f"{url} was not fetched completely", "Try again")
            found = Found(target, sha256_of(arrived))
            if stated and not found.sha256.startswith(stated[1]):
                raise WeightsError(
                    f"{url} does not match the sha256 in its name", "Try again; the download was damaged"
                )
            commit({arrived: target})
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        raise _unavailable(url, error, "TORCH_HOME") from error
    return found


def _await_hub(url: str) -> None:
    """Ask for a file's headers once, without the client's own minute of retries."""
    _run_with_deadline(lambda: huggingface_hub.get_hf_file_metadata(url, timeout=ANSWER_TIMEOUT))


def _run_with_deadline(ask: Any) -> None:
    """Run `ask`, but give up in time even where name resolution hangs, which no socket timeout bounds."""
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


def _checked_against_name(path: Path, *, fresh: bool = False) -> Found:
    """Hash a file in a hub's cache, which names large files by their sha256, and small ones as git does.

    A file that has just arrived damaged is removed; one that was there before may be somebody's, and is only refused.
    """
    found = hashed(path)
    stated, blob = path.resolve().name, path.resolve()
    large = re.fullmatch(r"[0-9a-f]{64}", stated)
    small = re.fullmatch(r"[0-9a-f]{40}", stated)
    if (large and found.sha256 != stated) or (small and stated not in _sha1s(blob.read_bytes())):
        if not fresh:
            raise _damaged(blob)
        blob.unlink()
        raise WeightsError(f"{path.name} does not match the sha256 on the hub", "Try again; the download was damaged")
    return found


def _sha1s(data: bytes) -> set[str]:
    """Return what git names a file, and its plain sha1, which mirrors of the hub may use instead."""
    pieces = (b"blob %d\0" % len(data) + data, data)
    return {hashlib.sha1(piece, usedforsecurity=False).hexdigest() for piece in pieces}


def _damaged(path: Path) -> WeightsError:
    return WeightsError(
        f"{path.name} in the cache is damaged: it does not match the hash in its name",
        f"Delete {path}, and run the command again",
    )


def _unavailable(what: str, error: Exception, cache: str) -> UnavailableError:
    hint = f"Check the network, or set {cache} to a cache that has it"
    return UnavailableError(f"{what} could not be fetched: {first_line(error)}", hint)


def _require_home(cache: Path, variable: str) -> None:
    """Refuse to make a folder called ``~``, which is where caches are if there is no home folder."""
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

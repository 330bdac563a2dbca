# The work on one image after the other: decode, batch, forward, write; a bad image is a value, not an exception.
"""From items to outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from featx.errors import OutputError
from featx.files import write_atomically
from featx.formats import SUFFIX, write_npz
from featx.geometry import Frame
from featx.manifest import stat_of
from featx.preprocess import DecodeError
from featx.pyramid import Pyramid
from featx.records import Item, Outcome, Stat


@dataclass(frozen=True, slots=True)
class _Ready:
    """An image that awaits its batch."""

    item: Item
    stat: Stat
    pixels: Tensor
    frame: Frame


def run(pyramid: Pyramid, items: Iterable[Item], folder: Path, batch_size: int) -> Iterator[Outcome]:
    """Extract features of every item into `folder`, and say what became of each.

    A batch always has `batch_size` images, the last one being padded with blanks, so that neither the order nor an
    interruption can change a bit of the result.

    Raises
    ------
    OutputError
        If the folder cannot be written: nothing after that image is tried.
    """
    waiting: list[_Ready] = []
    for item in items:
        prepared = _prepare(pyramid, item)
        if isinstance(prepared, Outcome):
            yield prepared
            continue
        waiting.append(prepared)
        if len(waiting) == batch_size:
            yield from _extract(pyramid, waiting, folder, batch_size)
            waiting = []
    if waiting:
        yield from _extract(pyramid, waiting, folder, batch_size)


def _prepare(pyramid: Pyramid, item: Item) -> _Ready | Outcome:
    stat = stat_of(item.path)
    if stat is None or not item.path.is_file():
        return Outcome(item, stat, stage="read", error="no such file" if stat is None else "not a file")
    try:
        pixels, frame = pyramid.preprocess(item.path)
    except OSError as error:
        return Outcome(item, stat, stage="read" if error.errno else "decode", error=_reason(error, item))
    except DecodeError as error:
        return Outcome(item, stat, stage="decode", error=str(error))
    except Exception as error:  # noqa: BLE001 - decoders raise whatever the broken file trips them over
        return Outcome(item, stat, stage="decode", error=f"{type(error).__name__}: {_reason(error, item)}")
    return _Ready(item, stat, pixels, frame)


def _extract(pyramid: Pyramid, images: list[_Ready], folder: Path, batch_size: int) -> Iterator[Outcome]:
    blanks = [torch.zeros_like(images[0].pixels)] * (batch_size - len(images))
    with torch.inference_mode():
        maps = [level.cpu() for level in pyramid(torch.stack([image.pixels for image in images] + blanks))]
    for position, image in enumerate(images):
        yield _write(pyramid, image, [level[position] for level in maps], folder)


def _write(pyramid: Pyramid, image: _Ready, maps: list[Tensor], folder: Path) -> Outcome:
    for level, values in zip(pyramid.levels, maps, strict=True):
        if not bool(torch.isfinite(values).all()):
            return Outcome(image.item, image.stat, stage="forward", error=f"{level.key} holds NaN or infinity")
    arrays = {level.key: values.contiguous().numpy() for level, values in zip(pyramid.levels, maps, strict=True)}
    output = folder / (image.item.key + SUFFIX)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, lambda file: write_npz(file, arrays))
        written = output.stat().st_size
        with output.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error.strerror}", "Make room, and run it again to resume"
        ) from error
    return Outcome(
        image.item,
        image.stat,
        size=image.frame.original,
        frame=image.frame.to_json(),
        output=output.relative_to(folder).as_posix(),
        bytes=written,
        sha256=sha256,
    )


def _reason(error: BaseException, item: Item) -> str:
    """One line without the path, which the outcome names already."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return (
        text.splitlines()[0].replace(f"'{item.path}'", "").replace(str(item.path), "").strip(" :.")
        or type(error).__name__
    )

# Queries: the photo that a search starts from, found in a run or computed as the run's photos were.
"""Photos that are named by their keys or files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from featx.errors import FeatxError, UnreadableError, UsageError
from featx.images import locators
from featx.images.frame import Frame
from featx.images.grid import pooled
from featx.options import Limits
from featx.paths import is_url, path_text, to_path
from featx.runs.formats import Array
from featx.runs.reading import Run
from featx.runs.restored import Restored
from featx.values import EMBEDDING, Level


def key_of(run: Run, image: str) -> str | None:
    """Find a photo in a run by its key, or by its file, through any links; None if the run does not have it.

    A path that is also a key, but leads to another file than that photo was extracted from, is not that photo.
    """
    if not (os.path.lexists(image) or locators.exists(image)):
        return image if image in run else None
    if image in run and not locators.exists(to_path(run.line(image).path)):
        return image
    first = [image] if image in run else []
    return next((key for key in (*first, *run) if locators.same_image(image, to_path(run.line(key).path))), None)


def embedding_of(run: Run, image: str | PathLike[str], device: str = "auto") -> Array:
    """Compute the embedding of an image in the way a run's embeddings were computed; see `arrays_of`."""
    return arrays_of(run, image, device)[0][EMBEDDING]


def arrays_of(
    run: Run, image: str | PathLike[str], device: str = "auto"
) -> tuple[Mapping[str, Array], Frame, dict[str, Level]]:
    """Compute the arrays of an image in the way a run's arrays were computed, and where it lies in the model's input.

    The run's levels come with them, by the names of their arrays, as they lie in this image.

    Raises
    ------
    FeatxError
        If the image cannot be read, or the run's model is no longer available unchanged.
    """
    import torch

    from featx.engine.again import set_up_again
    from featx.engine.reducing import Photo
    from featx.engine.resources import machine
    from featx.images import placing  # with torch

    _require_one_image(os.fspath(image))
    again = set_up_again(run.folder, run.summary, device, 1)
    try:
        placed = placing.place(again.pyramid.preprocessor, str(image), Limits())
    except UnreadableError as error:
        raise FeatxError(f"{image} cannot be read: {error.reason}", "Try another image") from error
    computer = again.computers[0]
    with machine(again.devices, again.workers):
        pixels = computer.stack([torch.from_numpy(placed.pixels)], again.workers.batch_size)
        arrays = computer(pixels, [Photo(str(image), placed.frame)])
    named = {field.key: np.asarray(values[0]) for field, values in zip(computer.fields, arrays.values, strict=True)}
    for name, finite in zip(named, arrays.finite, strict=True):
        if not finite[0]:
            raise FeatxError(f"The network gives NaN or infinity in {name} of {image}", "Try another image")
    levels = {level.key: _placed(run, level, arrays.sizes[level.key]) for level in run.maps}
    return Restored(named), placed.frame, levels


def _placed(run: Run, level: Level, size: tuple[int, int]) -> Level:
    """Return a level as it lies in an image whose map has this size; only where images have sizes of their own."""
    grid = run.summary["recipe"]["grid"]
    return pooled(level, size, tuple(grid)) if grid and level.height is None else level


def _require_one_image(query: str) -> None:
    """Refuse a query that is not an image, before the model is loaded."""
    if not (os.path.lexists(query) or locators.exists(query)):
        raise UsageError(f"There is no image {path_text(query) if is_url(query) else query}", "Check the path")
    what = "a folder" if Path(query).is_dir() else locators.recognised(query)
    if what not in ("", "an image"):
        raise UsageError(f"{query} is {what}, not an image", "Give one image")

# The feature pyramid as a callable class, for the datasets of others: batches of pictures in, batches of arrays out.
"""What ``ray.data.Dataset.map_batches`` can be given."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featx.declaring import keywords
from featx.engine import resources
from featx.engine.checks import completed
from featx.engine.resources import machine, spread, use_backend
from featx.errors import UnreadableError, UsageError
from featx.images import decoding
from featx.images.pictures import reason_of
from featx.images.placing import place
from featx.models.devices import choose_devices
from featx.models.pyramid import load
from featx.options import ImageOptions, KeepOptions, ModelOptions, StoreOptions
from featx.requests import Job
from featx.run_options import NetworkOptions
from featx.text import listed

# Columns that hold pictures; the first that a batch has is read.
COLUMNS = ("image", "bytes", "path")

# Images in one pass where none are given: what `featx extract` takes on processors.
BATCH_SIZE = 8


class FeaturePyramid:
    """A model's feature maps for ``ray.data.Dataset.map_batches``, or anything else that maps batches of columns.

    A batch is a mapping of columns to arrays. Its pictures are in the first of these columns that it has: ``image``
    ((H, W, 3) uint8, as `ray.data.read_images` gives them), ``bytes`` (of an image file, as
    `ray.data.read_binary_files` gives them) or ``path``. Called on it, the pyramid returns its other columns; for each
    array of ``featx extract`` a column of the same name, (B, C, H, W) for a level and (B, D) for the embedding; and
    ``error``, which is empty where all is well. Arrays of a picture that cannot be read hold NaN, or zeros in int8.

    The network always runs on batches of `batch_size`, filled up with blanks, so that no picture's numbers depend on
    the others. They are those of ``featx extract`` with the same batch size and threads; a worker of Ray has as many
    threads as processors (``num_cpus``).

    Parameters
    ----------
    model : str
        As for ``featx extract``.
    batch_size : int
        Images in one forward pass.
    device : str
        ``auto`` (the first GPU that a worker was given, if any), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    **options
        Options of ``featx extract``, by the same name.

    Raises
    ------
    FeatxError
        If the model, its levels or its weights cannot be found, or, when called, if a batch has no pictures.

    Examples
    --------
    >>> photos = ray.data.read_images("photos/", include_paths=True)  # doctest: +SKIP
    >>> photos.map_batches(
    ...     featx.ray.FeaturePyramid, fn_constructor_args=("resnet50",), concurrency=2, batch_size=64
    ... )  # doctest: +SKIP
    """

    @keywords(ModelOptions, ImageOptions, KeepOptions, StoreOptions, NetworkOptions, without=("model", "format"))
    def __init__(self, model: str, *, batch_size: int = BATCH_SIZE, device: str = "auto", **options: Any) -> None:
        if options.get("dtype") == "bfloat16":
            raise UsageError("numpy, whose arrays come out, has no bfloat16", "Use float16 or float32")
        job = completed(Job(model=model, batch_size=batch_size, device=device, **options))
        if job.fit == "native":
            raise UsageError("With --fit native every photo has arrays of its own size", "Use crop, squash or pad")
        pyramid = load(job.request, choose_devices(job.device)[0])
        recipe = {"batch_size": job.batch_size or BATCH_SIZE, "threads": torch.get_num_threads()}
        [self._computer], self._workers = spread([pyramid], job, recipe["batch_size"], recipe)
        use_backend([self._computer], self._workers)
        self._limits = job.limits

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the arrays of a batch."""
        column = next((name for name in COLUMNS if name in batch), None)
        if column is None:
            raise UsageError(
                f"The batch has no column {listed(COLUMNS)}, only {', '.join(batch)}",
                "Rename the column that holds the pictures",
            )
        pictures = list(batch[column])
        arrays = {
            field.key: np.full((len(pictures), *field.lengths), 0 if field.dtype == "int8" else np.nan, field.dtype)
            for field in self._computer.fields
        }
        errors = np.full(len(pictures), "", dtype=object)
        with machine([self._computer.pyramid.device], self._workers):
            with ThreadPoolExecutor(resources.cores()) as pool:
                placed = list(pool.map(self._placed, pictures))
            for row, value in enumerate(placed):
                if isinstance(value, str):
                    errors[row] = value
            good = [(row, value) for row, value in enumerate(placed) if isinstance(value, Tensor)]
            self._compute(good, arrays, errors)
        kept = {name: values for name, values in batch.items() if name != column or name == "path"}
        return {**kept, **arrays, "error": errors}

    def _compute(self, good: list[tuple[int, Tensor]], arrays: dict[str, Any], errors: Any) -> None:
        """Fill in the arrays of pictures that could be read."""
        size = self._workers.batch_size
        for start in range(0, len(good), size):
            rows, pixels = zip(*good[start : start + size], strict=True)
            found = self._computer(self._computer.stack(pixels, size))
            for field, values, finite in zip(self._computer.fields, found.values, found.finite, strict=True):
                for position, row in enumerate(rows):
                    if finite[position]:
                        arrays[field.key][row] = np.asarray(values[position])
                    else:
                        errors[row] = f"{field.key} holds NaN or infinity"

    def _placed(self, picture: Any) -> Tensor | str:
        """Decode and fit a picture; returns (H, W, 3) uint8 pixels, or why there are none."""
        preprocessor, limits = self._computer.pyramid.preprocessor, self._limits
        try:
            if isinstance(picture, bytes):
                pixels = place(preprocessor, "", limits, data=picture).pixels
            elif isinstance(picture, str | Path):
                pixels = place(preprocessor, str(picture), limits).pixels
            else:
                image = decoding.upright_rgb(Image.fromarray(np.asarray(picture)))
                pixels = np.array(preprocessor.place(image, max_pixels=limits.max_pixels)[0])
        except UnreadableError as error:
            return error.reason
        except Exception as error:  # noqa: BLE001 - what is no picture may be anything
            return reason_of(error, "")
        return torch.from_numpy(pixels)

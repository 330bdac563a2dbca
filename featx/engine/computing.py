# Computing: from a batch of pixels to arrays on the host; one device, its own streams, as much as its memory holds.
"""Forward passes as the pipeline runs them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor

from featx.engine.reducing import Photo, Reduction, Values
from featx.errors import LESS, ModelError, enough_memory, is_out_of_memory
from featx.models.pyramid import Pyramid
from featx.values import Field, Level

# Batch sizes to try on a GPU; a larger one is used as long as it is this much faster.
BATCHES, WORTH_IT = (8, 16, 32, 64, 128, 256), 1.05


class TooLargeError(ModelError):
    """A device does not have enough memory for a batch."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """A pyramid's output for a batch.

    Attributes
    ----------
    values : list of Tensor, or of sequences
        (B, ...) for each of the computer's fields, or an array for each photo; contiguous, on the host, in the stored
        type.
    finite : list of sequences
        For each, (B,) bool: whether all values are finite.
    sizes : dict of str to (int, int)
        Height and width of the network's own maps, by the names of their arrays.
    """

    values: list[Values]
    finite: list[Sequence[Any]]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


class Computer:
    """A pyramid at work on one device; may be called from several threads at once.

    Parameters
    ----------
    pyramid : Pyramid
        Its module is converted to channels-last, which is fastest on its device.
    reductions : sequence of Reduction
        Applied to its arrays, in order.
    largest : int
        The most images in one pass; halved, for images of a size, when the device runs out of memory.
    on_note : callable
        Called, from any thread, when that happens.

    Attributes
    ----------
    fields : list of Field
        The arrays that come out, with the types in which they are stored.
    levels, final : tuple of Level, Level or None
        Those of the pyramid, as their maps come out.
    reductions : sequence of Reduction
        The steps; others may take their place that give the same fields.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        reductions: Sequence[Reduction],
        largest: int,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.pyramid = pyramid
        self.largest = largest
        self._halved: dict[tuple[int, ...], int] = {}
        self.on_note = on_note
        self.fields: list[Field] = list(pyramid.fields)
        for reduction in reductions:
            self.fields = reduction.fields(self.fields)
        self.reductions = reductions
        self._on_gpu = pyramid.device.type == "cuda"
        self._own = threading.local()
        self._under_way: set[int] = set()
        pyramid.module.to(memory_format=torch.channels_last)

    def stack(self, images: Sequence[Tensor], size: int) -> Tensor:
        """Put (H, W, 3) uint8 images into a batch of `size`, padded with blanks; pinned for a GPU."""
        with enough_memory(f"There is not enough memory for a batch of {size} images"):
            batch = torch.empty(size, *images[0].shape, dtype=torch.uint8, pin_memory=self._on_gpu)
        torch.stack(list(images), out=batch[: len(images)])
        batch[len(images) :] = 0
        return batch

    def __call__(self, pixels: Tensor, photos: Sequence[Photo] = (), *, whole: bool = False) -> Arrays:
        """Run a (B, H, W, 3) uint8 batch, split into smaller parts if a GPU does not have enough memory.

        Parameters
        ----------
        pixels : Tensor
            The photos; blanks may follow them.
        photos : sequence of Photo
            What is known of them.
        whole : bool
            Whether to give the pyramid's own arrays, in float32, without taking any step.

        Raises
        ------
        TooLargeError
            If one image alone is too much, or the batch for a processor.
        ModelError
            If the maps are not those that the model says it has.
        """
        size = tuple(pixels.shape[1:])
        steps, fields = ((), self.whole) if whole else (self.reductions, self.fields)
        while True:
            part = self._halved.get(size, self.largest)
            try:
                places = range(0, len(pixels), part)
                parts = [self._run(pixels[at : at + part], photos[at : at + part], steps, fields) for at in places]
                return parts[0] if len(parts) == 1 else _joined(parts)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # On a CPU the results depend on the batch, and memory is shared: the batch is not halved.
                may_halve = isinstance(error, torch.OutOfMemoryError) or self.pyramid.device.type != "cpu"
                if part == 1 or not may_halve:
                    what = "one image" if part == 1 else f"a batch of {part} images"
                    refusal = f"{self.pyramid.device} does not have enough memory for {what}"
                    raise TooLargeError(refusal, LESS) from error
            # Outside the handler, which would keep the failed pass alive; another thread may have halved already.
            if self._halved.get(size, self.largest) == part:
                self._halved[size] = -(-part // 2)
                which = f" of {size[1]} x {size[0]} pixels" if self.pyramid.input.height is None else ""
                passes = f"passes of {self._halved[size]} images{which}, not {part}"
                self.on_note(f"{self.pyramid.device} ran out of memory: {passes}")
            if self._on_gpu:
                torch.cuda.empty_cache()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count a pass among those under way."""
        self._under_way.add(threading.get_ident())
        try:
            yield
        finally:
            self._under_way.discard(threading.get_ident())

    @property
    def whole(self) -> list[Field]:
        """The pyramid's own arrays, in float32."""
        return [replace(field, dtype="float32") for field in self.pyramid.fields]

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels as their maps come out."""
        return tuple(self.level(level) for level in self.pyramid.levels)

    @property
    def final(self) -> Level | None:
        """The final map as it comes out, if it is wanted."""
        return self.level(self.pyramid.final) if self.pyramid.final else None

    @property
    def modules(self) -> tuple[Level, ...]:
        """The maps of modules as they come out."""
        return tuple(self.level(level) for level in self.pyramid.modules)

    def level(self, level: Level) -> Level:
        """Return a level of the pyramid as its map comes out."""
        return reduce(lambda found, step: step.level(found), self.reductions, level)

    @property
    def smallest(self) -> int:
        """The most images in one pass of the size that takes the fewest."""
        return min((self.largest, *self._halved.values()))

    @property
    def passes(self) -> int:
        """How many passes are under way."""
        return len(self._under_way)

    def best_batch_size(self) -> int:
        """Find the best number of images per pass by trying, on blank images."""
        height, width = self.pyramid.traced
        steps = [step for step in self.reductions if step.is_ready]  # components may have to be fitted yet

        def seconds(size: int) -> float:
            batch = self.stack([torch.zeros(height, width, 3, dtype=torch.uint8)], size)
            self._run(batch, (), steps, self.fields)
            began = time.perf_counter()
            self._run(batch, (), steps, self.fields)
            return time.perf_counter() - began

        return largest_worthwhile(seconds)

    def _run(
        self, pixels: Tensor, photos: Sequence[Photo], steps: Sequence[Reduction], fields: Sequence[Field]
    ) -> Arrays:
        with torch.inference_mode(), self._stream():
            batch = self.pyramid.normalise(pixels.to(self.pyramid.device, non_blocking=True))
            maps = self.pyramid.run(batch)
            sizes = {
                field.key: (value.shape[2], value.shape[3])
                for field, value in zip(self.pyramid.fields, maps, strict=True)
                if value.ndim == 4
            }
            values: list[Values] = list(maps)
            for step in steps:
                values = step(values, photos)
            flags = [_finite(value) if isinstance(value, Tensor) and self._on_gpu else None for value in values]
            host = [self._to_host(value, field.dtype) for value, field in zip(values, fields, strict=True)]
            if self._on_gpu:
                torch.cuda.current_stream().synchronize()
        finite = [_finite(value) if found is None else found.cpu() for value, found in zip(host, flags, strict=True)]
        return Arrays(host, finite, sizes)

    def _stream(self) -> AbstractContextManager[Any]:
        """One stream per thread: while one thread's batch is computed, another's copies overlap with it."""
        if not self._on_gpu:
            return nullcontext()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self.pyramid.device)  # type: ignore[no-untyped-call]
        stream: AbstractContextManager[Any] = torch.cuda.stream(self._own.stream)
        return stream

    def _to_host(self, value: Any, dtype: str) -> Any:
        """Cast and lay out in one pass over memory; what is on the host already stays as it is."""
        if not isinstance(value, Tensor):
            if not value or not isinstance(value[0], Tensor):
                return value
            return torch.split(self._to_host(torch.cat(list(value)), dtype), [len(each) for each in value])
        host = torch.empty(value.shape, dtype=getattr(torch, dtype), pin_memory=self._on_gpu)
        return host.copy_(value, non_blocking=self._on_gpu)


def largest_worthwhile(seconds: Callable[[int], float]) -> int:
    """Find the batch size beyond which a device gets no faster.

    Parameters
    ----------
    seconds : callable
        Time of one pass over that many images; may run out of memory.

    Raises
    ------
    ModelError
        If there is not enough memory for the smallest of `BATCHES`.
    """
    best, rate = 0, 0.0
    for size in BATCHES:
        try:
            now = size / seconds(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        if now < rate * WORTH_IT:
            break
        best, rate = size, now
    if not best:
        raise ModelError(f"There is not enough memory for batches of {BATCHES[0]}", "Use a smaller --batch-size")
    return best


def _finite(value: Any) -> Any:
    """Which images of an array are free of NaN and infinity."""
    if not isinstance(value, Tensor):
        return [bool(torch.isfinite(each).all()) if isinstance(each, Tensor) else True for each in value]
    if value.device.type == "cpu" and torch.isfinite(torch.stack(torch.aminmax(value))).all():
        return torch.ones(len(value), dtype=torch.bool)  # if minimum and maximum are finite, all are
    return torch.isfinite(value).flatten(1).all(1)


def _joined(parts: Sequence[Arrays]) -> Arrays:
    values = [_chained(pieces) for pieces in zip(*(part.values for part in parts), strict=True)]
    finite = [_chained(pieces) for pieces in zip(*(part.finite for part in parts), strict=True)]
    return Arrays(values, finite, parts[0].sizes)


def _chained(pieces: Sequence[Any]) -> Any:
    return torch.cat(list(pieces)) if isinstance(pieces[0], Tensor) else list(chain.from_iterable(pieces))

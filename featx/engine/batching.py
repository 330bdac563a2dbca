# Batching: images grouped into batches, in order or by size, with a bounded number of them waiting.
"""Images that go through the network together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from featx.images.frame import Frame
from featx.values import Item, Outcome, Stat

# A batch leaves, even if it is not full, once it holds this many batches' worth of values: many broken images must
# not wait for a good one.
PATIENCE = 4

# The most images, in batches, that may wait for others of their size, and the most bytes of their pixels.
AHEAD, AHEAD_BYTES = 16, 1_000_000_000


@dataclass(frozen=True, slots=True)
class Ready:
    """An image waiting for its batch: (H, W, 3) uint8 pixels of the model's input size."""

    item: Item
    stat: Stat
    pixels: Tensor
    frame: Frame
    messages: str


@dataclass(frozen=True, slots=True)
class Large:
    """An image that goes through the network in tiles: its pixels are read when they are needed.

    Attributes
    ----------
    as_a_whole : int
        Bytes that it takes because it can only be decoded as a whole.
    pixels : ndarray or None
        All of them, (H, W, 3) uint8, where it was read in a process of its own.
    """

    item: Item
    stat: Stat
    frame: Frame
    messages: str
    as_a_whole: int = 0
    pixels: np.ndarray[Any, np.dtype[np.uint8]] | None = None


# What comes of an image that was read, or was to be.
Value = Ready | Large | Outcome


def in_order(values: Iterable[Value], size: int, stopped: Callable[[], bool]) -> Iterator[list[Value]]:
    """Group in order: `size` images each, or fewer among many failures, which stay in their place."""
    batch: list[Value] = []
    images = 0
    for value in values:
        if stopped():
            return
        batch.append(value)
        images += isinstance(value, Ready)
        if images == size or len(batch) == PATIENCE * size:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def by_size(values: Iterable[Value], size: int, stopped: Callable[[], bool]) -> Iterator[list[Value]]:
    """Group images of equal height and width, `size` of them each; failures, and images in tiles, do not wait.

    Where too many images wait, the group that has waited longest leaves before it is full.
    """
    waiting: dict[tuple[int, ...], list[Value]] = {}
    images = taken = 0
    for value in values:
        if stopped():
            return
        if not isinstance(value, Ready):
            yield [value]
            continue
        shape = tuple(value.pixels.shape)
        group = waiting.setdefault(shape, [])
        group.append(value)
        images, taken = images + 1, taken + value.pixels.numel()
        while waiting and (len(group) == size or images > AHEAD * size or taken > AHEAD_BYTES):
            ready = shape if len(group) == size else next(iter(waiting))
            leaving = waiting.pop(ready)
            images -= len(leaving)
            taken -= sum(each.pixels.numel() for each in leaving if isinstance(each, Ready))
            yield leaving
            group = waiting.get(shape, [])
    yield from waiting.values()

# Batching: images grouped into batches, in order or by size, with a bounded number of them waiting.
"""Images that go through the network together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

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


def in_order(
    values: Iterable[Ready | Outcome], size: int, stopped: Callable[[], bool]
) -> Iterator[list[Ready | Outcome]]:
    """Group in order: `size` images each, or fewer among many failures, which stay in their place."""
    batch: list[Ready | Outcome] = []
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


def by_size(
    values: Iterable[Ready | Outcome], size: int, stopped: Callable[[], bool]
) -> Iterator[list[Ready | Outcome]]:
    """Group images of equal height and width, `size` of them each; failures do not wait.

    Where too many images wait, the group that has waited longest leaves before it is full.
    """
    waiting: dict[tuple[int, ...], list[Ready | Outcome]] = {}
    images = taken = 0
    for value in values:
        if stopped():
            return
        if isinstance(value, Outcome):
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

# Graphs: the layers of a model, which of them give the levels of which part, and the walk as far as those reach.
"""A model of ultralytics is a list of layers, each of which says which earlier ones it reads.

featx walks that list as far as the wanted maps reach; the head is never run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from featx.models.levels import measure
from featx.models.tracing import Tracer
from featx.values import Level


@dataclass(frozen=True, slots=True)
class Graph:
    """A model's layers, and the shapes that went through them.

    Attributes
    ----------
    layers : nn.Sequential
        All but the head.
    parts : dict
        Places of the layers that give the levels of a part, by its name.
    outputs : list
        What each layer gave for one blank image.
    tracer : Tracer
        What has followed that image.
    size : (int, int)
        Height and width of the image.
    """

    layers: nn.Sequential
    parts: dict[str, tuple[int, ...]]
    outputs: list[Any]
    tracer: Tracer
    size: tuple[int, int]

    def levels(self, part: str) -> list[Level]:
        """Return all levels of a part."""
        places = self.parts[part]
        maps = [self.outputs[place] for place in places]
        declared = [
            Level(index, f"model.{place}", values.shape[1], _stride(values, self.tracer) or None, None, None, None)
            for index, (place, values) in enumerate(zip(places, maps, strict=True))
        ]
        return list(measure("the model", declared, maps, self.tracer, (3, *self.size)))

    @property
    def coarsest(self) -> int:
        """The stride that the sides of an input have to be multiples of."""
        return int(max(_stride(self.outputs[place], self.tracer) for place in chain.from_iterable(self.parts.values())))


def trace(layers: nn.Sequential, depth: int, size: tuple[int, int]) -> Graph:
    """Run one blank image through all layers, and find the parts.

    Parameters
    ----------
    layers : nn.Sequential
        On the meta device, the head last.
    depth : int
        How many of them are the backbone's.
    size : (int, int)
        Height and width of the image.
    """
    *body, head = layers
    tracer = Tracer()
    with torch.no_grad(), tracer:
        image = torch.zeros(1, 3, *size, device="meta")
        tracer.begin(image)
        outputs = list(walk(body, image, range(len(body))).values())
    deepest: dict[float, int] = {}
    for place in range(min(depth, len(body))):
        stride = _stride(outputs[place], tracer)
        if stride and outputs[place] is not image:  # some models begin with a layer that does nothing
            deepest[stride] = place
    parts = {"backbone": tuple(sorted(deepest.values()))}
    if isinstance(head.f, list):
        parts["neck"] = tuple(sorted(head.f, key=lambda place: -outputs[place].shape[2]))
    return Graph(nn.Sequential(*body), parts, outputs, tracer, size)


class Walk(nn.Module):
    """The layers of a model up to the last that is wanted.

    Parameters
    ----------
    layers : nn.Sequential
        Of ultralytics: each has its place, `i`, and says what it reads, `f`.
    places : sequence of int
        Layers whose maps are wanted.
    """

    def __init__(self, layers: nn.Sequential, places: Sequence[int]) -> None:
        super().__init__()
        self.places = tuple(places)
        self.model = layers[: max(places) + 1]  # the name that it has in ultralytics' checkpoints
        self._kept = {*places, *chain.from_iterable(_sources(*layer) for layer in enumerate(self.model))}

    def forward(self, batch: Tensor) -> list[Tensor]:
        """Return the maps of `places`, (B, C, H, W) each, in their order."""
        outputs = walk(list(self.model), batch, self._kept)
        return [outputs[place] for place in self.places]


def walk(layers: Sequence[Any], batch: Tensor, kept: Collection[int]) -> dict[int, Any]:
    """Run each layer on what it reads, and return the outputs of those that are kept, by their places."""
    outputs: dict[int, Any] = {}
    value: Any = batch
    for place, layer in enumerate(layers):
        if isinstance(layer.f, list):
            value = [value if source == -1 else outputs[_counted(source, place)] for source in layer.f]
        elif layer.f != -1:
            value = outputs[_counted(layer.f, place)]
        value = layer(value)
        if place in kept:
            outputs[place] = value
    return outputs


def _sources(place: int, layer: Any) -> set[int]:
    """Return the layers that one reads, other than the one before it."""
    sources = layer.f if isinstance(layer.f, list) else [layer.f]
    return {_counted(source, place) for source in sources if source != -1}


def _counted(source: int, place: int) -> int:
    """Return a layer's place, which may be given relative to the layer that reads it."""
    return source if source >= 0 else place + source


def _stride(values: Any, tracer: Tracer) -> float:
    """Return how far apart the cells of a map are, in input pixels; 0 for anything but a map whose place is known."""
    grid = tracer.grid_of(values) if isinstance(values, Tensor) and values.ndim == 4 else None
    if grid is None:
        return 0
    stride = grid[0].stride
    return int(stride) if float(stride).is_integer() else stride

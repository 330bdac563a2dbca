# Captures: the outputs of modules inside a network, kept while it runs, and brought to maps, tokens or vectors.
"""What `featx.models.modules` has found out about a module's output is applied here, in every pass."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from featx.errors import ModelError
from featx.values import Field, Level


@dataclass(frozen=True, slots=True)
class Capture:
    """An output of a module, and how it is laid out.

    Attributes
    ----------
    level : Level
        What it is called, and, of a map, where its cells lie.
    module : str
        The module, by its path inside the network.
    call : int
        Which of its calls in a pass, from 0.
    several : bool
        Whether there are others.
    layout : str
        ``NCHW``, ``NHWC``; ``NLC`` or ``NCL``, the tokens of a map; ``tokens`` of no map, (B, L, C); ``vector``.
    shape : tuple of int
        Of what is kept for an image: (C, H, W), (L, C) or (D,).
    prefix : int
        Tokens before those of a map.
    keep_prefix : bool
        Whether they are kept as well.
    traced : (int, int) or None
        For inputs of any size: height and width of the one whose map has this shape.
    """

    level: Level
    module: str
    call: int
    several: bool
    layout: str
    shape: tuple[int, ...]
    prefix: int = 0
    keep_prefix: bool = False
    traced: tuple[int, int] | None = None

    @property
    def fields(self) -> list[Field]:
        """The arrays that are kept."""
        own = Field(self.level.key, self.shape)
        before = Field(f"{self.level.key}_prefix", (self.prefix, self.shape[0]))
        return [own, before] if self.keep_prefix and self.prefix else [own]

    def arranged(self, values: Tensor, size: Sequence[int]) -> list[Tensor]:
        """Bring the output for a batch of inputs of (height, width) to the arrays that are kept."""
        if self.layout == "vector":
            return [values.flatten(1)]
        if self.layout == "NHWC":
            return [values.permute(0, 3, 1, 2)]
        if self.layout not in ("NLC", "NCL"):
            return [values]
        tokens = values if self.layout == "NLC" else values.transpose(1, 2)
        before, cells = tokens[:, : self.prefix], tokens[:, self.prefix :]
        height, width = self._grid(size)
        if cells.shape[1] != height * width:
            raise ModelError(
                f"{self.module} has another number of tokens for this input", "Load the model with that image_size"
            )
        own = cells.transpose(1, 2).reshape(len(cells), -1, height, width)
        return [own, before] if self.keep_prefix and self.prefix else [own]

    def _grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the map, which grow with the input where that may have any size."""
        if self.traced is None:
            return self.shape[1], self.shape[2]
        return self.shape[1] * size[0] // self.traced[0], self.shape[2] * size[1] // self.traced[1]


class Captured(nn.Module):
    """A network that also gives the outputs of modules inside it.

    Parameters
    ----------
    network : nn.Module
        Gives a list of arrays.
    captures : sequence of Capture
        What else is kept.
    part : str
        Where in the network the paths of modules begin; empty for itself.
    """

    def __init__(self, network: nn.Module, captures: Sequence[Capture], part: str = "") -> None:
        super().__init__()
        self.network, self.captures = network, tuple(captures)
        self._own = threading.local()
        begin = network.get_submodule(part)
        for name in dict.fromkeys(capture.module for capture in self.captures):
            calls = {capture.call: place for place, capture in enumerate(self.captures) if capture.module == name}
            begin.get_submodule(name).register_forward_hook(partial(self._keep, name, calls))

    def forward(self, batch: Tensor) -> list[Tensor]:
        """Return the network's own arrays, and then those of the captures, in their order."""
        self._own.outputs = [None] * len(self.captures)
        self._own.calls = {capture.module: 0 for capture in self.captures if capture.several}
        values = list(self.network(batch))
        outputs, self._own.outputs = self._own.outputs, None
        for capture, output in zip(self.captures, outputs, strict=True):
            values += capture.arranged(output, batch.shape[-2:])
        return values

    def _keep(self, name: str, places: dict[int, int], module: Any, given: Any, output: Tensor) -> None:
        """Keep a copy of a module's output, for the thread that runs it: what follows may work in place."""
        del module, given
        if getattr(self._own, "outputs", None) is None:
            return
        call = 0
        if name in self._own.calls:
            call = self._own.calls[name]
            self._own.calls[name] += 1
        if call in places:
            self._own.outputs[places[call]] = output.clone()

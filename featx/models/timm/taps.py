# Taps: levels, prefix tokens, attention, final map and embedding, taken from one pass through a whole timm network.
"""The network before its classifier, tapped.

Levels come from where timm's own ``features_only`` takes them: from `forward_intermediates` where its pyramid is made
by that, and from the outputs of the modules that it names everywhere else. So they are equal to it, and everything
that follows, up to the embedding, costs one pass.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featx.errors import ModelError
from featx.models.levels import to_nchw
from featx.models.timm.attention import BLOCK, HEAD, Attention, watch
from featx.values import EMBEDDING, FINAL

# The exponent of generalised means, and what keeps its base positive (Radenović, Tolias and Chum, "Fine-tuning CNN
# Image Retrieval with No Human Annotation", TPAMI 2019).
GEM_POWER, GEM_LEAST = 3.0, 1e-6


@dataclass(frozen=True, slots=True)
class Taps:
    """What is taken from a network on the way.

    Attributes
    ----------
    indices : tuple of int
        Levels, by timm's index.
    hooks : tuple of (str, bool), or None
        The modules that give them, and whether by their input (True) or their output; None where the network's
        `forward_intermediates` gives them.
    layout : str
        ``NCHW`` or ``NHWC``: of the levels.
    norm, prefix_tokens, final, embedding, pool
        As `ModelRequest` has them.
    attention : tuple of Attention
        Where the attention of levels is computed, for those levels that have one.
    reach : str
        How far the network is run in any case: ``block`` as far as these take it, ``end`` or ``head``.
    final_layout : str
        ``NCHW``, ``NHWC`` or ``NLC``, tokens: of the final map; empty where it is not needed.
    skipped : int
        Tokens before those of the final map.
    grid : tuple of int
        Height and width of the final map, where it is tokens.
    traced : tuple of int or None
        For inputs of any size: the height and width of the one whose final map has that grid.
    """

    indices: tuple[int, ...]
    hooks: tuple[tuple[str, bool], ...] | None
    layout: str
    norm: bool
    prefix_tokens: bool
    final: bool
    embedding: bool
    pool: str | None
    attention: tuple[Attention, ...] = ()
    reach: str = BLOCK
    final_layout: str = ""
    skipped: int = 0
    grid: tuple[int, int] = (0, 0)
    traced: tuple[int, int] | None = None

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the final map of an input, which grow with it where it may have any size."""
        if self.traced is None:
            return self.grid
        return self.grid[0] * height // self.traced[0], self.grid[1] * width // self.traced[1]

    @property
    def keys(self) -> list[str]:
        """Names of what comes out."""
        levels = [f"level_{index}" for index in self.indices]
        prefixes = [f"{level}_prefix" for level in levels if self.prefix_tokens]
        attention = [f"level_{each.level}_attention" for each in self.attention]
        return [*levels, *prefixes, *attention, *[FINAL][: self.final], *[EMBEDDING][: self.embedding]]

    @property
    def whole(self) -> bool:
        """Whether the network has to be run to its end."""
        places = (self.reach, *(each.place for each in self.attention))
        return self.final or self.embedding or any(place != BLOCK for place in places)

    @property
    def head(self) -> bool:
        """Whether the network's own head has to be run."""
        places = (self.reach, *(each.place for each in self.attention))
        return (self.embedding and not self.pool) or HEAD in places


class Tapped(nn.Module):
    """A timm network without its classifier, which gives all that is taken from it in one pass.

    Parameters
    ----------
    network : nn.Module
        The whole network; its classifier is removed.
    taps : Taps
        What to take.
    """

    def __init__(self, network: Any, taps: Taps) -> None:
        super().__init__()
        self.taps, self.indices = taps, list(taps.indices)
        _remove_classifier(network)
        if not taps.whole and hasattr(network, "prune_intermediate_layers") and taps.indices:
            self.indices = network.prune_intermediate_layers(list(taps.indices), prune_norm=not taps.norm)
        self.network = network
        self._own = threading.local()
        if taps.hooks:
            modules = dict(network.named_modules())
            for place, (name, goes_in) in enumerate(taps.hooks):
                self._tap(modules[name], place, goes_in)
        for each in taps.attention:
            for name in each.modules:
                watch(network.get_submodule(name), partial(self._keep_attention, each.level))

    def forward(self, batch: Tensor) -> list[Tensor]:
        """Return the arrays of `Taps.keys` for a (B, 3, H, W) batch; maps are (B, C, H, W)."""
        if self.taps.attention:
            self._await_attention()
        maps, prefixes, end = self._run(batch)
        maps = to_nchw(self.taps.layout, maps)
        vector = self.network.forward_head(end, pre_logits=True) if self.taps.head else None
        attention = self._attention(maps) if self.taps.attention else []
        results = [*maps, *prefixes, *attention]
        if not self.taps.whole:
            return results
        grid = self.taps.grid_of(*batch.shape[-2:])
        final = [self._final_map(end, grid)] if self.taps.final_layout else []
        embedding = [self._embedding(end, vector, *final)] if self.taps.embedding else []
        return [*results, *(final if self.taps.final else []), *embedding]

    def _run(self, batch: Tensor) -> tuple[list[Tensor], list[Tensor], Any]:
        """Run the network; the output of its last block stays as it is."""
        taps = self.taps
        if not taps.indices:
            return [], [], self.network.forward_features(batch)
        if taps.hooks is not None:
            self._own.maps = [None] * len(taps.hooks)
            end = self.network.forward_features(batch)
            maps, self._own.maps = self._own.maps, None
            return maps, [], end
        options = {"return_prefix_tokens": True} if taps.prefix_tokens else {}
        result = self.network.forward_intermediates(
            batch,
            indices=self.indices,
            norm=taps.norm,
            output_fmt=taps.layout,
            intermediates_only=not taps.whole,
            **options,
        )
        end, levels = result if taps.whole else (None, result)
        if not taps.prefix_tokens:
            return list(levels), [], end
        return [level for level, _ in levels], [prefix for _, prefix in levels], end

    def _tap(self, module: nn.Module, place: int, goes_in: bool) -> None:
        """Have a module's input or output kept, by the thread that runs it."""

        def keep(values: Any) -> None:
            if getattr(self._own, "maps", None) is not None:
                # Some blocks hand on more than their map (pit, selecsls), which comes first.
                self._own.maps[place] = values[0] if isinstance(values, tuple | list) else values

        if goes_in:
            module.register_forward_pre_hook(lambda _, arguments: keep(arguments[0]))
        else:
            module.register_forward_hook(lambda *passed: keep(passed[-1]))

    def _final_map(self, end: Tensor, grid: tuple[int, int]) -> Tensor:
        taps = self.taps
        if taps.final_layout != "NLC":
            return to_nchw(taps.final_layout, [end])[0]
        tokens = end[:, taps.skipped :]
        if tokens.shape[1] != grid[0] * grid[1]:
            raise ModelError("The final map has a different size for this input", "Load the model with that image_size")
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)

    # torch.compile would take the rows for those that there are when it compiles.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _await_attention(self) -> None:
        self._own.rows = {each.level: [] for each in self.taps.attention}

    def _keep_attention(self, level: int, row: Tensor) -> None:
        """Keep a row of a level's attention, (B, heads, keys), for the thread that computed it."""
        if getattr(self._own, "rows", None) is not None:
            self._own.rows[level].append(row)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _attention(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return what was kept, as (B, heads, H, W): what precedes the cells is left out."""
        sides = {index: values.shape[-2:] for index, values in zip(self.taps.indices, maps, strict=True)}
        kept, self._own.rows = self._own.rows, None
        rows = {level: torch.cat(rows, 1)[..., -math.prod(sides[level]) :] for level, rows in kept.items()}
        return [row.reshape(*row.shape[:2], *sides[level]) for level, row in rows.items()]

    def _embedding(self, end: Any, vector: Tensor | None, final: Tensor | None = None) -> Tensor:
        """Return what the network's own head made of its end, or what is pooled instead."""
        pool = self.taps.pool
        if pool == "cls":
            first: Tensor = end[:, 0]
            return first
        if pool:
            assert final is not None  # noqa: S101 - its layout was found when the pool was asked for
            return pooled(final, pool)
        assert vector is not None  # noqa: S101 - the head was run
        return vector


def pooled(final: Tensor, pool: str) -> Tensor:
    """Pool a (B, C, H, W) map to (B, C): its mean, maximum, or generalised mean."""
    if pool == "max":
        return final.amax((2, 3))
    if pool == "gem":
        # In full precision: powers of numbers in half precision overflow it.
        return final.float().clamp(min=GEM_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)
    return final.mean((2, 3))


def _remove_classifier(network: Any) -> None:
    """Replace a classifier, which is neither run nor looked for in a checkpoint, by nothing."""
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else None
    parts = {id(part) for part in (classifier if isinstance(classifier, tuple | list) else [classifier])}
    for name, module in list(network.named_modules()):
        if id(module) in parts and isinstance(getattr(module, "fc", None), nn.Module):
            module.fc = nn.Identity()  # some name their whole head so, with pooling that is still needed
        elif id(module) in parts:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, nn.Identity())

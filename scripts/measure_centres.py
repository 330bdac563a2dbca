#!/usr/bin/env python3
# The centres of cells, measured: where a small change in the photo shows in the maps of real networks.
"""Compare the traced offsets of architectures with where their cells look when they run.

A network gets random weights with which all its branches matter: convolutions and matrices that keep the size of what
they are given, norms whose statistics are those of a noise image, and no branch scaled to nothing. The squared gradient
of a row of cells tells how strongly each row of the input shows in it; its centroid is the centre of the cells. What
looks everywhere at once, and has no centre, is held fixed: an attention leaves each token where it is, and gates
that are made of the whole image are constants.

A line is appended to the results for each architecture, and those that have one are not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from timm.layers import set_fused_attn
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from featx.engine import resources
from featx.models import catalogue
from featx.models.descriptions import Description
from featx.models.levels import to_nchw
from featx.models.timm import building
from featx.models.timm.description import Plan, describe
from featx.requests import ModelRequest
from featx.values import Level, Spacing

# Sides at which networks that take any size are measured. The next one, with more initialisations, is for those that
# deviate by more than a part of a cell: cells in the middle may see borders, and few channels lean to a side by chance.
SIDES, DOUBTFUL, MORE = (320, 640, 640), 0.2, 3

# Fewest and most rows (columns) of cells of a level that are looked at.
FEWEST, MOST = 2, 8


def main() -> None:
    """Measure what is not measured yet, then print what disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN", help="glob patterns of names")
    parser.add_argument("--output", type=Path, default=Path("centres.jsonl"), help="results, a JSON object a line")
    parser.add_argument("--table", type=Path, help="where to write the deviations, as docs/centres.json has them")
    parser.add_argument("--distinct", action="store_true", help="only the smallest of each family and geometry")
    parser.add_argument("--parameters", type=float, default=60e6, help="of the largest networks to measure")
    parser.add_argument("--seeds", type=int, default=2, help="random initialisations of each")
    parser.add_argument("--jobs", type=int, default=resources.cores(), help="architectures at a time, one thread each")
    options = parser.parse_args()
    results = read(options.output)
    book = catalogue.read()
    entries = book.entries if book else {}
    names = [
        name
        for name in sorted(entries, key=lambda name: entries[name]["parameters"])  # small ones first
        if any(fnmatchcase(name, pattern) for pattern in options.patterns)
        and entries[name]["parameters"] <= options.parameters
    ]
    names = smallest(names, book.entries) if book and options.distinct else names
    waiting = [(name, options.seeds) for name in names if name not in results]
    with (
        options.output.open("a", encoding="utf-8") as file,
        multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=4) as pool,
    ):
        for done, result in enumerate(pool.imap_unordered(_work, waiting), 1):
            results[result["model"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{done} of {len(waiting)} {line(result)}", file=sys.stderr)
    print(table([results[name] for name in names if name in results]))
    if options.table:
        lines = (f"  {json.dumps(name)}: {json.dumps(_brief(result))}" for name, result in sorted(results.items()))
        options.table.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def smallest(names: Sequence[str], entries: dict[str, Any]) -> list[str]:
    """Choose the smallest architecture of those whose levels lie alike, in each family."""
    alike: dict[Any, list[str]] = {}
    for name in sorted(names, key=lambda name: entries[name]["parameters"]):
        facts = [[level["stride"], level["offset"], level.get("offset_spread")] for level in entries[name]["levels"]]
        geometry = [key for key, _ in itertools.groupby(facts)]
        alike.setdefault((entries[name]["family"], json.dumps(geometry)), []).append(name)
    return [kind[0] for kind in alike.values()]


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    """Say of a result what the table of all has: by how much it deviates, or why it is not there."""
    if "error" in result:
        return {"error": result["error"]}
    found: dict[str, Any] = {"size": result["size"], "beyond": round(beyond(result), 3)}
    if found["beyond"] >= DOUBTFUL:
        found["scatter"] = max(max(level["scatter"]) for level in result["levels"])
    if unseen := [level["index"] for level in result["levels"] if None in level["deviation"]]:
        found["unseen"] = unseen
    return found


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Read the results of earlier calls, by model."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {result["model"]: result for result in map(json.loads, lines)}


def line(result: dict[str, Any]) -> str:
    """Write a result for people: by level, how far the measured centre lies from the traced one, in cells."""
    if "error" in result:
        return f"{result['model']}: {result['error']}"
    levels = ", ".join(
        f"{level['index']}: {_signed(level['deviation'])} ± {level['spread'] / 2:g}" for level in result["levels"]
    )
    return f"{result['model']} at {result['size']} ({result['seconds']} s) {levels}"


def table(results: list[dict[str, Any]], worst: int = 40) -> str:
    """List what could not be measured, and the architectures that deviate most beyond half the spread."""
    errors = [line(result) for result in results if "error" in result]
    measured = sorted((result for result in results if "error" not in result), key=beyond, reverse=True)
    rows = [f"{beyond(result):6.3f}  {line(result)}" for result in measured[:worst]]
    return "\n".join([*rows, f"{len(measured)} measured, {len(errors)} failed", *errors])


def beyond(result: dict[str, Any]) -> float:
    """Return the largest deviation of a level beyond half the spread of its branches, in cells."""
    excesses = (
        abs(deviation) - level["spread"] / 2
        for level in result["levels"]
        for deviation in level["deviation"]
        if deviation is not None
    )
    return max(0.0, *excesses, 0.0)


def _signed(values: list[float | None]) -> str:
    return "/".join("none" if value is None else f"{value:+.3f}" for value in values)


def _work(task: tuple[str, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    error = ""
    for own_size in (False, True):  # some networks only look as if they took other sizes (mvitv2)
        try:
            return compare(*task, own_size=own_size)
        except Exception as problem:  # noqa: BLE001 - whatever a model trips over is its result
            error = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return {"model": task[0], "error": error}


def compare(name: str, seeds: int, *, own_size: bool = False) -> dict[str, Any]:
    """Compare one architecture with its trace, and once more where they disagree; see `measured`."""
    began = time.monotonic()
    for attempt, size in enumerate([None] * len(SIDES) if own_size else _sizes(name)):
        result = measured(name, size, seeds * MORE**attempt)
        if beyond(result) < DOUBTFUL:
            break
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def measured(name: str, size: tuple[int, int] | None, seeds: int) -> dict[str, Any]:
    """Measure one architecture at an input size, None for its own, and compare it with its trace.

    Returns
    -------
    dict
        ``model``; ``size``, the side of its input; ``levels``: of each its ``index``, ``stride``, traced ``offset`` and
        ``spread``, the ``measured`` offset, its ``deviation`` and ``scatter`` in cells, and the ``spacing`` of its
        cells by their stride; [y, x] each, None where nothing of the input shows.
    """
    description = describe(ModelRequest(name, out_indices="all", image_size=size))
    description = replace(description, levels=_distinct(description.levels))
    found = measure(description, seeds)
    levels = [_compared(level, places) for level, places in zip(description.levels, found, strict=True)]
    return {"model": name, "size": description.input.height, "levels": levels}


def _sizes(name: str) -> list[tuple[int, int] | None]:
    """Return the sizes to measure an architecture at: its own where the network would have to be rebuilt for others."""
    book = catalogue.read()
    taken = book.entries[name]["sizes"] if book else None
    if taken is None or taken["rebuilt"]:
        return [None] * len(SIDES)
    step = math.lcm(32, taken["multiple"])
    return [(-(-side // step) * step,) * 2 for side in SIDES]


def _distinct(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Leave out levels between those of the same place: of a plain ViT's, the first and the last are measured."""
    alike = itertools.groupby(levels, lambda level: (level.stride, level.offset, level.offset_spread))
    groups = [list(group) for _, group in alike]
    return tuple(level for group in groups for level in (group[0], *group[1:][-1:]))


def _compared(level: Level, places: tuple[list[Place], list[Place]]) -> dict[str, Any]:
    strides, offsets, spreads = (_pair(value) for value in (level.stride, level.offset, level.offset_spread))
    fits = [_fitted(axis, stride) for axis, stride in zip(places, strides, strict=True)]
    return {
        "index": level.index,
        "stride": level.stride,
        "offset": level.offset,
        "spread": max(spreads),
        "measured": [None if fit is None else round(fit.offset, 2) for fit in fits],
        "deviation": [
            None if fit is None or offset is None else round((fit.offset - offset) / stride, 3)
            for fit, offset, stride in zip(fits, offsets, strides, strict=True)
        ],
        "scatter": [None if fit is None else round(fit.scatter, 3) for fit in fits],
        "spacing": [None if fit is None else round(fit.spacing, 3) for fit in fits],
    }


def _fitted(places: list[Place], stride: float) -> Fit | None:
    """Fit a line through the middle of the map."""
    cells, pixels = [place.cell for place in places], [place.pixel for place in places]
    if len(set(cells)) < 2:
        return None
    slope, _ = statistics.linear_regression(cells, pixels)
    offsets = [place.pixel - stride * place.cell for place in places]
    scatter = statistics.stdev(offsets) / len(offsets) ** 0.5
    return Fit(statistics.fmean(offsets), scatter / stride, slope / stride)


def _pair(value: Spacing | None) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, value)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row (column) of cells lies along one axis: in its map, and in the input."""

    cell: float
    pixel: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A line through places: the pixel of cell 0, its standard error in cells, and the distance of cells in strides."""

    offset: float
    scatter: float
    spacing: float


def measure(description: Description, seeds: int = 2) -> list[tuple[list[Place], list[Place]]]:
    """Measure where rows and columns of cells look, of all levels of a description."""
    set_fused_attn(enable=False)  # a fused attention hides its weights
    plan: Plan = description.plan
    size = plan.config["input_size"]
    found: list[tuple[list[Place], list[Place]]] = [([], []) for _ in description.levels]
    for seed in range(seeds):
        generator = torch.manual_seed(seed)
        network = building.create(plan.reference, "cpu", plan.arguments).requires_grad_(False)
        prepare(network, torch.randn(2, *size, generator=generator))
        image = torch.randn(1, *size, generator=generator).requires_grad_()
        with Local():
            maps = to_nchw(building.layout_of(network), network(image))
        by_index = dict(zip(plan.arguments["out_indices"], maps, strict=True))
        for level, places in zip(description.levels, found, strict=True):
            values = by_index[level.index]
            for axis in range(2):
                length = values.shape[2 + axis]
                # Maps that are fused with coarser ones repeat with their cells.
                period = length // maps[-1].shape[2 + axis] if level.offset_spread else FEWEST
                for cell in middle(length, min(max(period, FEWEST), MOST)):
                    shown = profile(image, values, axis, cell)
                    if total := float(shown.sum()):
                        pixel = float(shown @ torch.arange(len(shown)).double()) / total
                        places[axis].append(Place(cell, pixel))
    return found


def middle(length: int, count: int) -> list[int]:
    """Choose cells around the middle, an odd number of them apart, so that none is like all others of its kind."""
    count = min(count, length)
    count -= (length - count) % 2 and count > FEWEST  # as many on either side
    step = max(length // (2 * count), 1)
    step += (length - 1 - step * (count - 1)) % 2
    first = max((length - 1 - step * (count - 1)) // 2, 0)
    return [first + step * place for place in range(count)]


def profile(image: Tensor, values: Tensor, axis: int, cell: int) -> Tensor:
    """Return how strongly each row (column) of the input shows in one row (column) of cells."""
    line_of_cells = values.select(2 + axis, cell)
    weights = torch.randn(line_of_cells.shape)
    (gradient,) = torch.autograd.grad(line_of_cells, image, weights, retain_graph=True, materialize_grads=True)
    return gradient[0].double().square().sum((0, 2 - axis))


@torch.no_grad()
def prepare(network: nn.Module, noise: Tensor) -> None:
    """Give a network weights with which all its branches matter, and norms the statistics of a noise image."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        is_scale = (parameter.ndim <= 1 or "gamma" in name or "scale" in name) and not name.endswith("bias")
        if is_scale and bool((parameter.abs() < 1).all()) and bool((parameter == parameter.flatten()[0]).all()):
            nn.init.ones_(parameter)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # statistics of the last batch alone
    network(noise)
    network.eval()
    for norm in norms:
        norm.running_var.clamp_(min=1e-3)  # type: ignore[union-attr]


class Local(TorchFunctionMode):
    """A mode in which nothing looks everywhere: attention leaves tokens where they are, global gates are constants."""

    SOFTMAX = (torch.softmax, functional.softmax, Tensor.softmax)
    GATES = (torch.sigmoid, Tensor.sigmoid, functional.sigmoid, functional.hardsigmoid)
    REDUCTIONS = (torch.mean, Tensor.mean, torch.amax, Tensor.amax)
    POOLS = (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d)
    PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in self.PRODUCTS and all(factor.requires_grad for factor in args[:2]):
            args = (args[0], args[1].detach(), *args[2:])  # an attention without softmax: queries stay in place
        result = function(*args, **(kwargs or {}))
        if function in self.SOFTMAX and _is_attention(result):
            height, width = result.shape[-2:]
            return torch.eye(width).expand(result.shape) if height == width else torch.zeros_like(result)
        is_global = (function in self.REDUCTIONS and _sides(args[0]) - _sides(result) > 1) or (
            function in self.POOLS and result.shape[-2:] == (1, 1)
        )
        if is_global:
            return self.hold(result)
        return result.detach() if function in (*self.GATES, *self.SOFTMAX) else result

    def hold(self, result: Tensor) -> Tensor:
        """Hold fixed what is made of the whole image: it has no gradient."""
        return result.detach()


def _is_attention(weights: Tensor) -> bool:
    """Whether a softmax was taken over the last dimension, of tokens."""
    sums = weights.detach().sum(-1)
    return weights.ndim > 2 and weights.shape[-1] > 1 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _sides(values: Tensor) -> int:
    """Count the dimensions along which there is more than one number."""
    return sum(side > 1 for side in values.shape)


if __name__ == "__main__":
    main()

# ultralytics as a library of networks: what the table of libraries names.
"""ultralytics' networks: described by walking their own graphs, built and filled."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import nn

from featx.errors import ModelError, UsageError, WeightsError
from featx.images.native import GREY
from featx.models import catalogue
from featx.models.captures import Capture, Captured
from featx.models.catalogue import Catalogue, Entry
from featx.models.checkpoints import split_part
from featx.models.descriptions import Description
from featx.models.levels import choose, fields_of, unsized
from featx.models.modules import Module, survey, with_modules
from featx.models.weights import require_complete, tensors_sha256
from featx.models.yolo.graph import Graph, Walk, trace
from featx.models.yolo.importing import import_tasks
from featx.models.yolo.loading import read
from featx.models.yolo.names import LEFT_OUT, classifies, configurations, family, own_size
from featx.process import ALONE, random_state, replaced
from featx.requests import ModelRequest
from featx.values import RANDOM_WEIGHTS, Input, Level, Weights, plain

LICENSE = "AGPL-3.0 (ultralytics), or a licence bought from its makers"

# What only timm's networks can do.
NOT_OF_DETECTORS = ("norm", "prefix_tokens", "attention", "final", "embedding", "pool")


class Ultralytics:
    """See `featx.models.libraries.Library`."""

    def __init__(self) -> None:
        self._tasks = import_tasks()
        self._graphs: dict[tuple[str, tuple[int, int]], Graph] = {}

    def describe(self, request: ModelRequest) -> Description:
        """Walk the model's graph on the meta device."""
        _require_possible(request)
        size = self._size(request)
        graph = self._graph(request.model, size)
        offered = {part: graph.levels(part) for part in graph.parts}
        if request.part != "backbone" and "neck" not in offered:
            raise ModelError(f"{request.model} has no neck, only a backbone", "Leave out --part")
        levels = _chosen(request, offered)
        places = tuple(int(level.name.rpartition(".")[2]) for level in levels)
        fit, walk = _fit(request), Walk(graph.layers, places)
        described = Description(
            name=request.model,
            source="ultralytics",
            architecture=request.model,
            levels=tuple(levels),
            depth=sum(len(offered[part]) for part in _parts(request)),
            input=_input(request, fit, size, graph.coarsest),
            preprocessing=_preprocessing(request, fit, size, graph.coarsest),
            parameters=sum(parameter.numel() for parameter in walk.parameters()),
            fields=fields_of(levels),
            traced=size,
            plan=Plan(places),
        )
        if request.modules:
            described = with_modules(described, request, _modules(walk, size))
        return unsized(described) if fit == "native" else described

    def skeleton(self, description: Description) -> nn.Module:
        """Build it on the meta device."""
        return _captured(Walk(self._layers(description.name, "meta")[0], description.plan.places), description.plan)

    def build(self, description: Description, request: ModelRequest) -> tuple[nn.Module, Weights]:
        """Build as ultralytics does, and fill from a file, or from a seed."""
        plan: Plan = description.plan
        if request.weights == "pretrained":
            raise WeightsError(
                f"featx does not fetch weights for {request.model}",
                f"Give ultralytics' file with --weights {request.model}.pt, or use --weights random for a dry run",
            )
        if request.weights == "random":
            walk = self._build(request.model, plan.places, request.seed)
            sha256 = tensors_sha256(dict(walk.state_dict()))
            return _captured(walk, plan), Weights(
                "random", f"seed {request.seed}", sha256, seed=request.seed, note=RANDOM_WEIGHTS
            )
        walk = self._build(request.model, plan.places, 0)
        path, part = split_part(request.weights)
        configuration = self._configuration(request.model)
        checkpoint = read(self._tasks, path, request.model, part, configuration)
        expected = {
            name: value for name, value in walk.state_dict().items() if not name.endswith("num_batches_tracked")
        }
        require_complete(request.model, expected, checkpoint.tensors, request.weights)
        walk.load_state_dict({name: checkpoint.tensors[name] for name in expected}, strict=False)
        return _captured(walk, plan), Weights(
            "file", checkpoint.source, checkpoint.sha256, part=checkpoint.part, path=str(path.absolute())
        )

    def catalogue(self) -> Catalogue:
        """Return the names of all models whose layers can be walked."""
        return Catalogue("ultralytics", metadata.version("ultralytics"), list(self._files), {}, {})

    def entry(self, name: str) -> Entry:
        """Measure a model's backbone."""
        described = self.info(ModelRequest(name))
        levels = described["levels"]
        same = (
            *("family", "layout", "parameters", "input", "test_input", "output_strides", "fixed_size", "sizes"),
            "native",
        )
        return {
            **{fact: described[fact] for fact in (*same, *catalogue.EXTRAS, *catalogue.OPTIONAL)},
            "default_levels": [level["index"] for level in levels],
            "levels": levels,
            "pretrained": [],
        }

    def info(self, request: ModelRequest, known: Entry | None = None) -> dict[str, Any]:
        """Describe one model."""
        del known
        description = self.describe(request)
        levels = plain(description.levels)
        graph = self._graph(request.model, self._size(ModelRequest(request.model)))
        return {
            "model": request.model,
            "source": "ultralytics",
            "architecture": request.model,
            "family": family(request.model),
            "layout": "NCHW",
            "parameters": description.parameters,
            "levels": levels,
            "available_levels": description.depth,
            "input": plain(description.input),
            "test_input": None,
            "pretrained": [],
            "output_strides": [],
            "fixed_size": False,
            "sizes": {"multiple": graph.coarsest, "square": False, "rebuilt": False},
            "native": {"multiple": graph.coarsest, "least": None},
            "rebuilt": False,
            **dict.fromkeys(catalogue.EXTRAS),
            "prefix_tokens": 0,
            "norm": False,
            "parts": list(graph.parts),
            "license": LICENSE,
            "bytes_per_image": catalogue.bytes_per_image(levels),
        }

    def modules(self, request: ModelRequest) -> list[Module]:
        """Look at every module."""
        _require_possible(request)
        size, plan = self._size(request), self.describe(replace(request, modules=None)).plan
        return _modules(Walk(self._graph(request.model, size).layers, plan.places), size)

    @cached_property
    def _files(self) -> dict[str, tuple[Path, str]]:
        """Return ultralytics' own configuration files by the names of models, and the scale that each name means."""
        return configurations(Path(inspect.getfile(self._tasks)).parent.parent / "cfg" / "models")

    def _size(self, request: ModelRequest) -> tuple[int, int]:
        """Return height and width of the input, which have to be multiples of the coarsest stride."""
        height, width = request.image_size or own_size(request.model)
        multiple = self._graph(request.model, own_size(request.model)).coarsest
        if height % multiple or width % multiple:
            near = (max(1, round(length / multiple)) * multiple for length in (height, width))
            raise ModelError(
                f"{request.model} cannot take an input of {height}x{width} pixels",
                f"Sides are multiples of {multiple}; the nearest size is {'x'.join(map(str, near))}",
            )
        return height, width

    def _graph(self, name: str, size: tuple[int, int]) -> Graph:
        """Trace a model at an input size; the last one is remembered."""
        if (name, size) not in self._graphs:
            self._graphs = {(name, size): trace(*self._layers(name, "meta"), size)}
        return self._graphs[name, size]

    def _layers(self, name: str, device: str) -> tuple[nn.Sequential, int]:
        """Build a model as ultralytics' own classes do, and return its layers and how many are the backbone's."""
        configuration = self._configuration(name)
        # While it builds, ultralytics keeps the activation for the whole process.
        convolution = self._tasks.Conv
        with ALONE, torch.device(device), replaced(convolution, "default_act", convolution.default_act):
            layers, _ = self._tasks.parse_model(configuration, ch=3, verbose=False)
            self._tasks.initialize_weights(layers)  # which sets what batch norms add to variances
        return layers.eval(), len(configuration["backbone"])

    def _configuration(self, name: str) -> dict[str, Any]:
        """Read a model's configuration by its whole path: by its name, one in the current folder would come first."""
        if name not in self._files:
            raise _unknown(name, list(self._files))
        path, scale = self._files[name]
        return {**self._tasks.YAML.load(path), "scale": scale, "yaml_file": str(path)}

    def _build(self, name: str, places: Sequence[int], seed: int) -> Walk:
        """Build on the CPU from a seed; the caller's random state stays as it was."""
        with random_state(seed):
            layers, _ = self._layers(name, "cpu")
        return Walk(layers, places).eval()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a described model is built from: the layers whose maps are wanted, and what is kept of its modules."""

    places: tuple[int, ...]
    captures: tuple[Capture, ...] = ()


def _captured(walk: Walk, plan: Plan) -> nn.Module:
    return Captured(walk, plan.captures).eval() if plan.captures else walk


def _modules(walk: Walk, size: tuple[int, int]) -> list[Module]:
    return survey(walk, lambda batch, _: walk.forward(batch), torch.zeros(1, 3, *size, device="meta"))


def _unknown(name: str, names: Sequence[str]) -> ModelError:
    """Return the error of a model that does not exist, or that featx does not run."""
    if any(word in name for word in LEFT_OUT):
        return ModelError(
            f"featx cannot run {name}", "Use a plain YOLO model; `featx list-models --source ultralytics` shows them"
        )
    plain = name.removesuffix(".pt")
    if plain in names:
        return ModelError(f"{name} is a file of weights, not a model", f"Use --model {plain} --weights {name}")
    return catalogue.unknown_model(plain, names, {}, "ultralytics")


def _require_possible(request: ModelRequest) -> None:
    """Refuse what only timm's networks can do."""
    refused = {
        **{f"--{option.replace('_', '-')}": getattr(request, option) for option in NOT_OF_DETECTORS},
        "--no-maps": not request.maps,
        "--output-stride": request.output_stride,
        "--test-size": request.test_size,
        "--crop-pct": request.crop_pct and _fit(request) != "crop",
    }
    asked = [option for option, value in refused.items() if value]
    if asked:
        raise UsageError(f"{request.model} is an ultralytics model, which has no {asked[0]}", "Leave it out")
    if request.part == "all" and request.out_indices not in (None, "all"):
        raise UsageError("--out-indices does not say which part it means", "Use --strides, or choose one --part")


def _parts(request: ModelRequest) -> tuple[str, ...]:
    return ("backbone", "neck") if request.part == "all" else (request.part,)


def _chosen(request: ModelRequest, offered: dict[str, list[Level]]) -> list[Level]:
    """Return the levels that were asked for; those of several parts say which they are of."""
    levels: list[Level] = []
    for part in _parts(request):
        every = [level.index for level in offered[part]]
        strides = _strides(request, offered, part)
        chosen = choose(request.model, offered[part], request.out_indices, strides, every)
        label = part if request.part == "all" else ""
        levels += [structs.replace(level, part=label) for level in offered[part] if level.index in chosen]
    return levels


def _strides(request: ModelRequest, offered: dict[str, list[Level]], part: str) -> tuple[float, ...] | None:
    """Of the strides asked for, those that a part has, where another part has the others."""
    if request.strides is None or request.part != "all":
        return request.strides
    has = {name: {level.stride for level in levels} for name, levels in offered.items()}
    absent = [stride for stride in request.strides if not any(stride in strides for strides in has.values())]
    return tuple(stride for stride in request.strides if stride in has[part]) + tuple(absent)


def _fit(request: ModelRequest) -> str:
    """Return how photos are fitted: as ultralytics does for a prediction, unless something else was asked for."""
    if classifies(request.model):
        return request.fit or "crop"
    return "letterbox" if request.fit in (None, "pad") else request.fit


def _input(request: ModelRequest, fit: str, size: tuple[int, int], multiple: int) -> Input:
    native = fit == "native"
    return Input(
        height=None if native else size[0],
        width=None if native else size[1],
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bilinear",
        crop_pct=request.crop_pct or 1.0,
        fit=fit,
        configuration="asked" if request.image_size else "own",
        multiple=multiple if native else None,
        max_side=request.max_side,
    )


def _preprocessing(request: ModelRequest, fit: str, size: tuple[int, int], multiple: int) -> dict[str, Any]:
    """Configure what prepares images: ultralytics' letterbox, or timm's transform with its values from 0 to 1."""
    if fit == "letterbox":
        return {"fit": fit, "input_size": (3, *size)}
    common = {"interpolation": "bilinear", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if fit == "native":
        facts = {"fit": fit, "multiple": multiple, "least": None, "max_side": request.max_side}
        return {**common, **facts, "fill": GREY}
    crop_mode = {"crop": "center", "squash": "squash", "pad": "border"}[fit]
    return {**common, "input_size": (3, *size), "crop_pct": request.crop_pct or 1.0, "crop_mode": crop_mode}

# ultralytics' detectors: a backbone's levels and the maps that enter the head, found by walking the model's own graph.
"""ultralytics, seen from featx: the only file that imports it.

A model of ultralytics is a list of layers, each of which says which earlier ones it reads. featx walks that list as far
as the maps that are wanted reach; the head is never run.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from featx.errors import FeatxError, ModelError, UsageError, WeightsError, first_line, is_out_of_memory
from featx.files import temporary_folder
from featx.models import catalogue
from featx.models import weights as weights_
from featx.models.catalogue import Catalogue, Entry
from featx.models.checkpoints import Checkpoint, read_checkpoint, require_checkpoint, split_part
from featx.models.levels import choose, fields_of, measure
from featx.models.tracing import Tracer
from featx.options import OUTPUT_OPTIONS, ModelRequest
from featx.process import ALONE, quiet, random_state, replaced
from featx.values import Description, Input, Level, Weights

PARTS = ("backbone", "neck", "all")

LICENSE = "AGPL-3.0 (ultralytics), or a licence bought from its makers"

# Whatever these are called, featx does not run them: their layers read texts, their weights are fetched by themselves,
# or their images are prepared in another way.
LEFT_OUT = ("world", "resnet", "rtdetr")

# Sides of the input that detectors and classifiers are made for.
DETECTOR_SIDE, CLASSIFIER_SIDE = 640, 224

# Where a scale's letter goes in a name: yolov8-seg at scale n is yolov8n-seg.
FAMILY = re.compile(r"(yolo(?:e-)?v?\d+)([a-z]?)(-.*)?")

# What ultralytics is told while it is imported: to write nothing into the user's home, to ask nobody, to install
# nothing, and to say nothing.
QUIET = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false", "ULTRALYTICS_SAFE_LOAD": "true"}


@dataclass(frozen=True, slots=True)
class Graph:
    """A model's layers, and where its parts are in them.

    Attributes
    ----------
    layers : nn.Sequential
        All but the head.
    parts : dict
        Layers that give the levels of a part, by its name.
    """

    layers: nn.Sequential
    parts: dict[str, tuple[int, ...]]


class Ultralytics:
    """See `featx.models.libraries.Source`."""

    def __init__(self) -> None:
        self._tasks = _library()
        self._traced: dict[tuple[str, tuple[int, ...]], tuple[Graph, list[Any], Tracer]] = {}

    def describe(self, request: ModelRequest) -> Description:
        """Walk the model's graph on the meta device."""
        _require_possible(request)
        size = self._size(request)
        graph, outputs, tracer = self._trace(request.name, size)
        offered = {part: _levels(graph, part, outputs, tracer, size) for part in graph.parts}
        wanted = list(offered) if request.part == "all" else [request.part]
        if request.part not in (*offered, "all") or (request.part == "all" and len(offered) == 1):
            raise ModelError(f"{request.name} has no neck, only a backbone", "Leave --part out")
        levels: list[Level] = []
        for part in wanted:
            every = [level.index for level in offered[part]]
            chosen = choose(request.name, offered[part], request.out_indices, _strides(request, offered, part), every)
            levels += [
                replace(level, part=part if request.part == "all" else "")
                for level in offered[part]
                if level.index in chosen
            ]
        places = tuple(int(level.name.rpartition(".")[2]) for level in levels)
        return Description(
            name=request.name,
            source="ultralytics",
            architecture=request.name,
            levels=tuple(levels),
            depth=sum(len(offered[part]) for part in wanted),
            input=_input(request, size),
            preprocessing=_preprocessing(request.name, size),
            parameters=sum(parameter.numel() for parameter in Walk(graph.layers, places).parameters()),
            fields=fields_of(levels),
            plan=places,
        )

    def build(self, description: Description, request: ModelRequest) -> tuple[nn.Module, Weights]:
        """Build as ultralytics does, and fill from a file, or from a seed."""
        places: tuple[int, ...] = description.plan
        if request.weights == "pretrained":
            raise WeightsError(
                f"featx fetches no weights for {request.name}",
                f"Give ultralytics' file with --weights {request.name}.pt, or take --weights random for a dry run",
            )
        if request.weights == "random":
            walk = self._build(request.name, places, request.seed)
            sha256 = weights_.tensors_sha256(dict(walk.state_dict()))
            return walk, Weights("random", f"seed {request.seed}", sha256, seed=request.seed)
        walk = self._build(request.name, places, 0)
        path, part = split_part(request.weights)
        checkpoint = self._read(path, request.name, part)
        expected = {
            name: value for name, value in walk.state_dict().items() if not name.endswith("num_batches_tracked")
        }
        weights_.require_complete(request.name, expected, checkpoint.tensors, request.weights)
        walk.load_state_dict({name: checkpoint.tensors[name] for name in expected}, strict=False)
        return walk, Weights("file", checkpoint.source, checkpoint.sha256, part=checkpoint.part)

    def catalogue(self) -> Catalogue:
        """Return the names of all models whose layers can be walked."""
        return Catalogue("ultralytics", metadata.version("ultralytics"), list(self._files), {}, {})

    def entry(self, name: str) -> Entry:
        """Measure a model's backbone."""
        described = self.info(ModelRequest(name))
        levels = described["levels"]
        same = ("family", "layout", "parameters", "input", "test_input", "output_strides", "fixed_size", "sizes")
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
        levels = [level.to_json() for level in description.levels]
        graph, _, _ = self._trace(request.name, self._size(ModelRequest(request.name)))
        return {
            "model": request.name,
            "source": "ultralytics",
            "architecture": request.name,
            "family": _family(request.name),
            "layout": "NCHW",
            "parameters": description.parameters,
            "levels": levels,
            "available_levels": description.depth,
            "input": description.input.to_json(),
            "test_input": None,
            "pretrained": [],
            "output_strides": [],
            "fixed_size": False,
            "sizes": {"multiple": self._multiple(request.name), "square": False, "rebuilt": False},
            "rebuilt": False,
            **dict.fromkeys(catalogue.EXTRAS),
            "prefix_tokens": 0,
            "norm": False,
            "parts": list(graph.parts),
            "license": LICENSE,
            "bytes_per_image": catalogue.bytes_per_image(levels),
        }

    @cached_property
    def _files(self) -> dict[str, tuple[Path, str]]:
        """Return ultralytics' own configuration files by the names of models, and the scale that each name means."""
        return _configurations(Path(inspect.getfile(self._tasks)).parent.parent / "cfg" / "models")

    def _size(self, request: ModelRequest) -> tuple[int, int]:
        """Return height and width of the input, which have to be multiples of the coarsest stride."""
        height, width = request.image_size or _own_size(request.name)
        multiple = self._multiple(request.name)
        if height % multiple or width % multiple:
            near = (max(1, round(length / multiple)) * multiple for length in (height, width))
            raise ModelError(
                f"{request.name} cannot take an input of {height}x{width} pixels",
                f"Sides are multiples of {multiple}; the nearest size is {'x'.join(map(str, near))}",
            )
        return height, width

    def _multiple(self, name: str) -> int:
        """Return the coarsest stride."""
        size = _own_size(name)
        graph, outputs, tracer = self._trace(name, size)
        places = chain.from_iterable(graph.parts.values())
        return int(max(_stride(outputs[place], tracer) for place in places))

    def _layers(self, name: str, device: str) -> tuple[nn.Sequential, int]:
        """Build a model as ultralytics' own classes do, and return its layers and how many are the backbone's."""
        known = self._files
        if name not in known:
            if any(word in name for word in LEFT_OUT):
                raise ModelError(f"featx cannot run {name}", "Use a plain yolo model; `featx list-models` shows them")
            plain = name.removesuffix(".pt")
            if plain in known:
                raise ModelError(f"{name} is a file of weights", f"Use --model {plain} --weights {name}")
            raise catalogue.unknown_model(plain, list(known), {}, "ultralytics")
        configuration = self._configuration(name)
        # While it builds, ultralytics keeps the activation for the whole process.
        convolution = self._tasks.Conv
        with ALONE, torch.device(device), replaced(convolution, "default_act", convolution.default_act):
            layers, _ = self._tasks.parse_model(configuration, ch=3, verbose=False)
            self._tasks.initialize_weights(layers)  # which sets what batch norms add to variances
        return layers.eval(), len(configuration["backbone"])

    def _configuration(self, name: str) -> dict[str, Any]:
        """Read a model's configuration by its whole path: by its name, one in the current folder would come first."""
        path, scale = self._files[name]
        return {**self._tasks.YAML.load(path), "scale": scale, "yaml_file": str(path)}

    def _build(self, name: str, places: Sequence[int], seed: int) -> Walk:
        """Build on the CPU from a seed; the caller's random state is left as it was."""
        with random_state(seed):
            layers, _ = self._layers(name, "cpu")
        return Walk(layers, places).eval()

    def _trace(self, name: str, size: Sequence[int]) -> tuple[Graph, list[Any], Tracer]:
        """Run shapes through all layers, and find the parts; the last model is remembered."""
        if (name, tuple(size)) in self._traced:
            return self._traced[name, tuple(size)]
        layers, depth = self._layers(name, "meta")
        *body, head = layers
        tracer = Tracer()
        with torch.no_grad(), tracer:
            image = torch.zeros(1, 3, *size, device="meta")
            tracer.begin(image)
            outputs = list(_walk(body, image, range(len(body))).values())
        deepest: dict[float, int] = {}
        for place in range(min(depth, len(body))):
            stride = _stride(outputs[place], tracer)
            if stride and outputs[place] is not image:  # some models begin with a layer that does nothing
                deepest[stride] = place
        parts = {"backbone": tuple(sorted(deepest.values()))}
        if isinstance(head.f, list):
            parts["neck"] = tuple(sorted(head.f, key=lambda place: -outputs[place].shape[2]))
        self._traced = {(name, tuple(size)): (Graph(nn.Sequential(*body), parts), outputs, tracer)}
        return self._traced[name, tuple(size)]

    def _read(self, path: Path, name: str, part: str) -> Checkpoint:
        """Read a model's parameters out of a checkpoint without running any code in it."""
        source = str(path.absolute())
        if path.suffix != ".pt":
            return read_checkpoint(path, source, part=part)
        require_checkpoint(path)
        loaded = self._load_safely(path)
        there = [name for name in ("ema", "model") if loaded.get(name)]
        if part and part not in there:
            raise WeightsError(f"{path} holds no {part!r}", f"It holds {' and '.join(there) or 'one network alone'}")
        part = part or next(iter(there), "")
        model = loaded[part] if part else loaded
        if not isinstance(model, nn.Module | dict):
            raise WeightsError(f"{path} holds no state dict", "Give a file that ultralytics has saved")
        if isinstance(model, nn.Module):
            self._require_same_graph(path, name, vars(model).get("yaml"))
        tensors = dict(_tensors(model)) if isinstance(model, nn.Module) else dict(model)
        floats = {
            str(name): value.float() if value.is_floating_point() else value
            for name, value in tensors.items()
            if isinstance(value, Tensor)
        }
        return Checkpoint(floats, source, weights_.hashed(path).sha256, part)

    def _require_same_graph(self, path: Path, name: str, theirs: Any) -> None:
        """Refuse a checkpoint of a model that is wired in another way, though all shapes may fit."""
        ours = self._configuration(name)
        if not isinstance(theirs, dict):
            return
        their_facts, our_facts = _facts(theirs), _facts(ours)
        others = [what for what in our_facts if their_facts[what] != our_facts[what]]
        if others:
            raise WeightsError(
                f"{path} was made with another {others[0]} than {name} has",
                "Check --model, or give a file of that model",
            )

    def _load_safely(self, path: Path) -> dict[str, Any]:
        """Have ultralytics load a checkpoint as it does where only known classes may come out, and see that it does."""
        tasks, honest = self._tasks, self._tasks.torch_load
        safe = "safe_only" in inspect.signature(tasks.torch_safe_load).parameters and tasks._SafeLoad.SUPPORTED  # noqa: SLF001
        loads: list[bool] = []

        def load(*arguments: Any, **options: Any) -> Any:
            if options.get("weights_only") is not True:
                raise WeightsError("This ultralytics does not keep to its safe loading", "pip install -U ultralytics")
            loads.append(True)
            return honest(*arguments, **options)

        if not safe:
            raise WeightsError("This ultralytics cannot load checkpoints safely", "pip install -U ultralytics")
        with ALONE:
            before = torch.serialization.get_safe_globals()
            try:
                with replaced(tasks, "torch_load", load), quiet():
                    loaded, _ = tasks.torch_safe_load(str(path.resolve()), safe_only=True)
            except WeightsError:
                raise
            except Exception as error:  # it raises a dozen classes
                if is_out_of_memory(error):
                    raise
                said = re.sub(r"^ERROR\W*", "", first_line(error))
                raise WeightsError(
                    f"{path} is no checkpoint that can be loaded without running code in it: {said}",
                    "Use a file of ultralytics' own, or save its state dict as .safetensors",
                ) from error
            finally:
                torch.serialization.clear_safe_globals()
                torch.serialization.add_safe_globals(before)
        if not loads:
            raise WeightsError("This ultralytics does not keep to its safe loading", "pip install -U ultralytics")
        return dict(loaded)


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
        self.model = layers[: max(places) + 1]  # called as in ultralytics, so that its checkpoints' names fit
        self._kept = {*places, *chain.from_iterable(_sources(*layer) for layer in enumerate(self.model))}

    def forward(self, batch: Tensor) -> list[Tensor]:
        """Return the maps of `places`, (B, C, H, W) each, in their order."""
        outputs = _walk(list(self.model), batch, self._kept)
        return [outputs[place] for place in self.places]


def _walk(layers: Sequence[Any], batch: Tensor, kept: Collection[int]) -> dict[int, Any]:
    """Have each layer work on what it reads, and return what those that are kept made of it."""
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
    """Return the layers that one reads, besides the one before it."""
    sources = layer.f if isinstance(layer.f, list) else [layer.f]
    return {_counted(source, place) for source in sources if source != -1}


def _counted(source: int, place: int) -> int:
    """Return a layer's place, which may be given as so many before the one that reads it."""
    return source if source >= 0 else place + source


def _tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Take parameters and buffers out of a loaded module, none of whose functions is called: it may bring its own."""
    facts = vars(module)
    for kind in ("_parameters", "_buffers"):
        yield from ((f"{prefix}{name}", value) for name, value in facts[kind].items() if isinstance(value, Tensor))
    for name, inner in facts["_modules"].items():
        if isinstance(inner, nn.Module):
            yield from _tensors(inner, f"{prefix}{name}.")


def _facts(configuration: dict[str, Any]) -> dict[str, Any]:
    """What the numbers of a model depend on besides its parameters: of each layer what it reads, and its kind."""
    backbone, head = (configuration.get(part, ()) for part in ("backbone", "head"))
    return {
        "activation": configuration.get("activation"),
        "backbone": [(layer[0], layer[2]) for layer in backbone],
        "neck": [(layer[0], layer[2]) for layer in head[:-1]],
    }


def _library() -> Any:
    """Import ultralytics, and undo what that does to the process."""
    try:
        metadata.version("ultralytics")
        with ALONE, _undisturbed():
            from ultralytics.nn import tasks
    except ModuleNotFoundError as error:  # of its metadata, too
        raise FeatxError("Models of ultralytics need it to be installed", "pip install 'featx[yolo]'") from error
    except ImportError as error:  # on machines without a screen OpenCV often misses libGL
        raise FeatxError(
            f"ultralytics cannot be loaded: {error}",
            "Install that, or opencv-python-headless in place of opencv-python",
        ) from error
    return tasks


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep ultralytics from changing what belongs to the whole process, and from files at home."""
    numpy_options, torch_options = np.get_printoptions(), vars(torch._tensor_str.PRINT_OPTS).copy()  # noqa: SLF001
    with (
        temporary_folder() as place,
        mock.patch.dict(os.environ, {**QUIET, "YOLO_CONFIG_DIR": str(place)}),
        warnings.catch_warnings(),
    ):
        cv2 = import_module("cv2") if find_spec("cv2") else None
        threads = cv2.getNumThreads() if cv2 else 0
        replaced = [(torch, "save"), (Image, "open"), *((cv2, name) for name in ("imread", "imwrite", "imshow") if cv2)]
        originals = [getattr(module, name) for module, name in replaced]
        try:
            yield
        finally:
            # Its opening of images, for one, would look for a package to install when one of them is broken.
            for (module, name), original in zip(replaced, originals, strict=True):
                setattr(module, name, original)
            if cv2:
                cv2.setNumThreads(threads)
            np.set_printoptions(**numpy_options)
            vars(torch._tensor_str.PRINT_OPTS).update(torch_options)  # noqa: SLF001


def _configurations(folder: Path) -> dict[str, tuple[Path, str]]:
    """Read the names of models off the configuration files: one a scale."""
    names = {}
    for path in sorted(folder.glob("*/yolo*.yaml")):
        match = FAMILY.fullmatch(path.stem)
        if match is None or any(word in path.stem for word in LEFT_OUT):
            continue
        scales = re.findall(r"^ +([a-z]): *\[", path.read_text(encoding="utf-8"), re.MULTILINE)
        scaled = {f"{match[1]}{scale}{match[3] or ''}": (path, scale) for scale in scales if not match[2]}
        names.update(scaled or {path.stem: (path, match[2] if match[2] in scales else "")})
    return names


def _own_size(name: str) -> tuple[int, int]:
    side = CLASSIFIER_SIDE if _classifies(name) else DETECTOR_SIDE
    return side, side


def _family(name: str) -> str:
    match = FAMILY.fullmatch(name)
    return match[1] if match else name


def _classifies(name: str) -> bool:
    return name.endswith("-cls")


def _require_possible(request: ModelRequest) -> None:
    """Refuse what only timm's networks can do."""
    if request.part not in PARTS:
        raise UsageError(f"There is no part {request.part!r}", f"Use {', '.join(PARTS)}")
    unlike = {
        **{f"--{option.replace('_', '-')}": getattr(request, option) for option in OUTPUT_OPTIONS[2:]},
        "--no-maps": not request.maps,
        "--output-stride": request.output_stride,
        "--test-size": request.test_size,
    }
    asked = [option for option, value in unlike.items() if value]
    if asked:
        raise UsageError(f"{request.name} is a model of ultralytics and has no {asked[0]}", "Leave it out")
    if request.part == "all" and request.out_indices not in (None, "all"):
        raise UsageError("Indices do not say which part they mean", "Use --strides, or one --part")


def _strides(request: ModelRequest, offered: dict[str, Any], part: str) -> tuple[float, ...] | None:
    """Of the strides asked for, those that a part has, where another part has the others."""
    if request.strides is None or request.part != "all":
        return request.strides
    has = {name: {level.stride for level in levels} for name, levels in offered.items()}
    absent = [stride for stride in request.strides if not any(stride in strides for strides in has.values())]
    return tuple(stride for stride in request.strides if stride in has[part]) + tuple(absent)


def _levels(graph: Graph, part: str, outputs: Sequence[Tensor], tracer: Tracer, size: Sequence[int]) -> list[Level]:
    places = graph.parts[part]
    maps = [outputs[place] for place in places]
    declared = [
        Level(index, f"model.{place}", values.shape[1], _stride(values, tracer) or None, None, None, None)
        for index, (place, values) in enumerate(zip(places, maps, strict=True))
    ]
    return list(measure("the model", declared, maps, tracer, (3, *size)))


def _stride(values: Any, tracer: Tracer) -> float:
    """Return how far apart the cells of a map are, in input pixels; 0 for what is no map, or has no known place."""
    grid = tracer.grid_of(values) if isinstance(values, Tensor) and values.ndim == 4 else None
    if grid is None:
        return 0
    stride = grid[0].stride
    return int(stride) if float(stride).is_integer() else stride


def _input(request: ModelRequest, size: tuple[int, int]) -> Input:
    return Input(
        *size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bilinear",
        crop_pct=1.0,
        fit="crop" if _classifies(request.name) else "letterbox",
        configuration="asked" if request.image_size else "own",
    )


def _preprocessing(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Prepare images as ultralytics does for a prediction: a letterbox, or for classifiers a crop of the middle."""
    if not _classifies(name):
        return {"fit": "letterbox", "input_size": (3, *size)}
    return {
        "input_size": (3, *size),
        "interpolation": "bilinear",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "crop_pct": 1.0,
        "crop_mode": "center",
    }

# Backbones: timm's networks as feature pyramids; described on the meta device, then built and filled with weights.
"""timm, seen from featx: the only file that calls `timm.create_model`."""

from __future__ import annotations

import difflib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import timm
import timm.models
import torch
from timm.data import resolve_data_config
from timm.models import _builder
from torch import Tensor, nn

from featx import weights as weights_
from featx.errors import ModelError, UsageError, WeightsError
from featx.records import Input, Level, ModelRequest, Spacing, Weights
from featx.tracing import Grid, Tracer

# What people ask for; a network that takes none of these takes no other either.
OUTPUT_STRIDES = (4, 8, 16, 32)

# timm's name of what it does with the aspect ratio, and ours.
FITS = {"center": "crop", "squash": "squash", "border": "pad"}


@dataclass(frozen=True, slots=True)
class Reference:
    """A model's name, resolved.

    Attributes
    ----------
    name : str
        As it was asked for.
    timm_name : str
        What `timm.create_model` is given: a hub's repository has become a local folder by then.
    architecture : str
        timm's entry point.
    config : dict
        timm's pretrained configuration: input, hub id, licence …
    """

    name: str
    timm_name: str
    architecture: str
    config: dict[str, Any]

    @property
    def fixed_size(self) -> bool:
        """Whether the network is built for one input size."""
        return bool(self.config.get("fixed_input_size", False))


@dataclass(frozen=True, slots=True)
class Description:
    """A pyramid before it has weights.

    Attributes
    ----------
    reference : Reference
        Which model.
    levels : tuple of Level
        The chosen levels, in network order.
    depth : int
        How many levels there are to choose from.
    input : Input
        What the model is fed.
    config : dict
        timm's data configuration, as `timm.data.create_transform` takes it.
    parameters : int
        Of the pyramid, without the head.
    arguments : dict
        What `timm.create_model` is to be given.
    """

    reference: Reference
    levels: tuple[Level, ...]
    depth: int
    input: Input
    config: dict[str, Any]
    parameters: int
    arguments: dict[str, Any]


def resolve(name: str) -> Reference:
    """Find out what a model's name stands for; reads a small file from the hub for ``hf-hub:`` names.

    Raises
    ------
    ModelError
        If timm knows no such architecture or tag; the message has the nearest names.
    WeightsError
        If a hub repository's configuration cannot be had.
    """
    prefix, colon, rest = name.partition(":")
    if not colon:
        return _resolve_registered(name)
    if prefix == "hf-hub":
        repository, _, revision = rest.partition("@")
        folder = weights_.hub_file(repository, ["config.json"], revision or None).parent
    elif prefix == "local-dir":
        folder = Path(rest).expanduser()
    else:
        raise ModelError(f"{name!r} has an unknown prefix", "Use hf-hub:owner/name, local-dir:path, or a timm name")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = config["architecture"]
        config = {**config, **config.get("pretrained_cfg", {})}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} holds no timm configuration", "It needs a config.json that names its architecture"
        ) from error
    _require_architecture(architecture)
    return Reference(name, f"local-dir:{folder}", architecture, config)


def describe(request: ModelRequest) -> Description:
    """Work out levels, shapes and input of a pyramid without weights, and without memory for them.

    Raises
    ------
    ModelError
        If the network cannot do the output stride or the input size, or has no such level.
    """
    reference = resolve(request.name)
    arguments = _arguments(reference, request)
    skeleton = _build_skeleton(reference, request, arguments)
    offered = _offered(skeleton)
    default = _default_indices(skeleton)
    chosen = choose(reference.name, offered, request.out_indices, request.strides, default)
    arguments["out_indices"] = chosen
    if chosen != default:
        skeleton = _build_skeleton(reference, request, arguments)
    config = _data_config(reference, request)
    return Description(
        reference=reference,
        levels=_measure(skeleton, reference.name, [offered[index] for index in chosen], config["input_size"]),
        depth=len(offered),
        input=_input(config),
        config=config,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        arguments=arguments,
    )


def choose(
    name: str,
    offered: Sequence[Level],
    out_indices: Sequence[int] | Literal["all"] | None,
    strides: Sequence[float] | None,
    default: Sequence[int],
) -> tuple[int, ...]:
    """Turn what was asked for into level indices: sorted, without repeats, none out of range.

    Of several levels at one stride the deepest is taken.

    Raises
    ------
    UsageError
        If both ways of asking are used at once.
    ModelError
        If there is no such level; the message says which there are.
    """
    if out_indices is not None and strides is not None:
        raise UsageError("Levels were asked for both by index and by stride", "Use either --out-indices or --strides")
    if strides is not None:
        deepest = {level.stride: level.index for level in offered}
        absent = [stride for stride in strides if stride not in deepest]
        if absent or not strides:
            there = ", ".join(f"{stride:g}" for stride in deepest if isinstance(stride, float | int))
            raise ModelError(
                f"{name} has no level at stride {', '.join(f'{stride:g}' for stride in absent)}", f"It has {there}"
            )
        return tuple(sorted({deepest[stride] for stride in strides}))
    if out_indices == "all":
        return tuple(range(len(offered)))
    indices = default if out_indices is None else out_indices
    absent_indices = [index for index in indices if not -len(offered) <= index < len(offered)]
    if absent_indices or not indices:
        raise ModelError(
            f"{name} has no level {', '.join(map(str, absent_indices))}",
            f"It has {len(offered)}: 0 to {len(offered) - 1}, or -1 to -{len(offered)} from the end",
        )
    return tuple(sorted({index % len(offered) for index in indices}))


def build(description: Description, request: ModelRequest) -> tuple[nn.Module, Weights]:
    """Build the network on the CPU, fill it with the weights asked for, and set it to evaluation.

    Raises
    ------
    WeightsError
        If the weights cannot be had, or do not fill every parameter of the pyramid with finite numbers of its shape.
    """
    if request.weights == "random":
        return _build_random(description, request.seed)
    if request.weights == "pretrained":
        checkpoint, kind = _pretrained(description.reference), "pretrained"
    else:
        checkpoint, kind = weights_.read_checkpoint(Path(request.weights).expanduser(), request.weights), "file"
    module = _build_filled(description, checkpoint)
    return module, Weights(kind, checkpoint.source, checkpoint.sha256, part=checkpoint.part)  # type: ignore[arg-type]


def to_nchw(module: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the maps as (B, C, H, W): swin, mambaout and their like give (B, H, W, C)."""
    if str(getattr(module, "output_fmt", "NCHW")).endswith("NHWC"):
        return [level.permute(0, 3, 1, 2) for level in maps]
    return list(maps)


def output_strides(reference: Reference) -> tuple[int, ...]:
    """Return those of `OUTPUT_STRIDES` that the network can be built with."""
    return tuple(stride for stride in OUTPUT_STRIDES if _takes_output_stride(reference, stride))


def architectures() -> list[str]:
    """Return the names of timm's architectures, in natural order."""
    names: list[str] = timm.list_models()
    return names


def pretrained_tags(architecture: str) -> list[dict[str, Any]]:
    """Return the weights that timm knows for an architecture, its default first."""
    tags = []
    for name, config in timm.models.get_arch_pretrained_cfgs(architecture).items():
        if config.has_weights:
            tags.append(
                {
                    "tag": name.partition(".")[2],
                    "license": config.license,
                    "input_size": list(config.input_size),
                    "test_input_size": list(config.test_input_size) if config.test_input_size else None,
                    "hub": config.hf_hub_id,
                    "url": None if config.hf_hub_id else config.url,
                }
            )
    return tags


def default_input_size(architecture: str) -> tuple[int, ...]:
    """Return (C, H, W) of an architecture's default configuration."""
    size: tuple[int, ...] = timm.models.get_pretrained_cfg(architecture).input_size
    return size


def _resolve_registered(name: str) -> Reference:
    architecture = name.partition(".")[0]
    renamed = timm.models.get_deprecated_models().get(architecture)
    if renamed:
        raise ModelError(f"{architecture} is an old name of timm's", f"Use {renamed}")
    _require_architecture(architecture)
    known = timm.models.get_arch_pretrained_cfgs(architecture)
    if name != architecture and name not in known:
        tags = ", ".join(tagged.partition(".")[2] for tagged in known) or "none"
        raise ModelError(f"{architecture} has no weights tagged {name.partition('.')[2]!r}", f"It has {tags}")
    return Reference(name, name, architecture, timm.models.get_pretrained_cfg(name).to_dict())


def _require_architecture(architecture: str) -> None:
    if timm.is_model(architecture):
        return
    if "/" in architecture:
        hint = f"Write hf-hub:{architecture} for a repository, or local-dir:{architecture} for a folder"
    else:
        near = difflib.get_close_matches(architecture.lower(), architectures(), n=3, cutoff=0.5)
        hint = f"Nearest: {', '.join(near)}" if near else "`featx list-models` shows all"
    raise ModelError(f"timm has no model {architecture!r}", hint)


def _arguments(reference: Reference, request: ModelRequest) -> dict[str, Any]:
    arguments: dict[str, Any] = {"features_only": True}
    if request.output_stride is not None:
        arguments["output_stride"] = request.output_stride
    if request.image_size is not None and reference.fixed_size:
        arguments["img_size"] = request.image_size
    return arguments


def _build_skeleton(reference: Reference, request: ModelRequest, arguments: dict[str, Any]) -> nn.Module:
    """Build on the meta device: shapes, no numbers."""
    try:
        return _create(reference, "meta", arguments)
    except Exception as error:
        if request.output_stride is not None and not _takes_output_stride(reference, request.output_stride):
            taken = [str(stride) for stride in output_strides(reference)]
            raise ModelError(
                f"{reference.name} cannot be built with output stride {request.output_stride}",
                f"It takes {', '.join(taken)}" if taken else "It has only its own strides; leave --output-stride out",
            ) from error
        if "img_size" in arguments:
            raise _size_error(reference.name, request.image_size or (0, 0), error) from error
        raise ModelError(f"timm cannot build {reference.name}: {_reason(error)}") from error


def _create(reference: Reference, device: str, arguments: dict[str, Any], *, pretrained: bool = False) -> nn.Module:
    with torch.device(device):
        module: nn.Module = timm.create_model(reference.timm_name, pretrained=pretrained, **arguments)
    return module.eval()


def _takes_output_stride(reference: Reference, stride: int) -> bool:
    """Whether timm builds it so. The networks that cannot raise whatever they trip over."""
    try:
        _create(reference, "meta", {"features_only": True, "output_stride": stride})
    except Exception:  # noqa: BLE001
        return False
    return True


def _offered(skeleton: nn.Module) -> list[Level]:
    """All levels that the network has, whatever was chosen; their maps are not measured yet."""
    info: Any = skeleton.feature_info
    return [
        Level(index, entry["module"], entry["num_chs"], entry["reduction"], None, None, None)
        for index, entry in enumerate(info.info)
    ]


def _default_indices(skeleton: nn.Module) -> tuple[int, ...]:
    info: Any = skeleton.feature_info
    return tuple(info.out_indices)


def _data_config(reference: Reference, request: ModelRequest) -> dict[str, Any]:
    asked = {"input_size": (3, *request.image_size)} if request.image_size else {}
    config: dict[str, Any] = resolve_data_config(asked, pretrained_cfg=reference.config)
    return config


def _input(config: dict[str, Any]) -> Input:
    _, height, width = config["input_size"]
    return Input(
        height=height,
        width=width,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        fit=FITS[config["crop_mode"]],
    )


def _measure(skeleton: nn.Module, name: str, levels: list[Level], size: tuple[int, int, int]) -> tuple[Level, ...]:
    """Run shapes through the network and hold them against what it says of itself."""
    tracer, image = Tracer(), torch.empty(1, *size, device="meta")
    try:
        with torch.no_grad(), tracer:
            tracer.begin(image)
            maps = to_nchw(skeleton, skeleton(image))
    except Exception as error:
        if "meta tensors" in str(error):  # a network that looks at values while it runs: shapes stay unknown
            return tuple(levels)
        raise _size_error(name, size[1:], error) from error
    measured = check_maps(name, levels, maps)
    return tuple(
        level if grid is None else _placed(level, grid, size)
        for level, grid in zip(measured, map(tracer.grid_of, maps), strict=True)
    )


def _placed(level: Level, grid: Grid, size: Sequence[int]) -> Level:
    """Give a level the stride and offset that its cells were seen to have.

    Where padding on one side makes cells look past themselves, the centre of what they see says nothing of their place:
    it is left open when the map, so placed, would lie more than a cell beside the image.
    """
    beside = [
        abs(axis.offset + axis.stride * (axis.length - 1) / 2 - (length - 1) / 2) / axis.stride
        for axis, length in zip(grid, size[1:], strict=True)
    ]
    offset = _spacing(grid[0].offset, grid[1].offset) if max(beside) <= 1 else None
    return replace(level, stride=_spacing(grid[0].stride, grid[1].stride), offset=offset)


def _spacing(vertical: float, horizontal: float) -> Spacing:
    """One number where both agree; whole numbers as integers."""
    first, second = (int(value) if float(value).is_integer() else value for value in (vertical, horizontal))
    return first if first == second else (first, second)


def check_maps(name: str, levels: Sequence[Level], maps: Sequence[Tensor]) -> tuple[Level, ...]:
    """Return the levels with the height and width that the maps have.

    Raises
    ------
    ModelError
        If the maps are not those that the levels describe.
    """
    if len(maps) != len(levels):
        raise ModelError(f"{name} gave {len(maps)} maps for {len(levels)} levels", "Please report this model")
    measured = []
    for level, values in zip(levels, maps, strict=True):
        if values.ndim != 4 or values.shape[1] != level.channels:
            raise ModelError(
                f"{name} says {level.channels} channels for level {level.index}, but its map is {tuple(values.shape)}",
                "Please report this model",
            )
        measured.append(replace(level, height=values.shape[2], width=values.shape[3]))
    return tuple(measured)


def _build_random(description: Description, seed: int) -> tuple[nn.Module, Weights]:
    """Initialise as timm does, from a seed of its own; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _create(description.reference, "cpu", description.arguments)
    sha256 = weights_.tensors_sha256(dict(module.state_dict()))
    return module, Weights("random", f"seed {seed}", sha256, seed=seed)


def _pretrained(reference: Reference) -> weights_.Checkpoint:
    """Fetch or find the checkpoint that timm's configuration points to."""
    prefix, _, location = reference.timm_name.partition(":")
    if prefix == "local-dir" and not reference.name.startswith("hf-hub:"):
        path = weights_.folder_file(Path(location))
        return weights_.read_checkpoint(path, str(path))
    hub_id = reference.config.get("hf_hub_id") or ""
    if reference.name.startswith("hf-hub:"):
        hub_id = reference.name.partition(":")[2]
    url = reference.config.get("url")
    try:
        if hub_id:
            repository, _, revision = hub_id.partition("@")
            path = weights_.hub_file(repository, _hub_names(reference), revision or None)
            return weights_.read_checkpoint(path, f"hf-hub:{hub_id}/{path.name}")
        if url:
            return weights_.read_checkpoint(weights_.url_file(url), url)
    except WeightsError as error:
        raise WeightsError(f"No pretrained weights for {reference.name}: {error.message}", error.hint) from error
    raise WeightsError(
        f"timm has no pretrained weights for {reference.name}", "Give --weights FILE, or --weights random for a dry run"
    )


def _hub_names(reference: Reference) -> list[str]:
    """File names to look for in a repository: safetensors before pickles, as timm has it."""
    named: str = reference.config.get("hf_hub_filename") or "pytorch_model.bin"
    stem = named.removesuffix(".bin")
    return [named] if stem == named else [f"{stem.replace('pytorch_', '')}.safetensors", named]


def _build_filled(description: Description, checkpoint: weights_.Checkpoint) -> nn.Module:
    """Build, load, and hold every parameter of the pyramid against the checkpoint.

    timm's own loading is not strict when it builds a pyramid: what does not match stays random. Here its conversion of
    old checkpoints is used, and the loading is ours.
    """
    loaded: dict[str, Tensor] = {}
    originals: dict[int, str] = {}

    def load(network: nn.Module, convert: Callable[..., dict[str, Tensor]] | None) -> None:
        targets = network.state_dict(keep_vars=True)
        originals.update({id(target): name for name, target in targets.items()})
        loaded.update(_best_fitting(checkpoint.tensors, targets, lambda tensors: _convert(convert, tensors, network)))
        fitting = {
            name: value for name, value in loaded.items() if name in targets and value.shape == targets[name].shape
        }
        network.load_state_dict(fitting, strict=False)

    with _timm_loading_replaced_by(load):
        module = _create(description.reference, "cpu", description.arguments, pretrained=True)
    pyramid = {originals.get(id(target), name): target for name, target in module.state_dict(keep_vars=True).items()}
    _require_complete(description.reference.name, pyramid, loaded, checkpoint.source)
    return module


@contextmanager
def _timm_loading_replaced_by(load: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Hand the network that timm builds in this thread, and timm's converter for its checkpoints, to `load`.

    timm offers no seam between building a network and loading it; other threads get timm's own function.
    """
    ours, original = threading.get_ident(), _builder.load_pretrained

    def replacement(model: nn.Module, *arguments: Any, **options: Any) -> None:
        if threading.get_ident() != ours:
            original(model, *arguments, **options)
        else:
            load(model, options.get("filter_fn"))

    with mock.patch.object(_builder, "load_pretrained", replacement):
        yield


def _best_fitting(
    tensors: dict[str, Tensor], targets: dict[str, Tensor], convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Convert the tensors as they are, or without their prefix if more of them then fit.

    As they are comes first: timm's converters know the prefixes of the checkpoints that they were written for.
    """

    def fitting(candidate: dict[str, Tensor]) -> int:
        return sum(name in targets and value.shape == targets[name].shape for name, value in candidate.items())

    plain = convert(tensors)
    if fitting(plain) == len(targets):
        return plain
    return max(plain, convert(strip_prefix(tensors, targets)), key=fitting)


def _convert(
    convert: Callable[..., dict[str, Tensor]] | None, tensors: dict[str, Tensor], network: nn.Module
) -> dict[str, Tensor]:
    """Run timm's converter for old and foreign checkpoints, which trips over those that it does not know."""
    if convert is None:
        return tensors
    try:
        return convert(dict(tensors), network)
    except Exception:  # noqa: BLE001 - what it could not convert will be missing, and is reported as that
        return tensors


def strip_prefix(tensors: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what trainers put before parameter names (``module.``, ``model.``, ``student.backbone.``).

    The prefix under which the most targets are found is the right one; a tie means two networks in one file.

    Raises
    ------
    WeightsError
        If the file holds two complete networks.
    """
    found: dict[str, int] = {}
    for name in tensors:
        pieces = name.split(".")
        for cut in range(len(pieces)):
            if ".".join(pieces[cut:]) in targets:
                prefix = "".join(f"{piece}." for piece in pieces[:cut])
                found[prefix] = found.get(prefix, 0) + 1
    if not found:  # names of another library, for timm's converter to know
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    most = max(found.values())
    best = [prefix for prefix, count in found.items() if count == most]
    if len(best) > 1 and "" not in best:
        raise WeightsError(f"The checkpoint holds several networks: {', '.join(best)}", "Save the one that you mean")
    prefix = "" if "" in best else best[0]
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _require_complete(model: str, pyramid: dict[str, Tensor], loaded: dict[str, Tensor], source: str) -> None:
    """Refuse a checkpoint that leaves anything in the pyramid to chance."""
    counted = {name: target for name, target in pyramid.items() if not name.endswith("num_batches_tracked")}
    faults = {
        "missing": [name for name in counted if name not in loaded],
        "of another shape": [name for name in counted if name in loaded and loaded[name].shape != counted[name].shape],
        "not finite": [name for name in counted if name in loaded and not _is_finite(loaded[name])],
    }
    for fault, names in faults.items():
        if names:
            first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise WeightsError(
                f"{len(names)} of {len(counted)} parameters of the pyramid are {fault} in {source}: {first}",
                f"This is no sound checkpoint of {model}; check --model and --weights",
            )


def _is_finite(values: Tensor) -> bool:
    return not values.is_floating_point() or bool(torch.isfinite(values).all())


def _size_error(name: str, size: Sequence[int], error: Exception) -> ModelError:
    return ModelError(
        f"{name} cannot take an input of {size[0]}x{size[1]} pixels: {_reason(error)}",
        "`featx info` shows its own size; multiples of 32 suit most",
    )


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")

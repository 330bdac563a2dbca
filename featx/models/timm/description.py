# timm's networks as feature pyramids, described on the meta device: levels, sizes, input, no weights.
"""timm, seen from featx: the only file that calls `timm.create_model`."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from timm.data import resolve_data_config
from timm.models import FeatureHookNet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featx.errors import ModelError, UsageError, first_line
from featx.models import catalogue
from featx.models import weights as weights_
from featx.models.levels import choose, fields_of, measure, to_nchw
from featx.models.tracing import Tracer
from featx.options import ModelRequest
from featx.paths import expanded
from featx.process import random_state
from featx.values import Description, Input, Level

# What people ask for; a network that takes none of these takes no other either.
OUTPUT_STRIDES = (4, 8, 16, 32)

# What a network may want its input's sides to be multiples of: patches, windows, halos, and their products.
SIDES = (1, 2, 4, 7, 8, 14, 16, 28, 32, 48, 56, 64, 96, 112, 128, 192, 224, 256)

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
        """Whether timm says that the network is built for one input size."""
        return bool(self.config.get("fixed_input_size", False))

    @property
    def family(self) -> str:
        """The module of timm that the architecture is in."""
        return str(timm.models.model_entrypoint(self.architecture).__module__.rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class Plan:
    """What a described pyramid is built from.

    Attributes
    ----------
    reference : Reference
        Which model.
    arguments : dict
        What `timm.create_model` is to be given.
    config : dict
        timm's data configuration, as `timm.data.create_transform` takes it.
    deepest : int
        The index of the deepest level that there is.
    taps : featx.models.timm.outputs.Taps or None
        What is to be taken from the whole network, where it is more than plain levels.
    """

    reference: Reference
    arguments: dict[str, Any]
    config: dict[str, Any]
    deepest: int
    taps: Any = None


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
        folder = weights_.hub_file(repository, ["config.json"], revision or None).path.parent
    elif prefix == "local-dir":
        folder = Path(expanded(rest))
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

    A network is taken as it is where it accepts the input size, and rebuilt for the size (timm's ``img_size``: position
    embeddings and windows are resampled) where it does not.

    Raises
    ------
    ModelError
        If the network cannot do the output stride or the input size, or has no such level.
    """
    reference = resolve(request.name)
    config = _data_config(reference, request)
    failures = []
    for arguments in _ways_to_build(request, config["input_size"]):
        try:
            return _described(reference, request, config, arguments)
        except SizeRefusedError as refused:
            failures.append(refused)
    raise _size_error(reference, request, config["input_size"], failures[0]) from failures[0]


def sizes_taken(reference: Reference) -> dict[str, Any] | None:
    """Find out by trying which input sizes a network takes.

    Returns
    -------
    dict or None
        ``multiple``: sides have to be multiples of it, and long enough for the network's depth; ``square``: both have
        to be the same; ``rebuilt``: the network is rebuilt for the size. None where it takes no other size than its
        own.
    """
    for square in (False, True):
        for multiple in SIDES:
            height = _odd_multiple(multiple, 256)
            size = (height, height if square else _odd_multiple(multiple, height + 64))
            for arguments in _ways_to_build(ModelRequest(reference.name), (3, *size)):
                if _runs(reference, arguments, size):
                    return {"multiple": multiple, "square": square, "rebuilt": "img_size" in arguments}
    return None


def nearest_size(reference: Reference, size: Sequence[int], taken: dict[str, Any]) -> tuple[int, int] | None:
    """Return the nearest (height, width) that a network takes, or a multiple of it where that is too small.

    Parameters
    ----------
    reference : Reference
        The network.
    size : (int, int)
        What was asked for.
    taken : dict
        What `sizes_taken` found.
    """
    multiple = taken["multiple"]
    height, width = (max(1, int(side / multiple + 0.5)) * multiple for side in size)
    if taken["square"]:
        height = width = max(height, width)
    for factor in (1, 2, 4, 8, 16):
        near = (height * factor, width * factor)
        ways = _ways_to_build(ModelRequest(reference.name), (3, *near))
        if any(_runs(reference, arguments, near) for arguments in ways):
            return near
    return None


def layout_of(module: nn.Module) -> str:
    """Return ``NCHW`` or ``NHWC``; most networks do not say, and are the former."""
    return str(getattr(module, "output_fmt", "NCHW")).rpartition(".")[2]


def own_input(reference: Reference) -> Input:
    """Return the input configuration that a model has if nothing is asked for."""
    request = ModelRequest(reference.name)
    return _input(_data_config(reference, request), request)


def output_strides(reference: Reference) -> tuple[int, ...]:
    """Return those of `OUTPUT_STRIDES` that the network can be built with."""
    return tuple(stride for stride in OUTPUT_STRIDES if _takes_output_stride(reference, stride))


def create(reference: Reference, device: str, arguments: dict[str, Any], *, pretrained: bool = False) -> nn.Module:
    """Have timm build a network on a device, in evaluation mode."""
    with torch.device(device), _Unfilled() if device == "meta" else nullcontext():
        module: nn.Module = timm.create_model(reference.timm_name, pretrained=pretrained, **arguments)
    _trim(module)
    _keep_threads_apart(module)
    return module.eval()


def _trim(module: nn.Module) -> None:
    """Cut off what comes after the deepest level, where timm leaves it on (efficientnet, mobilenetv3, hardcorenas)."""
    stages, blocks = getattr(module, "_stage_out_idx", None), getattr(module, "blocks", None)
    if stages and isinstance(blocks, nn.Sequential):
        module.blocks = blocks[: max(stages)]


def _keep_threads_apart(module: nn.Module) -> None:
    """Have each thread collect its own maps where timm takes them by hooks, which know one pass at a time."""
    if isinstance(module, FeatureHookNet):
        module.hooks._feature_outputs = _PerThread()  # noqa: SLF001 - timm has no seam for it


class _PerThread(threading.local):
    """What hooks have collected in this thread, by device."""

    def __init__(self) -> None:
        self._collected: dict[Any, OrderedDict[str, Tensor]] = {}

    def __getitem__(self, device: Any) -> OrderedDict[str, Tensor]:
        return self._collected.setdefault(device, OrderedDict())

    def __setitem__(self, device: Any, collected: OrderedDict[str, Tensor]) -> None:
        self._collected[device] = collected


class _Unfilled(TorchFunctionMode):
    """A mode in which parameters are not initialised.

    On the meta device that changes nothing, and takes most of the time that a network takes to build.
    """

    FILLING = frozenset(
        getattr(Tensor, name) for name in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
    )

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in self.FILLING and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))


def tested_input(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return height, width and crop of the size that weights were tested with; None where it is the model's own."""
    if not (config.get("test_input_size") or config.get("test_crop_pct")):
        return None
    tested = resolve_data_config(pretrained_cfg=config, use_test_size=True)
    _, height, width = tested["input_size"]
    return {"height": height, "width": width, "crop_pct": tested["crop_pct"]}


def _resolve_registered(name: str) -> Reference:
    architecture, dot, tag = name.partition(".")
    _require_architecture(architecture)
    known = timm.models.get_arch_pretrained_cfgs(architecture)
    if dot and name not in known:
        raise catalogue.unknown_tag(architecture, tag, [tagged.partition(".")[2] for tagged in known])
    return Reference(name, name, architecture, timm.models.get_pretrained_cfg(name).to_dict())


def _require_architecture(architecture: str) -> None:
    renamed = timm.models.get_deprecated_models()
    if architecture in renamed or not timm.is_model(architecture):
        raise catalogue.unknown_model(architecture, timm.list_models(), renamed)


def _ways_to_build(request: ModelRequest, size: Sequence[int]) -> Iterator[dict[str, Any]]:
    """As the network is, and then rebuilt for the size."""
    arguments: dict[str, Any] = {"features_only": True}
    if request.output_stride is not None:
        arguments["output_stride"] = request.output_stride
    yield arguments
    yield {**arguments, "img_size": tuple(size[1:])}


class SizeRefusedError(Exception):
    """A network, built in some way, does not take the input size; its cause is what timm raised."""


def _described(
    reference: Reference, request: ModelRequest, config: dict[str, Any], arguments: dict[str, Any]
) -> Description:
    skeleton = _build_skeleton(reference, request, arguments)
    offered = _offered(skeleton)
    default = _default_indices(skeleton)
    chosen = choose(reference.name, offered, request.out_indices, request.strides, default)
    arguments = {**arguments, "out_indices": chosen}
    if chosen != default:
        skeleton = _build_skeleton(reference, request, arguments)
    levels = _measure(
        skeleton, reference, arguments, [level for level in offered if level.index in chosen], config["input_size"]
    )
    return Description(
        name=reference.name,
        source="timm",
        architecture=reference.architecture,
        levels=levels,
        depth=len(offered),
        input=_input(config, request),
        preprocessing=config,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        fields=fields_of(levels),
        layout=layout_of(skeleton),
        rebuilt="img_size" in arguments,
        plan=Plan(reference, arguments, config, offered[-1].index),
    )


def _build_skeleton(reference: Reference, request: ModelRequest, arguments: dict[str, Any]) -> nn.Module:
    """Build on the meta device: shapes, no numbers."""
    try:
        return create(reference, "meta", arguments)
    except Exception as error:
        if "img_size" in arguments:
            raise SizeRefusedError from error
        if request.output_stride is not None and not _takes_output_stride(reference, request.output_stride):
            taken = [str(stride) for stride in output_strides(reference)]
            raise ModelError(
                f"{reference.name} cannot be built with output stride {request.output_stride}",
                f"It takes {', '.join(taken)}" if taken else "It has only its own strides; leave --output-stride out",
            ) from error
        raise ModelError(f"timm cannot build {reference.name}: {first_line(error)}") from error


def _takes_output_stride(reference: Reference, stride: int) -> bool:
    """Whether timm builds it so. The networks that cannot raise whatever they trip over."""
    try:
        create(reference, "meta", {"features_only": True, "output_stride": stride})
    except Exception:  # noqa: BLE001
        return False
    return True


def _offered(skeleton: nn.Module) -> list[Level]:
    """All levels that the network has, whatever was chosen; their maps are not measured yet.

    A level without a module (tresnet's first) is one that timm counts and does not have.
    """
    info: Any = skeleton.feature_info
    return [
        Level(index, entry["module"], entry["num_chs"], entry["reduction"], None, None, None)
        for index, entry in enumerate(info.info)
        if entry["module"]
    ]


def _default_indices(skeleton: nn.Module) -> tuple[int, ...]:
    info: Any = skeleton.feature_info
    return tuple(info.out_indices)


def _data_config(reference: Reference, request: ModelRequest) -> dict[str, Any]:
    """Resolve timm's data configuration: the model's own, its test size, or the size that was asked for."""
    if request.test_size and request.image_size:
        raise UsageError(
            "Both an image size and the test size were asked for", "Use either --image-size or --test-size"
        )
    if request.test_size and tested_input(reference.config) is None:
        raise ModelError(f"{reference.name} has no test size besides its own", "Leave --test-size out")
    asked = {"input_size": (3, *request.image_size)} if request.image_size else {}
    config: dict[str, Any] = resolve_data_config(
        asked, pretrained_cfg=reference.config, use_test_size=request.test_size
    )
    return config


def _input(config: dict[str, Any], request: ModelRequest) -> Input:
    _, height, width = config["input_size"]
    return Input(
        height=height,
        width=width,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        fit=FITS[config["crop_mode"]],
        configuration="asked" if request.image_size else "test" if request.test_size else "own",
    )


def _measure(
    skeleton: nn.Module,
    reference: Reference,
    arguments: dict[str, Any],
    levels: list[Level],
    size: tuple[int, int, int],
) -> tuple[Level, ...]:
    """Run shapes through the network and hold them against what it says of itself."""
    tracer, maps = trace(skeleton, lambda: real(reference, arguments), size)
    return measure(reference.name, levels, maps, tracer, size)


def trace(skeleton: nn.Module, otherwise: Callable[[], nn.Module], size: Sequence[int]) -> tuple[Tracer, list[Tensor]]:
    """Run one blank image, (3, height, width), on the meta device; on a real network if it cannot be done there."""
    try:
        return _run(skeleton, size)
    except Exception as error:
        if not looks_at_values(error):
            raise SizeRefusedError from error
    return _run(otherwise(), size)


def _run(network: nn.Module, size: Sequence[int]) -> tuple[Tracer, list[Tensor]]:
    """Run one blank image under a tracer."""
    device, tracer = next(network.parameters()).device, Tracer()
    with torch.no_grad(), tracer:
        image = torch.zeros(1, *size, device=device)
        tracer.begin(image)
        return tracer, to_nchw(layout_of(network), network(image))  # here, where the tracer sees it


def _runs(reference: Reference, arguments: dict[str, Any], size: tuple[int, int]) -> bool:
    """Whether the network, built so, takes an input of (height, width)."""
    try:
        with torch.no_grad():
            create(reference, "meta", arguments)(torch.zeros(1, 3, *size, device="meta"))
    except Exception as error:  # noqa: BLE001 - networks raise whatever they trip over
        if not looks_at_values(error):
            return False
        try:
            _run(real(reference, arguments), (3, *size))
        except Exception:  # noqa: BLE001
            return False
    return True


def looks_at_values(error: BaseException) -> bool:
    """Whether a network failed on the meta device only because it looks at values while it runs (gemma4_vit)."""
    return "meta tensors" in str(error)


def real(reference: Reference, arguments: dict[str, Any]) -> nn.Module:
    """Build with real numbers what cannot run on shapes alone; the caller's random state is left as it was."""
    with random_state():
        return create(reference, "cpu", arguments)


def _size_error(
    reference: Reference, request: ModelRequest, size: Sequence[int], refused: SizeRefusedError
) -> ModelError:
    """Say which sizes the network takes, the nearest one first."""
    refusal = f"{reference.name} cannot take an input of {size[1]}x{size[2]} pixels"
    if request.image_size is None:
        return ModelError(
            f"{refusal}, its own size: {first_line(refused.__cause__ or refused)}", "Please report this model"
        )
    _, height, width = _data_config(reference, replace(request, image_size=None))["input_size"]
    taken = sizes_taken(reference)
    if taken is None:
        return ModelError(refusal, f"It takes {height}x{width} alone")
    near = nearest_size(reference, request.image_size, taken)
    if near is None:
        return ModelError(refusal, f"Its own size is {height}x{width}")
    return ModelError(refusal, f"The nearest that it takes is {near[0]}x{near[1]}; its own is {height}x{width}")


def _odd_multiple(multiple: int, at_least: int) -> int:
    """Return the first odd multiple of `multiple` that is not smaller; no multiple of anything twice as large."""
    count = -(-at_least // multiple)
    return multiple * (count + 1 - count % 2)

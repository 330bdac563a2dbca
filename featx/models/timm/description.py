# Descriptions: timm's networks as feature pyramids, worked out on the meta device: levels, sizes, input, no weights.
"""Describing timm's pyramids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from featx.errors import ModelError, first_line
from featx.images.native import filled_up
from featx.models.descriptions import Description
from featx.models.levels import choose, fields_of, measure
from featx.models.timm.building import SizeRefusedError, create, layout_of, real, trace, ways_to_build
from featx.models.timm.input import data_config, input_of
from featx.models.timm.native import require_native
from featx.models.timm.reference import Reference, resolve
from featx.models.timm.sizes import size_error
from featx.requests import ModelRequest
from featx.values import Level

# The output strides that people ask for; a network that takes none of these takes no other either.
OUTPUT_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a described pyramid is built from.

    Attributes
    ----------
    reference : Reference
        Which model.
    arguments : dict
        What `timm.create_model` is given.
    config : dict
        timm's data configuration, as `timm.data.create_transform` takes it.
    deepest : int
        The index of the network's deepest level.
    taps : featx.models.timm.taps.Taps or None
        What is taken from the whole network, where more than plain levels is wanted.
    captures : tuple of featx.models.captures.Capture
        What is kept of its modules.
    """

    reference: Reference
    arguments: dict[str, Any]
    config: dict[str, Any]
    deepest: int
    taps: Any = None
    captures: tuple[Any, ...] = ()


def describe(request: ModelRequest) -> Description:
    """Work out levels, shapes and input of a pyramid without weights, and without memory for them.

    A network is taken as it is where it accepts the input size, and rebuilt for the size (timm's ``img_size``: position
    embeddings and windows are resampled) where it does not.

    Raises
    ------
    ModelError
        If the network cannot do the output stride or the input size, or has no such level.
    """
    reference = resolve(request.model)
    config = data_config(reference, request)
    if request.fit == "native":
        return _described(reference, request, *_native(reference, request, config))
    failures = []
    for arguments in ways_to_build(request, config["input_size"]):
        try:
            return _described(reference, request, config, arguments)
        except SizeRefusedError as refused:
            failures.append(refused)
    raise size_error(reference, request, config["input_size"], failures[0]) from failures[0]


def output_strides(reference: Reference) -> tuple[int, ...]:
    """Return those of `OUTPUT_STRIDES` that the network can be built with."""
    return tuple(stride for stride in OUTPUT_STRIDES if _takes_output_stride(reference, stride))


def _native(
    reference: Reference, request: ModelRequest, config: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return data configuration and arguments of a network that takes any size, traced near its own size."""
    arguments = next(ways_to_build(request, config["input_size"]))
    own_size = config["input_size"][1:]
    found = require_native(reference, arguments, own_size)
    height, width = filled_up((own_size[0], own_size[1]), found.multiple, found.least)
    facts = {"fit": "native", "multiple": found.multiple, "least": found.least, "max_side": request.max_side}
    return {**config, **facts, "input_size": (3, height, width)}, {**arguments, **found.arguments}


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
        input=input_of(config, request),
        preprocessing=config,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        fields=fields_of(levels),
        layout=layout_of(skeleton),
        rebuilt="img_size" in arguments,
        traced=tuple(config["input_size"][1:]),  # a list in the file of a repository
        plan=Plan(reference, arguments, config, offered[-1].index),
        files=reference.files,
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
                f"It accepts {', '.join(taken)}" if taken else "It has only its own strides; leave out --output-stride",
            ) from error
        raise ModelError(f"timm cannot build {reference.name}: {first_line(error)}") from error


def _takes_output_stride(reference: Reference, stride: int) -> bool:
    """Whether timm builds it so; networks that it cannot build so raise all kinds of errors."""
    try:
        create(reference, "meta", {"features_only": True, "output_stride": stride})
    except Exception:  # noqa: BLE001
        return False
    return True


def _offered(skeleton: nn.Module) -> list[Level]:
    """Return all levels that the network has, whatever was chosen; their maps are not measured yet.

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


def _measure(
    skeleton: nn.Module,
    reference: Reference,
    arguments: dict[str, Any],
    levels: list[Level],
    size: tuple[int, int, int],
) -> tuple[Level, ...]:
    """Run shapes through the network, and compare them with what it says of itself."""
    tracer, maps = trace(skeleton, lambda: real(reference, arguments), size)
    return measure(reference.name, levels, maps, tracer, size)

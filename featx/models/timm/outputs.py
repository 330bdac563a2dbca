# Outputs other than plain levels: a description extended by attention, final map, embedding, prefix tokens and norm.
"""Describing what `featx.models.timm.taps.Tapped` takes from a whole network."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from msgspec import structs
from timm.models._features import FeatureGetterNet
from timm.models.hrnet import HighResolutionNetFeatures
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from featx.errors import FeatxError, ModelError
from featx.models.captures import Capture
from featx.models.descriptions import Description
from featx.models.levels import measure
from featx.models.modules import Module, with_captures
from featx.models.timm import modules
from featx.models.timm.attention import HEAD, Attention, find, has_class_token
from featx.models.timm.building import SizeRefusedError, create, layout_of, looks_at_values, real, trace
from featx.models.timm.description import Plan, describe
from featx.models.timm.loading import create_planned
from featx.models.timm.taps import Taps
from featx.models.tracing import Tracer
from featx.process import random_state
from featx.requests import ModelRequest
from featx.values import FINAL, Field, Level, plain

# Names of the arguments that a pyramid is built with and a whole network is not.
OF_PYRAMIDS = ("features_only", "out_indices")


def wanted(request: ModelRequest) -> bool:
    """Whether a request is for more than plain levels."""
    of_levels = (request.norm, request.prefix_tokens, request.attention)
    others = (request.final, request.embedding, request.pool, request.modules)
    return any(of_levels) or any(others) or not request.maps


def extend(description: Description, request: ModelRequest) -> Description:
    """Add to the description of a plain pyramid what else was asked for.

    Raises
    ------
    ModelError
        If the network has no such thing.
    """
    plan: Plan = description.plan
    levels = description.levels if request.maps else ()
    arguments, size = _of_whole(plan.arguments), plan.config["input_size"]
    skeleton = create(plan.reference, "meta", arguments)
    taps = _taps(description, request, levels, skeleton)
    captures: list[Capture] = []
    notes: list[str] = []
    try:
        if request.modules:
            taps, captures, notes = modules.find(description, request, arguments, taps)
        plan = replace(plan, arguments=arguments, taps=taps)
        tapped = create_planned(plan, "meta")
        tracer, arrays = trace(tapped, lambda: _real(plan), size)
    except SizeRefusedError as error:
        raise ModelError(
            f"{description.name} cannot be run to the end at {size[1]}x{size[2]}: {error.__cause__}",
            "Leave out --image-size",
        ) from error
    found = dict(zip(taps.keys, arrays, strict=True))
    maps = [found[level.key] for level in levels]
    declared = [structs.replace(level, channels=values.shape[1]) for level, values in zip(levels, maps, strict=True)]
    described = replace(
        description,
        levels=measure(description.name, declared, maps, tracer, size),
        parameters=sum(parameter.numel() for parameter in tapped.parameters()),
        fields=tuple(Field(key, tuple(values.shape[1:])) for key, values in found.items()),
        final=_final_level(description.name, found[FINAL], tracer, size) if taps.final else None,
        layout="NCHW",
        plan=plan,
    )
    return with_captures(described, captures, notes)


def _real(plan: Plan) -> nn.Module:
    """Build with real numbers; the caller's random state stays as it was."""
    with random_state():
        return create_planned(plan)


def modules_of(description: Description, request: ModelRequest) -> list[Module]:
    """Look at every module of a whole network, as it runs for a request."""
    arguments = _of_whole(description.plan.arguments)
    skeleton = create(description.plan.reference, "meta", arguments)
    return modules.modules_of(description, arguments, _taps(description, request, description.levels, skeleton))


def facts(description: Description) -> dict[str, Any]:
    """Find out what a network has apart from plain levels.

    Parameters
    ----------
    description : Description
        Of the plain pyramid with all its levels.

    Returns
    -------
    dict
        ``embedding``, its length, or None; ``final``, a level's facts, or None; ``prefix_tokens``, how many a level
        has; ``attention``, whose (``class token`` or ``pooling query``) and of which levels, or None; ``norm``,
        whether levels have a final norm that `ModelRequest.norm` applies.
    """
    request = ModelRequest(description.name, maps=False, embedding=True, final=True)
    whole = (
        _tried(description, request)
        or _tried(description, replace(request, final=False))
        or _tried(description, replace(request, embedding=False))
    )
    vectors = [field.shape[0] for field in whole.fields if field.is_vector] if whole else []
    has_getter = _hooks(description.plan, description.levels) is None
    tokens = _tried(description, ModelRequest(description.name, prefix_tokens=True)) if has_getter else None
    return {
        "embedding": vectors[0] if vectors else None,
        "final": plain(whole.final) if whole and whole.final else None,
        "prefix_tokens": tokens.fields[-1].shape[0] if tokens else 0,
        "attention": attention_facts(description),
        "norm": has_getter and has_norm(description),
    }


def attention_facts(description: Description) -> dict[str, Any] | None:
    """Find out whose attention a network has, and of which of a description's levels; None where it has none."""
    found = _attention(description)
    if not found:
        return None
    query = "pooling query" if found[-1].place == HEAD else "class token"
    return {"query": query, "levels": [each.level for each in found]}


def has_norm(description: Description) -> bool:
    """Whether the final norm changes a network's intermediates: with it, the network runs more operations."""
    plain, normed = (_operations(description, norm=norm) for norm in (False, True))
    return normed > plain > 0


def _taps(description: Description, request: ModelRequest, levels: Sequence[Level], skeleton: Any) -> Taps:
    """Work out what is to be taken from a whole network, or refuse what it does not have."""
    taps = Taps(
        indices=tuple(level.index for level in levels),
        hooks=_hooks(description.plan, levels),
        layout=description.layout,
        norm=request.norm,
        prefix_tokens=request.prefix_tokens,
        final=request.final,
        embedding=request.embedding,
        pool=request.pool,
    )
    if taps.norm and (taps.hooks is not None or not has_norm(description)):
        raise _refusal(description, "norm")
    if taps.embedding and not taps.pool and not hasattr(skeleton, "forward_head"):
        raise _refusal(description, "embedding")
    if taps.prefix_tokens and (taps.hooks is not None or not _gives_prefix_tokens(skeleton)):
        raise _refusal(description, "prefix_tokens")
    if request.attention:
        taps = replace(taps, attention=_require_attention(description))
    return _with_final_layout(description, skeleton, taps) if taps.final or taps.pool else taps


def _require_attention(description: Description) -> tuple[Attention, ...]:
    """Find the attentions of the chosen levels, or refuse a choice of levels that have none."""
    if found := _attention(description):
        return found
    others = ", ".join(str(each.level) for each in _attention(_with_all_levels(description)))
    if not others:
        raise _refusal(description, "attention")
    chosen = ", ".join(str(level.index) for level in description.levels)
    raise ModelError(
        f"{description.name} has attention in level {others}, and not in level {chosen}",
        "Choose levels with --out-indices, or leave out --attention",
    )


def _attention(description: Description) -> tuple[Attention, ...]:
    """Find the attentions of a description's levels on a network of its own, which is changed for that."""
    plan: Plan = description.plan
    arguments, size = _of_whole(plan.arguments), plan.config["input_size"]
    try:
        return find(create(plan.reference, "meta", arguments), description.levels, plan.deepest, size)
    except Exception as error:
        if not looks_at_values(error):
            raise
    return find(real(plan.reference, arguments), description.levels, plan.deepest, size)


def _final_level(name: str, values: Tensor, tracer: Tracer, size: Sequence[int]) -> Level:
    """Measure the final map; how input and map compare matters only where its stride is unknown."""
    last = Level(-1, "forward_features", values.shape[1], None, None, None, None, part=FINAL)
    final = measure(name, [last], [values], tracer, size)[0]
    return structs.replace(final, ratio=None) if final.stride is not None else final


def _refusal(description: Description, option: str) -> ModelError:
    """Return the error of something that a network does not have."""
    what, hint = {
        "norm": ("no final norm for its levels", "Leave out --norm"),
        "prefix_tokens": ("no class or register tokens in its levels", "Leave out --prefix-tokens"),
        "attention": ("no class token or pooling query whose attention could be kept", "Leave out --attention"),
        "embedding": ("no head that makes an embedding", "Use --pool avg, or leave out --embedding"),
        "final": ("no final map: it does not end in a grid of cells", "Leave out --final"),
        "pool": ("no final map to pool: it does not end in a grid of cells", "Leave out --pool"),
        "cls": ("no class token", "Use --pool avg, or leave it out"),
    }[option]
    return ModelError(f"{description.name} has {what}", hint)


def _hooks(plan: Plan, levels: Sequence[Level]) -> tuple[tuple[str, bool], ...] | None:
    """Return the modules that give the levels of timm's pyramid; None where `forward_intermediates` does."""
    if not levels:
        return None
    skeleton = create(plan.reference, "meta", plan.arguments)
    if isinstance(skeleton, FeatureGetterNet):
        return None
    if isinstance(skeleton, HighResolutionNetFeatures):  # its levels have other names than the modules that make them
        names = ("act1" if level.index == 0 else f"incre_modules.{level.index - 1}" for level in levels)
        return tuple((name, False) for name in names)
    information: Any = skeleton.feature_info
    entries = {level.index: information.info[level.index] for level in levels}
    return tuple((entry["module"], entry.get("hook_type") == "forward_pre") for entry in entries.values())


def _with_final_layout(description: Description, skeleton: Any, taps: Taps) -> Taps:
    """Find out how the end of a network is laid out, or refuse one that is not a map."""
    end = _end(description.plan, skeleton)
    skipped = getattr(skeleton, "num_prefix_tokens", None) or 0
    if taps.pool == "cls":
        if not (isinstance(end, Tensor) and end.ndim == 3 and skipped and has_class_token(skeleton)):
            raise _refusal(description, "cls")
        if not taps.final:
            return taps
    last = _deepest(description)
    grid = (last.height or 0, last.width or 0)
    if isinstance(end, Tensor) and end.ndim == 3 and end.shape[1] - skipped == grid[0] * grid[1]:
        traced = description.traced if description.input.height is None else None
        return replace(taps, final_layout="NLC", skipped=skipped, grid=grid, traced=traced)
    if isinstance(end, Tensor) and end.ndim == 4:
        return replace(taps, final_layout=_layout(end, grid, layout_of(skeleton)))
    raise _refusal(description, "pool" if taps.pool else "final")


def _end(plan: Plan, skeleton: Any) -> Any:
    """Return what the last block of a network gives for one blank image; shapes alone, if that is possible."""
    size = plan.config["input_size"]
    with torch.no_grad():
        try:
            return skeleton.forward_features(torch.zeros(1, *size, device="meta"))
        except Exception as error:
            if not looks_at_values(error):
                raise
        network: Any = real(plan.reference, _of_whole(plan.arguments))
        return network.forward_features(torch.zeros(1, *size))


def _deepest(description: Description) -> Level:
    """Return the network's deepest level, whatever was chosen."""
    if description.levels[-1].index == description.plan.deepest:
        return description.levels[-1]
    return _with_all_levels(description).levels[-1]


def _with_all_levels(description: Description) -> Description:
    """Describe the same network with all of its levels."""
    plan: Plan = description.plan
    size = plan.config["input_size"][1:]
    stride = plan.arguments.get("output_stride")
    return describe(ModelRequest(description.name, out_indices="all", image_size=size, output_stride=stride))


def _layout(end: Tensor, grid: tuple[int, int], declared: str) -> str:
    """Recognise the layout of a map by where the last level's cells are in it; the declared one decides ties."""
    fits = {"NCHW": tuple(end.shape[2:]) == grid, "NHWC": tuple(end.shape[1:3]) == grid}
    found = [layout for layout, fit in fits.items() if fit]
    return found[0] if len(found) == 1 else declared


def _gives_prefix_tokens(network: Any) -> bool:
    known = inspect.signature(network.forward_intermediates).parameters
    return "return_prefix_tokens" in known and (getattr(network, "num_prefix_tokens", None) or 0) > 0


def _of_whole(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of a whole network out of those of its pyramid."""
    return {name: value for name, value in arguments.items() if name not in OF_PYRAMIDS}


def _tried(description: Description, request: ModelRequest) -> Description | None:
    try:
        return extend(description, request)
    except FeatxError:
        return None


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def _operations(description: Description, *, norm: bool) -> int:
    """Count the operations of a network up to its intermediates, with or without the final norm; 0 if that fails."""
    plan: Plan = description.plan
    arguments = _of_whole(plan.arguments)
    options: dict[str, Any] = {
        "indices": [level.index for level in description.levels],
        "norm": norm,
        "output_fmt": description.layout,
        "intermediates_only": True,
    }
    image = torch.zeros(1, *plan.config["input_size"])
    for build, device in ((partial(create, plan.reference, "meta"), "meta"), (partial(real, plan.reference), "cpu")):
        network: Any = build(arguments)
        counter = _Counter()
        try:
            with torch.no_grad(), counter:
                network.forward_intermediates(image.to(device), **options)
        except Exception as error:  # noqa: BLE001 - networks raise all kinds of errors
            if not looks_at_values(error):
                return 0
        else:
            return counter.count
    return 0

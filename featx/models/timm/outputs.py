# More than plain levels out of one pass through a whole timm network: final map, embedding, prefix tokens, final norm.
"""The network before its classifier, tapped.

Levels come from where timm's own ``features_only`` takes them: from `forward_intermediates` where its pyramid is made
by that, and from the outputs of the modules that it names everywhere else. So they are equal to it, and everything
that follows, up to the embedding, costs one pass.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from timm.models._features import FeatureGetterNet
from timm.models.hrnet import HighResolutionNetFeatures
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from featx.errors import FeatxError, ModelError, UsageError
from featx.models.levels import measure, to_nchw
from featx.models.timm.description import (
    Plan,
    SizeRefusedError,
    create,
    describe,
    layout_of,
    looks_at_values,
    real,
    trace,
)
from featx.options import ModelRequest
from featx.values import EMBEDDING, FINAL, Description, Field, Level

POOLS = ("avg", "max", "gem", "cls")

# The exponent of generalised means, and what keeps its base positive (Radenović, Tolias and Chum, "Fine-tuning CNN
# Image Retrieval with No Human Annotation", TPAMI 2019).
GEM_POWER, GEM_LEAST = 3.0, 1e-6

# Names of the arguments that a pyramid is built with and a whole network is not.
OF_PYRAMIDS = ("features_only", "out_indices")


@dataclass(frozen=True, slots=True)
class Taps:
    """What is taken from a network on the way.

    Attributes
    ----------
    indices : tuple of int
        Levels, by timm's index.
    hooks : tuple of (str, bool), or None
        The modules that give them, and whether it is what goes in (True) or what comes out; None where the network's
        `forward_intermediates` gives them.
    layout : str
        ``NCHW`` or ``NHWC``: of the levels.
    norm, prefix_tokens, final, embedding, pool
        As `ModelRequest` has them.
    final_layout : str
        ``NCHW``, ``NHWC`` or ``NLC``, tokens: of the final map; empty where it is not needed.
    skipped : int
        Tokens before those of the final map.
    grid : tuple of int
        Height and width of the final map, where it is tokens.
    """

    indices: tuple[int, ...]
    hooks: tuple[tuple[str, bool], ...] | None
    layout: str
    norm: bool
    prefix_tokens: bool
    final: bool
    embedding: bool
    pool: str | None
    final_layout: str = ""
    skipped: int = 0
    grid: tuple[int, int] = (0, 0)

    @property
    def whole(self) -> bool:
        """Whether the network has to be run to its end."""
        return self.final or self.embedding


def wanted(request: ModelRequest) -> bool:
    """Whether a request is for more than plain levels."""
    extras = (request.norm, request.prefix_tokens, request.final, request.embedding, request.pool)
    return any(extras) or not request.maps


def extend(description: Description, request: ModelRequest) -> Description:
    """Add to the description of a plain pyramid what else was asked for.

    Raises
    ------
    UsageError
        If the request contradicts itself.
    ModelError
        If the network has no such thing.
    """
    _require_sense(request)
    plan: Plan = description.plan
    levels = description.levels if request.maps else ()
    arguments = _of_whole(plan.arguments)
    taps = Taps(
        indices=tuple(level.index for level in levels),
        hooks=_hooks(plan, levels),
        layout=description.layout,
        norm=request.norm,
        prefix_tokens=request.prefix_tokens,
        final=request.final,
        embedding=request.embedding,
        pool=request.pool,
    )
    if taps.norm and (taps.hooks is not None or not has_norm(description)):
        _refuse(description, "norm")
    skeleton: Any = create(plan.reference, "meta", arguments)
    size = plan.config["input_size"]
    if taps.embedding and not taps.pool and not hasattr(skeleton, "forward_head"):
        _refuse(description, "embedding")
    if taps.prefix_tokens and (taps.hooks is not None or not _gives_prefix_tokens(skeleton)):
        _refuse(description, "prefix_tokens")
    if taps.final or taps.pool:
        taps = _with_final_layout(description, skeleton, taps, size)
    tapped = Tapped(skeleton, taps).eval()
    try:
        tracer, arrays = trace(tapped, lambda: Tapped(real(plan.reference, arguments), taps).eval(), size)
    except SizeRefusedError as error:
        raise ModelError(
            f"{description.name} cannot be run to its end at {size[1]}x{size[2]}: {error.__cause__}",
            "Leave the image size out",
        ) from error
    found = dict(zip(tapped.keys, arrays, strict=True))
    maps = [found[level.key] for level in levels]
    declared = [replace(level, channels=values.shape[1]) for level, values in zip(levels, maps, strict=True)]
    levels = measure(description.name, declared, maps, tracer, size)
    final = None
    if taps.final:
        last = Level(-1, "forward_features", found[FINAL].shape[1], None, None, None, None, part=FINAL)
        final = measure(description.name, [last], [found[FINAL]], tracer, size)[0]
        final = replace(final, ratio=None) if final.stride is not None else final
    return replace(
        description,
        levels=levels,
        parameters=sum(parameter.numel() for parameter in tapped.parameters()),
        fields=tuple(Field(key, tuple(values.shape[1:])) for key, values in found.items()),
        final=final,
        layout="NCHW",
        plan=replace(plan, arguments=arguments, taps=taps),
    )


def facts(description: Description) -> dict[str, Any]:
    """Find out what there is besides plain levels, of all levels.

    Parameters
    ----------
    description : Description
        Of the plain pyramid with all its levels.

    Returns
    -------
    dict
        ``embedding``, its length, or None; ``final``, a level's facts, or None; ``prefix_tokens``, how many a level
        has; ``norm``, whether levels have a final norm that `ModelRequest.norm` applies.
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
        "final": whole.final.to_json() if whole and whole.final else None,
        "prefix_tokens": tokens.fields[-1].shape[0] if tokens else 0,
        "norm": has_getter and has_norm(description),
    }


def has_norm(description: Description) -> bool:
    """Whether the final norm changes a network's intermediates: it then does more than it does without."""
    plain, normed = (_operations(description, norm=norm) for norm in (False, True))
    return normed > plain > 0


class Tapped(nn.Module):
    """A timm network without its classifier that gives levels, prefix tokens, final map and embedding in one pass.

    Parameters
    ----------
    network : nn.Module
        The whole network; its classifier is taken off.
    taps : Taps
        What to take.
    """

    def __init__(self, network: Any, taps: Taps) -> None:
        super().__init__()
        self.taps, self.indices = taps, list(taps.indices)
        _take_off_classifier(network)
        if not taps.whole and hasattr(network, "prune_intermediate_layers") and taps.indices:
            self.indices = network.prune_intermediate_layers(list(taps.indices), prune_norm=not taps.norm)
        self.network = network
        self._own = threading.local()
        if taps.hooks:
            modules = dict(network.named_modules())
            for place, (name, goes_in) in enumerate(taps.hooks):
                self._tap(modules[name], place, goes_in)

    @property
    def keys(self) -> list[str]:
        """Names of what comes out."""
        taps = self.taps
        prefixes = [f"level_{index}_prefix" for index in taps.indices if taps.prefix_tokens]
        levels = [f"level_{index}" for index in taps.indices]
        return [*levels, *prefixes, *[FINAL][: taps.final], *[EMBEDDING][: taps.embedding]]

    def forward(self, batch: Tensor) -> list[Tensor]:
        """Return the arrays of `keys` for a (B, 3, H, W) batch; maps are (B, C, H, W)."""
        maps, prefixes, end = self._run(batch)
        results = [*to_nchw(self.taps.layout, maps), *prefixes]
        if not self.taps.whole:
            return results
        final = [self._final_map(end)] if self.taps.final_layout else []
        embedding = [self._embedding(end, *final)] if self.taps.embedding else []
        return [*results, *(final if self.taps.final else []), *embedding]

    def _run(self, batch: Tensor) -> tuple[list[Tensor], list[Tensor], Any]:
        """Run the network; what comes out of its last block is as it leaves it."""
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

    def _final_map(self, end: Tensor) -> Tensor:
        taps = self.taps
        if taps.final_layout != "NLC":
            return to_nchw(taps.final_layout, [end])[0]
        tokens = end[:, taps.skipped :]
        if tokens.shape[1] != taps.grid[0] * taps.grid[1]:
            raise ModelError("The final map has another size at this input", "Load it for the size: image_size")
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *taps.grid)

    def _embedding(self, end: Any, final: Tensor | None = None) -> Tensor:
        pool = self.taps.pool
        if pool is None:
            embedding: Tensor = self.network.forward_head(end, pre_logits=True)
            return embedding
        if pool == "cls":
            first: Tensor = end[:, 0]
            return first
        assert final is not None  # noqa: S101 - its layout was found when the pool was asked for
        return pooled(final, pool)


def pooled(final: Tensor, pool: str) -> Tensor:
    """Pool a (B, C, H, W) map to (B, C): its mean, maximum, or generalised mean."""
    if pool == "max":
        return final.amax((2, 3))
    if pool == "gem":
        # In full precision: the powers of half precision's numbers do not fit into it.
        return final.float().clamp(min=GEM_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)
    return final.mean((2, 3))


def _require_sense(request: ModelRequest) -> None:
    if request.pool is not None and request.pool not in POOLS:
        raise UsageError(f"There is no pooling {request.pool!r}", f"Use {', '.join(POOLS)}")
    if request.pool is not None and not request.embedding:
        raise UsageError("--pool makes an embedding, and none was asked for", "Add --embedding")
    if not request.maps and not (request.final or request.embedding):
        raise UsageError("Without maps nothing is left to be written", "Add --embedding or --final")
    if not request.maps and (request.out_indices is not None or request.strides is not None):
        raise UsageError("Levels were chosen, and none are wanted", "Leave the levels or --no-maps out")
    if not request.maps and (request.norm or request.prefix_tokens):
        raise UsageError(
            "--norm and --prefix-tokens are about levels, and none are wanted", "Leave them or --no-maps out"
        )


def _refuse(description: Description, option: str) -> None:
    """Say that a network has no such thing."""
    what, way_out = {
        "norm": ("no final norm for its levels", "Leave --norm out"),
        "prefix_tokens": ("no class or register tokens in its levels", "Leave --prefix-tokens out"),
        "embedding": ("no head that makes an embedding", "Use --pool avg, or leave --embedding out"),
        "final": ("no final map, its end is no grid of cells", "Leave --final out"),
        "pool": ("no final map to pool, its end is no grid of cells", "Leave --pool out"),
        "cls": ("no class token", "Use --pool avg, or leave it out"),
    }[option]
    raise ModelError(f"{description.name} has {what}", way_out)


def _hooks(plan: Plan, levels: Sequence[Level]) -> tuple[tuple[str, bool], ...] | None:
    """Find out by which modules timm's pyramid of this network gives its levels."""
    if not levels:
        return None
    skeleton = create(plan.reference, "meta", plan.arguments)
    if isinstance(skeleton, FeatureGetterNet):
        return None
    if isinstance(skeleton, HighResolutionNetFeatures):  # its levels are not called as the modules that make them
        names = ("act1" if level.index == 0 else f"incre_modules.{level.index - 1}" for level in levels)
        return tuple((name, False) for name in names)
    information: Any = skeleton.feature_info
    entries = {level.index: information.info[level.index] for level in levels}
    return tuple((entry["module"], entry.get("hook_type") == "forward_pre") for entry in entries.values())


def _with_final_layout(description: Description, skeleton: nn.Module, taps: Taps, size: Sequence[int]) -> Taps:
    """Find out how the end of a network is laid out, or refuse one that is no map."""
    plan: Plan = description.plan
    with torch.no_grad():
        try:
            end = skeleton.forward_features(torch.zeros(1, *size, device="meta"))  # type: ignore[operator]
        except Exception as error:
            if not looks_at_values(error):
                raise
            network: Any = real(plan.reference, _of_whole(plan.arguments))
            end = network.forward_features(torch.zeros(1, *size))
    skipped = getattr(skeleton, "num_prefix_tokens", None) or 0
    if taps.pool == "cls":
        if not (isinstance(end, Tensor) and end.ndim == 3 and skipped and _has_class_token(skeleton)):
            _refuse(description, "cls")
        if not taps.final:
            return taps
    last = _deepest(description)
    grid = (last.height or 0, last.width or 0)
    if isinstance(end, Tensor) and end.ndim == 3 and end.shape[1] - skipped == grid[0] * grid[1]:
        return replace(taps, final_layout="NLC", skipped=skipped, grid=grid)
    if isinstance(end, Tensor) and end.ndim == 4:
        return replace(taps, final_layout=_layout(end, grid, layout_of(skeleton)))
    _refuse(description, "pool" if taps.pool else "final")
    raise AssertionError


def _deepest(description: Description) -> Level:
    """Return the deepest level that there is, whatever was chosen."""
    plan: Plan = description.plan
    if description.levels[-1].index == plan.deepest:
        return description.levels[-1]
    size = plan.config["input_size"][1:]
    request = ModelRequest(
        description.name, out_indices=(-1,), image_size=size, output_stride=plan.arguments.get("output_stride")
    )
    return describe(request).levels[-1]


def _layout(end: Tensor, grid: tuple[int, int], said: str) -> str:
    """Tell the layout of a map by where the last level's cells are in it; by what the network says if by neither."""
    fits = {"NCHW": tuple(end.shape[2:]) == grid, "NHWC": tuple(end.shape[1:3]) == grid}
    found = [layout for layout, fit in fits.items() if fit]
    return found[0] if len(found) == 1 else said


def _gives_prefix_tokens(network: Any) -> bool:
    known = inspect.signature(network.forward_intermediates).parameters
    return "return_prefix_tokens" in known and (getattr(network, "num_prefix_tokens", None) or 0) > 0


def _has_class_token(network: nn.Module) -> bool:
    return any(getattr(network, name, None) is not None for name in ("cls_token", "class_token", "cls_embed"))


def _take_off_classifier(network: Any) -> None:
    """Put nothing in the place of a classifier, which is neither run nor wanted in a checkpoint."""
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else None
    parts = {id(part) for part in (classifier if isinstance(classifier, tuple | list) else [classifier])}
    for name, module in list(network.named_modules()):
        if id(module) in parts and isinstance(getattr(module, "fc", None), nn.Module):
            module.fc = nn.Identity()  # some call their whole head so, with the pooling that is still to be done
        elif id(module) in parts:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, nn.Identity())


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
    """Count what a network does for its intermediates, with or without the final norm; 0 where it cannot do that."""
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
        except Exception as error:  # noqa: BLE001 - networks raise whatever they trip over
            if not looks_at_values(error):
                return 0
        else:
            return counter.count
    return 0

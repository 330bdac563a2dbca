# Building: timm's networks made on a device, real or of shapes alone, and run once under a tracer.
"""The only file that calls `timm.create_model`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.models import FeatureHookNet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featx.models.levels import to_nchw
from featx.models.timm.reference import Reference
from featx.models.tracing import Tracer
from featx.process import random_state
from featx.requests import ModelRequest


class SizeRefusedError(Exception):
    """A network, built in some way, does not take the input size; its cause is what timm raised."""


def create(reference: Reference, device: str, arguments: dict[str, Any], *, pretrained: bool = False) -> nn.Module:
    """Have timm build a network on a device, in evaluation mode."""
    with torch.device(device), _Unfilled() if device == "meta" else nullcontext():
        module: nn.Module = timm.create_model(reference.timm_name, pretrained=pretrained, **arguments)
    _trim(module)
    _keep_threads_apart(module)
    return module.eval()


def real(reference: Reference, arguments: dict[str, Any]) -> nn.Module:
    """Build with real numbers what cannot run on shapes alone; the caller's random state stays as it was."""
    with random_state():
        return create(reference, "cpu", arguments)


def ways_to_build(request: ModelRequest, size: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the arguments to build a network as it is, and then those to rebuild it for an input (3, height, width)."""
    arguments: dict[str, Any] = {"features_only": True}
    if request.output_stride is not None:
        arguments["output_stride"] = request.output_stride
    yield arguments
    yield {**arguments, "img_size": tuple(size[1:])}


def layout_of(module: nn.Module) -> str:
    """Return ``NCHW`` or ``NHWC``; most networks do not say, and are the former."""
    return str(getattr(module, "output_fmt", "NCHW")).rpartition(".")[2]


def trace(skeleton: nn.Module, otherwise: Callable[[], nn.Module], size: Sequence[int]) -> tuple[Tracer, list[Tensor]]:
    """Run one blank image, (3, height, width), on the meta device; on a real network if it cannot be done there."""
    try:
        return _run(skeleton, size)
    except Exception as error:
        if not looks_at_values(error):
            raise SizeRefusedError from error
    return _run(otherwise(), size)


def runs(reference: Reference, arguments: dict[str, Any], size: tuple[int, int]) -> bool:
    """Whether the network, built so, takes an input of (height, width)."""
    try:
        with torch.no_grad():
            create(reference, "meta", arguments)(torch.zeros(1, 3, *size, device="meta"))
    except Exception as error:  # noqa: BLE001 - networks raise all kinds of errors
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


def _run(network: nn.Module, size: Sequence[int]) -> tuple[Tracer, list[Tensor]]:
    """Run one blank image under a tracer."""
    device, tracer = next(network.parameters()).device, Tracer()
    with torch.no_grad(), tracer:
        image = torch.zeros(1, *size, device=device)
        tracer.begin(image)
        return tracer, to_nchw(layout_of(network), network(image))  # here, where the tracer sees it


def _trim(module: nn.Module) -> None:
    """Cut off what comes after the deepest level, where timm leaves it on (efficientnet, mobilenetv3, hardcorenas)."""
    stages, blocks = getattr(module, "_stage_out_idx", None), getattr(module, "blocks", None)
    if stages and isinstance(blocks, nn.Sequential):
        module.blocks = blocks[: max(stages)]


def _keep_threads_apart(module: nn.Module) -> None:
    """Have each thread collect its own maps where timm takes them by hooks, which know one pass at a time."""
    if isinstance(module, FeatureHookNet):
        module.hooks._feature_outputs = _PerThread()  # noqa: SLF001 - timm offers no other way


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

# Networks: what runs a module, torch itself, its compiler, or OpenVINO; each a function from a batch to maps.
"""Backends. One that is not there says how to get it; none takes another's place."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featx.errors import FeatxError, UsageError, first_line
from featx.files import temporary_beside

Network = Callable[[Tensor], Sequence[Tensor]]

OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a network is made for.

    Attributes
    ----------
    shape : tuple of int
        (B, 3, H, W) of every batch.
    device : torch.device
        Where the module is.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``.
    forwards, threads : int
        Passes at a time, and threads of each.
    recipe : dict
        What the module and its numbers depend on; names a converted network in the cache.
    """

    shape: tuple[int, int, int, int]
    device: torch.device
    precision: str
    forwards: int
    threads: int
    recipe: dict[str, Any]


def make(backend: str, module: nn.Module, plan: Plan) -> Network:
    """Make the network that a backend runs.

    Raises
    ------
    UsageError
        If there is no such backend, or it cannot do what is planned.
    FeatxError
        If the backend is not installed, or fails on the module.
    """
    return BACKENDS[require_backend(backend)](module, plan)


def require_backend(name: str) -> str:
    """Return the name of a backend, or say which there are."""
    if name not in BACKENDS:
        raise UsageError(f"There is no backend {name!r}", f"Use {', '.join(BACKENDS)}")
    return name


def _as_it_is(module: nn.Module, plan: Plan) -> Network:
    del plan
    return module


def _compiled(module: nn.Module, plan: Plan) -> Network:
    """torch.compile; its first pass, which compiles, is done here."""
    network: Network = torch.compile(module)
    dtype = next(module.parameters()).dtype
    batch = torch.zeros(plan.shape, dtype=dtype, device=plan.device).to(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            network(batch)
    except Exception as error:
        raise FeatxError(
            f"torch cannot compile the network: {first_line(error)}", "Install a C++ compiler, or use --backend torch"
        ) from error
    return network


class _OpenVino:
    """A network that OpenVINO runs on the processor, converted once and kept in the user's cache folder."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        if plan.device.type != "cpu":
            raise UsageError(f"OpenVINO runs on the processor, not on {plan.device}", "Use --device cpu")
        try:
            openvino = import_module("openvino")
        except ImportError as error:
            raise FeatxError("OpenVINO is not installed", "pip install 'featx[openvino]'") from error
        path = _converted_at(plan)
        if not path.is_file():
            _convert(module, plan, path)
        options = {
            "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[plan.precision],
            "NUM_STREAMS": plan.forwards,
            "INFERENCE_NUM_THREADS": plan.forwards * plan.threads,
            "ENABLE_CPU_PINNING": False,  # other threads read and write beside it
        }
        self._model = openvino.Core().compile_model(str(path), "CPU", options)
        self._own = threading.local()

    def __call__(self, batch: Tensor) -> list[Tensor]:
        """Run a batch; the maps are the request's own memory, good until this thread's next batch."""
        if not hasattr(self._own, "request"):
            self._own.request = self._model.create_infer_request()
        results = self._own.request.infer([batch.float().contiguous().numpy()], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(results[output]) for output in self._model.outputs]


def _convert(module: nn.Module, plan: Plan, path: Path) -> None:
    """Convert in full precision, whatever the network will compute in.

    By the front end itself: `openvino.convert_model` would report to its makers.
    """
    openvino, frontend = import_module("openvino"), import_module("openvino.frontend")
    decoder = import_module("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder
    try:
        converter = frontend.FrontEndManager().load_by_framework("pytorch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is deprecated in torch, and what the decoder does
            traced = decoder(_Tuple(module.float()), example_input=torch.zeros(plan.shape))
        model = converter.convert(converter.load(traced))
        model.reshape(list(plan.shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path).with_suffix(".xml")
        openvino.save_model(model, temporary, compress_to_fp16=False)
        temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
        temporary.replace(path)
    except Exception as error:
        raise FeatxError(f"OpenVINO cannot convert the network: {first_line(error)}", "Use --backend torch") from error


class _Tuple(nn.Module):
    """A module whose maps come as a tuple, which is what can be traced."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(batch))


def _converted_at(plan: Plan) -> Path:
    recipe = {**plan.recipe, "shape": plan.shape, "openvino": metadata.version("openvino")}
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "featx" / "openvino" / f"{name}.xml"


BACKENDS: dict[str, Callable[[nn.Module, Plan], Network]] = {
    "torch": _as_it_is,
    "compile": _compiled,
    "openvino": _OpenVino,
}

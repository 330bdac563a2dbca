# Runtimes: what runs a network, be it torch itself, its compiler or OpenVINO; each a function from a batch to maps.
"""Backends. A missing one says how to install it; none takes another's place."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featx.errors import FeatxError, UsageError, first_line, is_out_of_memory
from featx.files import cache_folder, sha256_of, synchronise, write_atomically
from featx.process import ALONE, quiet

Network = Callable[[Tensor], Sequence[Tensor]]
OnNote = Callable[[str], None]

# The two files of a converted network.
SUFFIXES = (".xml", ".bin")

# By how much of their norm features may differ where OpenVINO computes in full precision; 1e-6 is usual.
LARGEST_DIFFERENCE = 1e-3

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


def make(backend: str, module: nn.Module, plan: Plan, on_note: OnNote = lambda _: None) -> Network:
    """Make the network that a backend runs; `on_note` gets a sentence about what a person may not expect.

    Raises
    ------
    UsageError
        If the backend cannot do what is planned.
    FeatxError
        If the backend is not installed, or fails on the module.
    """
    return BACKENDS[backend](module, plan, on_note)


def require_backend(name: str) -> None:
    """Import what a backend needs, or say how to install it; sooner than the backend is made, which takes a model.

    Raises
    ------
    FeatxError
        If it is not installed.
    """
    if name == "openvino":
        _openvino()


def _plain(module: nn.Module, plan: Plan, on_note: OnNote) -> Network:
    del plan, on_note
    return module


def _compiled(module: nn.Module, plan: Plan, on_note: OnNote) -> Network:
    """torch.compile; its first pass, which compiles, is done here."""
    del on_note
    network: Network = torch.compile(module)
    dtype = next(module.parameters()).dtype
    batch = torch.zeros(plan.shape, dtype=dtype, device=plan.device).to(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            network(batch)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise FeatxError(
            f"torch cannot compile the network: {first_line(error)}", "Install a C++ compiler, or use --backend torch"
        ) from error
    return network


class _OpenVino:
    """A network that OpenVINO runs on the CPU, converted once and kept in the user's cache folder."""

    def __init__(self, module: nn.Module, plan: Plan, on_note: OnNote) -> None:
        if plan.device.type != "cpu":
            raise UsageError(f"OpenVINO runs on the CPU, not on {plan.device}", "Use --device cpu")
        openvino = _openvino()
        options = {
            "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[plan.precision],
            "NUM_STREAMS": plan.forwards,
            "INFERENCE_NUM_THREADS": plan.forwards * plan.threads,
            "ENABLE_CPU_PINNING": False,  # other threads read and write at the same time
        }

        def compiled(network: Any) -> Any:
            with _refusing("OpenVINO cannot run the network"):
                return openvino.Core().compile_model(network, "CPU", options)

        cached = _Cached(_name_of(plan))
        try:
            self._model = compiled(str(cached.found()))
        except (FileNotFoundError, FeatxError):  # none is cached, or another process has just replaced it
            converted = _converted(module, plan)
            _require_same(converted, module, plan)
            try:
                network: Any = str(cached.keep(converted))
            except (OSError, RuntimeError) as error:  # OpenVINO's own writing raises the latter
                on_note(f"The network has to be converted again next time: it cannot be cached ({first_line(error)})")
                network = converted
            self._model = compiled(network)
        self._own = threading.local()

    def __call__(self, batch: Tensor) -> list[Tensor]:
        """Run a batch; the maps are the request's own memory, good until this thread's next batch."""
        if not hasattr(self._own, "request"):
            self._own.request = self._model.create_infer_request()
        results = self._own.request.infer([batch.float().contiguous().numpy()], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(results[output]) for output in self._model.outputs]


def _openvino() -> Any:
    """Import OpenVINO without its telemetry, which would look for the user's home folder while it is imported."""
    telemetry = "openvino_telemetry"
    with ALONE:
        before = {name: sys.modules.pop(name) for name in [telemetry] if name in sys.modules}
        sys.modules[telemetry] = None  # type: ignore[assignment]  # OpenVINO then uses a stub
        try:
            return import_module("openvino")
        except ImportError as error:
            raise FeatxError("OpenVINO is not installed", "Run `pip install 'featx[openvino]'`") from error
        finally:
            del sys.modules[telemetry]
            sys.modules.update(before)


class _Cached:
    """A converted network in the user's cache folder.

    Each conversion has files of its own, and an index, written last and atomically, names them with their sha256: two
    processes that convert at the same time do not mix theirs, and damaged files are not used.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        caches = cache_folder()
        self._folder = caches / "openvino" if caches else None

    def found(self) -> Path:
        """Return the ``.xml`` of an intact conversion.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        try:
            stem, digests = self._read()
            if self._folder and digests == _digests(self._folder / stem):
                return self._folder / f"{stem}.xml"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise FileNotFoundError

    def keep(self, network: Any) -> Path:
        """Write a network in place of a damaged one, and return its ``.xml``.

        Raises
        ------
        OSError, RuntimeError
            If it cannot be written.
        """
        if self._folder is None:
            raise FileNotFoundError("there is no home folder")
        with suppress(FileNotFoundError):
            return self.found()  # another process was faster
        self._folder.mkdir(parents=True, exist_ok=True)
        damaged = ""
        with suppress(OSError, ValueError, KeyError, TypeError):
            damaged, _ = self._read()
        stem = f"{self._name}-{uuid.uuid4().hex}"
        path = self._folder / f"{stem}.xml"
        try:
            import_module("openvino").save_model(network, path, compress_to_fp16=False)
            for suffix in SUFFIXES:
                synchronise(path.with_suffix(suffix))
            index = {"stem": stem, "sha256": _digests(self._folder / stem)}
            write_atomically(self._index, [json.dumps(index).encode()], self._folder / f".{stem}.tmp")
        except BaseException:
            self._remove(stem)
            raise
        self._remove(damaged)
        return path

    @property
    def _index(self) -> Path:
        if self._folder is None:
            raise FileNotFoundError("there is no home folder")
        return self._folder / f"{self._name}.json"

    def _read(self) -> tuple[str, dict[str, str]]:
        index = json.loads(self._index.read_bytes())
        stem = index["stem"]
        if not re.fullmatch(rf"{self._name}-[0-9a-f]{{32}}", stem):  # nothing else may be opened or removed
            raise ValueError(stem)
        return stem, index["sha256"]

    def _remove(self, stem: str) -> None:
        for suffix in SUFFIXES if stem else ():
            with suppress(OSError):
                (self._index.parent / f"{stem}{suffix}").unlink()


def _digests(stem: Path) -> dict[str, str]:
    return {suffix: sha256_of(stem.with_name(f"{stem.name}{suffix}")) for suffix in SUFFIXES}


def _converted(module: nn.Module, plan: Plan) -> Any:
    """Convert in full precision, whatever the network will compute in.

    With the front end itself, since `openvino.convert_model` sends telemetry.
    """
    frontend = import_module("openvino.frontend")
    decoder = import_module("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder
    with _refusing("OpenVINO cannot convert the network"):
        converter = frontend.FrontEndManager().load_by_framework("pytorch")
        with quiet():  # tracing, and what the decoder does, is deprecated in torch
            traced = decoder(_Tuple(module.float()), example_input=torch.zeros(plan.shape))
        model = converter.convert(converter.load(traced))
        model.reshape(list(plan.shape))
        return model


@torch.no_grad()
def _require_same(converted: Any, module: nn.Module, plan: Plan) -> None:
    """Refuse a converted network that computes other numbers than torch does, for a blank image or for noise.

    OpenVINO 2026.4 resamples position embeddings in another way, so that a ViT's features at another size than its own
    would be wrong by a percent, which nobody would notice.

    Raises
    ------
    FeatxError
        If an array differs by more than `LARGEST_DIFFERENCE` of its norm.
    """
    with _refusing("OpenVINO cannot run the network"):
        exact = _openvino().Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    largest = 0.0
    # Of a blank image nothing outshines what the network adds by itself, such as position embeddings.
    for batch in (torch.zeros(plan.shape), torch.randn(plan.shape, generator=torch.Generator().manual_seed(0))):
        found = exact([batch.numpy()])
        for expected, output in zip(_Tuple(module.float())(batch), exact.outputs, strict=True):
            difference = (torch.from_numpy(found[output]) - expected).norm() / expected.norm().clamp(min=1e-30)
            largest = max(largest, float(difference))
    if largest > LARGEST_DIFFERENCE:
        raise FeatxError(
            f"OpenVINO converts this network incorrectly at this size: its features differ by {largest:.1%}",
            "Use --backend torch, or the model's own size",
        )


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Say in one line what a library cannot do; too little memory is reported elsewhere."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise FeatxError(f"{what}: {first_line(error)}", "Use --backend torch") from error


class _Tuple(nn.Module):
    """A module that returns its maps as a tuple, as tracing requires."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(batch))


def _name_of(plan: Plan) -> str:
    recipe = {**plan.recipe, "shape": plan.shape}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]


BACKENDS: dict[str, Callable[[nn.Module, Plan, OnNote], Network]] = {
    "torch": _plain,
    "compile": _compiled,
    "openvino": _OpenVino,
}

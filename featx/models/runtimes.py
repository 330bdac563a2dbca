# Networks: what runs a module, torch itself, its compiler, or OpenVINO; each a function from a batch to maps.
"""Backends. One that is not there says how to get it; none takes another's place."""

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
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featx.errors import FeatxError, UsageError, first_line, is_out_of_memory
from featx.files import cache_folder, sha256_of, synchronise, write_atomically
from featx.process import ALONE, quiet

Network = Callable[[Tensor], Sequence[Tensor]]
Tell = Callable[[str], None]

# The two files of a converted network.
SUFFIXES = (".xml", ".bin")

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


def make(backend: str, module: nn.Module, plan: Plan, tell: Tell = lambda _: None) -> Network:
    """Make the network that a backend runs; what a person may not expect of it is told in words.

    Raises
    ------
    UsageError
        If there is no such backend, or it cannot do what is planned.
    FeatxError
        If the backend is not installed, or fails on the module.
    """
    return BACKENDS[require_backend(backend)](module, plan, tell)


def require_backend(name: str) -> str:
    """Return the name of a backend, or say which there are."""
    if name not in BACKENDS:
        raise UsageError(f"There is no backend {name!r}", f"Use {', '.join(BACKENDS)}")
    return name


def _as_it_is(module: nn.Module, plan: Plan, tell: Tell) -> Network:
    del plan, tell
    return module


def _compiled(module: nn.Module, plan: Plan, tell: Tell) -> Network:
    """torch.compile; its first pass, which compiles, is done here."""
    del tell
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
    """A network that OpenVINO runs on the processor, converted once and kept in the user's cache folder."""

    def __init__(self, module: nn.Module, plan: Plan, tell: Tell) -> None:
        if plan.device.type != "cpu":
            raise UsageError(f"OpenVINO runs on the processor, not on {plan.device}", "Use --device cpu")
        openvino = _openvino()
        options = {
            "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[plan.precision],
            "NUM_STREAMS": plan.forwards,
            "INFERENCE_NUM_THREADS": plan.forwards * plan.threads,
            "ENABLE_CPU_PINNING": False,  # other threads read and write beside it
        }

        def compiled(network: Any) -> Any:
            with _refusing("OpenVINO cannot run the network"):
                return openvino.Core().compile_model(network, "CPU", options)

        kept = _Kept(_name_of(plan))
        try:
            self._model = compiled(str(kept.found()))
        except (FileNotFoundError, FeatxError):  # nothing sound is there, or another process has just replaced it
            converted = _converted(module, plan)
            try:
                network: Any = str(kept.keep(converted))
            except (OSError, RuntimeError) as error:  # OpenVINO's own writing raises the latter
                tell(f"The converted network cannot be kept, and will be converted again: {first_line(error)}")
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
    """Import OpenVINO without what reports to its makers, and as it is imported looks for the user's home."""
    reporting = "openvino_telemetry"
    with ALONE:
        before = {name: sys.modules.pop(name) for name in [reporting] if name in sys.modules}
        sys.modules[reporting] = None  # type: ignore[assignment]  # which makes it take its stub
        try:
            return import_module("openvino")
        except ImportError as error:
            raise FeatxError("OpenVINO is not installed", "pip install 'featx[openvino]'") from error
        finally:
            del sys.modules[reporting]
            sys.modules.update(before)


class _Kept:
    """A converted network in the user's cache folder.

    Each conversion has files of its own, and an index, written last and at once, names them with their sha256: two
    processes that convert at once do not mix theirs, and what is torn or changed is not used.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        caches = cache_folder()
        self._folder = caches / "openvino" if caches else None

    def found(self) -> Path:
        """Return the ``.xml`` of a sound conversion.

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
        """Write a network in the place of what is torn there, and return its ``.xml``.

        Raises
        ------
        OSError, RuntimeError
            If that cannot be done.
        """
        if self._folder is None:
            raise FileNotFoundError("there is no home folder")
        with suppress(FileNotFoundError):
            return self.found()  # another process was faster
        self._folder.mkdir(parents=True, exist_ok=True)
        torn = ""
        with suppress(OSError, ValueError, KeyError, TypeError):
            torn, _ = self._read()
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
        self._remove(torn)
        return path

    @property
    def _index(self) -> Path:
        if self._folder is None:
            raise FileNotFoundError("there is no home folder")
        return self._folder / f"{self._name}.json"

    def _read(self) -> tuple[str, dict[str, str]]:
        index = json.loads(self._index.read_bytes())
        stem = index["stem"]
        if not re.fullmatch(rf"{self._name}-[0-9a-f]{{32}}", stem):  # nothing else is to be opened, or removed
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

    By the front end itself: `openvino.convert_model` would report to its makers.
    """
    frontend = import_module("openvino.frontend")
    decoder = import_module("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder
    with _refusing("OpenVINO cannot convert the network"):
        converter = frontend.FrontEndManager().load_by_framework("pytorch")
        with quiet():  # tracing is deprecated in torch, and what the decoder does
            traced = decoder(_Tuple(module.float()), example_input=torch.zeros(plan.shape))
        model = converter.convert(converter.load(traced))
        model.reshape(list(plan.shape))
        return model


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Say in one line what a library cannot do; too little memory is told elsewhere."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise FeatxError(f"{what}: {first_line(error)}", "Use --backend torch") from error


class _Tuple(nn.Module):
    """A module whose maps come as a tuple, which is what can be traced."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(batch))


def _name_of(plan: Plan) -> str:
    recipe = {**plan.recipe, "shape": plan.shape, "openvino": metadata.version("openvino")}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]


BACKENDS: dict[str, Callable[[nn.Module, Plan, Tell], Network]] = {
    "torch": _as_it_is,
    "compile": _compiled,
    "openvino": _OpenVino,
}

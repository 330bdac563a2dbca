# What belongs to the whole process: changed for a moment by one thread at a time, held by several together, put back.
"""Settings of torch, functions of libraries, warnings: none of them knows threads, so featx keeps its own apart."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Held while something is changed and restored: two overlapping changes would restore each other's values.
ALONE = threading.RLock()

# torch's settings of what float32 may be rounded to: those that others fall back on, and those of single operations.
FALLBACKS = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
OPERATIONS = tuple((library, kind) for library in ("cuda", "mkldnn") for kind in ("matmul", "conv", "rnn"))

CUDNN = {"enabled": True, "benchmark": False, "deterministic": True}


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute temporarily."""
    with ALONE:
        original = getattr(owner, name)
        setattr(owner, name, value)
        try:
            yield
        finally:
            setattr(owner, name, original)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress all warnings."""
    with ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def random_state(seed: int | None = None) -> Iterator[None]:
    """Draw random numbers, from a seed if there is one, without affecting the caller's random state.

    Only the processor's generator is touched: `torch.manual_seed` would set those of graphics cards as well.
    """
    with ALONE, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def safe_globals(known: Iterable[tuple[Any, str]]) -> Iterator[None]:
    """Have torch's restricted unpickler take other names than its own, each for what it is to stand for here."""
    with ALONE, torch.serialization.safe_globals(list(known)):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Hold fp32 to fp32, whatever the caller, torch or an environment variable has set.

    By default torch lets convolutions on NVIDIA GPUs round to TF32 (10 bits); matrix products there, and on
    processors with units for bf16 (7 bits), round where `torch.set_float32_matmul_precision`,
    ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE``, `torch.backends` or `torch.autocast` has it. The settings belong to the whole
    process: the first that holds them remembers the caller's, and the last puts them back.
    """
    HOLDERS.enter()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        HOLDERS.leave()


class _Holders:
    """Those that hold torch's settings, from any thread, and what the settings were before the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._restore: Callable[[], None] = lambda: None

    def enter(self) -> None:
        with self._lock:
            if not self._count:
                self._restore = _remembered()
            _set_strict()  # every time: others may have changed them since
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._restore()


HOLDERS = _Holders()


def _set_strict() -> None:
    for name, value in CUDNN.items():
        setattr(torch.backends.cudnn, name, value)
    _set_older("highest", allow_tf32=False)
    for setting in OPERATIONS:
        _set_precision(setting, "ieee")


def _remembered() -> Callable[[], None]:
    """Make everything strict, and return a function that restores the previous settings.

    torch keeps each precision twice, by an older and a newer name, and mostly refuses to read the older where the two
    disagree. Where the newer are strict, it refuses only if the older is not.
    """
    cudnn = {name: getattr(torch.backends.cudnn, name) for name in CUDNN}
    newer = {}
    for setting in (*FALLBACKS, *OPERATIONS):  # those without one of their own show that of their fallback
        newer[setting] = _precision(setting)
        _set_precision(setting, "none" if setting in FALLBACKS else "ieee")
    matmul = _read(torch.get_float32_matmul_precision, "high")
    allow_tf32 = _read(torch._C._get_cudnn_allow_tf32, True)  # noqa: SLF001

    def restore() -> None:
        for name, value in cudnn.items():
            setattr(torch.backends.cudnn, name, value)
        _set_older(matmul, allow_tf32=allow_tf32)
        for setting, precision in newer.items():
            _set_precision(setting, precision)

    return restore


def _read(read: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return read()
    except RuntimeError:
        return otherwise


def _set_older(matmul: str, *, allow_tf32: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch._C._set_cudnn_allow_tf32(allow_tf32)  # noqa: SLF001


def _precision(setting: tuple[str, str]) -> str:
    # `torch.backends` has no name for some of them, and a wrong one for mkldnn's.
    precision: str = torch._C._get_fp32_precision_getter(*setting)  # noqa: SLF001
    return precision


def _set_precision(setting: tuple[str, str], precision: str) -> None:
    torch._C._set_fp32_precision_setter(*setting, precision)  # noqa: SLF001

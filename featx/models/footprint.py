# The footprint of a network: the memory that a forward pass takes, found on the meta device.
"""Counting bytes without computing anything.

On a CPU, what the memory allocator and the kernels' scratch space add to the maps depends on the size of each
allocation: glibc takes those below 32 MiB from heaps, one per thread, and does not return the gaps (mallopt(3),
M_MMAP_THRESHOLD). Small allocations were seen to take more than twice their size, large ones hardly more than it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Bytes from which an allocation is mapped by itself, and what small and large ones take, as multiples of their size.
LARGE, SMALL_COST, LARGE_COST = 32 << 20, 2.3, 1.05


class Footprint(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that counts the memory of tensors made while it is on, for as long as anything refers to them.

    Attributes
    ----------
    peak : float
        The most bytes that were taken at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0.0
        # By storage: the memory that it takes, and how many tensors share it.
        self._storages: dict[int, tuple[float, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._enter(value)
        return result

    def _enter(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        place, size = storage._cdata, storage.nbytes()  # noqa: SLF001 - its identity
        taken, sharers = self._storages.get(place, (size * (SMALL_COST if size < LARGE else LARGE_COST), 0))
        if not sharers:
            self._now += taken
            self.peak = max(self.peak, self._now)
        self._storages[place] = taken, sharers + 1
        weakref.finalize(value, self._leave, place).atexit = False

    def _leave(self, place: int) -> None:
        taken, sharers = self._storages.pop(place)
        if sharers > 1:
            self._storages[place] = taken, sharers - 1
        else:
            self._now -= taken


class _LeanAttention(TorchFunctionMode):
    """A mode in which attention allocates only its result: on CPUs, its kernel keeps no matrix of all pairs."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return named["query"].new_empty(*named["query"].shape[:-1], named["value"].shape[-1])
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Pass:
    """What a forward pass takes, and gives.

    Attributes
    ----------
    memory : int
        Peak bytes, without the weights and the batch itself.
    shapes : list of tuple
        Of what comes out, (B, ...) each, in the network's own layout.
    """

    memory: int
    shapes: list[tuple[int, ...]]


def of_pass(skeleton: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> Pass | None:
    """Find out what a network's forward pass on a CPU takes.

    Parameters
    ----------
    skeleton : torch.nn.Module
        The network on the meta device.
    shape : sequence of int
        (B, 3, H, W) of the batch.
    dtype : torch.dtype
        What it computes in.

    Returns
    -------
    Pass or None
        None if the network does not run on shapes alone.
    """
    footprint, network = Footprint(), skeleton.to(dtype)
    try:
        with torch.no_grad():
            batch = torch.zeros(*shape, device="meta", dtype=dtype)
            with footprint, _LeanAttention():
                results = network(batch)
    except Exception:  # noqa: BLE001 - networks that look at values raise all kinds of errors
        return None
    return Pass(int(footprint.peak), [tuple(values.shape) for values in results])

# Hardware: which precisions a device supports natively, and which it only emulates, slowly.
"""Native precisions of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from featx.requests import Job

if TYPE_CHECKING:
    from collections.abc import Mapping

# Instructions that make a precision faster than fp32, as `torch.cpu.get_capabilities` names them. AVX-512's fp16 alone
# does not: ResNet-50 ran at 3.9 images a second with it, at 5.3 in fp32, and at 17 in bf16 (Xeon with AMX, torch 2.14).
INSTRUCTIONS = {
    "bf16": ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16", "sve_bf16"),
    "fp16": ("amx_fp16", "fp16_arith"),
}

# Compute capability of the first NVIDIA GPUs that have hardware for a precision (CUDA C++ Programming Guide).
FIRST_GPUS = {"bf16": (8, 0), "fp16": (7, 0)}


def slow_precision(job: Job, device: torch.device) -> list[str]:
    """Warn of a precision that is slow on the device, and say which is faster."""
    if job.precision == "fp32" or has_units(job.precision, device):
        return []
    what = "GPU" if device.type == "cuda" else "processor"
    other = "bf16" if job.precision == "fp16" and has_units("bf16", device) else ""
    faster = f"--precision {other} is much faster, and fp32" if other else "--precision fp32"
    advice = f"{faster} is faster and exact; --dtype float16 halves the files at any precision"
    return [f"{job.precision} is slower than fp32 on this {what}, which does not support it natively: {advice}"]


def has_units(precision: str, device: torch.device, capabilities: Mapping[str, object] | None = None) -> bool:
    """Whether a device supports a precision natively; assumed where nothing is known.

    Parameters
    ----------
    precision : str
        ``bf16`` or ``fp16``.
    device : torch.device
        The device.
    capabilities : mapping or None
        The processor's, as `torch.cpu.get_capabilities` returns them; None calls it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= FIRST_GPUS[precision]
    if device.type != "cpu":
        return True
    asked = getattr(torch.cpu, "get_capabilities", dict)  # which torch before 2.11 lacks
    known = asked() if capabilities is None else capabilities
    return not known or any(known.get(name) for name in INSTRUCTIONS[precision])

# Devices: the hardware that a name stands for, if this machine has it.
"""Choosing where networks run."""

from __future__ import annotations

import torch

from featx.errors import UsageError
from featx.naming import device_name

USABLE = "Use --device cpu or auto"


def choose_devices(name: str) -> list[torch.device]:
    """Return the devices that a name stands for: ``auto`` is the first GPU, then the CPU; ``all`` is every GPU.

    Raises
    ------
    UsageError
        If there is no such device on this machine.
    """
    name = device_name("--device", name)
    if name == "all":
        count = torch.cuda.device_count()
        if not count:
            raise UsageError("This machine has no GPU that torch can use, which --device all needs", USABLE)
        name = f"cuda:{','.join(map(str, range(count)))}"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    first, *others = name.split(",")
    return [_device(text) for text in (first, *(f"cuda:{number}" for number in others))]


def _device(name: str) -> torch.device:
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UsageError(f"This machine has no {name}, or torch cannot use it", USABLE)
    return device

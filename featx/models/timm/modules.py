# Modules of timm's networks: what each gives in a pass, and how far the network has to be run for those that are kept.
"""What ``--module`` and ``featx info --modules`` know of timm's networks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from featx.errors import ModelError
from featx.models.captures import Capture
from featx.models.descriptions import Description
from featx.models.modules import Module, captures_of, choose, survey
from featx.models.timm.attention import END, HEAD
from featx.models.timm.building import SizeRefusedError, create, looks_at_values, real
from featx.models.timm.taps import Tapped, Taps
from featx.requests import ModelRequest


def find(
    description: Description, request: ModelRequest, arguments: dict[str, Any], taps: Taps
) -> tuple[Taps, list[Capture], list[str]]:
    """Find the modules that were asked for.

    Returns
    -------
    taps : Taps
        With the end of the network, or its head, if it takes that to run them.
    captures : list of Capture
        In the order of the network.
    notes : list of str
        See `featx.models.modules.choose`.

    Raises
    ------
    ModelError
        If there is no such module, or its output cannot be kept.
    """
    chosen, notes = choose(description.name, modules_of(description, arguments, taps), request.modules or ())
    captures = captures_of(description, request, chosen)
    reach = HEAD if any(module.outputs[call].in_head for module, call in chosen) else END
    return replace(taps, reach=reach), captures, notes


def modules_of(description: Description, arguments: dict[str, Any], taps: Taps) -> list[Module]:
    """Run shapes through a whole network, with its head if it has one, and look at each of its modules."""
    reference, size = description.plan.reference, description.plan.config["input_size"]
    for reach in (HEAD, END):
        for build in (partial(create, reference, "meta"), partial(real, reference)):
            try:
                return _survey(build(arguments), replace(taps, reach=reach), size)
            except Exception as error:
                if looks_at_values(error):
                    continue
                if reach == HEAD and isinstance(error, AttributeError | NotImplementedError):  # encoders have no head
                    break
                raise SizeRefusedError from error
    raise ModelError(f"{description.name} cannot be run on shapes alone", "Please report this model")


def _survey(network: Any, taps: Taps, size: tuple[int, int, int]) -> list[Module]:
    tapped = Tapped(network, taps).eval()
    on_head: list[Callable[[], None]] = []
    with suppress(AttributeError):
        honest = network.forward_head

        def forward_head(*given: Any, **options: Any) -> Any:
            on_head[-1]()
            return honest(*given, **options)

        network.forward_head = forward_head

    def run(batch: Tensor, begins: Callable[[], None]) -> None:
        on_head.append(begins)
        tapped.forward(batch)

    return survey(network, run, torch.zeros(1, *size, device=next(network.parameters()).device))

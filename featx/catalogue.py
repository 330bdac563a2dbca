# What models there are, and what one of them is like, asked of the installed timm.
"""Listing and describing models."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from featx import backbones
from featx.errors import ModelError
from featx.records import Level, ModelRequest

FLOAT32_BYTES = 4


def list_models(patterns: str | Sequence[str] = (), *, pretrained: bool = False) -> list[dict[str, Any]]:
    """List the models of the installed timm.

    Parameters
    ----------
    patterns : str or sequence of str
        Glob patterns, or parts of a name; a model that matches one of them is listed.
    pretrained : bool
        Only those with pretrained weights.

    Returns
    -------
    list of dict
        ``model``, ``source``, ``input`` (height, width) and ``pretrained`` (tags with licence, input size, hub id).

    Raises
    ------
    ModelError
        If nothing matches; the message has the nearest names.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    names = backbones.architectures()
    chosen = [name for name in names if not patterns or any(_matches(name, pattern) for pattern in patterns)]
    if not chosen:
        near = [match for pattern in patterns for match in difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)]
        raise ModelError(
            f"No model matches {' or '.join(patterns)}",
            f"Nearest: {', '.join(near)}" if near else "`featx list-models` shows all",
        )
    listed = [_entry(name) for name in chosen]
    return [entry for entry in listed if entry["pretrained"] or not pretrained]


def describe_model(request: ModelRequest) -> dict[str, Any]:
    """Describe one model without its weights.

    Returns
    -------
    dict
        ``model, source, architecture, parameters, levels, input, pretrained, output_strides, fixed_size,
        bytes_per_image``; the last counts the arrays of one output file.
    """
    description = backbones.describe(request)
    reference = description.reference
    return {
        "model": reference.name,
        "source": "timm",
        "architecture": reference.architecture,
        "parameters": description.parameters,
        "levels": [level.to_json() for level in description.levels],
        "available_levels": description.depth,
        "input": description.input.to_json(),
        "pretrained": backbones.pretrained_tags(reference.architecture),
        "output_strides": list(backbones.output_strides(reference)),
        "fixed_size": reference.fixed_size,
        "bytes_per_image": bytes_per_image(description.levels),
    }


def bytes_per_image(levels: Sequence[Level]) -> int | None:
    """Return the size of all float32 maps of one image; None where a map's size is not known beforehand."""
    if any(level.height is None for level in levels):
        return None
    return sum(FLOAT32_BYTES * math.prod(length or 0 for length in level.shape) for level in levels)


def _matches(name: str, pattern: str) -> bool:
    return pattern in name if not set("*?[") & set(pattern) else fnmatchcase(name, pattern)


def _entry(name: str) -> dict[str, Any]:
    _, height, width = backbones.default_input_size(name)
    return {
        "model": name,
        "source": "timm",
        "input": {"height": height, "width": width},
        "pretrained": backbones.pretrained_tags(name),
    }

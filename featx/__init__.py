# The public names of featx, each loaded when it is first used, since torch and timm take seconds.
"""featx: image files in, the multi-scale feature maps of any timm backbone out.

>>> import featx
>>> pyramid = featx.load_pyramid("resnest26d", weights="random")
>>> [level.stride for level in pyramid.levels]
[2, 4, 8, 16, 32]
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from featx.version import __version__ as __version__

_HOMES = {
    "FeatxError": "featx.errors",
    "convert": "featx.explore.converting",
    "extract": "featx.engine.extract",
    "list_models": "featx.models.search",
    "load_pyramid": "featx.models.pyramid",
    "open_run": "featx.runs.reading",
    "similar": "featx.explore.similarity",
    "similar_patches": "featx.explore.patches",
}

__all__ = ["FeatxError", "convert", "extract", "list_models", "load_pyramid", "open_run", "similar", "similar_patches"]


def __getattr__(name: str) -> Any:
    if name == "ray":
        return import_module("featx.ray")
    if name not in _HOMES:
        raise AttributeError(f"module 'featx' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

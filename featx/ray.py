# What featx offers to programs that use Ray Data; loaded when it is first used, since torch takes seconds.
"""Feature pyramids in the datasets of others.

>>> import featx.ray
>>> photos.map_batches(featx.ray.FeaturePyramid, fn_constructor_args=("resnet50",), concurrency=2)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.engine.feature_pyramid import FeaturePyramid

__all__ = ["FeaturePyramid"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'featx.ray' has no attribute {name!r}")
    return getattr(import_module("featx.engine.feature_pyramid"), name)

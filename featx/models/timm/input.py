# Input configurations: timm's own, the one that weights were tested with, or the size that was asked for.
"""What a timm model wants to be fed."""

from __future__ import annotations

from typing import Any

from timm.data import resolve_data_config

from featx.errors import ModelError
from featx.models.timm.reference import Reference
from featx.requests import ModelRequest
from featx.values import Input

# What is done with the aspect ratio: timm's word, and ours.
FITS = {"center": "crop", "squash": "squash", "border": "pad"}
MODES = {fit: mode for mode, fit in FITS.items()}

# Ways that were asked for to have the whole photo.
WHOLE = ("squash", "pad", "native")


def own_input(reference: Reference) -> Input:
    """Return the input configuration that a model has if nothing is asked for."""
    request = ModelRequest(reference.name)
    return input_of(data_config(reference, request), request)


def tested_input(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return height, width and crop of the size that weights were tested with; None where it is the model's own."""
    if not (config.get("test_input_size") or config.get("test_crop_pct")):
        return None
    tested = resolve_data_config(pretrained_cfg=config, use_test_size=True)
    _, height, width = tested["input_size"]
    return {"height": height, "width": width, "crop_pct": tested["crop_pct"]}


def data_config(reference: Reference, request: ModelRequest) -> dict[str, Any]:
    """Resolve timm's data configuration: the model's own, its test size, or the size that was asked for.

    Raises
    ------
    ModelError
        If the weights have no test size.
    """
    if request.test_size and tested_input(reference.config) is None:
        raise ModelError(f"{reference.name} has no test size other than its own", "Leave out --test-size")
    asked = {"input_size": (3, *request.image_size)} if request.image_size else {}
    config: dict[str, Any] = resolve_data_config(
        asked, pretrained_cfg=reference.config, use_test_size=request.test_size
    )
    if request.fit:
        config["crop_mode"] = MODES.get(request.fit, config["crop_mode"])
    if request.fit in WHOLE or request.crop_pct:
        config["crop_pct"] = request.crop_pct or 1.0
    return config


def input_of(config: dict[str, Any], request: ModelRequest) -> Input:
    """Say in featx's words what a data configuration asks for."""
    native = config.get("fit") == "native"
    return Input(
        height=None if native else config["input_size"][1],
        width=None if native else config["input_size"][2],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        fit="native" if native else FITS[config["crop_mode"]],
        configuration="asked" if request.image_size else "test" if request.test_size else "own",
        multiple=config.get("multiple"),
        least=config.get("least"),
        max_side=config.get("max_side"),
    )

# The survey of timm: what each model is like, measured on the network itself, for the catalogue.
"""Describing models by building them, on the meta device, without memory for weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import timm
import timm.models

from featx.models import catalogue
from featx.models.catalogue import Catalogue, Entry
from featx.models.levels import unsized
from featx.models.timm import description, loading, outputs, sizes
from featx.models.timm.description import output_strides
from featx.models.timm.input import data_config, own_input, tested_input
from featx.models.timm.native import native
from featx.models.timm.reference import Reference, resolve
from featx.requests import ModelRequest
from featx.values import plain


def empty_catalogue() -> Catalogue:
    """Return the catalogue of the installed timm: all names, no entries yet."""
    architectures = set(timm.list_models())
    renamed = {old: new for old, new in timm.models.get_deprecated_models().items() if old not in architectures}
    return Catalogue("timm", timm.__version__, timm.list_models(), renamed, {})


def entry(architecture: str) -> Entry:
    """Measure an architecture: the network's levels, what it takes, and what its pretrained weights change.

    Raises
    ------
    FeatxError
        If timm cannot build or run it.
    """
    facts = _facts(architecture)
    reference = resolve(architecture)
    tags = []
    for tag in pretrained_tags(architecture):
        own = _facts(f"{architecture}.{tag['tag']}", facts)
        tags.append({**tag, "changes": {fact: own[fact] for fact in own if own[fact] != facts[fact]}})
    return {
        "family": reference.family,
        **facts,
        "output_strides": list(output_strides(reference)),
        "fixed_size": reference.fixed_size,
        "sizes": sizes_taken(reference),
        "native": native_sizes(reference),
        "pretrained": tags,
    }


def with_levels(architecture: str, known: Entry) -> Entry:
    """Measure the levels of an architecture again, and take everything else from its entry."""
    levels = _levels_of(architecture)
    tags = []
    for tag in known["pretrained"]:
        changes = tag["changes"]
        if "levels" in changes:
            own = _levels_of(f"{architecture}.{tag['tag']}")
            changes = {
                fact: value for fact, value in {**changes, **own}.items() if fact not in own or value != levels[fact]
            }
        tags.append({**tag, "changes": changes})
    return {**known, **levels, "pretrained": tags}


def sizes_taken(reference: Reference) -> dict[str, Any] | None:
    """Find out which input sizes a network takes, and whether pretrained weights can follow (``resampled``)."""
    taken = sizes.sizes_taken(reference)
    if taken is None or not taken["rebuilt"]:
        return taken
    step = math.lcm(32, taken["multiple"])  # far enough from the own size for another grid of patches and windows
    height = (data_config(reference, ModelRequest(reference.name))["input_size"][1] * 5 // 4 // step + 1) * step
    width = height if taken["square"] else height + step
    arguments = {"features_only": True, "img_size": (height, width)}
    return {**taken, "resampled": loading.can_be_resampled(reference, arguments)}


def native_sizes(reference: Reference) -> dict[str, int | None] | None:
    """Find out whether a network takes photos at their own size, and up to which multiples they are filled up."""
    _, height, width = data_config(reference, ModelRequest(reference.name))["input_size"]
    found = native(reference, {"features_only": True}, (height, width))
    return {"multiple": found.multiple, "least": found.least} if found else None


def describe(request: ModelRequest, known: Entry | None = None) -> dict[str, Any]:
    """Describe one model as it was asked for, as `featx.models.catalogue.described` does it for plain names.

    Parameters
    ----------
    request : ModelRequest
        The model; weights and seed do not matter.
    known : dict or None
        The architecture's entry, for what does not depend on the request; measured if it is not at hand.
    """
    described = description.describe(request)
    reference = described.plan.reference
    levels = plain((unsized(described) if request.fit == "native" else described).levels)
    others = outputs.facts(description.describe(replace(request, out_indices="all", strides=None)))
    if request.fit == "native" and others["final"]:
        others["final"] |= {"height": None, "width": None}
    return {
        "model": reference.name,
        "source": "timm",
        "architecture": reference.architecture,
        "family": reference.family,
        "layout": described.layout,
        "parameters": described.parameters,
        "levels": levels,
        "available_levels": described.depth,
        "input": plain(described.input),
        "test_input": tested_input(reference.config),
        "pretrained": pretrained_tags(reference.architecture),
        "output_strides": known["output_strides"] if known else list(output_strides(reference)),
        "fixed_size": reference.fixed_size,
        "sizes": known["sizes"] if known else sizes_taken(reference),
        "native": known["native"] if known else native_sizes(reference),
        "rebuilt": described.rebuilt,
        **others,
        "bytes_per_image": None if request.fit == "native" else catalogue.bytes_per_image(levels),
    }


def pretrained_tags(architecture: str) -> list[dict[str, Any]]:
    """Return the weights that timm knows for an architecture, its default first."""
    return [
        {
            "tag": name.partition(".")[2],
            "license": config.license,
            "input_size": list(config.input_size),
            "test_input_size": list(config.test_input_size) if config.test_input_size else None,
            "hub": config.hf_hub_id,
            "url": None if config.hf_hub_id else config.url,
        }
        for name, config in timm.models.get_arch_pretrained_cfgs(architecture).items()
        if config.has_weights
    ]


def _levels_of(name: str) -> dict[str, Any]:
    facts = _facts(name)
    return {fact: facts[fact] for fact in ("levels", "final")}


def _facts(name: str, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measure what a tag can change. Where its input is that of `like`, so are its levels."""
    reference = resolve(name)
    feed = plain(own_input(reference))
    facts = {"input": feed, "test_input": tested_input(reference.config)}
    if like and all(like["input"][side] == feed[side] for side in ("height", "width")):
        return {**like, **facts}
    default = description.describe(ModelRequest(name))
    all_chosen = len(default.levels) == default.depth
    every = default if all_chosen else description.describe(ModelRequest(name, out_indices="all"))
    return {
        **facts,
        "layout": default.layout,
        "parameters": default.parameters,
        "default_levels": [level.index for level in default.levels],
        "levels": plain(every.levels),
        **outputs.facts(every),
    }

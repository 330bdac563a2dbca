# timm as a library of networks: what the table of libraries names.
"""timm's networks: described and filled, measured for the catalogue."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from torch import nn

from featx.errors import ModelError, UsageError
from featx.models import catalogue
from featx.models.catalogue import Catalogue, Entry
from featx.models.descriptions import Description
from featx.models.levels import unsized
from featx.models.modules import Module
from featx.models.timm import loading, outputs, survey
from featx.models.timm.description import describe
from featx.requests import ModelRequest
from featx.values import Weights, plain


class Timm:
    """See `featx.models.libraries.Library`."""

    def describe(self, request: ModelRequest) -> Description:
        """Describe the levels, and what else was asked for."""
        _require_backbone(request)
        plain = describe(request)
        _require_as_catalogued(plain, request)
        described = outputs.extend(plain, request) if outputs.wanted(request) else plain
        return unsized(described) if request.fit == "native" else described

    def skeleton(self, description: Description) -> nn.Module:
        """Build it on the meta device."""
        return loading.create_planned(description.plan, "meta")

    def build(self, description: Description, request: ModelRequest) -> tuple[nn.Module, Weights]:
        """Build and fill."""
        return loading.build(description, request)

    def catalogue(self) -> Catalogue:
        """Return all names."""
        return survey.empty_catalogue()

    def entry(self, name: str) -> Entry:
        """Measure an architecture."""
        return survey.entry(name)

    def info(self, request: ModelRequest, known: Entry | None = None) -> dict[str, Any]:
        """Describe one model."""
        _require_backbone(request)
        return survey.describe(request, known)

    def modules(self, request: ModelRequest) -> list[Module]:
        """Look at every module."""
        _require_backbone(request)
        return outputs.modules_of(describe(request), request)


def _require_backbone(request: ModelRequest) -> None:
    if request.part != "backbone":
        what = "has no neck" if request.part in ("neck", "all") else f"has no part {request.part!r}"
        raise UsageError(f"{request.model} is a timm backbone, which {what}", "Leave out --part")


def _require_as_catalogued(description: Description, request: ModelRequest) -> None:
    """Compare the levels, which every batch is checked against, with those that the catalogue has."""
    models = catalogue.read()
    name = request.model
    if (
        not models
        or models.version != metadata.version("timm")
        or not catalogue.knows(models, name)
        or request.output_stride is not None
    ):
        return
    known = catalogue.with_tag(models, name)
    same_size = (known["input"]["height"], known["input"]["width"]) == description.traced
    facts = ("name", "channels", "height", "width") if same_size else ("name", "channels")
    by_index = {stated["index"]: stated for stated in known["levels"]}
    for level in plain(description.levels):
        stated = by_index.get(level["index"], {})
        for fact in facts:
            if level[fact] != stated.get(fact):
                raise ModelError(
                    f"Level {level['index']} of {name} has {fact} {level[fact]}; the catalogue says {stated.get(fact)}",
                    "The installed timm was modified; reinstall it",
                )

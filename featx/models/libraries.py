# The table of the libraries that networks come from, and what each has to offer.
"""Libraries of networks, each imported when one of its models is asked for."""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from featx.models.catalogue import Catalogue, Entry
from featx.models.descriptions import Description
from featx.requests import ModelRequest
from featx.values import Weights

if TYPE_CHECKING:
    from torch import nn

    from featx.models.modules import Module

# Library -> the names of its models, and the class that knows it; a name belongs to the first that it matches.
LIBRARIES = {
    "ultralytics": ("yolo*", "featx.models.yolo.library:Ultralytics"),
    "timm": ("*", "featx.models.timm.library:Timm"),
}


class Library(Protocol):
    """A library of networks, seen from featx."""

    def describe(self, request: ModelRequest) -> Description:
        """Work out levels, shapes and input of a pyramid without its weights.

        Raises
        ------
        FeatxError
            If there is no such model, or it cannot do what was asked.
        """
        ...

    def skeleton(self, description: Description) -> nn.Module:
        """Build what was described on the meta device: shapes, no numbers."""
        ...

    def build(self, description: Description, request: ModelRequest) -> tuple[nn.Module, Weights]:
        """Build what was described on the CPU, filled with the weights asked for, in evaluation mode.

        For a (B, 3, H, W) batch the module gives the description's fields, maps in the description's layout.

        Raises
        ------
        WeightsError
            If the weights cannot be found, or do not fill every parameter with finite numbers of its shape.
        """
        ...

    def catalogue(self) -> Catalogue:
        """Return the catalogue of the installed version: all names, no entries yet."""
        ...

    def entry(self, name: str) -> Entry:
        """Measure an architecture, for the catalogue."""
        ...

    def info(self, request: ModelRequest, known: Entry | None = None) -> dict[str, Any]:
        """Describe one model as it was asked for; `known` is its architecture's entry, if there is one already."""
        ...

    def modules(self, request: ModelRequest) -> list[Module]:
        """Look at every module of one model, and at what it gives."""
        ...


def library_of(model: str) -> str:
    """Return the name of the library that a model's name belongs to."""
    return next(library for library, (pattern, _) in LIBRARIES.items() if fnmatchcase(model, pattern))


def library(name: str) -> Library:
    """Return a library by its name.

    Raises
    ------
    FeatxError
        If it is not installed.
    """
    module, _, kind = LIBRARIES[name][1].partition(":")
    found: Library = getattr(import_module(module), kind)()
    return found

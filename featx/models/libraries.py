# The table of where networks come from, and what a source of networks has to do.
"""Sources of backbones, each loaded when a model of its is asked for."""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from featx.errors import UsageError
from featx.models.catalogue import Catalogue, Entry
from featx.options import ModelRequest
from featx.values import Description, Weights

if TYPE_CHECKING:
    from torch import nn

# Source -> which names are its, and the class that knows it; a name belongs to the first that it matches.
SOURCES = {
    "ultralytics": ("yolo*", "featx.models.yolo:Ultralytics"),
    "timm": ("*", "featx.models.timm.library:Timm"),
}


class Source(Protocol):
    """A library of networks, seen from featx."""

    def describe(self, request: ModelRequest) -> Description:
        """Work out levels, shapes and input of a pyramid without its weights.

        Raises
        ------
        FeatxError
            If there is no such model, or it cannot do what was asked.
        """
        ...

    def build(self, description: Description, request: ModelRequest) -> tuple[nn.Module, Weights]:
        """Build what was described on the CPU, filled with the weights asked for, in evaluation mode.

        The module gives the description's fields for a (B, 3, H, W) batch, maps in the description's layout.

        Raises
        ------
        WeightsError
            If the weights cannot be had, or do not fill every parameter with finite numbers of its shape.
        """
        ...

    def catalogue(self) -> Catalogue:
        """Return the catalogue of the installed version: all names, no entries yet."""
        ...

    def entry(self, name: str) -> Entry:
        """Measure an architecture, for the catalogue."""
        ...

    def info(self, request: ModelRequest, known: Entry | None = None) -> dict[str, Any]:
        """Describe one model as it was asked for; `known` is its architecture's entry, where that is at hand."""
        ...


def source_of(name: str) -> str:
    """Return the source that a model's name belongs to."""
    return next(source for source, (pattern, _) in SOURCES.items() if fnmatchcase(name, pattern))


def source(name: str) -> Source:
    """Return a source by its own name.

    Raises
    ------
    UsageError
        If there is no such source.
    FeatxError
        If the library is not installed.
    """
    if name not in SOURCES:
        raise UsageError(f"There is no source of models called {name!r}", f"Use {' or '.join(SOURCES)}")
    module, _, kind = SOURCES[name][1].partition(":")
    found: Source = getattr(import_module(module), kind)()
    return found

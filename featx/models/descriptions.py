# Descriptions: pyramids before they have weights, as model libraries work them out.
"""What a library of networks says of a pyramid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featx.values import Field, Input, Level


@dataclass(frozen=True, slots=True)
class Description:
    """A pyramid before it has weights.

    Attributes
    ----------
    name : str
        The model as it was asked for.
    source : str
        The library that it comes from.
    architecture : str
        That library's name for the network.
    levels : tuple of Level
        The chosen levels, in network order.
    depth : int
        How many levels there are to choose from.
    input : Input
        What the model is fed.
    preprocessing : dict
        What `featx.images.fitting.make` is to be given.
    parameters : int
        Of what is run; for plain levels that is the pyramid without the head.
    fields : tuple of Field
        What comes out for an image, in this order: the levels first, if they are wanted.
    final : Level or None
        The final map, if it is wanted.
    modules : tuple of Level
        What was asked for of the outputs of modules, as far as it is maps.
    captures : tuple of str
        All outputs of modules that were asked for, by what they are called.
    notes : tuple of str
        What a person may not expect, in a sentence each.
    layout : str
        ``NCHW`` or ``NHWC``: how the network itself lays out its maps.
    rebuilt : bool
        Whether the network is rebuilt for an input size that it would not take otherwise.
    traced : (int, int)
        Height and width of the input at which its levels were measured.
    plan : object
        What the source builds it from.
    files : tuple of str
        The files that it was read from, apart from its weights: a folder's or repository's configuration.
    """

    name: str
    source: str
    architecture: str
    levels: tuple[Level, ...]
    depth: int
    input: Input
    preprocessing: dict[str, Any]
    parameters: int
    fields: tuple[Field, ...]
    final: Level | None = None
    modules: tuple[Level, ...] = ()
    captures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    layout: str = "NCHW"
    rebuilt: bool = False
    traced: tuple[int, int] = (0, 0)
    plan: Any = None
    files: tuple[str, ...] = ()

    @property
    def maps(self) -> tuple[Level, ...]:
        """The levels, the final map, and the maps of modules."""
        return (*self.levels, *([self.final] if self.final else ()), *self.modules)

# Axes: where the cells along one axis of a map lie in the input, and how windows, slices and resampling move them.
"""Positions of cells, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isclose


@dataclass(frozen=True, slots=True)
class Axis:
    """The cells along one axis of a map.

    Attributes
    ----------
    length : int
        How many there are.
    stride : float
        Their spacing, in input pixels.
    lowest, highest : float
        Input pixels at the centre of cell 0, on the two paths through the network that lie furthest apart.
    offset : float
        The mean over all paths; branches that are added up count by their strength.
    strength : float
        How many branches of equal strength were added up since the last convolution or norm, which makes one of them.
    """

    length: int
    stride: float = 1.0
    lowest: float = 0.0
    highest: float = 0.0
    offset: float = 0.0
    strength: float = 1.0

    @property
    def spread(self) -> float:
        """How far apart the paths lie, in cells."""
        return (self.highest - self.lowest) / self.stride

    def is_like(self, other: Axis) -> bool:
        """Whether both have equally many cells at the same spacing, wherever these are centred."""
        return self.length == other.length and isclose(self.stride, other.stride)

    def windowed(self, length: int, kernel: int, step: int, padding: int, dilation: int = 1) -> Axis:
        """Slide a window of `kernel` cells over the axis."""
        return self._moved(length, dilation * (kernel - 1) / 2 - padding, step)

    def unwindowed(self, length: int, kernel: int, step: int, padding: int, dilation: int = 1) -> Axis:
        """Undo `windowed`: lay windows of `kernel` cells back where they came from."""
        return self._moved(length, (padding - dilation * (kernel - 1) / 2) / step, 1 / step)

    def cut(self, length: int, start: int, step: int = 1) -> Axis:
        """Take every `step`-th cell from `start` on; a negative `start` is padding."""
        return self._moved(length, start, step)

    def merged(self, length: int) -> Axis | None:
        """Group neighbouring cells into `length` of them, as patch merging does; None where they do not divide."""
        if length == self.length:
            return self
        if length < 1 or self.length % length:
            return None
        return self.windowed(length, self.length // length, self.length // length, 0)

    def scaled(self, length: int, *, corners: bool = False) -> Axis:
        """Resample to `length` cells; the outer edges stay together, or with `corners` the centres of outer cells."""
        if corners:
            return self._moved(length, 0, (self.length - 1) / max(length - 1, 1))
        step = self.length / length
        return self._moved(length, (step - 1) / 2, step)

    def nearest(self, length: int) -> Axis:
        """Resample to `length` cells, each the one at or before its place; on average, where places fall between."""
        step = Fraction(self.length, length)
        return self._moved(length, (1 / step.denominator - 1) / 2, float(step))

    def joined(self, others: Iterable[Axis]) -> Axis:
        """Add up branches of the same cells."""
        branches = [self, *others]
        strength = sum(branch.strength for branch in branches)
        return replace(
            self,
            lowest=min(branch.lowest for branch in branches),
            highest=max(branch.highest for branch in branches),
            offset=sum(branch.offset * branch.strength for branch in branches) / strength,
            strength=strength,
        )

    def _moved(self, length: int, cells: float, step: float) -> Axis:
        """Move the first cell by a number of cells, and take every `step`-th from there."""
        shift = cells * self.stride
        return Axis(
            length,
            self.stride * step,
            self.lowest + shift,
            self.highest + shift,
            self.offset + shift,
            self.strength,
        )

# Frame: where an original image lies in the model's input, and back.
"""Geometry without pixels: pure functions and values, no torch."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

Pair = tuple[float, float]


class Frame(Struct, frozen=True, gc=False):
    """How an image was placed in the model's input: an axis-aligned affine map, invertible.

    All pairs are ``(x, y)``; pixel centres lie at integers, so an image of width `w` spans -0.5 … w - 0.5.

    Attributes
    ----------
    original : tuple of int
        Width and height, in pixels, of the image as a viewer shows it (after its EXIF orientation was applied).
    input : tuple of int
        Width and height, in pixels, of the model's input.
    scale : tuple of float
        Input pixels per original pixel.
    offset : tuple of float
        Input pixel at which the centre of the original's first pixel lies.
    orientation : int
        The EXIF orientation, 1 to 8, that was applied to the stored pixels; 1 means none.
    """

    original: tuple[int, int]
    input: tuple[int, int]
    scale: Pair
    offset: Pair
    orientation: int

    @classmethod
    def of(cls, size: tuple[int, int], orientation: int = 1) -> Frame:
        """Start from an untouched image of `size` (width, height)."""
        return cls(size, size, (1.0, 1.0), (0.0, 0.0), orientation)

    def resized(self, size: tuple[int, int]) -> Frame:
        """Resample the whole input to `size` (width, height); the outer edges stay together, not the pixel centres."""
        factor = (size[0] / self.input[0], size[1] / self.input[1])
        return replace(
            self,
            input=size,
            scale=(self.scale[0] * factor[0], self.scale[1] * factor[1]),
            offset=(
                (self.offset[0] + 0.5) * factor[0] - 0.5,
                (self.offset[1] + 0.5) * factor[1] - 0.5,
            ),
        )

    def centred(self, size: tuple[int, int]) -> Frame:
        """Crop, or pad where it is too small, around the centre to `size` (width, height), as torchvision does."""
        shift = (_centre_shift(self.input[0], size[0]), _centre_shift(self.input[1], size[1]))
        return replace(self, input=size, offset=(self.offset[0] + shift[0], self.offset[1] + shift[1]))

    def filled_up(self, size: tuple[int, int]) -> Frame:
        """Pad on the right and at the bottom to `size` (width, height); what is there stays where it is."""
        return replace(self, input=size)

    def to_input(self, x: float, y: float) -> Pair:
        """Original pixel to model-input pixel."""
        return x * self.scale[0] + self.offset[0], y * self.scale[1] + self.offset[1]

    def to_original(self, x: float, y: float) -> Pair:
        """Model-input pixel to original pixel."""
        return (x - self.offset[0]) / self.scale[0], (y - self.offset[1]) / self.scale[1]


def _centre_shift(length: int, target: int) -> int:
    """Pixels by which content moves right (or down) when `length` is cropped or padded to `target`.

    Padding puts the smaller half first; cropping rounds half to even: torchvision's ``center_crop``.
    """
    if target > length:
        return (target - length) // 2
    return -round((length - target) / 2)

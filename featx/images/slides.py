# Slides: whole-slide images of microscopes, read part by part through OpenSlide.
"""Pyramids of a slide's resolutions, one of which is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featx.errors import DecodeError
from featx.images.pieces import Notes
from featx.images.plugins import SLIDES

# By how much a level's resolution may differ from the one that was asked for: scanners say 0.2505 and mean 0.25.
NEAR = 0.1


def has_suffix(locator: str) -> bool:
    """Whether a file's name says that it is a slide."""
    return locator.lower().endswith(SLIDES.suffixes)


class Slide:
    """A level of a slide; see `featx.images.windows.Windows`."""

    as_a_whole, orientation = 0, 1

    def __init__(self, slide: Any, level: int) -> None:
        self._slide, self._level = slide, level
        self.original, self.size = slide.dimensions, slide.level_dimensions[level]
        self.notes = Notes()
        self._background = f"#{slide.properties.get('openslide.background-color', 'ffffff')}"

    def read(self, box: tuple[int, int, int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read a region; where the scanner saw nothing, it has the background's colour."""
        left, top, right, bottom = box
        # OpenSlide counts positions at full resolution, whatever level it reads.
        place = tuple(
            round(pixel * whole / side)
            for pixel, whole, side in zip((left, top), self.original, self.size, strict=True)
        )
        region = self._slide.read_region(place, self._level, (right - left, bottom - top))
        pixels = Image.new("RGB", region.size, self._background)
        pixels.paste(region, mask=region.getchannel("A"))
        return np.asarray(pixels)


@contextmanager
def opened(path: str, mpp: float | None) -> Iterator[Slide]:
    """Open a slide at a resolution in microns a pixel, or with all its pixels.

    Raises
    ------
    DecodeError
        If OpenSlide is not installed or does not know the file, or the slide has no such resolution.
    """
    SLIDES.require()
    if not Path(path).is_file():
        raise DecodeError("OpenSlide reads files on this machine, neither URLs nor members of archives")
    openslide = import_module("openslide")
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise DecodeError("OpenSlide does not know it as a slide; leave out --level-mpp") from error
    with slide:
        yield Slide(slide, 0 if mpp is None else _level_at(slide, mpp))


def _level_at(slide: Any, mpp: float) -> int:
    """Find the level with a resolution."""
    given = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    if None in given:
        raise DecodeError("the slide does not say how large its pixels are; leave out --level-mpp")
    own = sum(map(float, given)) / 2
    there = [own * downsample for downsample in slide.level_downsamples]
    nearest = min(range(len(there)), key=lambda level: abs(there[level] - mpp))
    if abs(there[nearest] - mpp) > NEAR * mpp:
        levels = ", ".join(f"{each:.3g}" for each in there)
        raise DecodeError(f"the slide has no level of {mpp:g} microns a pixel (--level-mpp), but of {levels}")
    return nearest

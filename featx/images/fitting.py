# From an image file to the pixels a model wants: decoded with one policy for every mode, placed as the model has it.
"""Decoding and preprocessing.

`decode` always gives an upright 8-bit RGB image; a `Preprocessor` does to it what the model's makers do, and keeps
account of where the original went.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib import import_module
from io import UnsupportedOperation
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, PngImagePlugin, TiffImagePlugin
from timm.data import create_transform
from timm.data.transforms import CenterCropOrPad, MaybeToTensor, ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import CenterCrop, Normalize, Resize

from featx.errors import DecodeError, ModelError
from featx.images.colours import loaded, to_rgb
from featx.images.containers import UPRIGHT, canvas_of, open_image, orientation_of
from featx.images.frame import Frame
from featx.images.pieces import Notes
from featx.options import Limits

__all__ = ["DecodeError", "Evaluation", "Letterbox", "Preprocessor", "decode", "make", "orientation_of", "upright_rgb"]

Size = tuple[int, int]

# Pixels from which on images are decoded and resized one at a time, so that memory does not grow with the number of
# readers.
LARGE = 50_000_000

Alone = Callable[[], AbstractContextManager[None]]

# What ultralytics fills borders with.
GREY = (114, 114, 114)

# The steps of timm's evaluation transform that move pixels.
RESIZES = (Resize, ResizeKeepRatio)
CROPS = (CenterCrop, CenterCropOrPad)


class Source:
    """An image file whose header has been read.

    Attributes
    ----------
    orientation : int
        The EXIF orientation, 1 to 8, that `rgb` applies.
    notes : Notes
        What is to be said of it.
    """

    def __init__(self, image: Image.Image, notes: Notes) -> None:
        self._image, self.notes = [image], notes
        self.orientation = orientation_of(image, notes)  # before loading, which ends Pillow's reading of tags

    def rgb(self) -> Image.Image:
        """Decode it, once, as upright 8-bit RGB."""
        return upright_rgb(self._image.pop(), self.orientation)  # which can then let go of it


@contextmanager
def opened(
    file: Path | BinaryIO,
    max_pixels: int = Limits().pixels,
    alone: Alone = nullcontext,
    largest: Callable[[Size], int] = lambda size: size[0] * size[1],
) -> Iterator[Source]:
    """Open an image file to be decoded, and placed, within this context.

    Parameters
    ----------
    file : path or binary file
        The image.
    max_pixels : int
        Width times height that it may have.
    alone : callable
        Returns the context in which an image of more than `LARGE` pixels is decoded and placed.
    largest : callable
        Pixels of the largest that is made of an image of a size, as `Preprocessor.largest` tells it.

    Raises
    ------
    DecodeError
        If the image is too large, or of a kind that has no agreed way to RGB.
    Exception
        Whatever Pillow raises for a broken file: far more than OSError.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        stream.seek(0)
        canvas = canvas_of(stream.read(30))
        if canvas:
            _enter(stack, canvas, canvas[0] * canvas[1], max_pixels, alone, largest)
        notes = Notes()
        image = open_image(stream, notes)
        if not canvas:
            area = getattr(image, "area", image.width * image.height)
            _enter(stack, image.size, area, max_pixels, alone, largest)
        source = Source(image, notes)
        del image
        yield source


def decode(
    file: Path | BinaryIO, max_pixels: int = Limits().pixels, alone: Alone = nullcontext
) -> tuple[Image.Image, int]:
    """Read an image file as upright 8-bit RGB; parameters and errors are those of `opened`.

    Returns
    -------
    image : PIL.Image.Image
        Mode RGB.
    orientation : int
        The EXIF orientation, 1 to 8, that was applied.
    """
    with opened(file, max_pixels, alone) as source:
        return source.rgb(), source.orientation


def upright_rgb(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """Bring any image of Pillow's to upright 8-bit RGB; see `decode`. Its orientation is its own if none is given.

    A TIFF, or a PNG with transparency, that somebody opened and has not loaded yet is read from its file again, as
    `decode` reads it, since Pillow decodes some of them wrongly; those that have been loaded are taken as they are.
    """
    if orientation is None:
        image = _reopened(image)
        orientation = orientation_of(image)
    turn = UPRIGHT.get(orientation)
    image = loaded(image)
    if turn is not None:
        image = image.transpose(turn)
    return to_rgb(image)


class Preprocessor:
    """What brings images to a model's input, with the bookkeeping of where pixels go.

    Attributes
    ----------
    config : dict
        What `make` makes an equal one of.
    """

    def __init__(self, config: dict[str, Any], mean: Sequence[float], std: Sequence[float]) -> None:
        self.config = config
        self._mean_std = (list(mean), list(std))

    def __call__(self, image: Image.Image, orientation: int = 1) -> tuple[Tensor, Frame]:
        """Resize, crop and normalise an RGB image.

        Returns
        -------
        pixels : Tensor
            (3, H, W) float32, normalised.
        frame : Frame
            Where the original lies in it.
        """
        placed, frame = self.place(image, orientation)
        return self.normalise(torch.from_numpy(np.array(placed))[None])[0].contiguous(), frame

    def place(
        self, image: Image.Image, orientation: int = 1, max_pixels: int = Limits().pixels
    ) -> tuple[Image.Image, Frame]:
        """Resize and crop an RGB image.

        Returns
        -------
        image : PIL.Image.Image
            Mode RGB, of the model's input size.
        frame : Frame
            Where the original lies in it.

        Raises
        ------
        DecodeError
            If the image is so thin that, resized, it would have more than `max_pixels` pixels, or none.
        """
        raise NotImplementedError

    def largest(self, size: Size) -> int:
        """Return the pixels of the largest image that `place` makes of one of that size (width, height)."""
        raise NotImplementedError

    def normalise(self, pixels: Tensor) -> Tensor:
        """Make model inputs of placed pixels.

        Parameters
        ----------
        pixels : Tensor
            (B, H, W, 3) uint8, on any device.

        Returns
        -------
        Tensor
            (B, 3, H, W) float32, channels last in memory, on the same device.
        """
        mean, std = (torch.tensor(value, device=pixels.device).view(-1, 1, 1) for value in self._mean_std)
        return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)


class Evaluation(Preprocessor):
    """timm's evaluation transform for one model.

    Parameters
    ----------
    config : dict
        timm's data configuration (`timm.data.resolve_data_config`).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        *places, to_tensor, normalise = create_transform(**config, is_training=False).transforms
        known = all(isinstance(step, RESIZES + CROPS) for step in places)
        if not (known and isinstance(to_tensor, MaybeToTensor) and isinstance(normalise, Normalize)):
            raise ModelError(
                "timm prepares images for this model in steps that featx does not know", "Please report it"
            )
        super().__init__(config, normalise.mean, normalise.std)
        self._places: list[Any] = places

    def place(
        self, image: Image.Image, orientation: int = 1, max_pixels: int = Limits().pixels
    ) -> tuple[Image.Image, Frame]:
        """Resize and crop, step by step."""
        frame = Frame.of(image.size, orientation)
        pixels = self.largest(image.size)
        if pixels > max_pixels:
            raise DecodeError(
                f"it is {image.width} x {image.height} pixels; resized, before it is cropped, it would have "
                f"{pixels / 1e6:.4g} megapixels, more than the {max_pixels / 1e6:.4g} allowed (--max-pixels)"
            )
        if not pixels:
            raise DecodeError(f"it is {image.width} x {image.height} pixels; resized, nothing would be left of it")
        for step in self._places:
            image = step(image)
            frame = frame.resized(image.size) if isinstance(step, RESIZES) else frame.centred(image.size)
        return image, frame

    def largest(self, size: Size) -> int:
        """Return the pixels of the one step that resizes; 0 if it leaves none."""
        sizes: list[Size] = [_resized(step, size) for step in self._places if isinstance(step, RESIZES)] or [size]
        return max(width * height for width, height in sizes)


class Letterbox(Preprocessor):
    """ultralytics' letterbox: the longer side fills the input, the rest is grey; values are in [0, 1].

    Parameters
    ----------
    config : dict
        ``fit`` (``letterbox``), and ``input_size``, (3, height, width).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self._height: int
        self._width: int
        _, self._height, self._width = config["input_size"]

    def place(
        self,
        image: Image.Image,
        orientation: int = 1,
        max_pixels: int = Limits().pixels,  # noqa: ARG002 - never more than the input
    ) -> tuple[Image.Image, Frame]:
        """Resize as OpenCV does, and put it in the middle of grey."""
        cv2 = import_module("cv2")  # comes with ultralytics
        scale = min(self._height / image.height, self._width / image.width)
        # An image so thin that nothing would be left of it keeps a pixel, on which ultralytics stumbles.
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        frame = Frame.of(image.size, orientation).resized(size).centred((self._width, self._height))
        pixels = np.asarray(image)
        if size != image.size:
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        placed = Image.new("RGB", (self._width, self._height), GREY)
        placed.paste(Image.fromarray(pixels), ((self._width - size[0]) // 2, (self._height - size[1]) // 2))
        return placed, frame

    def largest(self, size: Size) -> int:  # noqa: ARG002 - it never grows beyond it
        """Return the pixels of the input."""
        return self._height * self._width


def make(config: dict[str, Any]) -> Preprocessor:
    """Make the preprocessor that a description names."""
    return Letterbox(config) if config.get("fit") == "letterbox" else Evaluation(config)


def lift_pillow_limit() -> int | None:
    """Have Pillow leave the size of images to `decode`; returns what its own limit was, to be put back."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    return before


def _enter(stack: ExitStack, size: Size, area: int, most: int, alone: Alone, largest: Callable[[Size], int]) -> None:
    """Refuse a size that is too large, and wait for the others if it is large."""
    if area > most:
        raise DecodeError(f"{area / 1e6:.4g} megapixels are more than the {most / 1e6:.4g} allowed (--max-pixels)")
    if max(area, largest(size), largest(size[::-1])) > LARGE:  # it may be turned yet
        stack.enter_context(alone())


def _reopened(image: Any) -> Image.Image:
    """Read a file that somebody opened with Pillow, and has not loaded, by the plugins that featx uses."""
    kind, page = type(image), getattr(image, "tell", int)()
    is_png = kind is PngImagePlugin.PngImageFile and "transparency" in image.info and not page
    if not (is_png or kind is TiffImagePlugin.TiffImageFile) or not image.tile:
        return image  # type: ignore[no-any-return]
    try:
        again = open_image(image.fp, Notes())
    except (AttributeError, UnsupportedOperation):  # closed, or cannot be read twice
        return image  # type: ignore[no-any-return]
    if page:
        again.seek(page)
    return again


def _resized(step: Any, size: Size) -> Size:
    """Return the size that a step of timm's transform resizes an image to, as torchvision and timm work it out."""
    width, height = size
    if isinstance(step, ResizeKeepRatio):
        ratios = (height / step.size[0], width / step.size[1])
        ratio = max(ratios) * step.longest + min(ratios) * (1.0 - step.longest)
        return round(width / ratio), round(height / ratio)
    if not isinstance(step.size, int) and len(step.size) == 2:
        return step.size[1], step.size[0]
    short: int = step.size if isinstance(step.size, int) else step.size[0]
    long = int(short * max(size) / min(size))
    return (short, long) if width <= height else (long, short)

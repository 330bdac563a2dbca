# From upright RGB to a model's input: resized, cropped or padded, normalised, and the Frame that says where it went.
"""Fitting images to models.

A `Preprocessor` does to an image what the model's makers do, and keeps account of where the original went.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import CenterCropOrPad, MaybeToTensor, ResizeKeepRatio, str_to_pil_interp
from torch import Tensor
from torchvision.transforms import CenterCrop, Normalize, Resize

from featx.errors import DecodeError, ModelError
from featx.images import native
from featx.images.frame import Frame
from featx.options import Limits

Size = tuple[int, int]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Read = Callable[[tuple[int, int, int, int]], Pixels]

# The steps of timm's evaluation transform that move pixels.
RESIZES = (Resize, ResizeKeepRatio)
CROPS = (CenterCrop, CenterCropOrPad)


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
        self, image: Image.Image, orientation: int = 1, max_pixels: int = Limits().max_pixels
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
                "featx does not know all steps by which timm prepares images for this model", "Please report it"
            )
        super().__init__(config, normalise.mean, normalise.std)
        self._places: list[Any] = places

    def place(
        self, image: Image.Image, orientation: int = 1, max_pixels: int = Limits().max_pixels
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
            raise DecodeError(
                f"it is {image.width} x {image.height} pixels; after resizing, nothing would be left of it"
            )
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
        max_pixels: int = Limits().max_pixels,  # noqa: ARG002 - never more than the input
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
        placed = Image.new("RGB", (self._width, self._height), native.GREY)
        placed.paste(Image.fromarray(pixels), ((self._width - size[0]) // 2, (self._height - size[1]) // 2))
        return placed, frame

    def largest(self, size: Size) -> int:  # noqa: ARG002 - it never grows beyond it
        """Return the pixels of the input."""
        return self._height * self._width


class Native(Preprocessor):
    """A photo at its own size, or reduced, and padded on the right and at the bottom to a size that the network takes.

    Parameters
    ----------
    config : dict
        ``fit`` (``native``); ``multiple``, ``least`` and ``max_side`` as `featx.values.Input` has them;
        ``interpolation``, ``mean``, ``std``; ``fill``, the colour of the bars, where it is not the mean.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config, config["mean"], config["std"])
        self._multiple, self._least, self._max_side = config["multiple"], config["least"], config["max_side"]
        self._filter = str_to_pil_interp(config["interpolation"])
        self._fill = tuple(config.get("fill") or (round(255 * value) for value in config["mean"]))

    def place(
        self, image: Image.Image, orientation: int = 1, max_pixels: int = Limits().max_pixels
    ) -> tuple[Image.Image, Frame]:
        """Resize if it is too large, and pad."""
        size, filled = self._sizes(image.size)
        if filled[0] * filled[1] > max_pixels:
            raise DecodeError(
                f"padded, it would have {filled[0] * filled[1] / 1e6:.4g} megapixels, more than the "
                f"{max_pixels / 1e6:.4g} allowed (--max-pixels)"
            )
        frame = Frame.of(image.size, orientation).resized(size).filled_up(filled)
        if size != image.size:
            image = image.resize(size, self._filter)
        placed = Image.new("RGB", filled, self._fill)
        placed.paste(image, (0, 0))
        return placed, frame

    def framed(self, original: Size, size: Size, orientation: int) -> Frame:
        """Return the frame of a picture of an original size that is read at another, both (width, height)."""
        return Frame.of(original, orientation).resized(size).filled_up(self._sizes(size)[1])

    def section(self, frame: Frame, size: Size, rows: slice, columns: slice, read: Read) -> Pixels:
        """Place a part of a picture that is not placed as a whole.

        Parameters
        ----------
        frame : Frame
            Where the picture lies in the input.
        size : (int, int)
            Width and height that it is read at.
        rows, columns : slice
            The part, in pixels of the input.
        read : callable
            Gives the (h, w, 3) pixels within left, top, right and bottom of the picture.

        Returns
        -------
        ndarray
            (H, W, 3) uint8.
        """
        (width, height), (wide, tall) = size, frame.input
        rows, columns = slice(*rows.indices(tall)), slice(*columns.indices(wide))
        right, bottom = min(columns.stop, width), min(rows.stop, height)
        pixels = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        pixels[:] = self._fill
        if right > columns.start and bottom > rows.start:
            inner = read((columns.start, rows.start, right, bottom))
            pixels[: bottom - rows.start, : right - columns.start] = inner
        return pixels

    def largest(self, size: Size) -> int:
        """Return the pixels of the padded photo."""
        width, height = self._sizes(size)[1]
        return width * height

    def _sizes(self, size: Size) -> tuple[Size, Size]:
        content = native.reduced(size, self._max_side)
        return content, native.filled_up(content, self._multiple, self._least)


FITS: dict[str, type[Letterbox | Native]] = {"letterbox": Letterbox, "native": Native}


def make(config: dict[str, Any]) -> Preprocessor:
    """Make the preprocessor that a description names."""
    kind = FITS.get(config.get("fit", ""))
    return kind(config) if kind else Evaluation(config)


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

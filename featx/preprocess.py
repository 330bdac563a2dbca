# From an image file to the pixels a model wants: decoded with one policy for every mode, placed as the model has it.
"""Decoding and preprocessing.

`decode` always gives an upright 8-bit RGB image; a `Preprocessor` does to it what the model's makers do, and keeps
account of where the original went.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import AvifImagePlugin, Image, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin
from timm.data import create_transform
from timm.data.transforms import CenterCropOrPad, MaybeToTensor, ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import CenterCrop, Normalize, Resize

from featx.errors import ModelError
from featx.geometry import Frame
from featx.records import Limits

# Of Pillow's forty formats, those that photographs come in; the others only widen what a hostile file can reach.
# MPO, the stereo format of some cameras, is opened as the JPEG that it starts with. Importing these four plugins
# spares Pillow from loading all the others when it first meets one of them.
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    WebPImagePlugin.WebPImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
    Jpeg2KImagePlugin.Jpeg2KImageFile.format,
    AvifImagePlugin.AvifImageFile.format,
)

# Tags of EXIF and TIFF.
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 258

# What makes a stored image upright, by its EXIF orientation (CIPA DC-008, "Orientation").
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Pixels from which on images are decoded one at a time, so that memory does not grow with the number of readers.
LARGE = 50_000_000

Alone = Callable[[], AbstractContextManager[None]]

WHITE = (255, 255, 255, 255)

# What ultralytics fills borders with.
GREY = (114, 114, 114)

# The steps of timm's evaluation transform that move pixels.
RESIZES = (Resize, ResizeKeepRatio)
CROPS = (CenterCrop, CenterCropOrPad)


class DecodeError(Exception):
    """An image that featx will not make features of; the message is the reason."""


def decode(
    file: Path | BinaryIO, max_pixels: int = Limits().pixels, alone: Alone = nullcontext
) -> tuple[Image.Image, int]:
    """Read an image file as upright 8-bit RGB.

    Parameters
    ----------
    file : path or binary file
        The image.
    max_pixels : int
        Width times height that it may have.
    alone : callable
        Returns the context in which an image of more than `LARGE` pixels is decoded.

    Returns
    -------
    image : PIL.Image.Image
        Mode RGB.
    orientation : int
        The EXIF orientation, 1 to 8, that was applied.

    Raises
    ------
    DecodeError
        If the image is too large, or of a kind that has no agreed way to RGB.
    Exception
        Whatever Pillow raises for a broken file: far more than OSError.
    """
    with Image.open(file, formats=FORMATS) as image:
        _require_size(image, max_pixels)
        orientation = orientation_of(image)  # before loading, since Pillow turns TIFF files while it loads them
        with alone() if image.width * image.height > LARGE else nullcontext():
            image.load()  # the whole first frame, so that a truncated file fails here and not half-way
            return upright_rgb(image), orientation


def upright_rgb(image: Image.Image) -> Image.Image:
    """Bring any image that Pillow has decoded to upright 8-bit RGB; see `decode`."""
    turn = UPRIGHT.get(orientation_of(image))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


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

    def place(self, image: Image.Image, orientation: int = 1) -> tuple[Image.Image, Frame]:
        """Resize and crop an RGB image.

        Returns
        -------
        image : PIL.Image.Image
            Mode RGB, of the model's input size.
        frame : Frame
            Where the original lies in it.
        """
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

    def place(self, image: Image.Image, orientation: int = 1) -> tuple[Image.Image, Frame]:
        """Resize and crop, step by step."""
        frame = Frame.of(image.size, orientation)
        for step in self._places:
            image = step(image)
            frame = frame.resized(image.size) if isinstance(step, RESIZES) else frame.centred(image.size)
        return image, frame


class Letterbox(Preprocessor):
    """ultralytics' letterbox: the longer side fills the input, the rest is grey; values are in [0, 1].

    Parameters
    ----------
    config : dict
        ``fit`` (``letterbox``), and ``input_size``, (3, height, width).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        _, self._height, self._width = config["input_size"]

    def place(self, image: Image.Image, orientation: int = 1) -> tuple[Image.Image, Frame]:
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


def make(config: dict[str, Any]) -> Preprocessor:
    """Make the preprocessor that a description names."""
    return Letterbox(config) if config.get("fit") == "letterbox" else Evaluation(config)


def lift_pillow_limit() -> int | None:
    """Have Pillow leave the size of images to `decode`; returns what its own limit was, to be put back."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    return before


def _require_size(image: Image.Image, most: int) -> None:
    pixels = image.width * image.height
    if pixels > most:
        raise DecodeError(f"{pixels / 1e6:.4g} megapixels are more than the {most / 1e6:.4g} allowed (--max-pixels)")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _to_8_bit(image, _bits_per_sample(image))
    elif image.mode == "I":
        image = _from_32_bit(image)
    elif image.mode == "F":
        raise DecodeError("floating-point pixels have no agreed range; convert it to 8 or 16 bit")
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_32_bit(image: Image.Image) -> Image.Image:
    """Pillow's mode for what fits nowhere else; only PPM and PNG say that white is 65535."""
    if image.format in ("PPM", "PNG"):
        return _to_8_bit(image, 16)
    raise DecodeError("32-bit or signed pixels have no agreed range; convert it to 8 or 16 bit")


def _to_8_bit(image: Image.Image, bits: int) -> Image.Image:
    """Scale by the bit depth: full scale becomes 255. `convert` would cut off everything above 255."""
    full = (1 << bits) - 1
    values = np.asarray(image).astype(np.uint32)
    scaled = (np.minimum(values, full) * 255 + full // 2) // full
    return Image.fromarray(scaled.astype(np.uint8), mode="L")


def _bits_per_sample(image: Image.Image) -> int:
    """16, or what a TIFF file says (12-bit cameras and scanners); Pillow leaves such samples unscaled."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))
    return int(bits[0] if isinstance(bits, tuple) else bits)


def _on_white(image: Image.Image) -> Image.Image:
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    paper = Image.new("RGBA", layer.size, WHITE)
    return Image.alpha_composite(paper, layer).convert("RGB")


def orientation_of(image: Image.Image) -> int:
    """Return an image's EXIF orientation, 1 to 8; 1 where it has none or a senseless one."""
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in UPRIGHT else 1

# Pyramid: a backbone, the levels chosen from it, and the device it runs on; images and batches in, NCHW maps out.
"""The object that people hold in Python, and that the pipeline runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from featx import backbones, catalogue, loading, preprocess
from featx.errors import ModelError, UsageError
from featx.geometry import Frame
from featx.records import Input, Level, ModelRequest, Weights


class Pyramid:
    """A backbone and the levels chosen from it.

    Attributes
    ----------
    name : str
        The model as it was asked for.
    architecture : str
        timm's entry point for it.
    levels : tuple of Level
        In network order, with the shapes that their maps have at the model's input size.
    input : Input
        What the model is fed.
    weights : Weights
        Where its parameters came from.
    module : torch.nn.Module
        The network inside, in evaluation mode, on `device`. Call it yourself where gradients are wanted.
    device : torch.device
        Where it runs.
    parameters : int
        Of the pyramid, without the head.
    rebuilt : bool
        Whether the network was rebuilt for an input size that it would not take otherwise.
    """

    def __init__(
        self, description: backbones.Description, module: nn.Module, weights: Weights, device: torch.device
    ) -> None:
        self.name = description.reference.name
        self.architecture = description.reference.architecture
        self.input: Input = description.input
        self.weights = weights
        self.device = device
        self.parameters = description.parameters
        self.rebuilt = description.rebuilt
        self.module = module.to(device)
        self._preprocessor = preprocess.Preprocessor(description.config)
        self.levels: tuple[Level, ...] = description.levels

    def preprocess(self, image: Image.Image | str | PathLike[str]) -> tuple[Tensor, Frame]:
        """Make a model input of an image.

        Parameters
        ----------
        image : PIL.Image.Image or path
            Any mode; its EXIF orientation is applied.

        Returns
        -------
        pixels : Tensor
            (3, H, W) float32, normalised as the model wants it.
        frame : Frame
            Where the original lies in it.

        Raises
        ------
        featx.preprocess.DecodeError
            If the image is of a kind that has no agreed way to RGB.
        Exception
            Whatever Pillow raises for a broken file.
        """
        if isinstance(image, Image.Image):
            rgb, orientation = preprocess.upright_rgb(image), preprocess.orientation_of(image)
        else:
            rgb, orientation = preprocess.decode(Path(image))
        return self._preprocessor(rgb, orientation)

    def __call__(self, batch: Tensor) -> list[Tensor]:
        """Run the network, without gradients.

        Parameters
        ----------
        batch : Tensor
            (B, 3, H, W) float32, normalised; moved to `device` if it is elsewhere.

        Returns
        -------
        list of Tensor
            One (B, C, H, W) map a level, on `device`.

        Raises
        ------
        ModelError
            If the maps are not those that the model says it has, or there is not enough memory.
        """
        try:
            with torch.no_grad(), _full_precision(self.device):
                maps = backbones.to_nchw(self.module, self.module(batch.to(self.device)))
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.device} ran out of memory on a batch of {len(batch)}", "Use a smaller --batch-size"
            ) from error
        levels = backbones.check_maps(self.name, self.levels, maps)
        if batch.shape[-2:] == (self.input.height, self.input.width) and levels != self.levels:
            raise ModelError(f"{self.name} gave maps of other sizes than it said", "Please report this model")
        return maps


def load_pyramid(
    name: str,
    *,
    weights: str | PathLike[str] = "pretrained",
    seed: int = 0,
    out_indices: Sequence[int] | Literal["all"] | None = None,
    strides: Sequence[float] | None = None,
    output_stride: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    test_size: bool = False,
    device: str = "auto",
) -> Pyramid:
    """Load a timm model as a feature pyramid.

    Parameters
    ----------
    name : str
        ``arch``, ``arch.tag``, ``hf-hub:org/name`` or ``local-dir:path``.
    weights : str or path
        ``pretrained`` (never replaced by anything else), ``random``, or a checkpoint file.
    seed : int
        Of random weights.
    out_indices : sequence of int, "all" or None
        Levels by timm's index, negative ones from the end; None takes timm's default.
    strides : sequence of float or None
        Levels by stride instead, in model-input pixels; the deepest level of each.
    output_stride : int or None
        Dilate the network so that no level is coarser than this.
    image_size : int, (int, int) or None
        Model input in pixels: one side, or (height, width). None takes the model's own.
    test_size : bool
        Take the size and crop that the weights' authors tested with, where they differ from the model's own.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Returns
    -------
    Pyramid
        Ready to be called.

    Raises
    ------
    ModelError, WeightsError, UsageError
        If the model, its levels, its weights or the device cannot be had; each says what there is instead.
    """
    request = ModelRequest.of(name, weights, seed, out_indices, strides, output_stride, image_size, test_size)
    return load(request, device)


def load(request: ModelRequest, device: str) -> Pyramid:
    """Load the pyramid that a request describes; see `load_pyramid`."""
    chosen = choose_device(device)  # first, since a wrong device should not cost a download
    description = backbones.describe(request)
    _require_as_catalogued(description, request)
    module, weights = loading.build(description, request)
    return Pyramid(description, module, weights, chosen)


def _require_as_catalogued(description: backbones.Description, request: ModelRequest) -> None:
    """Hold the levels, which every batch is held against, to those that the catalogue has for the model."""
    book = catalogue.read()
    name = request.name
    if (
        not book
        or book.timm != metadata.version("timm")
        or not catalogue.knows(book, name)
        or request.output_stride is not None
    ):
        return
    known = catalogue.with_tag(book, name)
    feed = description.input
    same_size = (known["input"]["height"], known["input"]["width"]) == (feed.height, feed.width)
    facts = ("name", "channels", "height", "width") if same_size else ("name", "channels")
    by_index = {stated["index"]: stated for stated in known["levels"]}
    for level in map(Level.to_json, description.levels):
        stated = by_index.get(level["index"], {})
        for fact in facts:
            if level[fact] != stated.get(fact):
                raise ModelError(
                    f"Level {level['index']} of {name} has {fact} {level[fact]}, in the catalogue {stated.get(fact)}",
                    "The installed timm is not what its version says; install it anew",
                )


def choose_device(name: str) -> torch.device:
    """Return the device of that name, ``auto`` being the first GPU, then the CPU.

    Raises
    ------
    UsageError
        If there is no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device", "Use auto, cpu, cuda, cuda:1 or mps") from error
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UsageError(f"This machine has no {name}, or torch cannot use it", "Use --device cpu or auto")
    return device


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """On NVIDIA GPUs torch lets convolutions round to TF32 (10 bits) unless told not to: fp32 here means fp32."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield

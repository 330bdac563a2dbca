# Pyramid: a backbone, the levels chosen from it, and the device it runs on; images and batches in, NCHW maps out.
"""The object that people use in Python, and that the pipeline runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from PIL import Image
from torch import Tensor, nn

from featx.declaring import keywords
from featx.errors import FeatxError, UsageError, enough_memory
from featx.images import decoding, fitting
from featx.images.containers import orientation_of
from featx.images.frame import Frame
from featx.images.pictures import reason_of
from featx.models import libraries, runtimes
from featx.models.checkpoints import require_file, split_part
from featx.models.descriptions import Description
from featx.models.devices import choose_devices
from featx.models.footprint import Pass, of_pass
from featx.models.levels import require_arrays, to_nchw
from featx.options import ImageOptions, KeepOptions, ModelOptions
from featx.process import full_precision
from featx.requests import ModelRequest
from featx.run_options import NetworkOptions
from featx.values import Field, Input, Level, Weights, plain
from featx.version import library_versions


class Pyramid:
    """A backbone and the levels chosen from it.

    Attributes
    ----------
    name : str
        The model as it was asked for.
    source, architecture : str
        The library that it comes from, and that library's name for the network.
    levels : tuple of Level
        In network order, with the shapes that their maps have at the model's input size.
    final : Level or None
        The map that the embedding is made of, if it was asked for.
    modules : tuple of Level
        The maps of modules, if they were asked for.
    captures : tuple of str
        What the outputs of modules that were asked for are called, be they maps or not.
    fields : tuple of Field
        What `arrays` gives, in this order.
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
    traced : (int, int)
        Height and width of the input at which its levels were measured: its own, unless every photo has another.
    request : ModelRequest
        What was asked for.
    precision, backend : str
        What the network computes in, and what runs it.
    preprocessor : featx.images.fitting.Preprocessor
        What fits images to the model's input.
    files : tuple of str
        The files on this machine that it was made from.
    """

    def __init__(
        self,
        description: Description,
        module: nn.Module,
        weights: Weights,
        device: torch.device,
        request: ModelRequest,
    ) -> None:
        self.name, self.source = description.name, description.source
        self.architecture = description.architecture
        self.input: Input = description.input
        self.weights = weights
        self.device = device
        self.parameters = description.parameters
        self.rebuilt, self.traced = description.rebuilt, description.traced
        self.request = request
        self.precision, self.backend = request.precision, request.backend
        # OpenVINO rounds by itself, from full precision.
        self._dtype = torch.float32 if self.backend == "openvino" else dtype_of(self.precision)
        self.module = module.to(device, self._dtype)
        self._layout = description.layout
        self._network: Callable[[Tensor], Sequence[Tensor]] = self.module
        self.preprocessor = fitting.make(description.preprocessing)
        self.levels: tuple[Level, ...] = description.levels
        self.final, self.modules, self.captures = description.final, description.modules, description.captures
        self.fields: tuple[Field, ...] = description.fields
        self.files = (*description.files, *((weights.path,) if weights.path else ()))

    @property
    def maps(self) -> tuple[Level, ...]:
        """The levels, the final map, and the maps of modules."""
        return (*self.levels, *([self.final] if self.final else ()), *self.modules)

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
        FeatxError
            If the file is missing or damaged, or the image is of a kind without an agreed conversion to RGB.
        """
        try:
            if isinstance(image, Image.Image):
                rgb, orientation = decoding.upright_rgb(image), orientation_of(image)
            else:
                rgb, orientation = decoding.decode(Path(image))
            return self.preprocessor(rgb, orientation)
        except Exception as error:  # decoders raise far more than OSError
            name = "The image" if isinstance(image, Image.Image) else os.fspath(image)
            raise FeatxError(f"{name} cannot be read: {reason_of(error, name)}", "Try another image") from error

    def normalise(self, pixels: Tensor) -> Tensor:
        """Make (B, 3, H, W) float32 model inputs of (B, H, W, 3) uint8 pixels, as `preprocess` does."""
        return self.preprocessor.normalise(pixels)

    def __call__(self, batch: Tensor) -> list[Tensor]:
        """Run the network, without gradients.

        Parameters
        ----------
        batch : Tensor
            (B, 3, H, W) float32, normalised; moved to `device` if it is elsewhere.

        Returns
        -------
        list of Tensor
            One (B, C, H, W) map per level, on `device`, in the precision of the pyramid.

        Raises
        ------
        ModelError
            If the maps are not those that the model declares, or there is not enough memory.
        """
        arrays = self.arrays(batch)
        return [arrays[level.key] for level in self.levels]

    def arrays(self, batch: Tensor) -> dict[str, Tensor]:
        """Run the network, without gradients, for everything that was asked of it.

        Parameters
        ----------
        batch : Tensor
            (B, 3, H, W) float32, normalised; moved to `device` if it is elsewhere.

        Returns
        -------
        dict of str to Tensor
            The arrays of `fields` by their keys: ``level_2`` (B, C, H, W), ``level_2_prefix`` (B, tokens, C),
            ``level_2_attention`` (B, heads, H, W), ``final`` (B, C, H, W), ``embedding`` (B, D),
            ``module_layer3.0.conv2`` (B, C, H, W).

        Raises
        ------
        ModelError
            As calling it does.
        """
        if batch.ndim != 4 or batch.shape[1] != 3:
            raise UsageError(f"Expected a batch of shape (B, 3, H, W), not {tuple(batch.shape)}")
        refusal = f"{self.device} ran out of memory on a batch of {len(batch)}"
        with (
            enough_memory(refusal, "Use a smaller batch or a smaller image_size"),
            torch.no_grad(),
            full_precision(self.device),
        ):
            values = self.run(batch.to(self.device))
        return {field.key: value for field, value in zip(self.fields, values, strict=True)}

    def run(self, batch: Tensor) -> list[Tensor]:
        """Run the network for `fields`, in whatever gradient mode and stream the caller has set."""
        values = to_nchw(self._layout, self._network(batch.to(self._dtype)))
        own_size = batch.shape[-2:] == (self.input.height, self.input.width)
        require_arrays(self.name, self.fields, values, exact=own_size)
        return values

    def use_backend(
        self, batch_size: int, forwards: int, threads: int, on_note: Callable[[str], None] = lambda _: None
    ) -> None:
        """Have the backend run the network from now on.

        Parameters
        ----------
        batch_size : int
            Images in each batch.
        forwards, threads : int
            Passes at a time, and threads of each.
        on_note : callable
            Called with a sentence about what a person may not expect.
        """
        if self.input.height is None or self.input.width is None:  # which only torch itself runs
            return
        plan = runtimes.Plan(
            shape=(batch_size, 3, self.input.height, self.input.width),
            device=self.device,
            precision=self.precision,
            forwards=forwards,
            threads=threads,
            recipe={
                "request": asdict(self.request),
                "architecture": self.architecture,
                "weights": self.weights.identity,
                "fields": plain(self.fields),
                "versions": library_versions(self.source, self.backend),
            },
        )
        with enough_memory(f"There is not enough memory for {self.name} with --backend {self.backend}"):
            self._network = runtimes.make(self.backend, self.module, plan, on_note)


@keywords(ModelOptions, ImageOptions, KeepOptions, NetworkOptions, without=("model", "backend"))
def load_pyramid(name: str, *, device: str = "auto", **options: Any) -> Pyramid:
    """Load a model as a feature pyramid.

    Parameters
    ----------
    name : str
        timm's: ``arch``, ``arch.tag``, ``hf-hub:org/name`` or ``local-dir:path``; or ultralytics': ``yolov8n``.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    **options
        Options of ``featx extract``, by the same name.

    Returns
    -------
    Pyramid
        Ready to be called.

    Raises
    ------
    ModelError, WeightsError, UsageError
        If the model, its levels, its weights or the device cannot be found; each error says what is available instead.
    """
    return load(ModelRequest(name, **options), choose_devices(device)[0])


@dataclass(frozen=True)
class Blueprint:
    """A pyramid before it has weights, and the library that builds it."""

    request: ModelRequest
    library: libraries.Library
    description: Description

    def footprint(self, batch_size: int, size: tuple[int, int]) -> Pass | None:
        """Return what a forward pass of images of (height, width) takes; see `featx.models.footprint.of_pass`."""
        shape = (batch_size, 3, *size)
        if shape not in self._footprints:
            self._footprints[shape] = of_pass(self._skeleton, shape, dtype_of(self.request.precision))
        return self._footprints[shape]

    def fields_at(self, size: tuple[int, int]) -> tuple[Field, ...]:
        """Return the arrays of an image of (height, width), whose sizes are those of the description if it has any."""
        if self.description.input.height is not None or (found := self.footprint(1, size)) is None:
            return self.description.fields
        shapes = [shape[1:] for shape in found.shapes]
        if self.description.layout == "NHWC":
            shapes = [(*shape[2:], *shape[:2]) if len(shape) == 3 else shape for shape in shapes]
        named = zip(self.description.fields, shapes, strict=True)
        return tuple(structs.replace(field, shape=shape) for field, shape in named)

    @cached_property
    def _footprints(self) -> dict[tuple[int, ...], Pass | None]:
        return {}

    @cached_property
    def _skeleton(self) -> nn.Module:
        return self.library.skeleton(self.description)


def draw_up(request: ModelRequest) -> Blueprint:
    """Describe the pyramid that was requested, without weights or memory for them."""
    runtimes.require_backend(request.backend)
    if request.weights not in ("pretrained", "random"):  # a wrong path should not cost anything
        require_file(split_part(request.weights)[0])
    library = libraries.library(libraries.library_of(request.model))
    return Blueprint(request, library, library.describe(request))


def load(request: ModelRequest, device: torch.device) -> Pyramid:
    """Load the pyramid that a request describes; see `load_pyramid`."""
    return build(draw_up(request), device)


def build(blueprint: Blueprint, device: torch.device) -> Pyramid:
    """Build a pyramid on a device, and fill it with the weights that were requested."""
    request, description = blueprint.request, blueprint.description
    with enough_memory(f"There is not enough memory on {device} for {request.model}", "Use a smaller model"):
        module, weights = blueprint.library.build(description, request)
        return Pyramid(description, module, weights, device, request)


def dtype_of(precision: str) -> torch.dtype:
    """Return torch's type for ``fp32``, ``bf16`` or ``fp16``."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

# Every option a person can set: its name, its type, its default, and what it may be.
"""What is asked for: plain frozen values."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# What a model in a folder is called by.
LOCAL = "local-dir:"

# A model of timm's as its page on the hub has it, and any repository by its page's address.
_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?(?:tree/main/?)?")

_OF_TIMM = re.compile(r"timm/([\w.-]+)")

# What may be asked of a model besides which levels.
OUTPUT_OPTIONS = ("part", "maps", "norm", "prefix_tokens", "final", "embedding", "pool")


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Which pyramid somebody wants.

    Attributes
    ----------
    name : str
        timm's name: ``arch``, ``arch.tag``, ``hf-hub:org/name`` or ``local-dir:path``; see `model_name`.
    weights : str
        ``pretrained``, ``random`` or a checkpoint file, with ``:part`` where one of its containers is meant.
    seed : int
        Of random weights.
    out_indices : tuple of int, "all" or None
        Levels by timm's index, negative ones from the end; None takes timm's default.
    strides : tuple of float or None
        Levels by stride instead: the deepest level of each.
    output_stride : int or None
        Dilate the network so that no level is coarser than this.
    image_size : (int, int) or None
        Height and width of the model's input; None takes the model's own.
    test_size : bool
        Take the size and crop that the weights' authors tested with, where they differ from the model's own.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``: what the network computes in.
    backend : str
        What runs the network: ``torch``, ``compile`` or ``openvino``.
    part : str
        Of a detector: ``backbone``, ``neck`` or ``all``.
    maps : bool
        Whether the levels are wanted at all.
    norm : bool
        Apply a transformer's final norm to its levels.
    prefix_tokens : bool
        Give the class and register tokens of each level, too.
    final : bool
        Give the map that the embedding is made of, too.
    embedding : bool
        Give the vector before the classifier, too.
    pool : str or None
        Make the embedding of the final map by ``avg``, ``max`` or ``gem``, or take its class token, ``cls``; None
        leaves it to the network's own head.
    """

    name: str
    weights: str = "pretrained"
    seed: int = 0
    out_indices: tuple[int, ...] | Literal["all"] | None = None
    strides: tuple[float, ...] | None = None
    output_stride: int | None = None
    image_size: tuple[int, int] | None = None
    test_size: bool = False
    precision: str = "fp32"
    backend: str = "torch"
    part: str = "backbone"
    maps: bool = True
    norm: bool = False
    prefix_tokens: bool = False
    final: bool = False
    embedding: bool = False
    pool: str | None = None

    def __post_init__(self) -> None:
        """Call a model by one name, however it was written."""
        object.__setattr__(self, "name", model_name(self.name))

    @classmethod
    def of(cls, name: str, **wanted: Any) -> ModelRequest:
        """Make a request of what people write: lists for tuples, one number for a square, paths for strings."""
        indices, strides, size = (wanted.get(option) for option in ("out_indices", "strides", "image_size"))
        plain = {
            "weights": str(wanted.get("weights", "pretrained")),
            "out_indices": indices if isinstance(indices, str | None) else tuple(indices),
            "strides": None if strides is None else tuple(strides),
            "image_size": (size, size) if isinstance(size, int) else size,
        }
        return cls(name, **{**wanted, **plain})


def model_name(text: str) -> str:
    """Return the name of a model that may be written as on its page on the hub.

    ``timm/resnet50.a1_in1k``, and the page's address, are ``resnet50.a1_in1k``; the address of another's repository is
    ``hf-hub:owner/name``. A folder is named in whole, so that its runs can be read from anywhere.
    """
    if text.startswith(LOCAL) and text != LOCAL:
        return LOCAL + os.path.abspath(os.path.expanduser(text.removeprefix(LOCAL)))  # noqa: PTH100, PTH111
    page = _PAGE.fullmatch(text)
    repository = page[1] if page else text
    of_timm = _OF_TIMM.fullmatch(repository)
    return of_timm[1] if of_timm else f"hf-hub:{repository}" if page else text


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may take; one that takes more is a failure.

    Attributes
    ----------
    pixels : int
        Width times height. The default is where Pillow itself would stop (twice its `MAX_IMAGE_PIXELS` as shipped).
    bytes : int
        Of the file.
    seconds : float
        To read and decode it.
    memory : int
        Bytes that decoding may take; held to where images are decoded in processes of their own.
    """

    pixels: int = 179_000_000
    bytes: int = 1_000_000_000
    seconds: float = 120.0
    memory: int = 4_000_000_000


@dataclass(frozen=True, slots=True)
class Job:
    """One call of ``featx extract``.

    Attributes
    ----------
    inputs : tuple of str
        Files, folders and glob patterns.
    request : ModelRequest
        The pyramid.
    listed : tuple of str
        Paths out of lists (``--from-file``, standard input).
    output : Path or None
        The run's folder; None takes ``features/<model>``.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:0,1``, ``all`` or ``mps``.
    batch_size : int or None
        Images in one forward pass; None lets featx choose.
    workers : int or None
        Forward passes at a time; None lets featx choose.
    dtype : str
        ``float32`` or ``float16``: what the maps are written as.
    format : str
        How outputs are kept: ``npz``, ``npy`` or ``parquet``.
    overwrite : bool
        Start anew: what an earlier call left in the folder is removed first.
    retry_failed : bool
        Try images again that an earlier call failed on.
    hash_inputs : bool
        Tell by its sha256, not by size and time, whether an image was changed.
    isolate : bool
        Decode images in processes of their own from the start.
    limits : Limits
        What one image may take.
    maps : bool or None
        Whether levels are wanted; None takes them where the format can hold them.
    """

    inputs: tuple[str, ...]
    request: ModelRequest
    listed: tuple[str, ...] = ()
    output: Path | None = None
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    dtype: str = "float32"
    format: str = "npz"
    overwrite: bool = False
    retry_failed: bool = False
    hash_inputs: bool = False
    isolate: bool = False
    limits: Limits = Limits()
    maps: bool | None = None


def folder_name(model: str) -> str:
    """Name the folder of a model's features: its own name, without prefix and without slashes."""
    prefix, _, rest = model.rpartition(":")
    return Path(rest).resolve().name if prefix == "local-dir" else rest.replace("/", "--")

# The values that travel between the rooms: items, levels, jobs, outcomes. Frozen, no torch, no behaviour to speak of.
"""Records of featx: plain frozen values."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# A number, or (y, x) where the two differ.
Spacing = float | tuple[float, float]

# Names of the arrays that are no levels.
FINAL, EMBEDDING = "final", "embedding"

# What a model in a folder is called by.
LOCAL = "local-dir:"

# A model of timm's as its page on the hub has it, and any repository by its page's address.
_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?(?:tree/main/?)?")
_OF_TIMM = re.compile(r"timm/([\w.-]+)")

# What may be asked of a model besides which levels.
OUTPUT_OPTIONS = ("part", "maps", "norm", "prefix_tokens", "final", "embedding", "pool")


@dataclass(frozen=True, slots=True)
class Item:
    """One input image.

    Attributes
    ----------
    key : str
        Its name in the output: a relative path with forward slashes, extension kept (``cats/1.jpg``).
    path : str
        The file. Text, since a million `Path` objects take a gigabyte.
    alias : str
        Its output's name where that is not the one that follows from the key; empty otherwise.
    """

    key: str
    path: str
    alias: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """One map of a feature pyramid.

    Attributes
    ----------
    index : int
        timm's ``out_index`` of the level, counted from the network's input; of a detector, its place in its part.
    name : str
        The module whose output it is.
    channels : int
        C of the (C, H, W) map.
    stride : float or (float, float) or None
        Spacing of neighbouring cells, in model-input pixels; (y, x) where they differ, None where unknown.
    offset : float or (float, float) or None
        Model-input pixel (centres at integers) at the centre of cell 0; None where unknown.
    height, width : int or None
        H and W of the map at the planned input size; None where they cannot be known beforehand.
    ratio : (float, float) or None
        Input size by map size, (y, x), where it is not the stride that the network declares; None where they agree.
    part : str
        Where levels of several parts of a network are together: ``backbone`` or ``neck``. ``final`` for the map that a
        network makes its embedding of, which is no level. Empty otherwise.
    """

    index: int
    name: str
    channels: int
    stride: Spacing | None
    offset: Spacing | None
    height: int | None
    width: int | None
    ratio: tuple[float, float] | None = None
    part: str = ""

    @property
    def key(self) -> str:
        """Name of the level's array in an output file."""
        return self.part if self.part == FINAL else f"{self.part or 'level'}_{self.index}"

    @property
    def shape(self) -> tuple[int, int | None, int | None]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    def to_json(self) -> dict[str, Any]:
        """The keys that a level has wherever it is written; part and ratio only where they say something."""
        value: dict[str, Any] = {
            "index": self.index,
            "name": self.name,
            "channels": self.channels,
            "stride": _spacing_to_json(self.stride),
            "offset": _spacing_to_json(self.offset),
            "height": self.height,
            "width": self.width,
        }
        if self.part:
            value["part"] = self.part
        return value if self.ratio is None else {**value, "ratio": list(self.ratio)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Level:
        """Undo `to_json`; keys it does not know are left alone."""
        return cls(
            index=value["index"],
            name=value["name"],
            channels=value["channels"],
            stride=_spacing_from_json(value["stride"]),
            offset=_spacing_from_json(value["offset"]),
            height=value["height"],
            width=value["width"],
            ratio=tuple(value["ratio"]) if "ratio" in value else None,
            part=value.get("part", ""),
        )


@dataclass(frozen=True, slots=True)
class Field:
    """One array of an output.

    Attributes
    ----------
    key : str
        Its name: ``level_2``, ``level_2_prefix``, ``final``, ``embedding``.
    shape : tuple of int
        (C, H, W) of a map, (tokens, C) of prefix tokens, (D,) of a vector.
    dtype : str
        What it is written as; empty where that is not decided yet.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str = ""

    @property
    def is_vector(self) -> bool:
        """Whether it is one vector, which is always written in full precision."""
        return len(self.shape) == 1

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {"key": self.key, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Field:
        """Undo `to_json`."""
        return cls(value["key"], tuple(value["shape"]), value["dtype"])


@dataclass(frozen=True, slots=True)
class Input:
    """What a model wants to be fed, as timm's evaluation transform reads it.

    Attributes
    ----------
    height, width : int
        Size of the model's input in pixels.
    mean, std : tuple of float
        Per channel, for values in [0, 1].
    interpolation : str
        Resampling filter, timm's name for it.
    crop_pct : float
        The share of the resized image that the crop keeps, per side.
    fit : str
        ``crop`` (shorter side resized, centre cropped), ``squash`` (aspect ratio given up), ``pad`` (longer side
        resized, borders filled with the mean) or ``letterbox`` (the same with grey borders, as detectors have it).
    configuration : str
        Where size and crop come from: ``own`` (those of timm's evaluation), ``test`` (the larger ones that some weights
        have for testing) or ``asked`` (an image size that was asked for).
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    fit: str
    configuration: str = "own"

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "fit": self.fit,
            "configuration": self.configuration,
        }


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
    layout : str
        ``NCHW`` or ``NHWC``: how the network itself lays out its maps.
    rebuilt : bool
        Whether the network is rebuilt for an input size that it would not take otherwise.
    plan : object
        What the source builds it from.
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
    layout: str = "NCHW"
    rebuilt: bool = False
    plan: Any = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the parameters of a pyramid came from.

    Attributes
    ----------
    kind : str
        ``pretrained``, ``file`` or ``random``.
    source : str
        A hub repository and file, a URL, a path, or the words "seed N".
    sha256 : str
        Of the checkpoint file; for random weights, of the parameters' names, shapes and bytes.
    seed : int or None
        Of random weights.
    part : str
        The container inside the checkpoint that was taken (``state_dict_ema`` …); empty where there was none.
    """

    kind: Literal["pretrained", "file", "random"]
    source: str
    sha256: str
    seed: int | None = None
    part: str = ""

    @property
    def identity(self) -> str:
        """What tells these parameters from all others: a file's hash, and which of its containers."""
        return f"{self.sha256}:{self.part}" if self.part else self.sha256

    def to_json(self) -> dict[str, Any]:
        """Plain values; a seed only where it means something."""
        value: dict[str, Any] = {"kind": self.kind, "source": self.source, "sha256": self.sha256}
        if self.seed is not None:
            value["seed"] = self.seed
            value["note"] = RANDOM_WEIGHTS
        if self.part:
            value["part"] = self.part
        return value


RANDOM_WEIGHTS = "random weights: shapes are right, values carry nothing learned"


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


@dataclass(frozen=True, slots=True)
class Workers:
    """How a run is spread over the machine.

    Attributes
    ----------
    batch_size : int
        Images in one forward pass.
    forwards : int
        Forward passes at a time.
    threads : int
        Threads of each; one core a pass loses nothing to waiting for each other.
    readers, writers : int
        Threads that decode, and that write.
    """

    batch_size: int
    forwards: int
    threads: int
    readers: int
    writers: int


@dataclass(frozen=True, slots=True)
class Stat:
    """Size and time of a file, and its sha256 where that was asked for, to see whether it was changed since."""

    bytes: int
    mtime_ns: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: the line it gets in the manifest.

    Attributes
    ----------
    item : Item
        The image.
    stat : Stat or None
        Of the image file when it was read; None where it could not be.
    size : tuple of int or None
        Width and height of the upright original.
    frame : dict or None
        `featx.images.frame.Frame` as JSON.
    output : str
        The file with the features, relative to the run's folder.
    bytes, sha256 : int, str
        Of that file.
    stage, error : str
        For a failure: where (``read``, ``decode``, ``forward``, ``write``) and why, in one line. Empty otherwise.
    messages : str
        What libraries had to say about the image while it was decoded, in one line.
    """

    item: Item
    stat: Stat | None = None
    size: tuple[int, int] | None = None
    frame: dict[str, Any] | None = None
    output: str = ""
    bytes: int = 0
    sha256: str = ""
    stage: str = ""
    error: str = ""
    messages: str = ""

    @property
    def done(self) -> bool:
        """Whether features were written."""
        return not self.stage


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person should hear about, that is no failure."""

    text: str


@dataclass(frozen=True, slots=True)
class Planned:
    """Work is about to begin.

    Attributes
    ----------
    summary : dict
        The run's summary as it stands.
    output : Path
        The run's folder.
    to_do, done : int
        Images to compute now; images that an earlier call finished.
    failures : tuple of Outcome
        Images that an earlier call failed on, and that are unchanged since.
    """

    summary: dict[str, Any]
    output: Path
    to_do: int
    done: int
    failures: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One of the models that the catalogue does not know was measured: `done` of `total`."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Checked:
    """One of a run's outputs was checked: `done` of `total`."""

    done: int
    total: int


Event = Note | Planned | Outcome
Listener = Callable[[Event], None]
SearchListener = Callable[[Note | Surveyed], None]


@contextmanager
def many_records() -> Iterator[None]:
    """Keep Python from looking for cycles again and again while a million records, which have none, are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _spacing_to_json(value: Spacing | None) -> float | list[float] | None:
    return list(value) if isinstance(value, tuple) else value


def _spacing_from_json(value: float | list[float] | None) -> Spacing | None:
    return (value[0], value[1]) if isinstance(value, list) else value

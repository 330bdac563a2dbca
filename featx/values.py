# The values that packages exchange: items, levels, fields, weights, outcomes. Frozen, no torch, almost no behaviour.
"""Plain frozen records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct, to_builtins

from featx.dtypes import bytes_of

# A number, or (y, x) where the two differ.
Spacing = int | float | tuple[int | float, int | float]

# Names of the arrays that are not levels.
FINAL, EMBEDDING, BOXES = "final", "embedding", "boxes"

# What the names of arrays of modules begin with.
MODULE = "module"


class Item(Struct, frozen=True, gc=False):
    """One input image.

    Attributes
    ----------
    key : str
        Its name in the output: a relative path with forward slashes, extension kept (``cats/1.jpg``).
    path : str
        The file. Text, since a million `Path` objects take a gigabyte.
    alias : str
        Its output's name where that is not the one that follows from the key; empty otherwise.
    stat : Stat or None
        What the listing says of a remote object; None where it has to be looked up.
    """

    key: str
    path: str
    alias: str = ""
    stat: Stat | None = None


class Level(Struct, frozen=True, omit_defaults=True):
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
    offset_spread : float or (float, float)
        How far apart the centres of the branches that make up the level lie, in cells; (y, x) where they differ. Where
        it is not 0, as with shortcuts that pool, `offset` is their mean.
    height, width : int or None
        H and W of the map at the planned input size; None where they cannot be known beforehand.
    part : str
        Where levels of several parts of a network are together: ``backbone`` or ``neck``. ``final`` for the map that a
        network makes its embedding of, and ``module`` for the output of a module, which are not levels. Empty
        otherwise.
    ratio : (float, float) or None
        Input size by map size, (y, x), where it is not the stride that the network declares; None where they agree.
    """

    index: int
    name: str
    channels: int
    stride: Spacing | None
    offset: Spacing | None
    height: int | None
    width: int | None
    part: str = ""
    ratio: tuple[float, float] | None = None
    offset_spread: Spacing = 0

    @property
    def key(self) -> str:
        """Name of the level's array in an output file."""
        if self.part == MODULE:
            return f"{MODULE}_{self.name}"
        return self.part if self.part == FINAL else f"{self.part or 'level'}_{self.index}"

    @property
    def shape(self) -> tuple[int, int | None, int | None]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


class Field(Struct, frozen=True):
    """One array of an output.

    Attributes
    ----------
    key : str
        Its name: ``level_2``, ``level_2_prefix``, ``level_2_attention``, ``final``, ``embedding``,
        ``module_layer3.0.conv2``.
    shape : tuple of int or None
        (C, H, W) of a map, (heads, H, W) of attention, (tokens, C) of prefix tokens, (D,) of a vector; None for a
        length that differs from image to image.
    dtype : str
        What it is written as, ``text`` for Unicode; empty where that is not decided yet.
    """

    key: str
    shape: tuple[int | None, ...]
    dtype: str = ""

    @property
    def is_vector(self) -> bool:
        """Whether it is one vector, which is always written in full precision."""
        return len(self.shape) == 1

    @property
    def bytes(self) -> int:
        """Bytes of its numbers, in the type in which they are written; a length that differs counts as 0."""
        return math.prod(self.lengths) * bytes_of(self.dtype or "float32")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Its shape, with 0 for a length that differs from image to image."""
        return tuple(length or 0 for length in self.shape)

    @property
    def is_of_boxes(self) -> bool:
        """Whether it has a row for each of an image's boxes."""
        return self.key == BOXES or self.key.startswith("box_") or self.key.endswith(f"_{BOXES}")

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an image's array may have this shape."""
        expected = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(length in (None, actual) for length, actual in expected)


class Input(Struct, frozen=True, omit_defaults=True):
    """The input that a model expects, as timm's evaluation transform reads it.

    Attributes
    ----------
    height, width : int or None
        Size of the model's input in pixels; None where every photo has its own (``native``).
    mean, std : tuple of float
        Per channel, for values in [0, 1].
    interpolation : str
        Resampling filter, timm's name for it.
    crop_pct : float
        The share of the resized image that the crop keeps, per side.
    fit : str
        ``crop`` (shorter side resized, centre cropped), ``squash`` (aspect ratio given up), ``pad`` (longer side
        resized, borders filled with the mean), ``letterbox`` (the same with grey borders, as detectors have it) or
        ``native`` (the photo's own size, padded on the right and at the bottom).
    configuration : str
        Where size and crop come from: ``own`` (those of timm's evaluation), ``test`` (the larger ones that some weights
        have for testing) or ``asked`` (an image size that was asked for).
    multiple : int or None
        For ``native``: what the sides of the input are multiples of.
    least : int or None
        For ``native``: the shortest side that the network takes; None where one multiple is enough.
    max_side : int or None
        For ``native``: the pixels to which a longer side is reduced; None leaves all photos as they are.
    """

    height: int | None
    width: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    fit: str
    configuration: str
    multiple: int | None = None
    least: int | None = None
    max_side: int | None = None


class Weights(Struct, frozen=True, omit_defaults=True):
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
    note : str
        What to know before their numbers are used; empty where they are what they seem.
    part : str
        The container inside the checkpoint that was taken (``state_dict_ema`` …); empty where there was none.
    path : str
        The checkpoint on this machine; empty for random weights.
    """

    kind: Literal["pretrained", "file", "random"]
    source: str
    sha256: str
    seed: int | None = None
    note: str = ""
    part: str = ""
    path: str = ""

    @property
    def identity(self) -> str:
        """What tells these parameters from all others: a file's hash, and which of its containers."""
        return f"{self.sha256}:{self.part}" if self.part else self.sha256


RANDOM_WEIGHTS = "random weights: shapes are right, but nothing was learned"
RANDOM_SIMILARITY = f"{RANDOM_WEIGHTS}, so similarity means little"


class Stat(Struct, frozen=True, gc=False, omit_defaults=True):
    """Size, time and version (a remote object's ETag) of a file, and its sha256 if asked for, to notice changes."""

    bytes: int
    mtime_ns: int
    sha256: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one item: its line in the manifest.

    Attributes
    ----------
    item : Item
        The image.
    stat : Stat or None
        Of the image file when it was read; None where it could not be.
    size : tuple of int or None
        Width and height of the upright original.
    frame : Frame or None
        Where the original lies in the model's input; see `featx.images.frame.Frame`.
    output : str
        The file with the features, relative to the run's folder.
    bytes, sha256 : int, str
        Of that file.
    levels, pooled : dict or None
        Height and width of each map, by the array's name, where they differ from the summary's; and before ``--grid``.
    boxes : int or None
        How many boxes it has; None where no boxes were asked for.
    stage, error : str
        For a failure: where (``read``, ``decode``, ``forward``, ``write``) and why, in one line. Empty otherwise.
    messages : str
        What libraries had to say about the image while it was decoded, in one line.
    """

    item: Item
    stat: Stat | None = None
    size: tuple[int, int] | None = None
    frame: Any = None
    output: str = ""
    bytes: int = 0
    sha256: str = ""
    levels: dict[str, tuple[int, int]] | None = None
    pooled: dict[str, tuple[int, int]] | None = None
    boxes: int | None = None
    stage: str = ""
    error: str = ""
    messages: str = ""

    @property
    def done(self) -> bool:
        """Whether features were written."""
        return not self.stage


@dataclass(frozen=True, slots=True)
class Note:
    """Something to tell the user that is not a failure."""

    text: str


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One of the models that the catalogue does not know was measured: `done` of `total`."""

    done: int
    total: int


SearchListener = Callable[[Note | Surveyed], None]


def plain(value: Any) -> Any:
    """Convert a value to its JSON form: lists for tuples, and no empty keys."""
    return json.loads(json.dumps(to_builtins(value)))

# Every option a person can set, declared once: name, type, default, check, help, and whether it is in the recipe.
"""Options as frozen values in groups, read by the command line, the Python functions and the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from featx.conversions import (
    amount,
    as_path,
    as_place,
    as_text,
    bins,
    numbers,
    one_of,
    seconds,
    share,
    size,
    size_in_bytes,
    texts,
    whole,
)
from featx.declaring import Options, declaration, declared, group, option
from featx.dtypes import NAMES as DTYPES
from featx.format_options import FORMATS, TarOptions
from featx.naming import as_model
from featx.run_options import EngineOptions, NetworkOptions, RecipeOptions, RunOptions, TileOptions
from featx.sharding import ShardOptions
from featx.smaller_options import SmallerOptions

FITS = ("crop", "squash", "pad", "native")
PARTS, POOLS = ("backbone", "neck", "all"), ("avg", "max", "gem", "cls")


@group
class ModelOptions(Options):
    """Which network, with which weights, and which of its levels."""

    panel: ClassVar[str] = "Model"

    model: str = option(
        kw_only=False,
        help="timm's name (arch, arch.tag, hf-hub:owner/name, local-dir:path), or ultralytics' (yolov8n).",
        convert=as_model,
        metavar="NAME",
        flags=("-m",),
    )
    weights: str = option(
        default="pretrained",
        help="Where the parameters come from; FILE:PART takes one of several networks in a checkpoint. "
        "Pretrained weights are never replaced by others.",
        convert=as_text,
        metavar="random|FILE",
        accepts="str | PathLike[str]",
    )
    out_indices: tuple[int, ...] | Literal["all"] | None = option(
        default=None,
        help="Levels by timm's index, such as 0,2,-1; negative ones count from the end.",
        convert=numbers(int, "0,2,-1", "all"),
        metavar="N,N|all",
        shown="timm's choice for the model",
        accepts='Sequence[int] | int | Literal["all"] | None',
    )
    strides: tuple[float, ...] | None = option(
        default=None,
        help="Levels by stride, such as 8,16,32; for each stride, the deepest level.",
        convert=numbers(float, "8,16,32"),
        metavar="N,N",
        accepts="Sequence[float] | float | None",
        in_recipe=True,
    )
    output_stride: int | None = option(
        default=None,
        help="Dilate the network so that no level has a larger stride; about a third of the networks support it.",
        convert=whole(1, 1 << 20),
        metavar="N",
        in_recipe=True,
    )
    part: str = option(
        default="backbone",
        help="Part of a detector: its backbone, its neck (the maps that enter the head), or both.",
        convert=one_of(*PARTS),
        metavar="|".join(PARTS),
        in_recipe=True,
    )
    seed: int = option(
        default=0,
        help="Random seed, used with --weights random.",
        convert=whole(-(1 << 63), (1 << 64) - 1),
        metavar="N",
    )


@group
class ImageOptions(Options):
    """How a photo is fitted to the model's input."""

    panel: ClassVar[str] = "Image"

    image_size: tuple[int, int] | None = option(
        default=None,
        help="Size of the model's input: one side (384), or height x width (256x320).",
        convert=size,
        metavar="N|HxW",
        shown="the model's own",
        accepts="int | tuple[int, int] | None",
    )
    test_size: bool = option(
        default=False,
        help="Use the size and crop that the weights were tested with, if they differ from the model's own.",
    )
    fit: str | None = option(
        default=None,
        help="How photos are fitted to the model's input: crop the centre, squash (change the aspect ratio), pad with "
        "bars, or native (keep each photo's own size).",
        convert=one_of(*FITS),
        metavar="|".join(FITS),
        shown="the model's own, mostly crop",
    )
    max_side: int | None = option(
        default=None,
        help="With --fit native, shrink photos whose longer side exceeds N pixels to N.",
        convert=whole(1, 1 << 20),
        metavar="N",
    )
    crop_pct: float | None = option(
        default=None,
        help="Share of each side of the resized photo that the crop keeps, such as 0.9; 1 crops the least.",
        convert=share("0.9"),
        metavar="SHARE",
        shown="the model's own",
    )


@group
class KeepOptions(Options):
    """Which of a network's outputs to keep."""

    panel: ClassVar[str] = "What to keep"

    embedding: bool = option(default=False, help="Keep the vector before the classifier, as embedding.", in_recipe=True)
    pool: str | None = option(
        default=None,
        help="Make the embedding by pooling the final map, instead of with the network's own head; cls uses the class "
        "token.",
        convert=one_of(*POOLS),
        metavar="|".join(POOLS),
        in_recipe=True,
    )
    final: bool = option(default=False, help="Keep the map that the embedding is made from, as final.", in_recipe=True)
    maps: bool | None = option(
        default=None,
        help="Keep the maps of the levels.",
        flags=("--maps/--no-maps",),
        shown="where the format can hold them",
        in_recipe=True,
    )
    prefix_tokens: bool = option(
        default=False, help="Keep the class and register tokens of every level, as level_N_prefix.", in_recipe=True
    )
    attention: bool = option(
        default=False, help="Keep the class token's or pooling query's attention, as level_N_attention.", in_recipe=True
    )
    modules: tuple[str, ...] | None = option(
        default=None,
        help="Keep the output of this module, such as layer3.0.conv2, as module_NAME, or of all that match a pattern, "
        "such as 'blocks.*.mlp'; featx info --modules lists them.",
        convert=texts("layer3.0.conv2"),
        metavar="NAME|PATTERN",
        flags=("--module",),
        shown="none",
        accepts="Sequence[str] | str | None",
        repeated=True,
        in_recipe=True,
    )
    norm: bool = option(
        default=False,
        help="Apply a transformer's final norm to its levels; featx info shows whether it has one.",
        in_recipe=True,
    )


@group
class BoxOptions(Options):
    """Boxes whose features are kept."""

    panel: ClassVar[str] = "What to keep"

    boxes: Path | None = option(
        default=None,
        help="Keep the features of each box in this file: COCO JSON, or CSV with key,x1,y1,x2,y2[,id,label]. Photos "
        "without boxes are left out.",
        convert=as_path,
        metavar="FILE",
        accepts="str | PathLike[str] | None",
        in_recipe=True,
    )
    box_size: tuple[int, int] | None = option(
        default=None,
        help="Size of a box's features in cells: one side (7), or height x width (7x5); 1 gives one vector per level.",
        convert=bins,
        metavar="N|HxW",
        shown="1",
        accepts="int | tuple[int, int] | None",
        in_recipe=True,
    )


@group
class StoreOptions(Options):
    """How what is kept is stored."""

    panel: ClassVar[str] = "Size and format"

    format: str = option(
        default="npz",
        help="npz or safetensors: a file per image; webdataset: tar files of many images; zarr: one array per level; "
        "npy: all embeddings in one array; parquet: all embeddings or box vectors in one table.",
        convert=one_of(*FORMATS),
        metavar="FORMAT",
        words=FORMATS,
        in_recipe=True,
    )
    dtype: str = option(
        default="float32",
        help="Data type of the stored maps: float32, float16, bfloat16 (with --format safetensors) or int8 (and a "
        "scale per channel). Box features, attention and prefix tokens are never int8, embeddings always float32.",
        convert=one_of(*DTYPES),
        metavar="TYPE",
        words=DTYPES,
        in_recipe=True,
    )


@group
class OutputOptions(Options):
    """Where a run is written, and what happens to existing output."""

    panel: ClassVar[str] = "Output"

    output: Path | str | None = option(
        default=None,
        help="Folder of the run, or a URL such as s3://bucket/run.",
        convert=as_place,
        metavar="FOLDER",
        flags=("-o",),
        shown="features/MODEL",
        accepts="str | PathLike[str] | None",
    )
    overwrite: bool = option(default=False, help="Start from scratch: remove what earlier calls left in the folder.")
    retry_failed: bool = option(default=False, help="Retry images that failed before, even if unchanged.")
    dry_run: bool = option(
        default=False, help="Only forecast the run (images, bytes, memory); nothing is computed or written."
    )
    max_disk: int | None = option(
        default=None,
        help="Refuse a run that would write more than this, and say which options would fit; --dry-run says so, too.",
        convert=size_in_bytes("30GB"),
        metavar="SIZE",
        accepts="int | str | None",
    )
    force: bool = option(default=False, help="Run even if disk space or memory seems too small.")
    hash_inputs: bool = option(
        default=False, help="Recognise changed images by their sha256 instead of by size and modification time."
    )


@group
class Limits(Options):
    """Limits for one image; an image that exceeds one fails.

    The default pixel limit is where Pillow itself would stop (twice its default `MAX_IMAGE_PIXELS`).
    """

    panel: ClassVar[str] = "Limits for one image"

    max_pixels: int = option(
        default=179_000_000,
        help="Width times height, as stored and as resized; a larger image fails. With --tile, it limits what is "
        "decoded at once.",
        convert=amount("179M"),
        metavar="N",
        shown="179M",
        accepts="int | str",
    )
    max_bytes: int = option(
        default=1_000_000_000,
        help="Size of the file; a larger one fails.",
        convert=size_in_bytes("1GB"),
        metavar="SIZE",
        shown="1GB",
        accepts="int | str",
    )
    time_limit: float = option(
        default=120.0, help="Seconds to read and decode an image.", convert=seconds(0.1), metavar="N", shown="120"
    )
    memory_limit: int = option(
        default=4_000_000_000,
        help="Memory to decode an image; enforced with --isolate, on Linux.",
        convert=size_in_bytes("4GB"),
        metavar="SIZE",
        shown="4GB",
        accepts="int | str",
    )


# All groups, in the order of the help and the reference.
GROUPS: tuple[type[Options], ...] = (
    *(ModelOptions, RecipeOptions, ImageOptions, TileOptions, KeepOptions, BoxOptions, SmallerOptions, StoreOptions),
    *(OutputOptions, TarOptions, ShardOptions, NetworkOptions, RunOptions, EngineOptions, Limits),
)

# Options that change the numbers, with the values that apply to runs made before the option existed.
RECIPE: dict[str, Any] = {
    **{each.name: each.default for of in GROUPS for each in declared(of) if declaration(each).in_recipe},
    "maps": True,
}

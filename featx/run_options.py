# Options of how a run is done: where its recipe comes from, in which tiles, and what computes it on which machines.
"""Options as frozen values in groups, as in `featx.options`, which has the others."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from featx.conversions import above_zero, as_path, as_place, as_text, one_of, whole
from featx.declaring import Options, group, option
from featx.naming import device_name

PRECISIONS, BACKENDS = ("fp32", "bf16", "fp16"), ("torch", "compile", "openvino")
ENGINES = ("local", "ray")

# A larger batch size is a typing error.
MOST_IMAGES = 65_536


@group
class RecipeOptions(Options):
    """Where options come from that are not given."""

    panel: ClassVar[str] = "Model"

    like: Path | str | None = option(
        default=None,
        help="Take the recipe of this run: its model, with the same weights, and all that its numbers depend on. "
        "Options that you give as well take precedence.",
        convert=as_place,
        metavar="RUN",
        accepts="str | PathLike[str] | None",
    )
    recipe: Path | None = option(
        default=None,
        help="Read options from this TOML file, as featx info RUN --recipe prints them. Options that you give as well "
        "take precedence.",
        convert=as_path,
        metavar="FILE",
        accepts="str | PathLike[str] | None",
    )


@group
class TileOptions(Options):
    """How pictures are processed that are too large for one pass."""

    panel: ClassVar[str] = "Image"

    tile: int | None = option(
        default=None,
        help="With --fit native, process pictures in tiles of N x N pixels, and put their maps together; the summary "
        "says whether that is exact.",
        convert=whole(1, 1 << 20),
        metavar="N",
        in_recipe=True,
    )
    halo: int | None = option(
        default=None,
        help="Pixels around each tile that the network sees as well.",
        convert=whole(0, 1 << 20),
        metavar="N",
        shown="as far as the network sees; a quarter of a tile if that is more than half of one",
        in_recipe=True,
    )
    level_mpp: float | None = option(
        default=None,
        help="With --tile, read slides (featx\\[slides]) at this resolution, in microns a pixel.",
        convert=above_zero("0.5"),
        metavar="MPP",
        shown="all pixels",
        in_recipe=True,
    )


@group
class NetworkOptions(Options):
    """The network's precision, and the backend that runs it."""

    panel: ClassVar[str] = "Speed"

    precision: str = option(
        default="fp32",
        help="Precision that the network computes in; fp32 is exact.",
        convert=one_of(*PRECISIONS),
        metavar="|".join(PRECISIONS),
        in_recipe=True,
    )
    backend: str = option(
        default="torch",
        help="What runs the network.",
        convert=one_of(*BACKENDS),
        metavar="|".join(BACKENDS),
        in_recipe=True,
    )


@group
class RunOptions(Options):
    """How the work is spread over the machine."""

    panel: ClassVar[str] = "Speed"

    device: str = option(
        default="auto",
        help="Where to compute; cuda:0,1 uses these GPUs.",
        convert=device_name,
        metavar="auto|cpu|cuda|all|mps",
    )
    batch_size: int | None = option(
        default=None,
        help="Images in one forward pass.",
        convert=whole(1, MOST_IMAGES, auto=True),
        metavar="N|auto",
        shown="auto",
        accepts='int | Literal["auto"] | None',
    )
    workers: int | None = option(
        default=None,
        help="Number of concurrent forward passes.",
        convert=whole(1, 1 << 16),
        metavar="N",
        shown="one per core",
    )
    isolate: bool = option(
        default=False, help="Decode in separate processes from the start; otherwise only after a crash or a hang."
    )


@group
class EngineOptions(Options):
    """Which engine does the work, and on which machines."""

    panel: ClassVar[str] = "Engine"

    engine: str = option(
        default="local",
        help="What does the work: this process, or workers in a Ray cluster (featx\\[ray]), which all need to see the "
        "photos and the folder of the run.",
        convert=one_of(*ENGINES),
        metavar="|".join(ENGINES),
    )
    ray_address: str | None = option(
        default=None,
        help="Address of the Ray cluster, such as auto, or ray-head:6379; without one, Ray is started on this machine, "
        "and shut down afterwards.",
        convert=as_text,
        metavar="ADDRESS",
    )
    ray_workers: int | None = option(
        default=None,
        help="Number of workers, each with the model and its own batches.",
        convert=whole(1, 1 << 16),
        metavar="N",
        shown="one per node, or per GPU",
    )
    gpus_per_worker: float | None = option(
        default=None,
        help="GPUs of each worker, such as 1, or 0.5 for two workers on each.",
        convert=above_zero("1"),
        metavar="N",
        shown="1 on GPUs",
    )

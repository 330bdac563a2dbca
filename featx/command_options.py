# Options of a single command and of the function behind it, declared and checked as those in featx.options.
"""Options of `list_models`, `similar`, `sample`, `view`, `bench` and `verify` as frozen values in groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from featx.conversions import above_zero, amount, as_path, as_text, bins, coordinates, numbers, one_of, share, whole
from featx.declaring import Options, group, option
from featx.errors import UsageError
from featx.options import ImageOptions, KeepOptions, OutputOptions
from featx.text import listed

SOURCES, ORDERS = ("timm", "ultralytics"), ("name", "params")

# What is shown unless asked otherwise: the most photos, the most thumbnails, and the largest page in megabytes.
PHOTOS, THUMBNAILS, MEGABYTES = 8, 1000, 20.0


@group
class FilterOptions(Options):
    """Which models are listed."""

    panel: ClassVar[str] = "Which models"

    pretrained: bool = option(default=False, help="Only models with pretrained weights.")
    license: str | None = option(
        default=None,
        help="Only models with weights whose licence has TEXT in its name.",
        convert=as_text,
        metavar="TEXT",
    )
    max_parameters: int | None = option(
        default=None,
        help="Only models with at most N parameters, such as 30M, not counting the head.",
        convert=amount("30M"),
        metavar="N",
        flags=("--max-params",),
    )
    strides: tuple[float, ...] = option(
        default=(),
        help="Only models with a level at each of these strides, such as 4,8.",
        convert=numbers(float, "4,8"),
        metavar="N,N",
        flags=("--stride",),
        repeated=True,
    )
    min_levels: int | None = option(
        default=None, help="Only models with at least N levels.", convert=whole(1), metavar="N"
    )
    any_size: bool = option(default=False, help="Only models that take other image sizes without being rebuilt.")
    family: str | None = option(
        default=None,
        help="Only models of this family: timm's module, such as resnet.",
        convert=as_text,
        metavar="PATTERN",
    )
    source: str = option(
        default="timm",
        help="Library that the models come from; ultralytics needs featx\\[yolo].",
        convert=one_of(*SOURCES),
        metavar="|".join(SOURCES),
    )


@group
class OrderOptions(Options):
    """How the list of models is ordered, and how long it is."""

    panel: ClassVar[str] = "List"

    sort: str = option(default="name", help="Order of the list.", convert=one_of(*ORDERS), metavar="|".join(ORDERS))
    limit: int | None = option(default=None, help="At most N models.", convert=whole(1), metavar="N")


@group
class ListOptions(FilterOptions, OrderOptions):
    """Which models are listed, and how."""


def _levels(_: str, value: Any) -> tuple[int | str, ...]:
    """Expect indices of levels or names of arrays, in text or as a sequence."""
    pieces = value.split(",") if isinstance(value, str) else value
    return tuple(int(piece) if str(piece).isdecimal() else str(piece) for piece in pieces)


def _level(name: str, value: Any) -> int | str:
    """Expect one level."""
    found = _levels(name, value if isinstance(value, str) else [value])
    if len(found) != 1 or found[0] == "":
        raise UsageError(f"{name}: expected one level, such as 3 or level_3, not {value!r}")
    return found[0]


def _only_levels(verb: str) -> Any:
    """Declare the option that chooses some of a run's levels, for what a command does with them."""
    return option(
        default=None,
        help=f"{verb} only these levels, each by its index or the name of its array.",
        convert=_levels,
        metavar="N,N",
        flags=("--level",),
        shown="all",
        repeated=True,
    )


@group
class SimilarOptions(Options):
    """Whether images or patches are compared, how many are found, and which patch is the query."""

    panel: ClassVar[str] = OutputOptions.panel

    count: int = option(
        default=10,
        help="Number of images, or patches, to find.",
        convert=whole(1),
        metavar="N",
        flags=("--count", "-k"),
    )
    at: tuple[float, ...] | None = option(
        default=None,
        help="Find patches like the one at this pixel of the image.",
        convert=coordinates("320,240"),
        metavar="X,Y",
        accepts="str | Sequence[float] | None",
    )
    box: tuple[float, ...] | None = option(
        default=None,
        help="Find patches like the contents of this box in the image; its edges are in pixels.",
        convert=coordinates("300,200,400,320"),
        metavar="X1,Y1,X2,Y2",
        accepts="str | Sequence[float] | None",
    )
    level: int | str | None = option(
        default=None,
        help="Compare patches on this level, given by its index or the name of its array.",
        convert=_level,
        metavar="N",
        shown="the last of stride 16 or less",
    )
    per_photo: int | None = option(
        default=None,
        help="Find at most N patches per photo, no two of them next to each other.",
        convert=whole(1),
        metavar="N",
        shown="1",
    )

    def __post_init__(self) -> None:
        """Check and convert; refuse options that contradict each other.

        Raises
        ------
        UsageError
            Naming the options, and how to fix it.
        """
        super().__post_init__()
        if self.at is not None and self.box is not None:
            raise UsageError("--at and --box cannot be combined", "Use one of them")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            shown = ",".join(f"{edge:g}" for edge in self.box)
            raise UsageError(f"--box {shown} has no area", "Give x1,y1,x2,y2 with x1 < x2 and y1 < y2")
        for each in ("level", "per_photo") if self.of_images else ():
            if getattr(self, each) is not None:
                raise UsageError(f"--{each.replace('_', '-')} is for patches", "Add --at X,Y or --box X1,Y1,X2,Y2")

    @property
    def of_images(self) -> bool:
        """Whether whole images are compared, and not patches."""
        return self.at is None and self.box is None


@group
class SampleOptions(Options):
    """Which boxes or points to sample, and from which maps."""

    panel: ClassVar[str] = KeepOptions.panel

    boxes: Path | None = option(
        default=None,
        help="Sample the boxes in this file: COCO JSON, or CSV with key,x1,y1,x2,y2[,id,label].",
        convert=as_path,
        metavar="FILE",
    )
    points: Path | None = option(
        default=None,
        help="Sample the points in this file: CSV with key,x,y[,id,label].",
        convert=as_path,
        metavar="FILE",
    )
    levels: tuple[int | str, ...] | None = _only_levels("Sample")
    box_size: tuple[int, int] = option(
        default=(1, 1),
        help="Size of a box's features in cells: one side (7), or height x width (7x5); 1 gives one vector per level.",
        convert=bins,
        metavar="N|HxW",
        shown="1",
    )


@group
class ViewOptions(Options):
    """What is shown of which photos and levels, and how."""

    panel: ClassVar[str] = "Picture"

    levels: tuple[int | str, ...] | None = _only_levels("Show")
    max_photos: int | None = option(
        default=None,
        help="Show at most N photos.",
        convert=whole(1, 10_000),
        metavar="N",
        shown=f"{PHOTOS}, or {THUMBNAILS} with --grid",
    )
    grid: bool = option(
        default=False, help="Show only thumbnails: similar photos side by side, in frames of similar colours."
    )
    activation: bool = option(
        default=False, help="Show how strong each cell's features are, instead of their principal components."
    )
    attention: bool = option(
        default=False, help="Show where the model attends; a run has to be extracted with --attention."
    )
    at: tuple[float, float] | None = option(
        default=None,
        help="Show how similar each cell is to the feature at this pixel of a photo.",
        convert=coordinates("320,240"),
        metavar="X,Y",
    )
    key: str | None = option(
        default=None, help="The photo that --at is about.", convert=as_text, metavar="PHOTO", shown="the first shown"
    )
    overlay: float | None = option(
        default=None,
        help="Opacity of the colours over the photo, such as 0.6.",
        convert=share("0.6"),
        metavar="SHARE",
        shown="1",
    )
    smooth: bool = option(default=False, help="Interpolate colours between cells.")
    columns: int | None = option(
        default=None, help="Number of pictures side by side.", convert=whole(1, 100), metavar="N", shown="as fits"
    )
    html: Path | None = option(
        default=None,
        help="Write an HTML page instead: point at a cell to see what is similar. It needs no network.",
        convert=as_path,
        metavar="PAGE",
    )
    max_mb: float | None = option(
        default=None,
        help="Keep the page under N megabytes, by shrinking photos first, then dropping components, then photos.",
        convert=above_zero("20"),
        metavar="N",
        shown=f"{MEGABYTES:g}",
    )

    def __post_init__(self) -> None:
        """Check and convert; refuse options that contradict each other.

        Raises
        ------
        UsageError
            Naming the options, and how to fix it.
        """
        super().__post_init__()
        chosen = [
            f"--{name}"
            for name in ("grid", "activation", "attention", "at")
            if getattr(self, name) not in (False, None)
        ]
        if len(chosen) > 1:
            raise UsageError(f"{listed(chosen, 'and')} cannot be combined", "Use one of them")
        if self.key is not None and self.at is None:
            raise UsageError("--key is for --at", "Leave it out; name the photos to show after the run")
        if self.html is None and self.max_mb is not None:
            raise UsageError("--max-mb is for --html", "Leave it out")
        for_pictures = ("activation", "attention", "at", "grid", "overlay", "smooth", "columns")
        if self.html is not None and (unused := [name for name in for_pictures if getattr(self, name)]):
            raise UsageError(f"--{unused[0]} is for pictures, but --html writes a page", "Leave one of them out")
        if self.grid and (self.smooth or self.overlay is not None):
            raise UsageError("--overlay and --smooth are for levels, but --grid shows thumbnails", "Leave them out")
        if self.grid and len(self.levels or ()) > 1:
            raise UsageError("--grid compares photos on one level", "Give --level only one")

    @property
    def most(self) -> int:
        """The most photos that are shown."""
        return self.max_photos or (THUMBNAILS if self.grid else PHOTOS)

    @property
    def largest(self) -> float:
        """The largest page, in megabytes."""
        return self.max_mb or MEGABYTES


@group
class BenchOptions(Options):
    """What is timed, and how often."""

    panel: ClassVar[str] = ImageOptions.panel

    images: str | None = option(default=None, help="Photos to use.", convert=as_text, metavar="FOLDER", shown="made up")
    count: int = option(default=64, help="Photos per round.", convert=whole(8, 100_000), metavar="N")
    rounds: int = option(
        default=3, help="Number of rounds; the times are their medians.", convert=whole(1, 1000), metavar="N"
    )


@group
class VerifyOptions(Options):
    """What is checked besides the outputs."""

    panel: ClassVar[str] = "Checks"

    recompute: int = option(
        default=0, help="Extract N random images again, and compare the results.", convert=whole(0), metavar="N"
    )

# Options that one command has, and the function behind it: declared as in featx.options, checked in the same way.
"""Options of `list_models`, `similar`, `bench` and `verify` as frozen values in groups."""

from __future__ import annotations

from typing import ClassVar

from featx.declaring import Options, amount, as_text, group, numbers, one_of, option, whole
from featx.options import ImageOptions

SOURCES, ORDERS = ("timm", "ultralytics"), ("name", "params")


@group
class ListOptions(Options):
    """Which models are listed, and in which order."""

    pretrained: bool = option(default=False, help="Only models with pretrained weights.")
    strides: tuple[float, ...] = option(
        default=(),
        help="Only models with a level at each of these strides.",
        convert=numbers(float, "4,8"),
        metavar="8|4,8",
        flags=("--stride",),
        repeated=True,
    )
    min_levels: int | None = option(
        default=None, help="Only models with at least N levels.", convert=whole(1), metavar="N"
    )
    max_parameters: int | None = option(
        default=None,
        help="Only models with at most this many parameters, not counting the head.",
        convert=amount("30M"),
        metavar="30M",
        flags=("--max-params",),
    )
    license: str | None = option(
        default=None,
        help="Only models with weights whose licence has TEXT in its name.",
        convert=as_text,
        metavar="TEXT",
    )
    family: str | None = option(
        default=None,
        help="Only models of this family: timm's module, such as resnet.",
        convert=as_text,
        metavar="PATTERN",
    )
    any_size: bool = option(default=False, help="Only models that take other image sizes without being rebuilt.")
    source: str = option(
        default="timm",
        help="Library that the models come from; ultralytics needs featx\\[yolo].",
        convert=one_of(*SOURCES),
        metavar="|".join(SOURCES),
    )
    sort: str = option(default="name", help="Order of the list.", convert=one_of(*ORDERS), metavar="|".join(ORDERS))
    limit: int | None = option(default=None, help="At most N models.", convert=whole(1), metavar="N")


@group
class SimilarOptions(Options):
    """How many images are found."""

    count: int = option(
        default=10, help="Number of images to find.", convert=whole(1), metavar="N", flags=("--count", "-k")
    )


@group
class BenchOptions(Options):
    """What is timed, and how often."""

    panel: ClassVar[str] = ImageOptions.panel

    images: str | None = option(default=None, help="Photos to use.", convert=as_text, metavar="DIR", shown="made up")
    count: int = option(default=64, help="Photos in a round.", convert=whole(8, 100_000), metavar="N")
    rounds: int = option(default=3, help="Rounds to take medians over.", convert=whole(1, 1000), metavar="N")


@group
class VerifyOptions(Options):
    """What is checked besides the outputs."""

    recompute: int = option(
        default=0, help="Extract N random images again, and compare the results.", convert=whole(0), metavar="N"
    )

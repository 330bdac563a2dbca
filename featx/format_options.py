# Formats of outputs by their names, and the options of those that have some, declared as those in featx.options.
"""Options about the files that a run is stored in."""

from __future__ import annotations

from typing import ClassVar

from featx.conversions import one_of, whole
from featx.declaring import Options, group, option

FORMATS = ("npz", "safetensors", "npy", "parquet", "webdataset", "zarr")

# Those that a finished run can be converted to.
CONVERTED = (*FORMATS, "hdf5")


@group
class TarOptions(Options):
    """How large tar files become."""

    panel: ClassVar[str] = "Size and format"

    shard_mb: int | None = option(
        default=None,
        help="Size of the tar files of --format webdataset, in megabytes.",
        convert=whole(1, 1_000_000),
        metavar="N",
        shown="500",
    )


@group
class ConvertOptions(TarOptions):
    """The format that a run is converted to."""

    panel: ClassVar[str] = "Size and format"

    format: str = option(
        help="Format of the new run: npz, safetensors, webdataset, zarr, npy or parquet, as for featx extract, or "
        "hdf5: one file with a group per image.",
        convert=one_of(*CONVERTED),
        metavar="FORMAT",
        words=CONVERTED,
    )

# Commands that take a run: each takes options, makes one call, and passes the result to the tables.
"""What people do with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featx.cli import pictures, progress, tables
from featx.cli.application import command
from featx.cli.arguments import Debug, Json, switch, takes, written_to
from featx.command_options import SampleOptions, SimilarOptions, VerifyOptions, ViewOptions
from featx.declaring import declared
from featx.errors import UsageError
from featx.format_options import ConvertOptions
from featx.options import ImageOptions, ModelOptions, OutputOptions
from featx.requests import ONE
from featx.run_options import RunOptions


@command(epilog="Example: featx similar features/photos photo.jpg -k 10 --output sheet.png")
@takes(SimilarOptions, RunOptions, only=("count", "at", "box", "level", "per_photo", "device"))
def similar(
    options: dict[str, Any],
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a run with embeddings; with maps for --at and --box.")
    ],
    query: Annotated[str, typer.Argument(metavar="IMAGE", help="The image to compare with.")],
    output: Annotated[
        Path | None, written_to("FILE", "Picture of the results with their scores, such as sheet.png.")
    ] = None,
    with_self: Annotated[
        bool,
        switch(
            "--with-self",
            help="Keep the image itself in the results, if the run contains it.",
            rich_help_panel=OutputOptions.panel,
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find photos or patches of a run that are most like yours.

    Images are compared by the cosine similarity of their embeddings; patches,
    with --at or --box, by that of their features on one level.
    """
    from featx.explore import drawing, patches, similarity

    of_images = SimilarOptions(**{name: value for name, value in options.items() if name != "device"}).of_images
    if output:
        drawing.require_drawable(output)
    if of_images:
        with progress.waiting("searching"):
            found: Any = similarity.similar(run, query, with_self=with_self, **options)
        tables.neighbours(found, as_json=as_json)
    else:
        with progress.counting("searching", quiet=as_json) as listener:
            found = patches.similar_patches(run, query, with_self=with_self, listener=listener, **options)
        tables.patches(found, as_json=as_json)
    if output:
        (similarity if of_images else patches).draw(found, output)
        tables.drawn(len(found.found), "image" if of_images else "place", output, as_json=as_json)


@command(epilog="Example: featx sample features/photos --boxes boxes.csv --level 2 --output boxes.parquet")
@takes(SampleOptions)
def sample(
    options: dict[str, Any],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run with maps.")],
    output: Annotated[Path, written_to("FILE", "The table: a new file that ends in .parquet, .npz or .csv.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a table of a run's features in boxes or at points.

    Each box or point gets a row, with a vector for each level. Maps are averaged
    in boxes by torchvision's roi_align, and interpolated bilinearly at points.

    Exit status: 0 all have a row, 1 could not run, 2 wrong usage, 3 some have none.
    """
    from featx.explore import sampling

    with progress.counting("sampling", quiet=as_json) as listener:
        sampled = sampling.sample(run, output, listener=listener, **options)
    tables.sampled(sampled, as_json=as_json)
    raise typer.Exit(3 if sampled.faults else 0)


@command(epilog="Example: featx view features/photos --level 2,3 --output levels.png")
@takes(
    *(ViewOptions, ModelOptions, ImageOptions, RunOptions),
    without=("part", "batch_size", "workers", "isolate"),
    optional=("model",),
)
def view(
    options: dict[str, Any],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Folder of a run, then any of its photos; or photos alone, with --model."),
    ],
    output: Annotated[
        Path | None, written_to("FILE", "The picture: .png, .jpg or .jpeg.", default="NAME-view.png")
    ] = None,
    show: Annotated[
        bool,
        switch(
            "--show",
            help="Show it in the terminal if possible, or else in the desktop's viewer.",
            rich_help_panel=OutputOptions.panel,
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw a picture of what a model's levels see in photos.

    The first three principal components of each level become red, green and blue,
    the same for all photos; cells are drawn where they lie in the photo.
    """
    from featx.explore import inputs, page, viewing

    asked = {each.name: options.pop(each.name) for each in declared(ViewOptions) if each.name in options}
    path = output or viewing.default_output(paths[0])
    wanted = viewing.checked(path, asked)
    if output and wanted.html:
        raise UsageError("--output and --html cannot be combined", ONE)
    with (
        progress.extracting(quiet=as_json) as listener,
        inputs.opened(paths, options, wanted, listener) as (run, keys),
    ):
        if wanted.html:
            made = page.write_page(run, wanted.html, keys, wanted.levels, wanted.most, wanted.largest)
            tables.paged(made, as_json=as_json)
        else:
            tables.viewed(viewing.view(run, path, keys, **asked), as_json=as_json)
    if show:
        pictures.show(wanted.html or path)


@command(epilog="Example: featx convert features/photos --format zarr --output features/photos-zarr")
@takes(ConvertOptions)
def convert(
    options: dict[str, Any],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a complete run.")],
    output: Annotated[Path, written_to("FOLDER", "Folder of the new run.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a complete run in another format.

    Nothing is computed, and the run itself is only read. The same command continues where it was stopped.

    Exit status: 0 converted, 1 could not, 2 wrong usage, 11 a run holds a folder.
    """
    from featx.explore import converting

    with progress.counting("converting", quiet=as_json) as listener:
        converted = converting.convert(run, output, listener=listener, **options)
    tables.converted(converted, as_json=as_json)


@command(epilog="Example: featx merge features/photos")
def merge(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one manifest of those that shards have written.

    Its lines are those of a run in one go. Commands read parts just as well.

    Exit status: 0 merged, 1 could not, 11 a run or a shard holds the folder.
    """
    from featx.runs.merging import merge as fold

    with progress.waiting("merging"):
        value = fold(folder)
    tables.merged(value, as_json=as_json)


@command(epilog="Example: featx verify features/photos --recompute 20")
@takes(VerifyOptions)
def verify(
    options: dict[str, Any],
    folder: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run.")],
    repair: Annotated[
        bool,
        switch(
            "--repair",
            help="Forget missing and damaged outputs, so that the next extract recreates them.",
            rich_help_panel=VerifyOptions.panel,
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every output of a run against its manifest.

    Compares sha256, arrays, shapes, types, and makes sure that numbers are finite.

    Exit status: 0 all is well, 1 something is missing, damaged, not computed yet
    or not reproduced, 11 a run holds the folder.
    """
    from featx.explore.verify import verify as check

    with progress.counting("checking", quiet=as_json) as listener:
        verified = check(folder, repair=repair, listener=listener, **options)
    tables.verified(verified, as_json=as_json)
    raise typer.Exit(0 if verified.sound and verified.complete else 1)

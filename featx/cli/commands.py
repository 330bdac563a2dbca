# The commands of featx: each takes options, makes one call, and passes the result to the tables.
"""Commands of featx."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from featx.cli import completion, descriptions, pictures, progress, reports, streams, tables
from featx.cli.arguments import Debug, Json, Quiet, read_lists, switch, takes
from featx.cli.usage import Command, Group
from featx.command_options import (
    BenchOptions,
    FilterOptions,
    ListOptions,
    OrderOptions,
    SampleOptions,
    SimilarOptions,
    VerifyOptions,
    ViewOptions,
)
from featx.declaring import declared
from featx.engine.stopping import Stop
from featx.errors import UsageError
from featx.options import (
    GROUPS,
    ImageOptions,
    KeepOptions,
    ModelOptions,
    OutputOptions,
    StoreOptions,
)
from featx.requests import ONE, Job, ModelRequest
from featx.run_options import NetworkOptions, RunOptions
from featx.runs.recipe_files import completed_by_recipe
from featx.version import __version__

app = typer.Typer(
    name="featx",
    help="Turn image files into the multi-scale feature maps of any timm backbone.",
    epilog="Example: featx extract photo.jpg --model resnest26d",
    cls=Group,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

command = partial(app.command, cls=Command)

STOP = Stop()


def has_option(spelling: str) -> bool:
    """Whether the command that was typed has an option."""
    group: Any = typer.main.get_command(app)
    command = next((group.commands[text] for text in sys.argv[1:] if text in group.commands), group)
    return any(spelling in each.opts for each in command.params)


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, switch("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Print the version, or the help if no command was given."""
    if version:
        print(f"featx {__version__}")  # noqa: T201 - data, for scripts
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.get_help()  # which prints it
        raise typer.Exit(2)


@command(
    "list-models",
    epilog="Example: featx list-models --license apache --max-params 30M --stride 4,8,16,32 --sort params --limit 20",
)
@takes(FilterOptions, OrderOptions)
def list_models(
    options: dict[str, Any],
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATTERN",
            help="Glob patterns, or parts of names; a model must match one of them.",
            autocompletion=completion.models,
        ),
    ] = None,
    names: Annotated[
        bool, switch("--names", help="Only the names, one per line.", rich_help_panel=OrderOptions.panel)
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List models, with the stride and channels of their levels."""
    from featx.models.search import list_models as find

    if names and as_json:
        raise UsageError("--names and --json both choose what is printed", ONE)
    wanted = ListOptions(**options)
    with progress.searching() as listener:
        found = find(patterns or (), **{**options, "limit": None}, listener=listener)
    tables.models(found, wanted, names=names, as_json=as_json)


@command(epilog="Example: featx info regnety_032 --image-size 384")
@takes(ModelOptions, ImageOptions, without=("weights", "seed"), bare=True)
def info(
    options: dict[str, Any],
    recipe: Annotated[
        bool,
        switch(
            "--recipe",
            help="Print the options of a run, whose folder is named instead of a model, for extract --recipe.",
            rich_help_panel=ModelOptions.panel,
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a model's levels, input and weights, or those of a run.

    Fetches no weights.
    """
    from featx.models.search import describe_model

    if recipe or descriptions.is_run(options["model"]):
        descriptions.run(options, recipe=recipe, as_json=as_json)
        return
    with progress.searching() as listener:
        described = describe_model(ModelRequest(**options), listener)
    descriptions.description(described, as_json=as_json)


@command(epilog="Example: featx extract photos/ --model resnest26d --strides 8,16,32 --output features/photos")
@takes(*GROUPS, optional=("model",))
def extract(
    options: dict[str, Any],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Files, folders, quoted patterns, or - for a list on standard input."),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=ImageOptions.panel,
            help="List of images: one path per line (or with NUL between them).",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the feature maps of images.

    Run the same command again to resume.

    Exit status: 0 all done, 1 could not run, 2 wrong usage, 3 some images failed
    or boxes could not be used, 11 another run holds the output, 130 or 143 stopped.
    """
    named = tuple(text for text in inputs or () if text != "-")
    job = Job(inputs=named, listed=read_lists(inputs or (), from_file), **completed_by_recipe(options))
    from featx.engine.extract import run

    with (
        streams.captured_libraries() as libraries,
        progress.progress(quiet=quiet or as_json, libraries=libraries, forecasts=not job.dry_run) as listener,
    ):
        report = run(job, listener, STOP, libraries.size)
    reports.report(report, dry_run=job.dry_run, quiet=quiet, as_json=as_json)
    raise typer.Exit(3 if report.failures or report.box_faults else 0)


@command(epilog="Example: featx similar features/photos photo.jpg -k 10 --output sheet.png")
@takes(SimilarOptions, RunOptions, only=("count", "device"))
def similar(
    options: dict[str, Any],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run with embeddings.")],
    query: Annotated[str, typer.Argument(metavar="IMAGE", help="The image to compare with.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Picture of the results with their scores, such as sheet.png.",
            rich_help_panel=OutputOptions.panel,
        ),
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
    """Find the images of a run that are most similar to yours.

    Compares their embeddings by cosine similarity.
    """
    from featx.explore import drawing, similarity

    if output:
        drawing.require_drawable(output)
    with progress.waiting("searching"):
        found = similarity.similar(run, query, with_self=with_self, **options)
    tables.neighbours(found, as_json=as_json)
    if output:
        similarity.draw(found, output)
        tables.drawn(found, output, as_json=as_json)


@command(epilog="Example: featx sample features/photos --boxes boxes.csv --level 2 --output boxes.parquet")
@takes(SampleOptions)
def sample(
    options: dict[str, Any],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run with maps.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The table: a new file that ends in .parquet, .npz or .csv.",
            rich_help_panel=OutputOptions.panel,
        ),
    ],
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
        typer.Argument(metavar="PATH", help="Folder of a run, and keys of its photos; or photos, with --model."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The picture: .png, .jpg or .jpeg.",
            show_default="NAME-view.png",
            rich_help_panel=OutputOptions.panel,
        ),
    ] = None,
    show: Annotated[
        bool,
        switch(
            "--show",
            help="Show it, in the terminal if that can, else on the desktop.",
            rich_help_panel=OutputOptions.panel,
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what the levels of a model see in photos, as one picture.

    Each level is coloured by its first three principal components, the same for
    all photos; its cells lie where they are centred in the photo.
    """
    from featx.explore import briefly, page, viewing

    asked = {each.name: options.pop(each.name) for each in declared(ViewOptions) if each.name in options}
    path = output or viewing.default_output(paths[0])
    wanted = viewing.checked(path, asked)
    if output and wanted.html:
        raise UsageError("--output and --html both say what is written", ONE)
    with (
        progress.extracting(quiet=as_json) as listener,
        briefly.opened(paths, options, wanted, listener) as (run, keys),
    ):
        if wanted.html:
            most, limit = wanted.most, wanted.max_mb or page.MAX_MB
            tables.paged(page.write_page(run, wanted.html, keys, wanted.levels, most, limit), as_json=as_json)
        else:
            tables.viewed(viewing.view(run, path, keys, **asked), as_json=as_json)
    if show:
        pictures.show(wanted.html or path)


@command(epilog="Example: featx bench resnet50 --images photos/ --precision bf16")
@takes(
    *(ModelOptions, ImageOptions, BenchOptions, KeepOptions, StoreOptions, NetworkOptions, RunOptions),
    without=("weights", "seed", "format", "isolate"),
    bare=True,
)
def bench(options: dict[str, Any], as_json: Json = False, debug: Debug = False) -> None:
    """Show where the time goes on this machine.

    Times each stage alone, then all of them together, with random weights.
    """
    asked = BenchOptions(**{name: options.pop(name) for name in ("images", "count", "rounds") if name in options})
    job = Job(inputs=() if asked.images is None else (asked.images,), weights="random", **options)
    from featx.engine import bench as benchmark

    with progress.waiting("timing"):
        value = benchmark.bench(job, asked.count, asked.rounds)
    tables.timings(value, as_json=as_json)


@command(epilog="Example: featx fetch resnet50.a1_in1k --output models/resnet50")
@takes(ModelOptions, only=("model",), bare=True)
def fetch(
    options: dict[str, Any],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder to write the model to.",
            show_default="models/MODEL",
            rich_help_panel=OutputOptions.panel,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a model into a folder, for a machine without a network.

    On that machine, use it with --model local-dir:FOLDER.
    """
    from featx.models import fetching

    tables.fetched(fetching.fetch(options["model"], output), as_json=as_json)


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

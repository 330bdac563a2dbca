# The commands of featx: each takes options, makes one call, and passes the result to the tables.
"""Commands of featx."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from featx.cli import completion, progress, streams, tables
from featx.cli.arguments import Debug, Json, Quiet, number, read_lists, switch, takes
from featx.cli.usage import Command, Group
from featx.declaring import amount, numbers
from featx.engine.stopping import Stop
from featx.options import (
    GROUPS,
    ImageOptions,
    KeepOptions,
    ModelOptions,
    NetworkOptions,
    OutputOptions,
    RunOptions,
    StoreOptions,
)
from featx.requests import Job, ModelRequest
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


# Panels of the help for options that one command has.
WHICH, LIST, CHECKS = "Which models", "List", "Checks"


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, switch("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Print the version, or what there is where no command was given."""
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
def list_models(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATTERN",
            help="Glob patterns, or parts of names; a model must match one of them.",
            autocompletion=completion.models,
        ),
    ] = None,
    pretrained: Annotated[
        bool, switch("--pretrained", help="Only models with pretrained weights.", rich_help_panel=WHICH)
    ] = False,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="TEXT",
            help="Only models with weights whose licence has TEXT in its name.",
            rich_help_panel=WHICH,
            autocompletion=completion.licences,
        ),
    ] = None,
    max_params: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Only models with at most N parameters, such as 30M, not counting the head.",
            rich_help_panel=WHICH,
        ),
    ] = None,
    stride: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,N", help="Only models with a level at each of these strides, such as 4,8.", rich_help_panel=WHICH
        ),
    ] = None,
    min_levels: Annotated[
        int | None, number("--min-levels", 1, "Only models with at least N levels.", rich_help_panel=WHICH)
    ] = None,
    any_size: Annotated[
        bool,
        switch(
            "--any-size", help="Only models that take other image sizes without being rebuilt.", rich_help_panel=WHICH
        ),
    ] = False,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Only models of this family: timm's module, such as resnet.",
            rich_help_panel=WHICH,
            autocompletion=completion.families,
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            metavar="timm|ultralytics",
            help="Library that the models come from; ultralytics needs featx\\[yolo].",
            rich_help_panel=WHICH,
            autocompletion=completion.completing("source", "timm|ultralytics"),
        ),
    ] = "timm",
    sort: Annotated[
        str,
        typer.Option(
            metavar="name|params",
            help="Order of the list.",
            rich_help_panel=LIST,
            autocompletion=completion.completing("sort", "name|params"),
        ),
    ] = "name",
    limit: Annotated[int | None, number("--limit", 1, "At most N models.", rich_help_panel=LIST)] = None,
    names: Annotated[bool, switch("--names", help="Only the names, one per line.", rich_help_panel=LIST)] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List models, with the stride and channels of their levels."""
    from featx.models.search import list_models as find

    wanted: dict[str, Any] = {
        "pretrained": pretrained,
        "strides": [number for text in stride or () for number in numbers(float, "4,8")("--stride", text)],
        "min_levels": min_levels,
        "max_parameters": None if max_params is None else amount("30M")("--max-params", max_params),
        "license": license_,
        "family": family,
        "any_size": any_size,
        "source": source,
        "sort": sort,
    }
    with progress.searching() as listener:
        found = find(patterns or (), **wanted, listener=listener)
    tables.models(found, limit=limit, wanted=wanted, names=names, as_json=as_json)


@command(epilog="Example: featx info regnety_032 --image-size 384")
@takes(ModelOptions, ImageOptions, without=("weights", "seed"), bare=True)
def info(options: dict[str, Any], as_json: Json = False, debug: Debug = False) -> None:
    """Show a model's levels, input and weights.

    No weights are fetched for it.
    """
    from featx.models.search import describe_model

    with progress.searching() as listener:
        described = describe_model(ModelRequest(**options), listener)
    tables.description(described, as_json=as_json)


@app.command(
    cls=Command, epilog="Example: featx extract photos/ --model resnest26d --strides 8,16,32 --output features/photos"
)
@takes(*GROUPS)
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

    Exit status: 0 all done, 1 could not run, 2 wrong usage, 3 some images failed,
    11 another run holds the output, 130 or 143 stopped.
    """
    named = tuple(text for text in inputs or () if text != "-")
    job = Job(inputs=named, listed=read_lists(inputs or (), from_file), **options)
    from featx.engine.extract import run

    silent = quiet or as_json
    with streams.captured_libraries() as libraries, progress.progress(quiet=silent, libraries=libraries) as listener:
        report = run(job, listener, STOP, libraries.size)
    tables.report(report, quiet=quiet, as_json=as_json)
    raise typer.Exit(3 if report.failures else 0)


@command(epilog="Example: featx similar features/photos photo.jpg -k 10 --output sheet.png")
@takes(RunOptions, only=("device",))
def similar(
    options: dict[str, Any],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run with embeddings.")],
    query: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to compare with.")],
    count: Annotated[int, number("-k", 1, "Number of images to find.", rich_help_panel=OutputOptions.panel)] = 10,
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
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the images of a run that are most similar to yours.

    They are compared by the cosine of their embeddings.
    """
    from featx.explore import similarity

    if output:
        similarity.require_drawable(output)
    with progress.waiting("searching"):
        found = similarity.similar(run, query, count, **options)
    tables.neighbours(found, as_json=as_json)
    if output:
        similarity.draw(found, output)


@command(epilog="Example: featx bench resnet50 --images photos/ --precision bf16")
@takes(
    *(ModelOptions, ImageOptions, KeepOptions, StoreOptions, NetworkOptions, RunOptions),
    without=("weights", "seed", "format", "isolate"),
    bare=True,
)
def bench(
    options: dict[str, Any],
    images: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", rich_help_panel=ImageOptions.panel, help="Photos to use.", show_default="made up"
        ),
    ] = None,
    count: Annotated[int, number("--count", 8, "Photos in a round.", 100_000, rich_help_panel=ImageOptions.panel)] = 64,
    rounds: Annotated[
        int, number("--rounds", 1, "Rounds to take medians over.", 1000, rich_help_panel=ImageOptions.panel)
    ] = 3,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where the time goes on this machine.

    Each stage is timed alone, then all together; weights are random.
    """
    job = Job(inputs=() if images is None else (images,), weights="random", **options)
    from featx.engine import bench as benchmark

    with progress.waiting("timing"):
        value = benchmark.bench(job, count, rounds)
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
            help="Folder to write them to.",
            show_default="models/MODEL",
            rich_help_panel=OutputOptions.panel,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a model into a folder, for a machine without a network.

    There, --model local-dir:FOLDER takes its weights and configuration.
    """
    from featx.models import fetching

    tables.fetched(fetching.fetch(options["model"], output), as_json=as_json)


@command(epilog="Example: featx verify features/photos --recompute 20")
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    recompute: Annotated[
        int,
        number("--recompute", 0, "Extract N random images again, and compare the results.", rich_help_panel=CHECKS),
    ] = 0,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            metavar="",
            help="Forget missing and damaged outputs, so that the next extract recreates them.",
            rich_help_panel=CHECKS,
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every output of a run against its manifest.

    Compares sha256, arrays, shapes, types, and makes sure that numbers are finite.

    Exit status: 0 all is well, 1 something is missing, damaged or not computed yet, 11 a run holds the folder.
    """
    from featx.explore.verify import verify as check

    with progress.checking(quiet=as_json) as listener:
        verified = check(folder, recompute=recompute, repair=repair, listener=listener)
    tables.verified(verified, as_json=as_json)
    raise typer.Exit(0 if verified.sound and verified.complete else 1)

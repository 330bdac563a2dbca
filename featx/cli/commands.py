# The commands of featx: each takes options, makes one call, and passes the result to the tables.
"""Commands of featx."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featx.cli import progress, reports, streams, tables
from featx.cli.arguments import Debug, Json, Quiet, one_model, read_lists, switch, takes
from featx.declaring import amount, numbers
from featx.engine.stopping import Stop
from featx.options import GROUPS, ImageOptions, KeepOptions, ModelOptions, NetworkOptions, RunOptions, StoreOptions
from featx.requests import Job, ModelRequest
from featx.version import __version__

app = typer.Typer(
    name="featx",
    help="Turn image files into the multi-scale feature maps of any timm backbone.",
    epilog="Example: featx extract photo.jpg --model resnest26d",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

STOP = Stop()


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, switch("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Print the version."""
    if version:
        print(f"featx {__version__}")  # noqa: T201 - data, for scripts
        raise typer.Exit


@app.command(
    "list-models",
    epilog="Example: featx list-models --license apache --max-params 30M --stride 4,8,16,32 --sort params --limit 20",
)
def list_models(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATTERN", help="Glob patterns, or parts of names; a model must match one of them."),
    ] = None,
    pretrained: Annotated[bool, switch("--pretrained", help="Only models with pretrained weights.")] = False,
    stride: Annotated[
        list[str] | None, typer.Option(metavar="8|4,8", help="Only models with a level at each of these strides.")
    ] = None,
    min_levels: Annotated[int | None, typer.Option(metavar="N", help="Only models with at least N levels.")] = None,
    max_params: Annotated[
        str | None,
        typer.Option(metavar="30M", help="Only models with at most this many parameters, not counting the head."),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", metavar="TEXT", help="Only models with weights whose licence has TEXT in its name."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only models of this family: timm's module, such as resnet.")
    ] = None,
    any_size: Annotated[
        bool,
        switch("--any-size", help="Only models that take other image sizes without being rebuilt."),
    ] = False,
    source: Annotated[
        str,
        typer.Option(
            metavar="timm|ultralytics", help="Library that the models come from; ultralytics needs featx\\[yolo]."
        ),
    ] = "timm",
    sort: Annotated[str, typer.Option(metavar="name|params", help="Order of the list.")] = "name",
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most N models.")] = None,
    names: Annotated[bool, switch("--names", help="Only the names, one per line.")] = False,
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
        "limit": limit,
    }
    with progress.searching() as listener:
        found = find(patterns or (), **wanted, listener=listener)
    tables.models(found, names=names, as_json=as_json)


@app.command(epilog="Example: featx info regnety_032 --image-size 384")
@takes(ModelOptions, ImageOptions, without=("weights", "seed"), optional=("model",))
def info(
    options: dict[str, Any],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The model, as for --model.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a model's levels, input and weights, without fetching any weights."""
    from featx.models.search import describe_model

    with progress.searching() as listener:
        described = describe_model(ModelRequest(**{**options, "model": one_model(name, options)}), listener)
    tables.description(described, as_json=as_json)


@app.command(epilog="Example: featx extract photos/ --model resnest26d --strides 8,16,32 --output features/photos")
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
            metavar="LIST",
            rich_help_panel=ImageOptions.panel,
            help="File with one path per line (or with NUL between them).",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the feature maps of images; run the same command again to resume.

    Exit status: 0 all done, 1 could not run, 2 wrong usage, 3 some images failed,
    11 another run holds the output, 130 or 143 stopped.
    """
    named = tuple(text for text in inputs or () if text != "-")
    job = Job(inputs=named, listed=read_lists(inputs or (), from_file), **options)
    from featx.engine.extract import run

    silent = quiet or as_json
    with streams.captured_libraries() as libraries, progress.progress(quiet=silent, libraries=libraries) as listener:
        report = run(job, listener, STOP, libraries.size)
    reports.report(report, dry_run=job.dry_run, quiet=quiet, as_json=as_json)
    raise typer.Exit(3 if report.failures else 0)


@app.command(epilog="Example: featx similar features/photos photo.jpg -k 10 --output sheet.png")
@takes(RunOptions, only=("device",))
def similar(
    options: dict[str, Any],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run with embeddings.")],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="An image.")],
    count: Annotated[int, typer.Option("-k", metavar="N", min=1, help="Number of images to find.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="SHEET.png", help="Picture of the results, with scores.")
    ] = None,
    with_self: Annotated[
        bool, switch("--with-self", help="Keep the query itself among the results, if it is one of the run's images.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the images of a run that are most similar to a query image, by the cosine of their embeddings."""
    from featx.explore import similarity

    if output:
        similarity.require_drawable(output)
    with progress.waiting("searching"):
        found = similarity.similar(run, query, count, with_self=with_self, **options)
    tables.neighbours(found, as_json=as_json)
    if output:
        similarity.draw(found, output)
        tables.drawn(found, output, as_json=as_json)


@app.command(epilog="Example: featx bench --model resnet50 --images photos/ --precision bf16")
@takes(
    *(ModelOptions, ImageOptions, KeepOptions, StoreOptions, NetworkOptions, RunOptions),
    without=("weights", "seed", "format", "isolate"),
)
def bench(
    options: dict[str, Any],
    images: Annotated[
        str | None,
        typer.Option(metavar="DIR", rich_help_panel=ImageOptions.panel, help="Photos to use.", show_default="made up"),
    ] = None,
    count: Annotated[
        int, typer.Option(min=8, max=100_000, rich_help_panel=ImageOptions.panel, help="Photos in a round.")
    ] = 64,
    rounds: Annotated[
        int, typer.Option(min=1, max=1000, rich_help_panel=ImageOptions.panel, help="Rounds to take medians over.")
    ] = 3,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where the time goes on this machine: each stage alone, then all together; weights are random."""
    job = Job(inputs=() if images is None else (images,), weights="random", **options)
    from featx.engine import bench as benchmark

    with progress.waiting("timing"):
        value = benchmark.bench(job, count, rounds)
    tables.timings(value, as_json=as_json)


@app.command(epilog="Example: featx fetch --model resnet50.a1_in1k --output models/resnet50")
@takes(ModelOptions, only=("model",))
def fetch(
    options: dict[str, Any],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write them to.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch weights and configuration into a folder, for --model local-dir:DIR on a machine without a network."""
    from featx.models import fetching

    tables.fetched(fetching.fetch(options["model"], output), as_json=as_json)


@app.command(epilog="Example: featx verify features/photos --recompute 20")
def verify(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the run.")],
    recompute: Annotated[
        int, typer.Option(metavar="N", min=0, help="Extract N random images again, and compare the results.")
    ] = 0,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            metavar="",
            help="Forget missing and damaged outputs, so that the next extract recreates them.",
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every output of a run against the manifest: sha256, arrays, shapes, types, finite numbers.

    Exit status: 0 all is well, 1 something is missing, damaged or not computed yet, 11 a run holds the folder.
    """
    from featx.explore.verify import verify as check

    with progress.checking(quiet=as_json) as listener:
        verified = check(folder, recompute=recompute, repair=repair, listener=listener)
    tables.verified(verified, as_json=as_json)
    raise typer.Exit(0 if verified.sound and verified.complete else 1)

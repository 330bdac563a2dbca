# Commands that take a model: each takes options, makes one call, and passes the result to the tables.
"""From models to runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featx.cli import completion, descriptions, progress, reports, streams, tables
from featx.cli.application import STOP, command, lock_ray
from featx.cli.arguments import Debug, Json, Quiet, read_lists, switch, takes, written_to
from featx.command_options import BenchOptions, FilterOptions, ListOptions, OrderOptions
from featx.errors import ModelError, UsageError
from featx.options import GROUPS, ImageOptions, KeepOptions, ModelOptions, StoreOptions
from featx.requests import ONE, Job, ModelRequest
from featx.run_options import NetworkOptions, RunOptions
from featx.runs.recipe_files import completed_by_recipe


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
            help="Print the options of a run, given by its folder instead of a model, for extract --recipe.",
            rich_help_panel=ModelOptions.panel,
        ),
    ] = False,
    modules: Annotated[
        bool,
        switch(
            "--modules",
            help="List every module of the network, with what extract --module would keep of it.",
            rich_help_panel=ModelOptions.panel,
        ),
    ] = False,
    module: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATTERN",
            help="List only this module, or those that match a pattern, such as 'blocks.*.mlp'.",
            show_default=False,
            rich_help_panel=ModelOptions.panel,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a model's levels, input and weights, or those of a run.

    A run is given by its folder or URL. Fetches no weights.
    """
    from featx.models.search import describe_modules

    of_run = recipe or descriptions.is_run(options["model"])
    if (modules or module) and of_run:
        raise UsageError("--modules is about a model, not about a run", "Name the model of the run")
    if modules or module:
        patterns = [each for text in module or () for each in text.split(",")]
        descriptions.modules(describe_modules(ModelRequest(**options), patterns), as_json=as_json)
        return
    if of_run:
        descriptions.run(options, recipe=recipe, as_json=as_json)
        return
    _show_model(options, as_json=as_json)


def _show_model(options: dict[str, Any], *, as_json: bool) -> None:
    """Show a model, or the run in a folder whose name no model has."""
    from featx.models.search import describe_model

    try:
        with progress.searching() as listener:
            described = describe_model(ModelRequest(**options), listener)
    except ModelError:
        folder = f"./{options['model']}"
        if options.keys() != {"model"} or not descriptions.is_run(folder):  # other options are about a model
            raise
        descriptions.run({"model": folder}, recipe=False, as_json=as_json)
    else:
        descriptions.description(described, as_json=as_json)


@command(epilog="Example: featx extract photos/ --model resnest26d --strides 8,16,32 --output features/photos")
@takes(*GROUPS, optional=("model",))
def extract(
    options: dict[str, Any],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", help="Files, archives, folders, quoted patterns, URLs, or - for a list on standard input."
        ),
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

    The model is named by --model, or by the recipe that --like or --recipe reads.
    Run the same command again to resume.

    Exit status: 0 all done, 1 could not run, 2 wrong usage, 3 some images failed
    or boxes could not be used, 11 another run holds the output, 130 or 143 stopped.
    """
    named = tuple(text for text in inputs or () if text != "-")
    job = Job(inputs=named, listed=read_lists(inputs or (), from_file), **completed_by_recipe(options))
    from featx.engine.extract import run

    lock_ray(job)
    with (
        streams.captured_libraries() as libraries,
        progress.progress(quiet=quiet or as_json, libraries=libraries, forecasts=not job.dry_run) as listener,
    ):
        report = run(job, listener, STOP, libraries.size)
    reports.report(report, dry_run=job.dry_run, quiet=quiet, as_json=as_json)
    raise typer.Exit(3 if report.failures or report.box_faults else 0)


@command(epilog="Example: featx bench resnet50 --images photos/ --precision bf16")
@takes(
    *(ModelOptions, ImageOptions, BenchOptions, KeepOptions, StoreOptions, NetworkOptions, RunOptions),
    without=("weights", "seed", "isolate"),
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
        Path | None, written_to("FOLDER", "Folder to write the model to.", default="models/MODEL")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a model into a folder, for a machine without a network.

    On that machine, use it with --model local-dir:FOLDER.
    """
    from featx.models import fetching

    tables.fetched(fetching.fetch(options["model"], output), as_json=as_json)

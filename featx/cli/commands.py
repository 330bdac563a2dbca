# The command line: arguments to a request, one call, and its result to the renderer. The only file that imports typer.
"""Commands of featx."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featx.cli import streams, tables
from featx.engine.stopping import InterruptedByError, Stop
from featx.errors import LESS, FeatxError, StoppedError, StuckError, UsageError, is_out_of_memory
from featx.options import Job, Limits, ModelRequest
from featx.version import __version__

app = typer.Typer(
    name="featx",
    help="Image files in, the multi-scale feature maps of any timm backbone out.",
    epilog="Example: featx extract photo.jpg --model resnest26d",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WEIGHTS_PANEL, IMAGE_PANEL, OUTPUT_PANEL = "Model", "Images", "Output and run"
FEATURES_PANEL = "What to keep"
LIMITS_PANEL = "What one image may take"

STOP = Stop()

# In one forward pass; more is a slip of the hand.
MOST_IMAGES = 65_536


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        rich_help_panel=WEIGHTS_PANEL,
        help="timm's name (arch, arch.tag, hf-hub:owner/name, local-dir:path), or ultralytics' (yolov8n).",
    ),
]
Part = Annotated[
    str,
    typer.Option(
        metavar="backbone|neck|all",
        rich_help_panel=WEIGHTS_PANEL,
        help="Of a detector: its backbone, the maps that enter its head, or both.",
    ),
]
OutIndices = Annotated[
    str | None,
    typer.Option(
        metavar="0,2,-1|all",
        rich_help_panel=WEIGHTS_PANEL,
        help="Levels by timm's index, negative ones from the end (default: timm's choice for the model).",
    ),
]
Strides = Annotated[
    str | None,
    typer.Option(
        metavar="8,16,32", rich_help_panel=WEIGHTS_PANEL, help="Levels by stride instead: the deepest of each."
    ),
]
OutputStride = Annotated[
    int | None,
    typer.Option(
        metavar="8",
        rich_help_panel=WEIGHTS_PANEL,
        help="Dilate the network so that no level is coarser. About a third of the networks can.",
    ),
]
Maps = Annotated[
    bool | None,
    typer.Option(
        "--maps/--no-maps",
        rich_help_panel=FEATURES_PANEL,
        help="Keep the levels' maps (default: where the format can hold them).",
    ),
]
Norm = Annotated[
    bool,
    typer.Option(
        "--norm",
        rich_help_panel=FEATURES_PANEL,
        help="Apply a transformer's final norm to its levels; `featx info` says whether there is one.",
    ),
]
PrefixTokens = Annotated[
    bool,
    typer.Option(
        "--prefix-tokens",
        rich_help_panel=FEATURES_PANEL,
        help="Class and register tokens of every level too, as level_N_prefix.",
    ),
]
Final = Annotated[
    bool,
    typer.Option(
        "--final", rich_help_panel=FEATURES_PANEL, help="The map that the embedding is made of too, as final."
    ),
]
Embedding = Annotated[
    bool,
    typer.Option(
        "--embedding", rich_help_panel=FEATURES_PANEL, help="The vector before the classifier too, as embedding."
    ),
]
Pool = Annotated[
    str | None,
    typer.Option(
        metavar="avg|max|gem|cls",
        rich_help_panel=FEATURES_PANEL,
        help="Make the embedding so of the final map, not as the network's own head does.",
    ),
]
TestSize = Annotated[
    bool,
    typer.Option(
        "--test-size",
        rich_help_panel=IMAGE_PANEL,
        help="The size and crop that the weights were tested with, where they differ from the model's own.",
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="384|256x320",
        rich_help_panel=IMAGE_PANEL,
        help="Model input: one side, or HEIGHTxWIDTH (default: the model's own).",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="fp32|bf16|fp16", rich_help_panel=OUTPUT_PANEL, help="What the network computes in; fp32 is exact."
    ),
]
Backend = Annotated[
    str, typer.Option(metavar="torch|compile|openvino", rich_help_panel=OUTPUT_PANEL, help="What runs the network.")
]
Dtype = Annotated[
    str, typer.Option(metavar="float32|float16", rich_help_panel=OUTPUT_PANEL, help="What the maps are written as.")
]
Device = Annotated[
    str,
    typer.Option(metavar="auto|cpu|cuda|cuda:0,1|all|mps", rich_help_panel=OUTPUT_PANEL, help="Where to compute."),
]
BatchSize = Annotated[
    str,
    typer.Option(metavar="N|auto", rich_help_panel=OUTPUT_PANEL, help="Images in one forward pass."),
]
WorkersCount = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        rich_help_panel=OUTPUT_PANEL,
        help="Forward passes at a time (default: one a core).",
    ),
]
MaxPixels = Annotated[
    str,
    typer.Option(
        metavar="179M",
        rich_help_panel=LIMITS_PANEL,
        help="Width times height, as stored and as resized; more is a failure.",
    ),
]
MaxBytes = Annotated[
    str, typer.Option(metavar="1G", rich_help_panel=LIMITS_PANEL, help="Size of the file; more is a failure.")
]
TimeLimit = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0.1, rich_help_panel=LIMITS_PANEL, help="To read and decode it."),
]
MemoryLimit = Annotated[
    str,
    typer.Option(metavar="4G", rich_help_panel=LIMITS_PANEL, help="For decoding; held to with --isolate, on Linux."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.", is_eager=True)] = False,
) -> None:
    """Do what concerns every command."""
    if version:
        print(f"featx {__version__}")  # noqa: T201 - data, for scripts
        raise typer.Exit


@app.command(
    "list-models",
    epilog="Example: featx list-models --license apache --max-params 30M --stride 4,8,16,32 --sort params --limit 20",
)
def list_models(
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="PATTERN", help="Glob patterns or parts of names; any may match.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only models with pretrained weights.")] = False,
    stride: Annotated[
        list[str] | None, typer.Option(metavar="8|4,8", help="Only with a level at each of these strides.")
    ] = None,
    min_levels: Annotated[int | None, typer.Option(metavar="N", help="Only with at least so many levels.")] = None,
    max_params: Annotated[
        str | None, typer.Option(metavar="30M", help="Only with at most so many parameters, without the head.")
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", metavar="TEXT", help="Only with weights whose licence has this in its name."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only of this family: timm's module, such as resnet.")
    ] = None,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Only those that take other image sizes without being rebuilt.")
    ] = False,
    source: Annotated[
        str, typer.Option(metavar="timm|ultralytics", help="Whose models; ultralytics' need featx\\[yolo].")
    ] = "timm",
    sort: Annotated[str, typer.Option(metavar="name|params", help="The order.")] = "name",
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most so many.")] = None,
    names: Annotated[bool, typer.Option("--names", help="Names alone, one a line.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the models that can be used, with the stride and channels of their levels."""
    from featx.models.search import list_models as find

    wanted: dict[str, Any] = {
        "pretrained": pretrained,
        "strides": [number for text in stride or () for number in _numbers(text, float, "--stride", "8 or 4,8")],
        "min_levels": min_levels,
        "max_parameters": None if max_params is None else _amount(max_params, "--max-params"),
        "license": license_,
        "family": family,
        "any_size": any_size,
        "source": source,
        "sort": sort,
        "limit": limit,
    }
    with tables.searching() as listener:
        found = find(patterns or (), **wanted, listener=listener)
    tables.models(found, names=names, as_json=as_json)


@app.command(epilog="Example: featx info --model regnety_032 --image-size 384")
def info(
    model: Model,
    image_size: ImageSize = None,
    test_size: TestSize = False,
    out_indices: OutIndices = None,
    strides: Strides = None,
    output_stride: OutputStride = None,
    part: Part = "backbone",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a model's levels, input and weights; needs no weights and no network."""
    from featx.models.search import describe_model

    request = _request(
        model,
        out_indices=out_indices,
        strides=strides,
        output_stride=output_stride,
        image_size=image_size,
        test_size=test_size,
        part=part,
    )
    with tables.searching() as listener:
        described = describe_model(request, listener)
    tables.description(described, as_json=as_json)


@app.command(epilog="Example: featx extract photos/ --model resnest26d --strides 8,16,32 --output features/photos")
def extract(
    model: Model,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Files, folders, quoted patterns, or - for a list on standard input."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="pretrained|random|FILE",
            rich_help_panel=WEIGHTS_PANEL,
            help="Where the parameters come from; pretrained is never replaced by anything else.",
        ),
    ] = "pretrained",
    seed: Annotated[int, typer.Option(rich_help_panel=WEIGHTS_PANEL, help="Of random weights.")] = 0,
    out_indices: OutIndices = None,
    strides: Strides = None,
    output_stride: OutputStride = None,
    part: Part = "backbone",
    embedding: Embedding = False,
    pool: Pool = None,
    final: Final = False,
    maps: Maps = None,
    prefix_tokens: PrefixTokens = False,
    norm: Norm = False,
    from_file: Annotated[
        Path | None,
        typer.Option(metavar="LIST", rich_help_panel=IMAGE_PANEL, help="A file with one path a line (or NUL between)."),
    ] = None,
    image_size: ImageSize = None,
    test_size: TestSize = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            rich_help_panel=OUTPUT_PANEL,
            help="The run's folder (default: features/MODEL).",
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="npz|npy|parquet",
            rich_help_panel=OUTPUT_PANEL,
            help="A file an image; or one array or a table of all embeddings.",
        ),
    ] = "npz",
    dtype: Dtype = "float32",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            rich_help_panel=OUTPUT_PANEL,
            help="Start anew: remove what an earlier call left in the folder.",
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", rich_help_panel=OUTPUT_PANEL, help="Try images again that failed and are unchanged."
        ),
    ] = False,
    hash_inputs: Annotated[
        bool,
        typer.Option(
            "--hash-inputs",
            rich_help_panel=OUTPUT_PANEL,
            help="Tell changed images by their sha256, not by size and time.",
        ),
    ] = False,
    device: Device = "auto",
    precision: Precision = "fp32",
    backend: Backend = "torch",
    batch_size: BatchSize = "auto",
    workers: WorkersCount = None,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate",
            rich_help_panel=LIMITS_PANEL,
            help="Decode in processes of their own; without it, after a crash or a hang.",
        ),
    ] = False,
    max_pixels: MaxPixels = "179M",
    max_bytes: MaxBytes = "1G",
    time_limit: TimeLimit = 120.0,
    memory_limit: MemoryLimit = "4G",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT_PANEL, help="Say nothing but failures and errors.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT_PANEL,
            help="The summary, with output folder and failures, on standard output.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", rich_help_panel=OUTPUT_PANEL, help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Write the feature maps of images; run the same command again to resume.

    Exit status: 0 all done, 1 could not run, 2 wrong usage, 3 some images failed,
    11 another run holds the output, 130 or 143 stopped.
    """
    levels = (out_indices, strides, output_stride, image_size, test_size)
    request = _request(model, weights, seed, *levels, precision, backend)
    request = replace(request, part=part, embedding=embedding, pool=pool, final=final)
    request = replace(request, prefix_tokens=prefix_tokens, norm=norm)
    named = tuple(text for text in inputs or () if text != "-")
    listed = _listed(inputs or [], from_file)
    limits = _limits(max_pixels, max_bytes, time_limit, memory_limit)
    how = (device, _batch_size(batch_size), workers, dtype, format_, overwrite, retry_failed, hash_inputs, isolate)
    job = Job(named, request, listed, output, *how, limits, maps)
    from featx.engine.extract import run

    with streams.libraries_apart() as chatter, tables.progress(quiet=quiet or as_json, chatter=chatter) as listener:
        report = run(job, listener, STOP, chatter.size)
    tables.report(report, quiet=quiet, as_json=as_json)
    raise typer.Exit(3 if report.failures else 0)


@app.command(epilog="Example: featx similar features/photos photo.jpg -k 10 --output sheet.png")
def similar(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run with embeddings.")],
    query: Annotated[Path, typer.Argument(metavar="QUERY", help="An image.")],
    count: Annotated[int, typer.Option("-k", metavar="N", min=1, help="How many.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="SHEET.png", help="A picture of them, with scores.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the images of a run that are most similar to another one, by the cosine of their embeddings."""
    from featx.explore import similarity

    with tables.waiting("looking"):
        found = similarity.similar(run, query, count, device=device)
    tables.neighbours(found, as_json=as_json)
    if output:
        similarity.draw(found, output)


@app.command(epilog="Example: featx bench --model resnet50 --images photos/ --precision bf16")
def bench(
    model: Model,
    images: Annotated[
        str | None, typer.Option(metavar="DIR", rich_help_panel=IMAGE_PANEL, help="Photos to use (default: made up).")
    ] = None,
    count: Annotated[
        int, typer.Option(min=8, max=100_000, rich_help_panel=IMAGE_PANEL, help="How many in a round.")
    ] = 64,
    rounds: Annotated[
        int, typer.Option(min=1, max=1000, rich_help_panel=IMAGE_PANEL, help="Medians are taken over them.")
    ] = 3,
    image_size: ImageSize = None,
    out_indices: OutIndices = None,
    strides: Strides = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    precision: Precision = "fp32",
    backend: Backend = "torch",
    batch_size: BatchSize = "auto",
    workers: WorkersCount = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where the time goes on this machine: every stage alone, then all together; weights are random."""
    request = _request(model, "random", 0, out_indices, strides, None, image_size, False, precision, backend)
    inputs = () if images is None else (images,)
    job = Job(inputs, request, (), None, device, _batch_size(batch_size), workers, dtype)
    from featx.engine import bench as benchmark

    with tables.waiting("timing"):
        value = benchmark.bench(job, count, rounds)
    tables.timings(value, as_json=as_json)


@app.command(epilog="Example: featx fetch --model resnet50.a1_in1k --output models/resnet50")
def fetch(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to put it into.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch weights and configuration into a folder, for --model local-dir:DIR on a machine without a network."""
    from featx.models import fetching

    tables.fetched(fetching.fetch(model, output), as_json=as_json)


@app.command(epilog="Example: featx verify features/photos --recompute 20")
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")],
    recompute: Annotated[
        int, typer.Option(metavar="N", min=0, help="Extract N images again, and compare what comes out.")
    ] = 0,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Forget what is missing or damaged; the next extract makes just that."),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every output of a run against the manifest: sha256, arrays, shapes, types, finite numbers.

    Exit status: 0 all is well, 1 something is missing, damaged or not computed yet, 11 a run is working there.
    """
    from featx.explore.verify import verify as check

    with tables.checking(quiet=as_json) as listener:
        verified = check(folder, recompute=recompute, repair=repair, listener=listener)
    tables.verified(verified, as_json=as_json)
    raise typer.Exit(0 if verified.sound and verified.complete else 1)


def main() -> None:
    """Run the command line, and turn every error into one line and an exit status."""
    streams.protect()
    STOP.listen()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with an image goes into its line
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # and what is wrong with a download into one of ours
    streams.leave(_status())


def _status() -> int:
    """Run a command, and say what it comes to."""
    try:
        _require_words(sys.argv[1:])
        app(prog_name="featx")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except InterruptedByError:
        return _fail(StoppedError("Stopped", signal=STOP.signal))
    except Exception as error:  # noqa: BLE001 - the border: a person gets one line, not a traceback
        return _fail(_in_one_line(error))
    return 0


def _require_words(arguments: list[str]) -> None:
    """Refuse an empty argument, which would be read as the current folder, or as nothing at all.

    Raises
    ------
    UsageError
        If there is one.
    """
    empty = next((text for text in arguments if re.fullmatch(r"(--[\w-]+=)?", text)), None)
    if empty is not None:
        what = f"{empty.removesuffix('=')} has an empty value" if empty else "One of the arguments is empty"
        raise UsageError(what, "Check the quotes, and variables that may not be set")


def _in_one_line(error: Exception) -> FeatxError:
    """Say what an error is about that no other place has said."""
    if isinstance(error, FeatxError):
        return error
    if is_out_of_memory(error):
        said = FeatxError("There is not enough memory", LESS)
    elif isinstance(error, StuckError):
        said = FeatxError(f"{error.item.path} {error}", "Leave that image out")
    elif isinstance(error, OSError):
        reason = error.strerror or str(error)
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        said = FeatxError(f"{where}{reason}", "Check the path and the disk")
    else:
        said = FeatxError(f"Unexpected {type(error).__name__}: {error}", "Run it again with --debug, and report it")
    said.__cause__ = error
    return said


def _fail(error: FeatxError) -> int:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    else:
        tables.error(error)
    return error.exit_status


def _request(
    model: str,
    weights: str = "pretrained",
    seed: int = 0,
    out_indices: str | None = None,
    strides: str | None = None,
    output_stride: int | None = None,
    image_size: str | None = None,
    test_size: bool = False,
    precision: str = "fp32",
    backend: str = "torch",
    part: str = "backbone",
) -> ModelRequest:
    return ModelRequest(
        name=model,
        weights=weights,
        seed=seed,
        out_indices=_indices(out_indices),
        strides=None if strides is None else tuple(_numbers(strides, float, "--strides", "8,16,32")),
        output_stride=output_stride,
        image_size=None if image_size is None else _size(image_size),
        test_size=test_size,
        precision=precision,
        backend=backend,
        part=part,
    )


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    numbers = _numbers(text, int, "--batch-size", "8 or auto")
    if len(numbers) > 1 or not 1 <= numbers[0] <= MOST_IMAGES:
        raise UsageError(f"--batch-size must be from 1 to {MOST_IMAGES}, or auto", "Write one number, such as 8")
    return int(numbers[0])


def _limits(pixels: str, size: str, seconds: float, memory: str) -> Limits:
    return Limits(
        _amount(pixels, "--max-pixels"), _amount(size, "--max-bytes"), seconds, _amount(memory, "--memory-limit")
    )


def _indices(text: str | None) -> tuple[int, ...] | Literal["all"] | None:
    if text is None or text == "all":
        return text  # type: ignore[return-value]
    return tuple(_numbers(text, int, "--out-indices", "0,2,-1 or all"))


def _numbers(text: str, kind: Any, option: str, example: str) -> list[Any]:
    try:
        return [kind(piece) for piece in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is no list of numbers", f"Write it like {example}") from error


def _amount(text: str, option: str) -> int:
    """Read a number: 30M, 1.5G, 250k or plain."""
    number = re.fullmatch(r"([0-9]*\.?[0-9]+)([kmgb]?)", text.lower())
    scale = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
    amount = float(number[1]) * scale[number[2]] if number else 0.0
    if not 1 <= amount < 1e18:
        raise UsageError(f"{option} must be a number of at least 1", "Write it like 30M, 1.5G or 250k")
    return int(amount)


def _size(text: str) -> tuple[int, int]:
    pieces = text.lower().split("x")
    if len(pieces) > 2 or not all(len(piece) < 10 and piece.isdecimal() and int(piece) > 0 for piece in pieces):
        raise UsageError(
            f"--image-size {text!r} is no size", "Write one side (384) or height x width (256x320), in pixels"
        )
    return int(pieces[0]), int(pieces[-1])


def _listed(inputs: list[str], from_file: Path | None) -> tuple[str, ...]:
    """Read the lists of paths: standard input where an input is ``-``, and the file."""
    from featx.images import lists

    listed: tuple[str, ...] = ()
    if "-" in inputs and sys.stdin:  # which is None where it was closed
        listed = lists.read_stream(sys.stdin.buffer, "The list on standard input")
    return listed + (lists.read_file(from_file) if from_file is not None else ())

# Requests: all options of a call together, and which of them contradict each other.
"""Requests for a pyramid or a run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from featx.declaring import declared, group
from featx.errors import UsageError
from featx.format_options import TarOptions
from featx.options import (
    BoxOptions,
    ImageOptions,
    KeepOptions,
    Limits,
    ModelOptions,
    OutputOptions,
    StoreOptions,
)
from featx.run_options import EngineOptions, NetworkOptions, RecipeOptions, RunOptions, TileOptions
from featx.sharding import ShardOptions
from featx.smaller_options import SmallerOptions


@group
class ModelRequest(ModelOptions, ImageOptions, KeepOptions, NetworkOptions):
    """A request for a pyramid: everything that determines its network, weights and arrays."""

    def __post_init__(self) -> None:
        """Check and convert; maps are included unless switched off."""
        super().__post_init__()
        if self.maps is None:
            object.__setattr__(self, "maps", True)
        require_consistent(self)


@group
class Job(
    ModelOptions,
    RecipeOptions,
    ImageOptions,
    TileOptions,
    KeepOptions,
    BoxOptions,
    SmallerOptions,
    StoreOptions,
    OutputOptions,
    TarOptions,
    ShardOptions,
    NetworkOptions,
    RunOptions,
    EngineOptions,
    Limits,
):
    """One call of ``featx extract``: its images and all of its options.

    Attributes
    ----------
    inputs : tuple of str
        Files, archives, tables, folders and glob patterns, or URLs of these.
    listed : tuple of str
        Paths from lists (``--from-file``, standard input).
    """

    inputs: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check and convert."""
        super().__post_init__()
        require_consistent(self)

    @property
    def request(self) -> ModelRequest:
        """The requested pyramid; what is in boxes is taken from maps, even if those are not kept."""
        asked = {each.name: getattr(self, each.name) for each in declared(ModelRequest)}
        return ModelRequest(**{**asked, "maps": self.maps is not False or self.boxes is not None})

    @property
    def limits(self) -> Limits:
        """Limits for one image."""
        return Limits(**{each.name: getattr(self, each.name) for each in declared(Limits)})


ONE = "Use one of them"


def _contradictions(asked: ModelRequest | Job) -> tuple[tuple[bool, str, str], ...]:
    """Return the contradictions to check: whether each was requested, what is wrong, and how to fix it."""
    by_index, by_stride = asked.out_indices is not None, asked.strides is not None
    job = asked if isinstance(asked, Job) else None
    native = asked.fit == "native"
    return (
        (by_index and by_stride, "--out-indices and --strides both choose the levels", ONE),
        (asked.test_size and asked.image_size is not None, "--image-size and --test-size both choose the size", ONE),
        (
            native and (asked.image_size is not None or asked.test_size),
            "--fit native takes every photo at its own size",
            "Leave out --image-size and --test-size; --max-side limits the size",
        ),
        (
            asked.max_side is not None and not native,
            "--max-side is for --fit native",
            "Add --fit native, or choose the size of the input with --image-size",
        ),
        (
            asked.crop_pct is not None and asked.fit in ("squash", "pad", "native"),
            f"--crop-pct is for --fit crop; {asked.fit} keeps the whole photo",
            "Leave out --crop-pct",
        ),
        (
            native and asked.backend != "torch",
            f"--backend {asked.backend} prepares the network for one size of input, and --fit native has many",
            "Leave out --backend",
        ),
        (asked.seed != 0 and asked.weights != "random", "--seed is for --weights random", "Leave out --seed"),
        (asked.pool is not None and not asked.embedding, "--pool needs --embedding", "Add --embedding"),
        *_without_levels(asked, job),
        (
            job is not None and job.box_size is not None and job.boxes is None,
            "--box-size needs --boxes",
            "Add --boxes FILE",
        ),
        *(chain(_of_smaller(job), _of_ray(job), _of_tiles(job)) if job else ()),
    )


def _of_tiles(job: Job) -> Iterator[tuple[bool, str, str]]:
    """Yield the contradictions between tiles and other options."""
    tiled, native = job.tile is not None, job.fit == "native"
    yield tiled and not native, "--tile is for --fit native", "Add --fit native, or leave out --tile"
    yield job.halo is not None and not tiled, "--halo is for tiles", "Add --tile N, or leave out --halo"
    yield (
        job.level_mpp is not None and not tiled,
        "--level-mpp is for slides, which take tiles",
        "Add --fit native --tile 1024",
    )
    yield (
        job.level_mpp is not None and job.isolate,
        "--isolate decodes in separate processes, which cannot read slides at a --level-mpp",
        ONE,
    )
    yield (
        tiled and job.max_side is not None,
        "--tile takes pictures with all their pixels, and --max-side shrinks them",
        ONE,
    )
    for name in ("embedding", "prefix_tokens", "attention", "boxes"):
        option = f"--{name.replace('_', '-')}"
        wrong = tiled and bool(getattr(job, name))
        yield wrong, f"{option} needs the whole picture at once, and --tile shows the network a part at a time", ONE
    yield tiled and job.engine != "local", "--tile is for --engine local", "Leave out --engine, or --tile"


def _without_levels(asked: ModelRequest | Job, job: Job | None) -> Iterator[tuple[bool, str, str]]:
    """Yield the contradictions of keeping no levels."""
    if asked.maps is not False or (job and job.boxes):
        return
    yield (
        not (asked.final or asked.embedding or asked.modules),
        "--no-maps leaves nothing to keep",
        "Add --embedding, --final, --module or --boxes" if job else "Add --embedding, --final or --module",
    )
    chosen = asked.out_indices is not None or asked.strides is not None
    yield chosen, "Levels were chosen, but --no-maps keeps none", ONE
    yield asked.norm, "--norm needs levels, but --no-maps keeps none", ONE
    tokens = asked.prefix_tokens and not asked.modules
    yield tokens, "--prefix-tokens needs levels, but --no-maps keeps none", ONE
    yield asked.attention, "--attention needs levels, but --no-maps keeps none", ONE
    yield (
        job is not None and job.dtype != "float32" and not (asked.final or asked.modules),
        "--dtype is about maps, and none are kept",
        "Leave out --dtype; embeddings are always float32",
    )


def _of_smaller(job: Job) -> Iterator[tuple[bool, str, str]]:
    """Yield the contradictions between the options that make maps smaller."""
    nothing = job.maps is False and not (job.final or job.modules)
    for name in ("grid", "components"):
        wrong = nothing and getattr(job, name) is not None
        yield wrong, f"--{name} is about maps, and none are kept", f"Leave out --{name} or --no-maps"
    yield job.grid_pool != "avg" and job.grid is None, "--grid-pool needs --grid", "Add --grid, such as --grid 7"
    for name in ("fit_on", "basis"):
        wrong, option = getattr(job, name) is not None and job.components is None, f"--{name.replace('_', '-')}"
        yield wrong, f"{option} needs --components", "Add --components, such as --components 64"
    both = job.fit_on is not None and job.basis is not None
    yield both, "--fit-on fits components, and --basis takes those of another run", ONE


def _of_ray(job: Job) -> Iterator[tuple[bool, str, str]]:
    """Yield the contradictions between the engine and the options of Ray's."""
    for name in ("ray_address", "ray_workers", "gpus_per_worker"):
        option = f"--{name.replace('_', '-')}"
        wrong = job.engine != "ray" and getattr(job, name) is not None
        yield wrong, f"{option} needs --engine ray", f"Add --engine ray, or leave out {option}"


def require_consistent(asked: ModelRequest | Job) -> None:
    """Refuse options that contradict each other; every command and function calls this.

    Raises
    ------
    UsageError
        Naming the options, and how to fix it.
    """
    for wrong, what, hint in _contradictions(asked):
        if wrong:
            raise UsageError(what, hint)

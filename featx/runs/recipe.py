# The recipe of a run: everything that changes its numbers, and how two of them are compared.
"""One folder, one recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import to_builtins

from featx.declaring import declared
from featx.errors import OutputError
from featx.images.locators import stat_of
from featx.images.tiles import Tiling
from featx.options import RECIPE, BoxOptions, ImageOptions, KeepOptions, ModelOptions, StoreOptions
from featx.paths import absolute, expanded
from featx.requests import Job
from featx.run_options import NetworkOptions, TileOptions
from featx.smaller_options import SmallerOptions
from featx.values import Field, Input, Level, Stat, Weights, plain
from featx.version import library_versions

# Fields of a recipe, each with the fields that differ as a consequence.
FOLLOW = {"model": ("weights", "levels", "input", "rebuilt"), "format": ("maps", "levels"), "maps": ("levels",)}

# Fields that decide which parameters are built; the hash of random weights covers only those.
PARTS_BUILT = {"levels", "strides", "part", "maps", "final", "embedding", "pool", "format"}

START_OVER = "Choose another folder with --output, or start from scratch with --overwrite"


def require_same_recipe(folder: Path, earlier: dict[str, Any] | None, now: dict[str, Any], architecture: str) -> None:
    """Refuse to mix two recipes, the new one of a network of that architecture, in one folder.

    Raises
    ------
    OutputError
        Naming what differs, then and now, but not what merely follows from it.
    """
    if earlier and (changes := differences(earlier, now, architecture)):
        text = ", ".join(changes.values())
        raise OutputError(f"{folder} holds features made with a different recipe ({text})", START_OVER)


def differences(earlier: dict[str, Any], now: dict[str, Any], architecture: str) -> dict[str, str]:
    """Compare the recipe of an earlier run with that of a network of an architecture now.

    Returns
    -------
    dict of str to str
        The fields that differ, but not what merely follows from them, each with what it was then and is now.
    """
    flat_then, flat_now = dict(_flat(earlier["recipe"])), dict(_flat(now))
    part = earlier["weights"].get("part")
    if part and ":" not in flat_then["weights"]:  # an earlier featx named the container in the summary alone
        flat_then["weights"] += f":{part}"
    fields = [name for name in {**flat_then, **flat_now} if flat_then.get(name) != flat_now.get(name)]
    # One network has several names. An earlier featx did not record the versions of all libraries, and a library that
    # only one of the two recipes uses says nothing that the model or the backend does not say already.
    same_network = earlier.get("architecture") == architecture and flat_then["weights"] == flat_now["weights"]
    unsaid = {name for name in fields if name.startswith("versions.") and not (name in flat_then and name in flat_now)}
    fields = [name for name in fields if name not in unsaid and not (name == "model" and same_network)]
    fields = _causes(fields, random=earlier["weights"]["kind"] == "random")
    return {name: f"{name} {_short(flat_then.get(name))} -> {_short(flat_now.get(name))}" for name in fields}


def _causes(fields: Sequence[str], *, random: bool) -> list[str]:
    """Leave out fields that differ because others do."""
    follow = {name for field in fields for name in FOLLOW.get(field, ())}
    if random and not PARTS_BUILT.isdisjoint(fields):
        follow.add("weights")
    return [field for field in fields if field.partition(".")[0] not in follow]


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


class Model(Protocol):
    """What a run has to know of the pyramid that makes it; see `featx.models.pyramid.Pyramid`."""

    @property
    def name(self) -> str: ...  # noqa: D102 - as there
    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def architecture(self) -> str: ...  # noqa: D102
    @property
    def weights(self) -> Weights: ...  # noqa: D102
    @property
    def levels(self) -> Sequence[Level]: ...  # noqa: D102
    @property
    def final(self) -> Level | None: ...  # noqa: D102
    @property
    def modules(self) -> Sequence[Level]: ...  # noqa: D102
    @property
    def captures(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def input(self) -> Input: ...  # noqa: D102
    @property
    def rebuilt(self) -> bool: ...  # noqa: D102
    @property
    def device(self) -> Any: ...  # noqa: D102
    @property
    def files(self) -> Sequence[str]: ...  # noqa: D102


# The order in which recipes are written; options that came later follow.
ORDER = (
    *("model", "weights", "levels", "strides", "part", "maps", "norm", "prefix_tokens", "final", "embedding", "pool"),
    *("output_stride", "input", "rebuilt", "precision", "backend", "dtype", "format", "boxes", "box_size"),
    *("grid", "grid_pool", "components", "basis"),
    *("batch_size", "memory_format", "device", "threads", "versions"),
)


def recipe_of(
    pyramid: Model,
    job: Job,
    batch_size: int,
    threads: int,
    boxes: str | None = None,
    basis: str | None = None,
    tiling: Tiling | None = None,
) -> dict[str, Any]:
    """Everything that changes the numbers: the options that say so of themselves, and what they came to.

    Boxes and the basis of components are in it by digests of what is in their files.
    """
    recipe = {
        **{name: getattr(job, name) for name in RECIPE},
        "strides": job.strides if job.part == "all" else None,  # elsewhere the levels say it
        "boxes": boxes,
        "basis": basis,
        "tile": tiling and tiling.tile,
        "halo": tiling and tiling.halo,
        "model": pyramid.name,
        "weights": pyramid.weights.identity,
        "levels": [level.index for level in pyramid.levels],
        "modules": list(pyramid.captures) or None,
        "input": {fact: value for fact, value in plain(pyramid.input).items() if fact != "configuration"},
        "rebuilt": pyramid.rebuilt,
        "batch_size": batch_size,
        "memory_format": "channels_last",
        "device": pyramid.device.type,
        "threads": threads,
        "versions": library_versions(pyramid.source, job.backend),
    }
    ordered = {name: recipe[name] for name in (*ORDER, *(name for name in recipe if name not in ORDER))}
    return plain(ordered)  # type: ignore[no-any-return]


class Stored(Protocol):
    """What comes out of a pyramid to be stored; see `featx.engine.computing.Computer`."""

    @property
    def pyramid(self) -> Model: ...  # noqa: D102 - as there
    @property
    def fields(self) -> Sequence[Field]: ...  # noqa: D102
    @property
    def levels(self) -> Sequence[Level]: ...  # noqa: D102
    @property
    def final(self) -> Level | None: ...  # noqa: D102
    @property
    def modules(self) -> Sequence[Level]: ...  # noqa: D102


def facts_of(made: Stored, recipe: dict[str, Any], job: Job) -> dict[str, Any]:
    """The part of a summary that does not change while the run goes on."""
    pyramid, dtype = made.pyramid, recipe["dtype"]

    def stored(levels: Sequence[Level]) -> list[dict[str, Any]]:
        return [{**to_builtins(level), "dtype": dtype} for level in levels]

    facts = {
        "model": pyramid.name,
        "source": pyramid.source,
        "architecture": pyramid.architecture,
        "weights": pyramid.weights,
        "levels": stored(made.levels),
        **({"final": stored([made.final])[0]} if made.final else {}),
        **({"modules": stored(made.modules)} if made.modules else {}),
        "arrays": made.fields,
        "input": pyramid.input,
        "recipe": recipe,
        "versions": recipe["versions"],
        "options": options_of(job),
        "files": [file_facts(path) for path in pyramid.files],
    }
    return plain(facts)  # type: ignore[no-any-return]


def options_of(job: Job) -> dict[str, Any]:
    """Return the options that choose the network, the images' fit and what is kept, as they were given.

    The files of boxes and of a basis are not among them: what is in them matters.
    """
    models = (ModelOptions, ImageOptions, TileOptions, NetworkOptions)
    groups = (*models, KeepOptions, BoxOptions, SmallerOptions, StoreOptions)
    named = [each.name for group in groups for each in declared(group, without=["boxes", "basis"])]
    options = {name: getattr(job, name) for name in named}
    if job.weights not in ("pretrained", "random"):
        options["weights"] = absolute(expanded(job.weights))
    return plain(options)  # type: ignore[no-any-return]


def file_facts(path: str) -> dict[str, Any]:
    """Return what shows whether a file has changed: its path, its size, and when it was modified."""
    stat = stat_of(path)
    return {"path": path, **to_builtins(stat or Stat(0, 0))}

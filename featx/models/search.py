# Which models there are, and what one of them is like: read from the catalogue, or measured where it has no entry.
"""Listing and describing models."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any, Literal, cast

from featx.command_options import ListOptions
from featx.errors import ModelError
from featx.models import catalogue, libraries
from featx.models.catalogue import Catalogue, Entry
from featx.requests import ModelRequest
from featx.values import Note, SearchListener, Surveyed

# Models that are measured between two times that the catalogue is saved.
SAVE_EVERY = 50


def list_models(
    patterns: str | Sequence[str] = (),
    *,
    pretrained: bool = False,
    strides: Sequence[float] | float = (),
    min_levels: int | None = None,
    max_parameters: int | None = None,
    license: str | None = None,  # noqa: A002 - the word of the command line and of timm
    family: str | None = None,
    any_size: bool = False,
    source: str = "timm",
    sort: Literal["name", "params"] = "name",
    limit: int | None = None,
    listener: SearchListener | None = None,
) -> list[dict[str, Any]]:
    """List the models of the installed timm, or of another library; of several filters, all have to hold.

    Parameters
    ----------
    patterns : str or sequence of str
        Glob patterns, or parts of a name; a model that matches one of them is listed.
    pretrained : bool
        Only those with pretrained weights.
    strides : sequence of float or float
        Only those with a level at each of these strides, in model-input pixels.
    min_levels : int or None
        Only those with at least so many levels.
    max_parameters : int or None
        Only those with at most so many parameters, the head not counted.
    license : str or None
        Only those with weights under a licence that has this in its name; their other tags are left out.
    family : str or None
        Only those of a family, timm's module (or a glob pattern).
    any_size : bool
        Only those that take image sizes other than their own without being rebuilt.
    source : str
        ``timm`` or ``ultralytics``.
    sort : str
        ``name`` or ``params``.
    limit : int or None
        At most so many.
    listener : callable or None
        Called with notes, and with progress where models have to be measured.

    Returns
    -------
    list of dict
        ``model``, ``name`` (with a tag where the model's default weights do not pass), ``source``, ``family``,
        ``parameters``, ``levels`` (all there are), ``default_levels``, ``input``, ``sizes``, ``output_strides``,
        ``embedding``, ``final``, ``prefix_tokens``, ``attention``, ``norm``, and ``pretrained`` (tags with licence,
        input size, hub id).

    Raises
    ------
    ModelError
        If nothing matches; the message has the nearest names, or the filter that left nothing.
    """
    wanted = ListOptions(
        pretrained=pretrained,
        strides=cast(Any, strides),  # which is converted
        min_levels=min_levels,
        max_parameters=max_parameters,
        license=license,
        family=family,
        any_size=any_size,
        source=source,
        sort=sort,
        limit=limit,
    )
    handle = listener or _ignore
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    models = _current(wanted.source, handle)
    names = catalogue.matching(models.names, patterns)
    condition = f"match {' or '.join(patterns)}" if patterns else ""
    if not names:
        raise ModelError(f"No models {condition}", catalogue.advice(patterns, models.names))
    entries = _entries(models, names, handle)
    if not entries:
        raise ModelError(f"None of the models that {condition} could be measured", "Update featx, or use an older timm")
    chosen = catalogue.ordered(catalogue.select(entries, catalogue.filters(wanted), condition), wanted.sort)
    shown = list(chosen)[: wanted.limit]
    if len(shown) < len(chosen):
        handle(Note(f"{len(shown)} of {len(chosen)} models; --limit shows more"))
    return [catalogue.listed(models.source, name, chosen[name], wanted.license) for name in shown]


def describe_model(request: ModelRequest, listener: SearchListener | None = None) -> dict[str, Any]:
    """Describe one model without its weights.

    A plain ``arch`` or ``arch.tag`` is answered from the catalogue; everything else is built on the meta device.

    Returns
    -------
    dict
        ``model, source, architecture, family, layout, parameters, levels, available_levels, input, test_input,
        pretrained, output_strides, fixed_size, sizes, rebuilt, embedding, final, prefix_tokens, attention,
        norm, bytes_per_image``; the last counts the maps of one output file.

    Raises
    ------
    FeatxError
        If there is no such model, or it cannot do what was asked.
    """
    library = libraries.library_of(request.model)
    if ":" in request.model:
        return libraries.library(library).info(request)
    handle = listener or _ignore
    models = _current(library, handle)
    architecture = request.model.partition(".")[0]
    if architecture not in models.names:
        raise catalogue.unknown_model(architecture, models.names, models.renamed, library)
    entry = _entries(models, [architecture], handle).get(architecture)
    if request == ModelRequest(request.model) and catalogue.knows(models, request.model):
        return catalogue.described(models, request.model)
    return libraries.library(library).info(request, entry)


def describe_modules(request: ModelRequest, patterns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """List what the modules of a model give, call by call, by running shapes through it.

    Parameters
    ----------
    request : ModelRequest
        The model.
    patterns : sequence of str
        Only modules that match one of these paths or patterns.

    Returns
    -------
    list of dict
        ``name`` (as ``--module`` takes it), ``type``, ``calls`` in one pass, ``output`` (the output's own shape for one
        photo), ``layout``; ``shape`` of what is kept, ``stride`` and ``offset`` of a map, or None; ``prefix_tokens``;
        ``fault``, why it cannot be kept, or None.

    Raises
    ------
    FeatxError
        If there is no such model, or no module matches.
    """
    from featx.models import modules

    every = libraries.library(libraries.library_of(request.model)).modules(request)
    return modules.facts(modules.matching(request.model, every, patterns))


def _current(library: str, handle: SearchListener) -> Catalogue:
    """Return the catalogue of the installed version of a library."""
    packaged = catalogue.read()
    installed = _version(library)
    if packaged and (packaged.source, packaged.version) == (library, installed):
        return packaged
    path = catalogue.cache_path(library, installed)
    if packaged and packaged.source == library:
        handle(
            Note(
                f"{library} {installed} is installed, but the catalogue is of {packaged.version}: "
                f"models are measured when they are asked for{f' ({path})' if path else ''}"
            )
        )
    kept = catalogue.read(path) if path else None
    if kept and (kept.source, kept.version) == (library, installed):
        return kept
    return libraries.library(library).catalogue()


def _version(library: str) -> str:
    """Return the installed version of a library, or say how to install it."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        libraries.library(library)  # which says so better
        raise


def _entries(models: Catalogue, names: Sequence[str], handle: SearchListener) -> dict[str, Entry]:
    """Return the entries of these models; those that are missing are measured, and saved for the next time."""
    missing = [name for name in names if name not in models.entries]
    if missing:
        _measure(models, missing, handle)
    return {name: models.entries[name] for name in names if name in models.entries}


def _measure(models: Catalogue, missing: Sequence[str], handle: SearchListener) -> None:
    library = libraries.library(models.source)
    try:
        for done, name in enumerate(missing, 1):
            try:
                models.entries[name] = library.entry(name)
            except Exception as error:  # noqa: BLE001 - one model that breaks timm must not cost the others
                handle(Note(f"{name} was skipped: {error}"))
            handle(Surveyed(done, len(missing)))
            if done % SAVE_EVERY == 0:
                _save(models, handle)
    finally:
        _save(models, handle)


def _save(models: Catalogue, handle: SearchListener) -> None:
    path = catalogue.cache_path(models.source, models.version)
    if path is None:
        handle(Note("There is no home folder for a cache: the models will be measured again next time"))
        return
    try:
        catalogue.write(models, path)
    except OSError as error:
        handle(Note(f"{path} cannot be written ({error.strerror}): the models will be measured again next time"))


def _ignore(_: object) -> None:
    """Do nothing."""

# timm's networks, filled: from the weights asked for to a network that holds them, every parameter accounted for.
"""Building a described network and filling it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.models import _builder
from torch import Tensor, nn

from featx.errors import UnavailableError, WeightsError
from featx.models.captures import Captured
from featx.models.checkpoints import Checkpoint, read_checkpoint, split_part
from featx.models.descriptions import Description
from featx.models.hub import hub_file, url_file
from featx.models.timm.building import create
from featx.models.timm.description import Plan
from featx.models.timm.reference import Reference
from featx.models.timm.taps import Tapped
from featx.models.weights import Found, folder_file, hashed, is_finite, require_complete, tensors_sha256
from featx.process import quiet, random_state, replaced
from featx.requests import ModelRequest
from featx.values import RANDOM_WEIGHTS, Weights


def build(description: Description, request: ModelRequest) -> tuple[nn.Module, Weights]:
    """Build the network on the CPU, fill it with the weights asked for, and set it to evaluation.

    Raises
    ------
    WeightsError
        If the weights cannot be found, or do not fill every parameter of the pyramid with finite numbers of its shape.
    """
    if request.weights == "random":
        return _build_random(description, request.seed)
    if request.weights == "pretrained":
        found, source = _pretrained(description.plan.reference)
        path, kind = found.path, "pretrained"
        checkpoint = read_checkpoint(path, source, found.sha256)
    else:
        path, part = split_part(request.weights)
        checkpoint, kind = read_checkpoint(path, str(path.absolute()), part=part), "file"
    module = _build_filled(description, checkpoint)
    weights = Weights(
        kind,  # type: ignore[arg-type]
        checkpoint.source,
        checkpoint.sha256,
        part=checkpoint.part,
        path=str(path.absolute()),
    )
    return module, weights


def _pretrained(reference: Reference) -> tuple[Found, str]:
    """Return a pretrained checkpoint; the error says which other weights a network can have."""
    try:
        return locate(reference)
    except UnavailableError as error:
        others = "give a checkpoint with --weights FILE, or use --weights random to try things out"
        raise UnavailableError(error.message, f"{error.hint}; or {others}") from error


def locate(reference: Reference) -> tuple[Found, str]:
    """Return a pretrained checkpoint as a file on this machine, and where it came from.

    Its sha256 is checked wherever one is stated: by its name in a cache, or in a folder made by ``featx fetch``.

    Raises
    ------
    WeightsError
        If there is none, it is in no cache and cannot be fetched, or it is not the file that was stated.
    """
    prefix, _, location = reference.timm_name.partition(":")
    if prefix == "local-dir" and not reference.name.startswith("hf-hub:"):
        found = hashed(folder_file(Path(location)))
        if (reference.config.get("featx") or {}).get("sha256", found.sha256) != found.sha256:
            raise WeightsError(
                f"{found.path} has changed since it was fetched: its sha256 does not match config.json",
                "Fetch it again",
            )
        return found, str(found.path)
    hub_id = reference.config.get("hf_hub_id") or ""
    if reference.name.startswith("hf-hub:"):
        hub_id = reference.name.partition(":")[2]
    url = reference.config.get("url")
    try:
        if hub_id:
            repository, _, revision = hub_id.partition("@")
            found = hub_file(repository, _hub_names(reference), revision or None)
            return found, f"hf-hub:{hub_id}/{found.path.name}"
        if url:
            return url_file(url), url
    except WeightsError as error:
        raise type(error)(f"No pretrained weights for {reference.name}: {error.message}", error.hint) from error
    raise UnavailableError(
        f"timm has no pretrained weights for {reference.name}", "Choose one of `featx list-models --pretrained`"
    )


def _build_random(description: Description, seed: int) -> tuple[nn.Module, Weights]:
    """Initialise as timm does, from a seed of its own; the caller's random state stays as it was."""
    with random_state(seed):
        module = create_planned(description.plan)
    sha256 = tensors_sha256(dict(module.state_dict()))
    return module, Weights("random", f"seed {seed}", sha256, seed=seed, note=RANDOM_WEIGHTS)


def create_planned(plan: Plan, device: str = "cpu", *, pretrained: bool = False) -> nn.Module:
    """Build the pyramid, or the whole network with what is taken from it."""
    module = create(plan.reference, device, plan.arguments, pretrained=pretrained)
    if plan.taps is None:
        return module
    tapped = Tapped(module, plan.taps)
    return (Captured(tapped, plan.captures, "network") if plan.captures else tapped).eval()


def _hub_names(reference: Reference) -> list[str]:
    """File names to look for in a repository: safetensors before pickles, as timm has it."""
    named: str = reference.config.get("hf_hub_filename") or "pytorch_model.bin"
    stem = named.removesuffix(".bin")
    return [named] if stem == named else [f"{stem.replace('pytorch_', '')}.safetensors", named]


def _build_filled(description: Description, checkpoint: Checkpoint) -> nn.Module:
    """Build, load, and make sure that the checkpoint has every parameter of the pyramid.

    timm's own loading is not strict when it builds a pyramid: what does not match stays random. Here its conversion of
    old checkpoints is used, and the loading is ours.
    """
    loaded: dict[str, Tensor] = {}
    originals: dict[int, str] = {}
    infinite: set[str] = set()

    def load(network: nn.Module, convert: Callable[..., dict[str, Tensor]] | None) -> None:
        targets = network.state_dict(keep_vars=True)
        originals.update({id(target): name for name, target in targets.items()})
        infinite.update(name for name, buffer in network.named_buffers() if not is_finite(buffer))
        loaded.update(_best_fitting(checkpoint.tensors, targets, lambda tensors: _convert(convert, tensors, network)))
        fitting = {
            name: value for name, value in loaded.items() if name in targets and value.shape == targets[name].shape
        }
        network.load_state_dict(fitting, strict=False)

    with _timm_loading_replaced_by(load):
        module = create_planned(description.plan, pretrained=True)
    pyramid = {originals.get(id(target), name): target for name, target in module.state_dict(keep_vars=True).items()}
    feed, what = description.input, "the pyramid" if description.plan.taps is None else "the network"
    require_complete(
        f"{what} {description.name}",
        {name: target for name, target in pyramid.items() if not name.endswith("num_batches_tracked")},
        loaded,
        checkpoint.source,
        f"Weights of {description.name} cannot be resampled to {feed.height}x{feed.width}; leave the image size out"
        if description.rebuilt
        else "",
        infinite,
    )
    return module


def can_be_resampled(reference: Reference, arguments: dict[str, Any]) -> bool:
    """Whether timm's converter makes weights of the network's own size fit the network that is rebuilt for another."""
    own, _ = _network_and_converter(reference, {"features_only": True})
    rebuilt, convert = _network_and_converter(reference, arguments)
    # Real tensors, since some converters look at values; their memory is not touched unless they are resampled.
    converted = _convert(convert, {name: torch.empty(value.shape) for name, value in own.state_dict().items()}, rebuilt)
    return all(
        name in converted and converted[name].shape == value.shape for name, value in rebuilt.state_dict().items()
    )


@contextmanager
def _timm_loading_replaced_by(load: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Hand the network that timm builds in this thread, and timm's converter for its checkpoints, to `load`.

    timm offers no way to come between building a network and loading it; threads that use timm meanwhile get its own
    function.
    """
    ours, original = threading.get_ident(), _builder.load_pretrained

    def replacement(model: nn.Module, *arguments: Any, **options: Any) -> None:
        if threading.get_ident() != ours:
            original(model, *arguments, **options)
        else:
            load(model, options.get("filter_fn"))

    with replaced(_builder, "load_pretrained", replacement):
        yield


def _best_fitting(
    tensors: dict[str, Tensor], targets: dict[str, Tensor], convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Convert the tensors as they are, or without their prefix if more of them then fit.

    As they are comes first: timm's converters know the prefixes of the checkpoints that they were written for.
    """

    def fitting(candidate: dict[str, Tensor]) -> int:
        return sum(name in targets and value.shape == targets[name].shape for name, value in candidate.items())

    plain = convert(tensors)
    if fitting(plain) == len(targets):
        return plain
    return max(plain, convert(strip_prefix(tensors, targets)), key=fitting)


def _convert(
    convert: Callable[..., dict[str, Tensor]] | None, tensors: dict[str, Tensor], network: nn.Module
) -> dict[str, Tensor]:
    """Run timm's converter for checkpoints of other versions and libraries; those it does not know make it fail."""
    if convert is None:
        return tensors
    try:
        with quiet():  # timm's resampling of position tables raises torch's deprecation warnings
            return convert(dict(tensors), network)
    except Exception:  # noqa: BLE001 - what it could not convert will be missing, and is reported as that
        return tensors


def strip_prefix(tensors: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what trainers put before parameter names (``module.``, ``model.``, ``student.backbone.``).

    The prefix under which the most targets are found is the right one; a tie means two networks in one file.

    Raises
    ------
    WeightsError
        If the file holds two complete networks.
    """
    found: dict[str, int] = {}
    for name in tensors:
        pieces = name.split(".")
        for cut in range(len(pieces)):
            if ".".join(pieces[cut:]) in targets:
                prefix = "".join(f"{piece}." for piece in pieces[:cut])
                found[prefix] = found.get(prefix, 0) + 1
    if not found:  # names of another library, which timm's converter may know
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    most = max(found.values())
    best = [prefix for prefix, count in found.items() if count == most]
    if len(best) > 1 and "" not in best:
        raise WeightsError(
            f"The checkpoint holds several networks: {', '.join(best)}",
            f"Choose one: --weights FILE:{best[0].removesuffix('.')}",
        )
    prefix = "" if "" in best else best[0]
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _network_and_converter(reference: Reference, arguments: dict[str, Any]) -> tuple[nn.Module, Any]:
    """Build on the meta device, and catch what timm would load: of a hybrid, its backbone first, the whole last."""
    seen: list[tuple[nn.Module, Any]] = []
    with _timm_loading_replaced_by(lambda network, convert: seen.append((network, convert))):
        create(reference, "meta", arguments, pretrained=True)
    return seen[-1]

# A run's model loaded again, and run in the same batches, so that the same photo gives the same bits.
"""What it takes to reproduce a run's features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.declaring import declaration, declared
from featx.engine.mosaic import Equipment, Tiles
from featx.engine.resources import Workers, spread, use_backend
from featx.engine.room import Room
from featx.engine.tiling import tiling_again
from featx.errors import UsageError
from featx.images.tiles import Tiling
from featx.models.devices import choose_devices
from featx.models.pyramid import Pyramid, load
from featx.options import Limits, StoreOptions
from featx.requests import Job, ModelRequest
from featx.runs.basis import stored
from featx.smaller_options import SmallerOptions

if TYPE_CHECKING:
    import torch

    from featx.engine.boxes import Boxes
    from featx.engine.computing import Computer
    from featx.engine.isolation import Reader
    from featx.runs.formats import Writer


def load_again(summary: dict[str, Any], device: torch.device) -> Pyramid:
    """Load the pyramid of a run as it was then.

    Raises
    ------
    UsageError
        If its weights have changed since.
    """
    pyramid = load(request_of(summary), device)
    if pyramid.weights.sha256 != summary["weights"]["sha256"]:
        raise UsageError(
            "The weights differ from those the run was made with",
            "Restore the weights of the run, or extract again with --overwrite",
        )
    return pyramid


def request_of(summary: dict[str, Any]) -> ModelRequest:
    """Recreate the request for a run's model."""
    recipe, weights, feed = summary["recipe"], summary["weights"], summary["input"]
    several = recipe["part"] == "all"
    file = f"{weights['source']}:{weights['part']}" if weights.get("part") else weights["source"]
    same = {each.name: recipe[each.name] for each in declared(ModelRequest) if declaration(each).in_recipe}
    return ModelRequest(
        **{
            **same,
            "strides": recipe["strides"] if several else None,
            "maps": recipe["maps"] or recipe["boxes"] is not None,  # which the features of boxes are taken from
        },
        model=summary["model"],
        weights=file if weights["kind"] == "file" else weights["kind"],
        seed=weights.get("seed", 0),
        out_indices=None if several else recipe["levels"] or None,
        image_size=(feed["height"], feed["width"]) if feed["configuration"] == "asked" else None,
        test_size=feed["configuration"] == "test",
        **{name: summary.get("options", {}).get(name) for name in ("fit", "max_side", "crop_pct")},
    )


@dataclass(frozen=True, slots=True)
class Again:
    """What it takes to reproduce a run's features."""

    devices: list[torch.device]
    computers: list[Computer]
    workers: Workers
    room: Room | None
    tiling: Tiling | None

    def tiles(self, reader: Reader, limits: Limits, writer: Writer, folder: Path) -> Tiles | None:
        """Make what runs large images, as then, and has a folder for maps that memory does not hold."""
        if self.tiling is None:
            return None
        kit = Equipment(self.computers, self.workers, reader, limits, folder, writer.largest)
        return Tiles(self.tiling, kit, {})

    @property
    def pyramid(self) -> Pyramid:
        """The run's."""
        return self.computers[0].pyramid


def set_up_again(folder: Path, summary: dict[str, Any], device: str, images: int, boxes: Boxes | None = None) -> Again:
    """Load the model of a run, and have it run in the same batches by the same backend, on boxes or without.

    Its maps are made smaller as then, on the components in the run's folder.

    Raises
    ------
    FeatxError
        If the model, or the run's components, are no longer available unchanged.
    """
    devices = choose_devices(device)[:1]
    pyramid = load_again(summary, devices[0])
    recipe, tiling = summary["recipe"], tiling_again(summary)
    smaller = [each.name for group in (SmallerOptions, StoreOptions) for each in declared(group)]
    same = {name: recipe[name] for name in smaller if name in recipe and name != "basis"}
    basis = stored(folder, recipe["basis"]) if recipe["basis"] else None
    keep = {} if boxes is None else {"boxes": "", "maps": recipe["maps"]}
    job = Job(model=pyramid.name, fit=pyramid.request.fit, **same, **keep)
    computers, workers = spread([pyramid], job, images, recipe, boxes=boxes, basis=basis)
    use_backend(computers, workers)
    return Again(devices, computers, workers, Room() if job.fit == "native" else None, tiling)

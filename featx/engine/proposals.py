# Proposals: options that make a run write less, alone and together, and what it would write with them.
"""What ``--dry-run`` and ``--max-disk`` propose; worked out on shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from featx.dtypes import ATTENTION, SCALE
from featx.engine.measures import bytes_each
from featx.models.pyramid import Blueprint
from featx.requests import Job
from featx.runs import formats
from featx.values import Field

# What is proposed of each option, from the value that leaves the most to the one that leaves the least.
DTYPES, COMPONENTS, GRIDS = ("float16", "int8"), (256, 64), (14, 7, 1)

# Height and width of the inputs of photos.
Inputs = Sequence[tuple[int, int]]

# Combinations that are proposed.
MOST = 5


@dataclass(frozen=True, slots=True)
class Proposal:
    """Options as they are typed, and the bytes of an output with them."""

    options: str
    bytes: int


class _Choice(NamedTuple):
    """A value of an option, and what changes with it."""

    text: str
    options: dict[str, Any]
    keeps: Callable[[Field], bool] = lambda _: True


def alone(blueprint: Blueprint, job: Job, inputs: Inputs = ()) -> list[Proposal]:
    """Return what each option saves by itself."""
    now = bytes_each(blueprint, job, inputs)
    singles = [choice for choices in _choices(blueprint, job) for choice in choices[1:]]
    every = (_proposal(blueprint, job, inputs, [choice]) for choice in singles)
    return [proposal for proposal in every if proposal.bytes < now]


def fitting(blueprint: Blueprint, job: Job, limit: float, inputs: Inputs = ()) -> list[Proposal]:
    """Return the combinations whose outputs have at most so many bytes, those that keep the most first.

    One is left out where it only adds options to another one that fits.
    """
    found: dict[frozenset[str], Proposal] = {}
    for choices in product(*_choices(blueprint, job)):
        proposal = _proposal(blueprint, job, inputs, choices)
        if proposal.options and proposal.bytes <= limit:
            found[frozenset(choice.text for choice in choices if choice.text)] = proposal
    least = [proposal for said, proposal in found.items() if not any(other < said for other in found)]
    return sorted(least, key=lambda each: -each.bytes)[:MOST]


def _choices(blueprint: Blueprint, job: Job) -> Iterator[Sequence[_Choice]]:
    """Yield the choices of each option that was not given: first to leave it out."""
    if job.boxes or not (job.maps is not False or job.final or job.modules) or formats.vectors_only(job.format):
        return
    nothing = _Choice("", {})
    if strides := _coarse(blueprint, job):
        finer = {each.key for each in blueprint.description.levels if each.stride not in strides}
        text = f"--strides {','.join(f'{stride:g}' for stride in strides)}"
        yield nothing, _Choice(text, {}, lambda field: _base(field) not in finer)
    if job.grid is None:
        yield nothing, *(_Choice(f"--grid {cells}", {"grid": (cells, cells)}) for cells in GRIDS)
    if job.components is None:
        yield nothing, *(_Choice(f"--components {count}", {"components": count}) for count in COMPONENTS)
    if job.dtype == "float32":
        yield nothing, *(_Choice(f"--dtype {dtype}", {"dtype": dtype}) for dtype in DTYPES)


def _coarse(blueprint: Blueprint, job: Job) -> list[float]:
    """Return the larger half of the strides, where there are enough of them and levels can be chosen by stride."""
    levels = blueprint.description.levels
    strides = sorted({level.stride for level in levels if isinstance(level.stride, int | float)})
    possible = len(strides) > 2 and job.maps is not False and job.part != "all"
    return strides[len(strides) // 2 :] if possible else []


def _base(field: Field) -> str:
    """Return the name of the level that an array belongs to."""
    return field.key.removesuffix(SCALE).removesuffix("_prefix").removesuffix(ATTENTION)


def _proposal(blueprint: Blueprint, job: Job, inputs: Inputs, choices: Sequence[_Choice]) -> Proposal:
    options = {name: value for choice in choices for name, value in choice.options.items()}
    text = " ".join(choice.text for choice in choices if choice.text)

    def keeps(field: Field) -> bool:
        return all(choice.keeps(field) for choice in choices)

    return Proposal(text, bytes_each(blueprint, replace(job, **options), inputs, keeps))

# Modules: every module of a network with what it gives in a pass, and the choice of those whose outputs are kept.
"""Looking into a network while shapes run through it.

How an output is laid out is measured: by where the cells of the image have gone in it (`featx.models.order`), and at
which spacing (`featx.models.tracing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from featx.errors import ModelError
from featx.models.levels import placed
from featx.models.order import NO_CELL, Order, ranks
from featx.models.tracing import Grid, Tracer
from featx.nearest import did_you_mean
from featx.text import count_of
from featx.values import MODULE, Level

# Layouts in which an output is a map.
OF_MAPS = ("NCHW", "NHWC", "NLC", "NCL")


@dataclass(frozen=True, slots=True)
class Output:
    """What a module gave for one blank image.

    Attributes
    ----------
    kind : str
        Its type, if it is not a tensor.
    shape : tuple of int
        Its own shape, (1, ...), if it is one.
    layout : str
        As `featx.models.captures.Capture` has it; empty where it cannot be kept.
    sides : (int, int)
        Height and width of its map.
    prefix : int
        Tokens before those of its map.
    grid : Grid or None
        Where the cells of its map lie.
    in_head : bool
        Whether it was given after the network's last block.
    """

    kind: str = ""
    shape: tuple[int, ...] = ()
    layout: str = ""
    sides: tuple[int, int] = (0, 0)
    prefix: int = 0
    grid: Grid | None = None
    in_head: bool = False

    @property
    def channels(self) -> int:
        """C of what is kept."""
        if self.layout == "vector":
            return math.prod(self.shape)
        return self.shape[-1] if self.layout in ("NHWC", "NLC") else self.shape[1]

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Shape of what is kept for an image."""
        if self.layout == "tokens":
            return self.shape[1:]
        return (self.channels, *self.sides) if self.layout in OF_MAPS else (self.channels,)


@dataclass(slots=True)
class Module:
    """A module of a network, by its path, and what its calls in one pass gave."""

    name: str
    kind: str
    outputs: list[Output] = field(default_factory=list)

    def level(self, call: int) -> Level:
        """Describe what one of its calls gave, as a level."""
        output = self.outputs[call]
        height, width = output.sides if output.layout in OF_MAPS else (None, None)
        level = Level(-1, self.called(call), output.channels, None, None, height, width, part=MODULE)
        return placed(level, output.grid) if output.grid else level

    def called(self, call: int) -> str:
        """What a call is called: ``layer1.0.act1@2`` is the second."""
        return self.name if len(self.outputs) == 1 else f"{self.name}@{call + 1}"

    def fault(self, number: str = "") -> str:
        """Say why its output, of all calls or of that number, cannot be kept; empty if it can be."""
        calls = len(self.outputs)
        if not calls:
            return "does not run in the pass, which ends before the classifier"
        if number and not (number.isdecimal() and 1 <= int(number) <= calls):
            return f"runs {_times(calls)}, so there is no call {number}"
        if calls > 1 and not number:
            return f"runs {_times(calls)} in a pass"
        output = self.outputs[int(number or 1) - 1]
        if output.layout:
            return ""
        if output.kind:
            return f"gives a {output.kind}, not a tensor"
        text = " x ".join(map(str, output.shape))
        if output.shape[:1] != (1,):
            return f"gives windows or other pieces, {text} for one photo, and not one array per photo"
        return f"gives {text}, which is no map, and neither tokens nor a vector"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


# Runs a network on a (B, 3, H, W) batch, and calls its last argument where the head begins.
Run = Callable[[Tensor, Callable[[], None]], None]


def survey(begin: nn.Module, run: Run, image: Tensor) -> list[Module]:
    """Run shapes through a network, and note what each of its modules gives.

    Parameters
    ----------
    begin : nn.Module
        The network, or the part of it where the paths of modules begin.
    run : callable
        See `Run`.
    image : Tensor
        (1, 3, H, W), blank, where the network is.
    """
    paths = {id(module): name for name, module in begin.named_modules() if name}
    found = {name: Module(name, type(begin.get_submodule(name)).__name__) for name in paths.values()}
    rows: dict[str, list[int]] = {name: [] for name in found}
    tracer, order, head = Tracer(), Order(), list[bool]()
    tracer.begin(image)
    order.begin(image)

    def note(name: str, output: Any) -> None:
        found[name].outputs.append(_output(output, tracer, order, in_head=bool(head)))

    def count(name: str, output: Any) -> None:
        rows[name].append(len(output) if isinstance(output, Tensor) and output.ndim else 0)

    _pass(begin, paths, note, lambda: run(image, lambda: head.append(True)), tracer, order)
    _pass(begin, paths, count, lambda: run(torch.cat([image, image]), lambda: None))
    for name, module in found.items():
        for call, (output, number) in enumerate(zip(module.outputs, rows[name], strict=False)):
            if output.layout and number != 2:  # a table, and not something of each photo
                module.outputs[call] = replace(output, layout="", shape=(0, *output.shape[1:]))
    return list(found.values())


def _pass(begin: nn.Module, paths: dict[int, str], look: Any, run: Callable[[], None], *modes: Any) -> None:
    """Run a network, and look at what each module gives."""
    hooks = [
        module.register_forward_hook(lambda module, _, output: look(paths[id(module)], output))
        for module in begin.modules()
        if id(module) in paths
    ]
    try:
        with torch.no_grad(), ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            run()
    finally:
        for hook in hooks:
            hook.remove()


def _output(output: Any, tracer: Tracer, order: Order, *, in_head: bool) -> Output:
    """Find out how an output is laid out."""
    if not isinstance(output, Tensor):
        return Output(kind=type(output).__name__, in_head=in_head)
    shape, numbers, grid = tuple(output.shape), order.numbers_of(output), tracer.cells_of(output)
    plain = Output(shape=shape, in_head=in_head)
    if shape[:1] != (1,) or output.is_complex():
        return plain
    if output.ndim == 2 or (output.ndim == 4 and numbers is None and (1, 1) in (shape[1:3], shape[2:])):
        return replace(plain, layout="vector")  # also of a map that was pooled
    if output.ndim == 4:
        return _map(plain, numbers, grid)
    return _tokens(plain, numbers, grid) if output.ndim == 3 else plain


def _map(output: Output, numbers: Tensor | None, grid: Grid | None) -> Output:
    """Recognise a map by its cells, which are counted row by row along two of its dimensions."""
    if numbers is None:
        return output
    for layout, cells in (("NCHW", numbers[0, 0]), ("NHWC", numbers[0, :, :, 0])):
        if _in_order(cells.flatten()):
            sides = (cells.shape[0], cells.shape[1])
            return replace(output, layout=layout, sides=sides, grid=_fitted(grid, *sides))
    return output


def _tokens(output: Output, numbers: Tensor | None, grid: Grid | None) -> Output:
    """Recognise the tokens of a map, with those before them; others are kept as they are."""
    for layout, cells in (("NLC", numbers[0, :, 0]), ("NCL", numbers[0, 0])) if numbers is not None else ():
        prefix = int((cells != NO_CELL).int().argmax())
        own = cells[prefix:]
        if len(own) > 1 and _in_order(own) and (here := _of_length(grid, len(own))):
            sides = (here[0].length, here[1].length)
            return replace(output, layout=layout, sides=sides, prefix=prefix, grid=here)
    return replace(output, layout="tokens")


def _in_order(cells: Tensor) -> bool:
    """Whether these are all cells of a map, row by row."""
    return bool((cells != NO_CELL).all()) and torch.equal(ranks(cells), torch.arange(len(cells)))


def _of_length(grid: Grid | None, count: int) -> Grid | None:
    """Bring a grid to so many cells, its neighbours having been merged in squares."""
    if grid is None:
        return None
    merged = math.isqrt(grid[0].length * grid[1].length // count)
    here = _fitted(grid, grid[0].length // max(merged, 1), grid[1].length // max(merged, 1))
    return here if here and here[0].length * here[1].length == count else None


def _fitted(grid: Grid | None, height: int, width: int) -> Grid | None:
    if grid is None:
        return None
    first, second = grid[0].merged(height), grid[1].merged(width)
    return None if first is None or second is None else (first, second)


def choose(name: str, modules: Sequence[Module], asked: Sequence[str]) -> tuple[list[tuple[Module, int]], list[str]]:
    """Find the modules whose outputs are kept.

    Parameters
    ----------
    name : str
        The model.
    modules : sequence of Module
        All there are.
    asked : sequence of str
        Paths, and patterns of paths; of modules that run several times with the number of a call, ``act1@2``.

    Returns
    -------
    chosen : list of (Module, int)
        Modules and calls, from 0, in the order of the network.
    notes : list of str
        What patterns match and cannot be kept, in a sentence each.

    Raises
    ------
    ModelError
        If there is no such module, or its output cannot be kept; the error says what can.
    """
    by_name = {module.name: module for module in modules}
    chosen, notes = set(), []
    for text in asked:
        path, _, number = text.partition("@")
        matching = [path] if path in by_name else [each for each in by_name if fnmatchcase(each, path)]
        if not matching:
            raise _absent(name, path, by_name)
        faulty = [each for each in matching if by_name[each].fault(number)]
        if len(faulty) == len(matching):
            raise _refusal(name, faulty, number, by_name)
        if faulty:
            example = f"{faulty[0]}, which {by_name[faulty[0]].fault(number)}"
            notes.append(f"{count_of(len(faulty), 'module')} of --module {text} cannot be kept, such as {example}")
        chosen |= {(each, int(number or 1) - 1) for each in matching if each not in faulty}
    every = [(module, call) for module in modules for call in range(len(module.outputs))]
    return [(module, call) for module, call in every if (module.name, call) in chosen], notes


def _absent(name: str, path: str, by_name: Mapping[str, Module]) -> ModelError:
    """Return the error of a module that does not exist."""
    what = f"{name} has no module that matches {path}" if set(path) & set("*?[") else f"{name} has no module {path}"
    hint = did_you_mean(path, by_name)
    return ModelError(what, f"{hint}{' ' if hint else ''}`featx info {name} --modules` lists all")


def _refusal(name: str, faulty: Sequence[str], number: str, by_name: Mapping[str, Module]) -> ModelError:
    """Return the error of modules whose outputs cannot be kept, with what can be kept instead of the first."""
    first = by_name[faulty[0]]
    others = f"; the same is true of {len(faulty) - 1} more" if len(faulty) > 1 else ""
    what = f"{first.name} of {name} {first.fault(number)}{others}"
    if len(first.outputs) > 1:
        return ModelError(what, f"Choose a call: --module {first.name}@1 to {first.name}@{len(first.outputs)}")
    parents = [".".join(first.name.split(".")[:end]) for end in range(first.name.count("."), 0, -1)]
    inner = [each for each in by_name if each.startswith(f"{first.name}.")]
    usable = next((each for each in (*parents, *inner) if not by_name[each].fault()), "")
    more = f"`featx info {name} --modules` shows what can be kept"
    return ModelError(what, f"Use --module {usable}, for example; {more}" if usable else more[:1].upper() + more[1:])

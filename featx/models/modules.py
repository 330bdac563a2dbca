# Modules: every module of a network with what it gives in a pass, and the choice of those whose outputs are kept.
"""Looking into a network while shapes run through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from featx.errors import ModelError
from featx.models.captures import Capture
from featx.models.descriptions import Description
from featx.models.layouts import OF_MAPS, Output, laid_out, shape_text
from featx.models.levels import placed
from featx.models.order import Order
from featx.models.tracing import Tracer
from featx.nearest import did_you_mean
from featx.requests import ModelRequest
from featx.text import count_of
from featx.values import MODULE, Level


@dataclass(slots=True)
class Module:
    """A module of a network, by its path.

    Attributes
    ----------
    name, kind : str
        Its path, and its class.
    outputs : list of Output
        What its calls in one pass gave.
    inner : bool
        Whether modules in it run.
    """

    name: str
    kind: str
    outputs: list[Output] = field(default_factory=list)
    inner: bool = False

    def level(self, call: int) -> Level:
        """Describe what one of its calls gave, as a level."""
        output = self.outputs[call]
        height, width = output.sides if output.layout in OF_MAPS else (None, None)
        level = Level(-1, self.called(call), output.channels, None, None, height, width, part=MODULE)
        return placed(level, output.grid) if output.grid else level

    @property
    def calls(self) -> range:
        """Its calls in one pass, from 0."""
        return range(len(self.outputs))

    def called(self, call: int) -> str:
        """What a call is called: ``layer1.0.act1@2`` is the second."""
        return self.name if len(self.outputs) <= 1 else f"{self.name}@{call + 1}"

    def fault(self, number: str = "") -> str:
        """Say why its output, of all calls or of that number, cannot be kept; empty if it can be."""
        calls = len(self.outputs)
        if not calls and self.inner:
            return "is not run as a whole, only the modules in it"
        if not calls:
            return "does not run: the network has no use for it here, or it is the classifier, which is left out"
        if number and not (number.isdecimal() and 1 <= int(number) <= calls):
            return f"runs {_times(calls)}, so there is no call {number}"
        if calls > 1 and not number:
            return f"runs {_times(calls)} in a pass"
        return self.outputs[int(number or 1) - 1].fault


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


# Runs a network on a (B, 3, H, W) batch, and calls its last argument where the head begins.
Run = Callable[[Tensor, Callable[[], None]], object]


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
        found[name].outputs.append(laid_out(output, tracer, order, in_head=bool(head)))

    def count(name: str, output: Any) -> None:
        rows[name].append(len(output) if isinstance(output, Tensor) and output.ndim else 0)

    _pass(begin, paths, note, lambda: run(image, lambda: head.append(True)), tracer, order)
    _pass(begin, paths, count, lambda: run(torch.cat([image, image]), lambda: None))
    for name, module in found.items():
        for call, (output, number) in enumerate(zip(module.outputs, rows[name], strict=False)):
            if output.layout and number != 2:
                fault = f"gives {shape_text(output.shape)}, which is the same for every photo"
                module.outputs[call] = replace(output, layout="", fault=fault)
        for parent in parents(name):
            found[parent].inner |= bool(module.outputs)
    return list(found.values())


def _pass(begin: nn.Module, paths: dict[int, str], look: Any, run: Callable[[], object], *modes: Any) -> None:
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
        found = [module.name for module in matching(name, modules, [path])]
        faulty = [each for each in found if by_name[each].fault(number)]
        if len(faulty) == len(found):
            raise _refusal(name, faulty, number, by_name)
        if faulty:
            example = f"{faulty[0]}, which {by_name[faulty[0]].fault(number)}"
            notes.append(f"{count_of(len(faulty), 'module')} of --module {text} cannot be kept, such as {example}")
        chosen |= {(each, int(number or 1) - 1) for each in found if each not in faulty}
    every = [(module, call) for module in modules for call in module.calls]
    return [(module, call) for module, call in every if (module.name, call) in chosen], notes


def captures_of(description: Description, request: ModelRequest, chosen: Sequence[tuple[Module, int]]) -> list[Capture]:
    """Say how the outputs that were chosen are kept.

    Raises
    ------
    ModelError
        If that depends on the size of photos that have their own.
    """
    native = description.traced if request.fit == "native" else None
    captures = []
    for module, call in chosen:
        output = module.outputs[call]
        if native and output.layout == "tokens":
            raise ModelError(
                f"{module.name} of {description.name} gives tokens of no map, whose number depends on the photo",
                "Leave out --fit native, or choose another module",
            )
        captures.append(
            Capture(
                level=module.level(call),
                module=module.name,
                call=call,
                several=len(module.outputs) > 1,
                layout=output.layout,
                shape=output.kept_shape,
                prefix=output.prefix,
                keep_prefix=request.prefix_tokens,
                traced=native,
            )
        )
    return captures


def with_captures(description: Description, captures: Sequence[Capture], notes: Sequence[str]) -> Description:
    """Add to a description what is kept of modules, after its own arrays."""
    return replace(
        description,
        modules=tuple(each.level for each in captures if each.level.height is not None),
        captures=tuple(each.level.name for each in captures),
        notes=tuple(notes),
        fields=(*description.fields, *(field for each in captures for field in each.fields)),
        plan=replace(description.plan, captures=tuple(captures)),
    )


def with_modules(description: Description, request: ModelRequest, modules: Sequence[Module]) -> Description:
    """Add to a description what was asked for of the network's modules, which `choose` may refuse."""
    chosen, notes = choose(description.name, modules, request.modules or ())
    return with_captures(description, captures_of(description, request, chosen), notes)


def matching(name: str, modules: Sequence[Module], patterns: Sequence[str]) -> list[Module]:
    """Return the modules that match one of some paths and patterns, or all.

    Raises
    ------
    ModelError
        If one of them matches nothing.
    """
    by_name = {module.name: module for module in modules}
    found: set[str] = set()
    for path in patterns:
        names = {path} if path in by_name else {each for each in by_name if fnmatchcase(each, path)}
        if not names:
            raise _absent(name, path, by_name)
        found |= names
    return [module for module in modules if module.name in found or not patterns]


def facts(modules: Sequence[Module]) -> list[dict[str, Any]]:
    """Describe modules call by call; see `featx.models.search.describe_modules`."""
    return [
        fact for module in modules for fact in ([_facts(module, call) for call in module.calls] or [_facts(module)])
    ]


def _facts(module: Module, call: int | None = None) -> dict[str, Any]:
    output = Output(fault=module.fault()) if call is None else module.outputs[call]
    level = module.level(call or 0) if output.layout else None
    return {
        "name": module.called(call or 0),
        "type": module.kind,
        "calls": len(module.outputs),
        "output": list(output.shape[1:]) if output.shape[:1] == (1,) else list(output.shape) or None,
        "layout": output.layout or None,
        "shape": list(output.kept_shape) if level else None,
        "stride": level.stride if level else None,
        "offset": level.offset if level else None,
        "prefix_tokens": output.prefix,
        "fault": output.fault or None,
    }


def _absent(name: str, path: str, by_name: Mapping[str, Module]) -> ModelError:
    """Return the error of a module that does not exist."""
    what = f"{name} has no module that matches {path}" if set(path) & set("*?[") else f"{name} has no module {path}"
    hint = did_you_mean(path, by_name)
    every = f"`featx info {name} --modules` lists"
    return ModelError(what, f"{hint.rstrip('?')}, of those that {every}?" if hint else f"{every} all")


def parents(name: str) -> list[str]:
    """Return the paths of the modules that a module is in, the nearest first."""
    pieces = name.split(".")
    return [".".join(pieces[:end]) for end in range(len(pieces) - 1, 0, -1)]


def _refusal(name: str, faulty: Sequence[str], number: str, by_name: Mapping[str, Module]) -> ModelError:
    """Return the error of modules whose outputs cannot be kept, with what can be kept instead of the first."""
    first = by_name[faulty[0]]
    others = f"; the same is true of {len(faulty) - 1} more" if len(faulty) > 1 else ""
    what = f"{first.name} of {name} {first.fault(number)}{others}"
    if len(first.outputs) > 1:
        return ModelError(what, f"Choose a call: --module {first.name}@1 to {first.name}@{len(first.outputs)}")
    inner = [each for each in by_name if each.startswith(f"{first.name}.")]
    usable = next((each for each in (*parents(first.name), *inner) if not by_name[each].fault()), "")
    more = f"`featx info {name} --modules` shows what can be kept"
    return ModelError(what, f"Use --module {usable}, for example; {more}" if usable else more[:1].upper() + more[1:])

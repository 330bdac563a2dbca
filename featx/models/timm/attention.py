# Attention: how a class token or a pooling query attends to the cells of a level, from the network's own softmax.
"""Attention of one query, found in a network and taken from it.

Most of timm's attention modules call one fused kernel, which has no softmax to read; computed unfused, the maps would
differ in their last bits. So the network runs as it is, and each module whose attention is wanted runs once more on the
same input, unfused and only up to its softmax, of which the query's row is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import ParallelThingsBlock
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featx.values import Level

SOFTMAX = frozenset({torch.softmax, Tensor.softmax, nn.functional.softmax})

# Where in a network an attention module is: in the blocks that make the levels, after them, or in its head.
BLOCK, END, HEAD = "block", "end", "head"


@dataclass(frozen=True, slots=True)
class Attention:
    """Where a level's attention is computed.

    Attributes
    ----------
    level : int
        Its index.
    modules : tuple of str
        The attention modules; the heads of those that run side by side in a block are joined.
    place : str
        ``block``, ``end`` or ``head``; the last two only run if the network is run that far.
    """

    level: int
    modules: tuple[str, ...]
    place: str


@dataclass(frozen=True, slots=True)
class _Softmax:
    """A softmax that a network computed: in which module, of what shape, and whether in its head."""

    module: str
    shape: tuple[int, ...]
    in_head: bool

    def pairs(self, queries: Sequence[int], keys: Sequence[int]) -> bool:
        """Whether its shape is (1, heads, queries, keys), with any of the given numbers of queries and keys."""
        return len(self.shape) == 4 and self.shape[0] == 1 and self.shape[2] in queries and self.shape[3] in keys

    def within(self, module: str) -> bool:
        """Whether it is computed in a module, or in one of its submodules."""
        return self.module == module or self.module.startswith(f"{module}.")


def find(network: Any, levels: Sequence[Level], deepest: int, size: Sequence[int]) -> tuple[Attention, ...]:
    """Find the attention of each level by running a blank image.

    It is that of the class token, in the last softmax of the level's module over cells and prefix tokens. If the class
    token or a pooling query only comes in after the last block, its attention belongs to the deepest level.

    Parameters
    ----------
    network : nn.Module
        The whole network, on the meta device if it runs there; its attention modules are set to run unfused.
    levels : sequence of Level
        Those that are wanted, with the sizes of their maps.
    deepest : int
        The index of the network's deepest level.
    size : sequence of int
        (3, height, width) of the image.

    Returns
    -------
    tuple of Attention
        One for each level that has it.
    """
    softmaxes = _softmaxes(network, size)
    prefix, has_class, modules = _prefix_tokens(network), has_class_token(network), dict(network.named_modules())
    found = []
    for level in levels:
        cells = (level.height or 0) * (level.width or 0)
        tokens = [cells + prefix]
        own = [each for each in softmaxes if has_class and each.within(level.name) and each.pairs(tokens, tokens)]
        if own:
            parallel = isinstance(modules.get(level.name), ParallelThingsBlock)
            names = tuple(each.module for each in (own if parallel else own[-1:]))
            found.append(Attention(level.index, names, BLOCK))
        elif level.index == deepest and softmaxes and _is_of_query(last := softmaxes[-1], cells, prefix, has_class):
            found.append(Attention(level.index, (last.module,), HEAD if last.in_head else END))
    return tuple(found)


def has_class_token(network: nn.Module) -> bool:
    """Whether a class token is among a network's parameters."""
    return next(_class_tokens(network), None) is not None


def _class_tokens(network: nn.Module) -> Iterator[Tensor]:
    for name, value in network.named_parameters():
        if name.rpartition(".")[2].startswith("cls_token"):
            yield value


def watch(module: Any, keep: Callable[[Tensor], None]) -> None:
    """Have `keep` called with the first query's row, (B, heads, keys), of a module's softmax in each pass."""
    forward = module.forward

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def look(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        unfused = copy.copy(module)  # with the same parameters; other threads may be running the module itself
        unfused.fused_attn = False
        with suppress(_Found), _UntilSoftmax(keep):
            type(module).forward(unfused, *arguments, **options)

    def watched(*arguments: Any, **options: Any) -> Any:
        look(arguments, options)
        return forward(*arguments, **options)

    module.forward = watched  # torch.compile, which has to leave `look` alone, would lose a hook


class _Found(Exception):  # noqa: N818 - not an error
    """Ends a pass whose rest is not needed."""


class _UntilSoftmax(TorchFunctionMode):
    """A mode in which a pass ends at its first softmax."""

    def __init__(self, keep: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._keep = keep

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in SOFTMAX:
            self._keep(result[:, :, 0].clone())  # not a view, which would hold on to the rows of all queries
            raise _Found
        return result


class _Record(TorchFunctionMode):
    """A mode that records each softmax with the module that computes it, the last one in `running`."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in SOFTMAX and self.running:
            self.seen.append((self.running[-1], tuple(result.shape)))
        return result


def _softmaxes(network: Any, size: Sequence[int]) -> list[_Softmax]:
    """Switch off fused attention, and return a network's softmaxes in the order in which they are computed."""
    record = _Record()
    for name, module in network.named_modules():
        if getattr(module, "fused_attn", False):
            module.fused_attn = False
        module.register_forward_pre_hook(lambda *_, name=name: record.running.append(name))
        module.register_forward_hook(lambda *_: (record.running.pop(), None)[1])
    with torch.no_grad(), record:
        end = network.forward_features(torch.zeros(1, *size, device=next(network.parameters()).device))
        before = len(record.seen)
        with suppress(AttributeError, NotImplementedError):  # encoders have no head
            network.forward_head(end)
    return [_Softmax(module, shape, number >= before) for number, (module, shape) in enumerate(record.seen)]


def _prefix_tokens(network: nn.Module) -> int:
    """Return how many tokens precede those of the cells, the class token first, in networks with such tokens."""
    stated: int = getattr(network, "num_prefix_tokens", None) or 0
    return stated or next((value.shape[-2] for value in _class_tokens(network)), 1)  # pit does not state it


def _is_of_query(softmax: _Softmax, cells: int, prefix: int, has_class: bool) -> bool:
    """Whether a network's last softmax is that of a separate query, or of a token that precedes the cells."""
    if softmax.pairs([1], range(cells, cells + prefix + 1)):
        return True
    return (softmax.in_head or has_class) and softmax.pairs([cells + 1], [cells + 1])

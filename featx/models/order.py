# The order of cells in a tensor: numbers that take the place of cells, and go where a network moves them.
"""Telling rows and columns, tokens, windows and channels apart, by following the cells of an image.

Beside every tensor that descends from the input there is one of the same shape that holds numbers: to which cell of a
map an element belongs, counted row by row. What only moves elements, such as a permutation, a window that is cut or a
token that is put in front, moves the numbers. Convolutions and pools count the cells of their result anew, products
take the numbers of what gives their rows or columns, and whatever keeps a shape keeps its numbers. Where none of this
holds, nothing is known any more, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten

# The number of what is no cell: a class token, padding.
NO_CELL = -1

# An argument of an operation, and its numbers.
Numbered = tuple[Tensor, Tensor]


class Order(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode in which tensors carry the numbers of their cells; only one image at a time goes through."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers: Any = WeakIdKeyDictionary()

    def begin(self, image: Tensor) -> None:
        """Make a (1, 3, H, W) tensor the input."""
        self._numbers[image] = _counted(image)

    def numbers_of(self, value: Tensor) -> Tensor | None:
        """Return the numbers of a tensor's cells, in its shape; None where they are not known."""
        found: Tensor | None = self._numbers.get(value)
        return found

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [(value, self._numbers[value]) for value in tree_leaves((args, kwargs)) if self._knows(value)]
        result = function(*args, **(kwargs or {}))
        if given:
            outputs = tree_leaves(result)
            for output, numbers in zip(outputs, _numbers(function, outputs, given, args, kwargs or {}), strict=True):
                if numbers is not None and numbers.shape == output.shape:
                    self._numbers[output] = numbers
                elif isinstance(output, Tensor) and output in self._numbers:  # changed in place
                    del self._numbers[output]
        return result

    def _knows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._numbers


def _numbers(
    function: Any, outputs: list[Any], given: list[Numbered], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor | None]:
    """Return the numbers of an operation's outputs."""
    packet = function.overloadpacket
    if packet in _MOVING:
        known = {id(value): numbers for value, numbers in given}
        moved = tree_map(lambda value: _number(value, known), args)
        options = {name: kwargs[name] for name in ("dim", "start", "end", "step") if name in kwargs}
        try:
            return list(tree_leaves((_MOVING[packet] or function)(*moved, **options)))
        except Exception:  # noqa: BLE001 - an operation that these numbers cannot follow
            return [None] * len(outputs)
    follow = _RULES.get(packet, _keep)
    return [follow(output, given, args) if isinstance(output, Tensor) else None for output in outputs]


def _number(value: Any, known: dict[int, Tensor]) -> Any:
    """Replace a tensor by its numbers; what does not descend from the input is no cell."""
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else torch.full(value.shape, NO_CELL)


def _keep(output: Tensor, given: list[Numbered], args: tuple[Any, ...]) -> Tensor | None:
    """Keep the numbers of the first of the same shape."""
    del args
    return next((numbers for value, numbers in given if value.shape == output.shape), None)


def _count(output: Tensor, given: list[Numbered], args: tuple[Any, ...]) -> Tensor | None:
    """Count the cells of a map that was made of a map; in windows of one, cells only stay where they are."""
    del args
    _, numbers = given[0]
    is_map = output.ndim == numbers.ndim == 4 and not _differs(numbers[:, 0], 0)  # heads may be images of a batch
    if is_map and is_counted(numbers[0, 0].flatten()):
        return _counted(output)
    if output.ndim == numbers.ndim and output.shape[2:] == numbers.shape[2:] and len(output) == len(numbers):
        return numbers[:, :1].expand(output.shape)
    return None


def _count_pooled(output: Tensor, given: list[Numbered], args: tuple[Any, ...]) -> Tensor | None:
    """Count the cells of a map that is pooled to a given size; a single one has no place."""
    return None if output.shape[2:].numel() == 1 else _count(output, given, args)


def _lay_out(output: Tensor, given: list[Numbered], args: tuple[Any, ...]) -> Tensor | None:
    """Count the cells of a map that windows are put together to."""
    del given, args
    return _counted(output) if output.ndim == 4 else None


def _multiply(output: Tensor, given: list[Numbered], args: tuple[Any, ...]) -> Tensor | None:
    """Take the numbers of the rows of a product where its rows are different cells, or else those of its columns."""
    numbers = {id(value): each for value, each in given}
    left, right = (numbers.get(id(value)) for value in args[-2:] if isinstance(value, Tensor))
    if left is not None and (right is None or _differs(left, -2)):
        return left[..., :1].expand(output.shape)
    if right is not None and _differs(right, -1):
        return right[..., :1, :].expand(output.shape)
    return None


def _multiply_bias(output: Tensor, given: list[Numbered], args: tuple[Any, ...]) -> Tensor | None:
    return _multiply(output, given, args[1:3])


def _differs(numbers: Tensor, dim: int) -> bool:
    """Whether numbers differ along a dimension."""
    return bool((numbers != numbers.narrow(dim, 0, 1)).any())


def _counted(image: Tensor) -> Tensor:
    """Count the cells of a (1, C, H, W) map row by row."""
    height, width = image.shape[-2:]
    return torch.arange(height * width).view(1, 1, height, width).expand(image.shape)


def _pad(numbers: Tensor, amounts: list[int], _: float = 0) -> Tensor:
    """Pad with what is no cell; a map's margins, which convolutions run over, are cells like the others."""
    padded = torch.constant_pad_nd(numbers, amounts, NO_CELL)
    is_map = numbers.ndim == 4 and len(amounts) == 4 and is_counted(numbers[0, 0].flatten())
    return _counted(padded) if is_map else padded


def is_counted(cells: Tensor) -> bool:
    """Whether these are all cells of a map, row by row."""
    return bool((cells != NO_CELL).all()) and torch.equal(_ranks(cells), torch.arange(len(cells)))


def _ranks(numbers: Tensor) -> Tensor:
    """Count cells anew, in the order of their numbers, from 0: those of merged cells have gaps."""
    found: Tensor = torch.unique(numbers, return_inverse=True)[1]
    return found


# What only moves elements, and what moves their numbers, if it is something else.
_MOVING: dict[Any, Callable[..., Any] | None] = {
    **dict.fromkeys((aten.permute, aten.transpose, aten.t, aten.expand, aten.unsqueeze, aten.squeeze, aten.select)),
    **dict.fromkeys((aten.slice, aten.split, aten.split_with_sizes, aten.unbind, aten.cat, aten.stack, aten.roll)),
    **dict.fromkeys((aten.flip, aten.clone, aten.alias, aten.detach, aten.unfold, aten.repeat, aten.pixel_unshuffle)),
    **dict.fromkeys((aten.index_select, aten.gather)),
    **dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape), torch.reshape),  # noqa: SLF001 - its name in torch
    aten.constant_pad_nd: _pad,
}

Rule = Callable[[Tensor, list[Numbered], tuple[Any, ...]], Tensor | None]

_RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.convolution, aten.max_pool2d_with_indices, aten.avg_pool2d), _count),
    **dict.fromkeys((aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d), _count_pooled),  # noqa: SLF001
    **dict.fromkeys((aten.upsample_nearest2d, aten.upsample_bilinear2d), _count),
    **dict.fromkeys(
        (aten.upsample_bicubic2d, aten.pixel_shuffle, aten.reflection_pad2d, aten.replication_pad2d), _count
    ),
    **dict.fromkeys((aten.mm, aten.bmm), _multiply),
    aten.addmm: _multiply_bias,
    aten.col2im: _lay_out,
}

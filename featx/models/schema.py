# The schema of catalogue files: what each entry says of a model, and of what type.
"""Decoding catalogue files; cached ones could have been written, or damaged, by anybody."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from msgspec import Struct
from msgspec.json import Decoder

Number = int | float


class _Level(TypedDict):
    index: int
    name: str
    channels: int
    stride: Number | list[Number] | None
    offset: Number | list[Number] | None
    height: int | None
    width: int | None
    part: NotRequired[str]
    ratio: NotRequired[list[Number]]
    offset_spread: NotRequired[Number | list[Number]]


class _Input(TypedDict):
    height: int
    width: int
    mean: list[Number]
    std: list[Number]
    interpolation: str
    crop_pct: Number
    fit: str
    configuration: str


class _TestInput(TypedDict):
    height: int
    width: int
    crop_pct: Number


class _Sizes(TypedDict):
    multiple: int
    square: bool
    rebuilt: bool
    resampled: NotRequired[bool]


class _Native(TypedDict):
    multiple: int
    least: int | None


class _Attention(TypedDict):
    query: str
    levels: list[int]


class _Tag(TypedDict):
    tag: str
    license: str | None
    input_size: list[int]
    test_input_size: list[int] | None
    hub: str | None
    url: str | None
    changes: dict[str, Any]


class _Entry(TypedDict):
    family: str
    input: _Input
    test_input: _TestInput | None
    layout: str
    parameters: int
    default_levels: list[int]
    levels: list[_Level]
    embedding: int | None
    final: _Level | None
    prefix_tokens: int
    attention: _Attention | None
    norm: bool
    output_strides: list[int]
    fixed_size: bool
    sizes: _Sizes | None
    native: _Native | None
    pretrained: list[_Tag]
    parts: NotRequired[Any]
    license: NotRequired[str | None]


class File(Struct):
    """A catalogue file."""

    source: str
    version: str
    names: list[str]
    renamed: dict[str, str]
    entries: dict[str, _Entry]


_DECODE = Decoder(File).decode


def decode(text: bytes) -> File:
    """Read a catalogue file.

    Raises
    ------
    ValueError
        If it is damaged; the message names the field.
    """
    try:
        found: File = _DECODE(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return found

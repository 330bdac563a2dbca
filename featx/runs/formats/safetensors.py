# The .safetensors of one image: what safetensors.numpy.load_file reads.
"""Writing and reading files of tensors.

The tensors lie in the order that safetensors gives them. The order of the arrays, and those of text, which it has no
tensors for, are in the file's metadata, as JSON under the name ``featx``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from io import BufferedReader
from typing import Any

import numpy as np
from safetensors import numpy as tensors

from featx import files
from featx.runs.formats import Array, apart
from featx.values import Field

# Types of numbers by safetensors' names for them.
TYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}

# The length of the header is in so many bytes, and the header is at most so long, as in safetensors itself.
LENGTH, LONGEST = 8, 100_000_000

# The name of featx's own part of the metadata.
OURS = "featx"


class Writer(apart.Writer):
    """One .safetensors per image."""

    suffix = ".safetensors"

    @staticmethod
    def pack(arrays: Mapping[str, Array]) -> list[bytes]:
        """Lay out a file; the same arrays give the same bytes."""
        numbers = {name: values for name, values in arrays.items() if values.dtype.kind != "U"}
        text = {name: values.tolist() for name, values in arrays.items() if name not in numbers}
        return [tensors.save(numbers, {OURS: _ours(list(arrays), text)})]


class Reader(apart.Reader):
    """Files read one by one."""

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Map the arrays of a file."""
        path = files.inside(self.root, output)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(LENGTH), "little")
            if not 0 < length <= min(LONGEST, size - LENGTH):
                raise ValueError(f"{path} is not a safetensors file")
            try:
                header = json.loads(file.read(length))
                ours = json.loads(header["__metadata__"][OURS])
                wanted = ours["arrays"] if names is None else names
                texts = {name: np.array(ours["text"][name], np.str_) for name in wanted if name in ours["text"]}
                return {name: texts[name] if name in texts else _mapped(file, length, header[name]) for name in wanted}
            except (TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path} was not written by featx") from error


def bytes_of(fields: Sequence[Field]) -> int:
    """Return the bytes of a file with these arrays."""
    numbers = [field for field in fields if field.dtype != "text"]
    text: dict[str, list[str]] = {field.key: [] for field in fields if field.dtype == "text"}
    header: dict[str, Any] = {"__metadata__": {OURS: _ours([field.key for field in fields], text)}}
    end = 0
    for field in numbers:
        header[field.key] = {"dtype": "F32", "shape": field.lengths, "data_offsets": (end, end + field.bytes)}
        end += field.bytes
    length = len(json.dumps(header, separators=(",", ":")))
    return LENGTH + length + -length % 8 + end + sum(field.bytes for field in fields) - end


def _mapped(file: BufferedReader, length: int, each: Mapping[str, Any]) -> Array:
    """Map a tensor, read-only."""
    dtype, shape = np.dtype(TYPES[each["dtype"]]), tuple(each["shape"])
    start = LENGTH + length + int(each["data_offsets"][0])
    return np.memmap(file, dtype, "r", start, shape) if math.prod(shape) else np.empty(shape, dtype)


def _ours(names: Sequence[str], text: Mapping[str, Any]) -> str:
    return json.dumps({"arrays": names, "text": text})

# The .safetensors of one image: what safetensors.numpy.load_file reads.
"""Writing and reading files of tensors.

Arrays of text, which safetensors has no tensors for, are in the file's metadata, with the order of all arrays, as JSON
under the name ``featx``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from io import BufferedReader
from typing import Any

import ml_dtypes  # noqa: F401 - which tells numpy of bfloat16
import numpy as np

from featx import files
from featx.runs.formats import Array, apart
from featx.runs.formats.arrays import bytes_in
from featx.runs.formats.large import OnDisk
from featx.values import Field

# Types of numbers by safetensors' names for them.
TYPES = {
    "BF16": "bfloat16",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}

NAMES = {dtype: name for name, dtype in TYPES.items()}

# The header is filled up to a multiple of so many bytes.
ALIGNMENT = 8

# The length of the header is in so many bytes, and the header is at most so long, as in safetensors itself.
LENGTH, LONGEST = 8, 100_000_000

# The name of featx's own part of the metadata.
OURS = "featx"


class Writer(apart.Writer):
    """One .safetensors per image."""

    suffix = ".safetensors"

    @staticmethod
    def pack(arrays: Mapping[str, Array | OnDisk]) -> list[bytes | memoryview | OnDisk]:
        """Lay out a file, without copying arrays; the same give the same bytes."""
        numbers = {name: values for name, values in arrays.items() if values.dtype.kind != "U"}
        text = {name: np.asarray(values).tolist() for name, values in arrays.items() if name not in numbers}
        facts = {name: (str(values.dtype), values.shape, values.nbytes) for name, values in numbers.items()}
        data = [values if isinstance(values, OnDisk) else bytes_in(values) for values in numbers.values()]
        return [_header(list(arrays), facts, text), *data]


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
    facts = {field.key: (field.dtype, field.lengths, field.bytes) for field in fields if field.dtype != "text"}
    text: dict[str, list[str]] = {field.key: [] for field in fields if field.dtype == "text"}
    return len(_header([field.key for field in fields], facts, text)) + sum(field.bytes for field in fields)


def _header(names: Sequence[str], facts: Mapping[str, tuple[str, Any, int]], text: Mapping[str, Any]) -> bytes:
    """Lay out what comes before the numbers; `facts` are the type, shape and bytes of each array."""
    ours = json.dumps({"arrays": names, "text": text})
    header: dict[str, Any] = {"__metadata__": {OURS: ours}}
    end = 0
    for name, (dtype, shape, size) in facts.items():
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": (end, end + size)}
        end += size
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % ALIGNMENT)
    return len(data).to_bytes(LENGTH, "little") + data


def _mapped(file: BufferedReader, length: int, each: Mapping[str, Any]) -> Array:
    """Map a tensor, read-only."""
    dtype, shape = np.dtype(TYPES[each["dtype"]]), tuple(each["shape"])
    start = LENGTH + length + int(each["data_offsets"][0])
    return np.memmap(file, dtype, "r", start, shape) if math.prod(shape) else np.empty(shape, dtype)

# The types in which maps can be stored, in one table, and how far numbers of a precision can be relied on.
"""What a number of a map takes on the disk, and what is lost of it."""

from __future__ import annotations

from typing import NamedTuple


class Dtype(NamedTuple):
    """A type in which maps are stored.

    Attributes
    ----------
    bytes : int
        Of one number.
    tolerance : float
        By how much a number may differ on another machine, relative to a level's largest value.
    scaled : bool
        Whether numbers are multiples of a scale, which is stored beside them, one for each channel of an image.
    """

    bytes: int
    tolerance: float
    scaled: bool = False


# A value that lies halfway between two numbers of a type may become either.
DTYPES = {
    "float32": Dtype(4, 0.0),
    "float16": Dtype(2, 1e-3),
    "bfloat16": Dtype(2, 8e-3),
    "int8": Dtype(1, 1e-2, scaled=True),
}

# Their names.
NAMES = tuple(DTYPES)

# By how much maps may differ by rounding, in passes of other sizes or on another machine, relative to a level's largest
# value; by the precision that the network computes in.
ROUNDING = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 3e-2}

# A guess at the letters in a text, where they are not known.
LETTERS = 16

# Other types of arrays: bytes of an entry.
OTHERS = {"float64": 8, "text": 4 * LETTERS}

# What the array of a map's scales is called: the map's own name, and this.
SCALE = "_scale"

# What the name of a level's attention ends in.
ATTENTION = "_attention"


def kept_in(dtype: str) -> str:
    """Return the type of what is stored beside maps, such as attention: a type with scales is for maps alone."""
    return "float32" if DTYPES[dtype].scaled else dtype


def bytes_of(dtype: str) -> int:
    """Return the bytes of an entry of an array."""
    return DTYPES[dtype].bytes if dtype in DTYPES else OTHERS[dtype]

# Cosines of many vectors with one: in single precision with a bound on the error, or in double precision.
"""The arithmetic of searches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featx.errors import UsageError
from featx.runs.formats import Array

# Bytes of a map that are processed at a time: they stay in the CPU cache while they are used twice.
BLOCK = 1 << 18

# Sums of squares outside this range may have lost some or all of their digits in single precision.
SMALLEST, LARGEST = 1e-24, 1e36


@dataclass(frozen=True, slots=True)
class Direction:
    """A vector of length 1 that others are compared with.

    Attributes
    ----------
    exact, single : array
        (D,), in double and in single precision.
    error : float
        A bound on the difference between a cosine in single precision and the exact one. Sums of D products are off by
        at most about D / 2^24 of the product of both lengths (Higham, "Accuracy and Stability of Numerical Algorithms",
        3.1), and lengths by half as much; the bound is more than twice as large.
    """

    exact: Array
    single: Array
    error: float

    @classmethod
    def of(cls, vector: Array, what: str, hint: str) -> Direction:
        """Scale a (D,) vector to length 1.

        Raises
        ------
        UsageError
            If it is zero: `what` names it, `hint` says what to do.
        """
        exact = np.asarray(vector, np.float64)
        length = np.linalg.norm(exact)
        if not length > 0:
            raise UsageError(f"{what} is zero, and has no direction", hint)
        exact = exact / length
        return cls(exact, exact.astype(np.float32), (2 * len(exact) + 8) / (1 << 23))

    def near(self, rows: Array) -> Array:
        """Cosines of (n, D) float32 rows, within `error`; 0 for rows of zeros."""
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        cosines: Array = rows @ self.single / np.where(lengths > 0, lengths, 1)
        return cosines

    def exactly(self, rows: Array) -> Array:
        """Cosines of rows (…, D) in double precision: (…); each is independent of the other rows."""
        rows = np.ascontiguousarray(rows, np.float64)
        lengths = np.sqrt(np.einsum("...d,...d->...", rows, rows))
        cosines: Array = np.einsum("...d,d->...", rows, self.exact) / np.where(lengths > 0, lengths, 1)
        return cosines

    def near_cells(self, values: Array) -> Array:
        """Cosines of the cells of a (D, H, W) map, within `error`: (H, W) float64.

        0 for cells of zeros, NaN for those with NaN or infinity.
        """
        products, squares = _sums(values, self.single)
        if not ((squares > SMALLEST) & (squares < LARGEST)).all():
            products, squares = _sums(values, self.exact)
        with np.errstate(invalid="ignore"):
            cosines: Array = products / np.sqrt(np.where(squares == 0, 1, squares), dtype=np.float64)
        return cosines.reshape(values.shape[1:])


def _sums(values: Array, direction: Array) -> tuple[Array, Array]:
    """Return, for each cell of a map, the sum of its products with a direction, and that of its squares.

    Blocks of channels are read, as channels are contiguous in a mapped file. einsum does the sums, as threads that each
    search a photo would wait for each other in BLAS.
    """
    channels = np.asarray(values).reshape(len(values), -1)
    step = max(1, BLOCK // (channels.shape[1] * direction.itemsize))
    products, squares = np.zeros((2, channels.shape[1]), direction.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(channels), step):
            block = channels[start : start + step].astype(direction.dtype, copy=False)
            products += np.einsum("c,cn->n", direction[start : start + step], block)
            squares += np.einsum("cn,cn->n", block, block)
    return products, squares

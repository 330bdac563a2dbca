# Colours: what features look like, by their principal components or, for single numbers, on a colour-blind-safe scale.
"""From features (…, C) to colours (…, 3), in numpy alone; the same features give the same colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featx.runs.formats import Array

# Ten evenly spaced colours of viridis, which the colour-blind can read, and which survives printing in grey. By S. van
# der Walt and N. Smith for matplotlib, in the public domain.
VIRIDIS = np.array(
    [
        *((68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142)),
        *((31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37)),
    ],
    np.float64,
)

# The most cells that components are fitted on, and the share of the largest variance below which another one is only
# rounding.
MOST, LEAST = 4096, 1e-10

# The largest matrix whose eigenvectors are all computed. For larger ones: how many more vectors are iterated than are
# wanted, the most iterations, and the relative change of eigenvalues at which they stop.
SMALL, SPARE, ROUNDS, CLOSE = 512, 12, 200, 1e-9

# The percentiles of cells between which a scale of colours runs.
LOW, HIGH = 1.0, 99.0

# How steep the sigmoid is in the middle: 95 % of normal scores end up between 0.05 and 0.95.
STEEPNESS = 1.5


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of the features of many cells.

    Attributes
    ----------
    mean : array
        (C,) float64.
    basis : array
        (C, k) float64, orthonormal; in order of falling variance, each with the sign that makes the third moment of its
        scores positive.
    variance : array
        (k,) float64: the variance of the scores of each component.
    explained : float
        The share of all variance that they explain, 0 to 1.
    """

    mean: Array
    basis: Array
    variance: Array
    explained: float

    def scores(self, features: Array) -> Array:
        """Project features (…, C) onto the components: (…, k) float64."""
        scores: Array = (np.asarray(features, np.float64) - self.mean) @ self.basis
        return scores


def components(features: Array, count: int = 3) -> Components:
    """Find the principal components of features.

    Of more than 4,096 cells, evenly spaced ones are used.

    Parameters
    ----------
    features : array
        (cells, C), at least one.
    count : int
        The most components; directions without variance are left out.
    """
    chosen = np.asarray(features[np.linspace(0, len(features) - 1, min(MOST, len(features))).astype(int)], np.float64)
    mean = chosen.mean(0)
    centred = chosen - mean
    few = len(centred) < centred.shape[1]  # fewer cells than channels, whose products make the smaller matrix
    values, vectors = _largest((centred @ centred.T if few else centred.T @ centred) / len(centred), count)
    kept = min(count, int((values > max(values[0] * LEAST, 0)).sum()))
    values, vectors = values[:kept], vectors[:, :kept]
    basis = centred.T @ vectors / np.sqrt(np.maximum(values * len(centred), np.finfo(float).tiny)) if few else vectors
    signs = np.where(((centred @ basis) ** 3).sum(0) < 0, -1.0, 1.0)
    total = np.square(centred).sum() / len(centred)
    return Components(mean, basis * signs, values, float(values.sum() / total) if total else 0.0)


def _largest(matrix: Array, count: int) -> tuple[Array, Array]:
    """Return the largest eigenvalues of a symmetric matrix, in falling order, and their vectors (n, count).

    Large matrices go through subspace iteration with Ritz values (Golub and Van Loan, "Matrix Computations", 8.2.4), as
    computing all eigenvectors of 2,048 channels would take seconds. It always starts from the same vectors.
    """
    if len(matrix) <= SMALL:
        values, vectors = np.linalg.eigh(matrix)
        return values[::-1][:count], vectors[:, ::-1][:, :count]
    block = np.random.default_rng(0).standard_normal((len(matrix), min(len(matrix), count + SPARE)))
    before = np.zeros(count)
    for _ in range(ROUNDS):
        block = np.linalg.qr(matrix @ block)[0]
        values, rotation = np.linalg.eigh(block.T @ matrix @ block)
        block = block @ rotation[:, ::-1]
        if np.allclose(values[::-1][:count], before, rtol=CLOSE, atol=0):
            break
        before = values[::-1][:count]
    return values[::-1][:count], block[:, :count]


@dataclass(frozen=True, slots=True)
class Colours:
    """How features become red, green and blue: three components, each centred, scaled, and passed through a sigmoid.

    Attributes
    ----------
    components : Components
        Up to three; a colour without a component stays at half its strength.
    middle, scale : array
        (k,) the median of each component's scores, and their spread: 0.741 times the interquartile range, which is the
        standard deviation of normal scores.
    """

    components: Components
    middle: Array
    scale: Array

    def __call__(self, features: Array) -> Array:
        """Return the colours of features (…, C): (…, 3) uint8."""
        scores = (self.components.scores(features) - self.middle) / self.scale
        shares = np.full((*scores.shape[:-1], 3), 0.5)
        shares[..., : scores.shape[-1]] = 1 / (1 + np.exp(-np.clip(STEEPNESS * scores, -30, 30)))
        found: Array = np.rint(255 * shares).astype(np.uint8)
        return found


def colours(features: Array) -> Colours:
    """Fit colours to features (cells, C), by their first three principal components."""
    found = components(features)
    scores = found.scores(features)
    lower, middle, upper = np.percentile(scores, (25, 50, 75), axis=0)
    spread = np.maximum(
        0.741 * (upper - lower), 0.25 * np.sqrt(found.variance)
    )  # where most cells are alike, the quartiles coincide
    return Colours(found, middle, np.where(spread > 0, spread, 1.0))


def limits(values: Array) -> tuple[float, float]:
    """Return the values between which a scale runs: all but the lowest and highest hundredth of cells."""
    low, high = np.percentile(values, (LOW, HIGH))
    return float(low), float(high)


def scaled(values: Array, low: float, high: float) -> Array:
    """Return the colours of numbers (…) on a colour-blind-safe scale from low to high: (…, 3) uint8."""
    places = np.clip((np.asarray(values, np.float64) - low) / ((high - low) or 1), 0, 1) * (len(VIRIDIS) - 1)
    channels = [np.interp(places, np.arange(len(VIRIDIS)), channel) for channel in VIRIDIS.T]
    found: Array = np.rint(np.stack(channels, -1)).astype(np.uint8)
    return found


def strength(features: Array) -> Array:
    """Return the length of features (…, C): (…) float64."""
    found: Array = np.sqrt(np.einsum("...c,...c->...", features, features, dtype=np.float64))
    return found

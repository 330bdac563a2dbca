# similar: the images of a run nearest to a query, by the cosine of their embeddings; exact, and as a picture.
"""``featx similar`` as a function."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from featx.command_options import SimilarOptions
from featx.errors import UsageError
from featx.explore import tiles
from featx.explore.cosines import Direction
from featx.explore.queries import embedding_of
from featx.explore.tiles import Tile
from featx.images import locators
from featx.paths import to_path
from featx.runs.formats import Array
from featx.runs.reading import Run, open_run

# Rows per multiplication: a block stays in the CPU cache while it is used twice.
BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An image of a run.

    Attributes
    ----------
    key, path : str
        Its key, and the image file when it was extracted.
    score : float
        The cosine of the angle between its embedding and the query's, -1 to 1.
    """

    key: str
    path: str
    score: float


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The result of a search: best first, ties in the order of the run.

    Attributes
    ----------
    query : str
        The query's path; empty if it was an embedding.
    images : int
        Images that were searched.
    found : list of Neighbour
        The nearest of them.
    weights : str
        What kind of weights made the embeddings, ``random`` for example.
    """

    query: str
    images: int
    found: list[Neighbour]
    weights: str = ""


def similar(
    run: str | PathLike[str] | Run,
    query: str | PathLike[str] | Array,
    count: int = 10,
    *,
    with_self: bool = False,
    device: str = "auto",
) -> Neighbours:
    """Find the images of a run whose embeddings are nearest to that of another image.

    Parameters
    ----------
    run : path or Run
        A run with embeddings.
    query : path or (D,) array
        An image, whose embedding is made as the run's were, or an embedding.
    count : int
        Number of images to find.
    with_self : bool
        Whether the query itself may be among the results, if the run contains its file.
    device : str
        Where the query's embedding is made.

    Raises
    ------
    FeatxError
        If the run has no embeddings, the query cannot be read, or the run's model is not available.
    """
    count = SimilarOptions(count=count).count
    opened = run if isinstance(run, Run) else open_run(run)
    name = "" if isinstance(query, np.ndarray) else os.fspath(query)
    opened.embeddings()  # which says so if there are none, before the model is loaded
    vector = query if isinstance(query, np.ndarray) else embedding_of(opened, name, device)
    found = _found(opened, vector, count, "" if with_self else name)
    return Neighbours(name, len(opened), found, opened.summary["weights"]["kind"])


def _found(run: Run, vector: Array, count: int, query: str) -> list[Neighbour]:
    """Find neighbours other than the query itself, whose file links may have put into the run several times."""
    wanted = count + bool(query)
    while True:
        best = nearest(run.embeddings(), vector, wanted)
        found = [Neighbour(key, run.line(key).path, score) for key, score in best]
        others = [each for each in found if not (query and locators.same_image(query, to_path(each.path)))]
        if len(others) >= count or len(best) < wanted:
            return others[:count]
        wanted *= 2


def nearest(blocks: Iterable[tuple[Sequence[str], Array]], query: Array, count: int) -> list[tuple[str, float]]:
    """Find the rows with the largest cosine to a query, exactly.

    A row is scored in single precision first; all rows that could be among the best within its error are scored again
    in double precision.

    Parameters
    ----------
    blocks : iterable of (keys, (n, D) float32)
        All rows.
    query : (D,) array
        Of any length but zero.
    count : int
        How many rows.

    Returns
    -------
    list of (key, cosine)
        Best first; ties in row order. A row of zeros has cosine 0.

    Raises
    ------
    UsageError
        If the query's length differs from the rows' width, or the query is zero.
    """
    direction = Direction.of(query, "The query's embedding", "Try another image")
    length = len(direction.exact)
    kept: list[tuple[str, float]] = []
    floor = -np.inf
    for keys, rows in blocks:
        if rows.shape[1] != length:
            raise UsageError(
                f"The embeddings have {rows.shape[1]} numbers, the query has {length}", "Use the run's own model"
            )
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            places = np.flatnonzero(direction.near(part) >= floor - direction.error)
            chosen = direction.exactly(part[places])
            kept += [(keys[start + int(place)], float(score)) for place, score in zip(places, chosen, strict=True)]
            if len(kept) > count + BLOCK:
                kept = _best(kept, count)
                floor = kept[-1][1]
            elif len(kept) >= count:
                floor = max(floor, float(np.partition([score for _, score in kept], -count)[-count]))
    return _best(kept, count)


def draw(neighbours: Neighbours, path: Path) -> None:
    """Draw the query and its neighbours, with scores, as a picture.

    Raises
    ------
    OutputError
        If it cannot be written; see `featx.explore.drawing.require_drawable`.
    """
    sheet = [Tile(neighbours.query, Path(neighbours.query).name, "query", framed=True)] if neighbours.query else []
    sheet += [Tile(to_path(each.path), each.key, f"{each.score:.4f}") for each in neighbours.found]
    tiles.draw(sheet, path)


def _best(kept: list[tuple[str, float]], count: int) -> list[tuple[str, float]]:
    return sorted(kept, key=lambda each: -each[1])[:count]

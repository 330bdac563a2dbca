# similar: the images of a run nearest to a query, by the cosine of their embeddings; exact, and as a picture.
"""``featx similar`` as a function."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from featx import paths
from featx.command_options import SimilarOptions
from featx.errors import FeatxError, UnreadableError, UsageError
from featx.explore import drawing
from featx.explore.drawing import ACCENT, INK, PAPER
from featx.images import locators
from featx.images.pictures import thumbnail
from featx.options import Limits
from featx.paths import to_path
from featx.runs.formats import Array
from featx.runs.reading import Run, open_run
from featx.values import EMBEDDING

# Rows per multiplication: a block stays in the CPU cache while it is used twice.
BLOCK = 2048

# Size of a sheet's thumbnails, the space below each for its text, and the number per row.
THUMBNAIL, CAPTION, GAP, ACROSS = 224, 34, 12, 5


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

    A row is scored in single precision first, whose error over D products is at most about D / 2^23 of the product of
    both lengths (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1); all rows that could be among the best
    within that error are scored again in double precision.

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
    exact = np.asarray(query, np.float64)
    length = np.linalg.norm(exact)
    if not length > 0:
        raise UsageError("The query's embedding is zero, and has no direction", "Try another image")
    exact = exact / length
    single, error = exact.astype(np.float32), 2 * len(exact) / (1 << 23)
    kept: list[tuple[str, float]] = []
    floor = -np.inf
    for keys, rows in blocks:
        if rows.shape[1] != len(exact):
            raise UsageError(
                f"The embeddings have {rows.shape[1]} numbers, the query has {len(exact)}", "Use the run's own model"
            )
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            places = np.flatnonzero(_cosines(part, single) >= floor - error)
            chosen = _cosines(part[places].astype(np.float64), exact)
            kept += [(keys[start + int(place)], float(score)) for place, score in zip(places, chosen, strict=True)]
            if len(kept) > count + BLOCK:
                kept = _best(kept, count)
                floor = kept[-1][1]
            elif len(kept) >= count:
                floor = max(floor, float(np.partition([score for _, score in kept], -count)[-count]))
    return _best(kept, count)


def embedding_of(run: Run, image: str | PathLike[str], device: str = "auto") -> Array:
    """Compute the embedding of an image in the way a run's embeddings were computed.

    Raises
    ------
    FeatxError
        If the image cannot be read, or the run's model is no longer available unchanged.
    """
    import torch

    from featx.engine.again import set_up_again
    from featx.engine.resources import machine
    from featx.images import placing  # with torch

    _require_one_image(os.fspath(image))
    again = set_up_again(run.summary, device, 1)
    try:
        placed = placing.place(again.pyramid.preprocessor, str(image), Limits())
    except UnreadableError as error:
        raise FeatxError(f"{image} cannot be read: {error.reason}", "Try another image") from error
    computer = again.computers[0]
    with machine(again.devices, again.workers):
        arrays = computer(computer.stack([torch.from_numpy(placed.pixels)], again.workers.batch_size))
    names = [field.key for field in computer.fields]
    return np.asarray(arrays.values[names.index(EMBEDDING)][0])


def _require_one_image(query: str) -> None:
    """Refuse a query that is not an image, before the model is loaded."""
    if not (os.path.lexists(query) or locators.exists(query)):
        paths.refuse_url(query)
        raise UsageError(f"There is no image {query}", "Check the path")
    what = "a folder" if Path(query).is_dir() else locators.recognised(query)
    if what not in ("", "an image"):
        raise UsageError(f"{query} is {what}, not an image", "Give one image")


def draw(neighbours: Neighbours, path: Path) -> None:
    """Draw the query and its neighbours, with scores, as a picture.

    Raises
    ------
    OutputError
        If it cannot be written; see `featx.explore.drawing.require_drawable`.
    """
    tiles = [(neighbours.query, Path(neighbours.query).name, "query")] if neighbours.query else []
    tiles += [(to_path(each.path), each.key, f"{each.score:.4f}") for each in neighbours.found]
    across = min(ACROSS, len(tiles))
    down = -(-len(tiles) // across)
    step = (THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP)
    sheet = Image.new("RGB", (GAP + across * step[0], GAP + down * step[1]), PAPER)
    for place, (file, name, score) in enumerate(tiles):
        corner = (GAP + place % across * step[0], GAP + place // across * step[1])
        _draw_tile(sheet, corner, file, name, score, framed=score == "query")
    drawing.save(sheet, path)


def _cosines(rows: Array, direction: Array) -> Array:
    """Cosines of rows with a vector of length 1."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    cosines: Array = rows @ direction / np.where(lengths > 0, lengths, 1)
    return cosines


def _best(kept: list[tuple[str, float]], count: int) -> list[tuple[str, float]]:
    return sorted(kept, key=lambda each: -each[1])[:count]


def _draw_tile(sheet: Any, corner: tuple[int, int], file: str, name: str, score: str, *, framed: bool) -> None:
    """Draw one image, as large as fits, with its name and score below; a cross if the file is gone."""
    pen, (left, top) = ImageDraw.Draw(sheet), corner
    box = (left - 3, top - 3, left + THUMBNAIL + 2, top + THUMBNAIL + 2)
    if image := thumbnail(file, THUMBNAIL):
        sheet.paste(image, (left + (THUMBNAIL - image.width) // 2, top + (THUMBNAIL - image.height) // 2))
    else:  # its name and score are still valid
        drawing.cross_out(pen, box)
    if framed:
        pen.rectangle(box, outline=ACCENT, width=3)
    drawing.caption(pen, (left, top + THUMBNAIL + 4), name, THUMBNAIL)
    drawing.caption(pen, (left, top + THUMBNAIL + 19), score, THUMBNAIL, fill=ACCENT if framed else INK)

# Rows of COCO JSON and CSV files: each the place of a box or point in a photo, or what is wrong with the row.
"""Reading files of annotations row by row; what is wrong with a row costs that row alone."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Raw, Struct

from featx.errors import UsageError
from featx.images.lists import MARKS
from featx.paths import to_text
from featx.signatures import HEAD, archive_kind, is_image
from featx.text import count_of

Record = TypeVar("Record", bound=Struct)

Place = tuple[float, ...]

BOX, POINT = ("x1", "y1", "x2", "y2"), ("x", "y")

FORMS = {
    BOX: "Give COCO JSON, or CSV with a first line such as key,x1,y1,x2,y2,id,label",
    POINT: "Give CSV with a first line such as key,x,y,id,label",
}


class Row(NamedTuple):
    """A box or point: its line or number, the photo's name, its place or what is wrong with it, its id and label."""

    line: int
    name: str
    place: Place | str
    id: str
    label: str


def read(path: str | PathLike[str], columns: tuple[str, ...]) -> bytes:
    """Read a file of boxes or points, and return it as UTF-8.

    Raises
    ------
    UsageError
        If it cannot be read, is empty, or is an image or an archive.
    """
    what = "boxes" if columns is BOX else "points"
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The {what} in {path} cannot be read: {reason}", "Check the path") from error
    if is_image(data[:HEAD]) or archive_kind(data[:HEAD]):
        kind = "an image" if is_image(data[:HEAD]) else "an archive"
        raise UsageError(f"{path} is {kind}, not a file of {what}", FORMS[columns])
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "")
    try:
        data = data.decode(encoding).encode() if encoding else data.removeprefix(b"\xef\xbb\xbf")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} looks like {encoding}, but cannot be decoded", "Write it as UTF-8") from error
    if not data.strip():
        raise UsageError(f"{path} is empty", FORMS[columns])
    return data


def of_csv(path: str | PathLike[str], data: bytes, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header; lines are counted from 1.

    Raises
    ------
    UsageError
        If it lacks one of the columns, or is not CSV.
    """
    # Keys escape bytes that are not UTF-8 in the same way.
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8", "backslashreplace", newline=""))
    try:
        header = [name.strip().lower() for name in next(rows)]
        if missing := [name for name in ("key", *columns) if name not in header]:
            raise UsageError(f"{path} has no column {missing[0]} in its first line", FORMS[columns])
        at = {name: header.index(name) for name in ("key", *columns, "id", "label") if name in header}
        line = rows.line_num + 1
        for row in rows:
            if row:
                yield _of_row(line, row, at, columns)
            line = rows.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{path} is not CSV from line {rows.line_num} on: {error}", FORMS[columns]) from error


def _of_row(line: int, row: Sequence[str], at: Mapping[str, int], columns: tuple[str, ...]) -> Row:
    key, mark, label = (row[at[name]] if at.get(name, len(row)) < len(row) else "" for name in ("key", "id", "label"))
    short = max(at[name] for name in columns) >= len(row)
    place = (
        f"the row ends after {count_of(len(row), 'cell')}"
        if short
        else _numbers(columns, [row[at[name]] for name in columns])
    )
    return Row(line, key, place, mark, label)


def _numbers(names: Sequence[str], values: Sequence[Any]) -> Place | str:
    """Return finite numbers, or say which of them is not one."""
    found = []
    for name, value in zip(names, values, strict=True):
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            given = "" if value is None else f": {str(value)[:40]!r}"
            return f"{name} is not a number{given}"
        found.append(number)
    return tuple(found)


class _Coco(Struct):
    """The parts of a COCO file that are read; records stay raw JSON until they are decoded one by one."""

    images: list[Raw]
    annotations: list[Raw]
    categories: list[Raw] = []


class _Image(Struct, gc=False):
    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Category(Struct, gc=False):
    id: Any = None
    name: Any = None


class _Annotation(Struct, gc=False):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None


def of_coco(path: str | PathLike[str], data: bytes) -> tuple[Iterator[Row], dict[str, tuple[int, int]]]:
    """Return the boxes of a COCO file, counted from 1, and width and height of its photos.

    Raises
    ------
    UsageError
        If it is not such a file.
    """
    coco = _parsed(path, data)
    names: dict[str, str | None] = {}  # None where several photos share an id
    sizes: dict[str, tuple[int, int]] = {}
    for image in _records(coco.images, _Image):
        if image.id is None:
            continue
        name, image_id = to_text(str(image.file_name or "")), str(image.id)
        names[image_id] = name if names.get(image_id, name) == name else None
        if all(isinstance(side, int) and side > 0 for side in (image.width, image.height)):
            sizes[name] = (image.width, image.height)
    labels = {
        str(each.id): each.id if each.name is None else each.name for each in _records(coco.categories, _Category)
    }
    annotations = enumerate(_records(coco.annotations, _Annotation), 1)
    return (_of_annotation(number, each, names, labels) for number, each in annotations), sizes


def _of_annotation(number: int, each: _Annotation, names: Mapping[str, str | None], labels: Mapping[str, Any]) -> Row:
    image, category = str(each.image_id), each.category_id
    name, label = names.get(image), labels.get(str(category), category)
    place = _of_bbox(each.bbox)
    if not name:
        several = "several images have this id" if name is None else "this image has no file_name"
        place = several if image in names else "no image has this id"
    return Row(
        number, name or f"image {image}", place, *("" if text is None else str(text) for text in (each.id, label))
    )


def _of_bbox(bbox: Any) -> Place | str:
    if not isinstance(bbox, list) or len(bbox) != len(BOX):
        return "its bbox is not a list of four numbers"
    numbers = _numbers(("x of its bbox", "y of its bbox", "its width", "its height"), bbox)
    if isinstance(numbers, str):
        return numbers
    x, y, width, height = numbers
    return x, y, x + width, y + height


def _parsed(path: str | PathLike[str], data: bytes) -> _Coco:
    hint = FORMS[BOX]
    try:
        try:
            return msgspec.json.decode(data, type=_Coco)
        except msgspec.ValidationError:
            raise
        except ValueError:  # Python writes NaN, which JSON does not have; it becomes null, a fault of that box alone
            return msgspec.json.decode(msgspec.json.encode(json.loads(data)), type=_Coco)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is JSON, but not COCO's with images and annotations: {error}", hint) from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path} begins like JSON, but cannot be read: {error}", hint) from error


def _records(texts: Iterable[Raw], kind: type[Record]) -> Iterator[Record]:
    """Decode records one by one; what is not a record becomes an empty one."""
    decode = msgspec.json.Decoder(kind).decode
    for text in texts:
        try:
            yield decode(text)
        except ValueError:
            yield kind()

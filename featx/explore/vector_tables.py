# Tables of vectors as one file, Parquet, npz or CSV: written block by block, complete or not at all.
"""Files of rows with texts, numbers and arrays."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featx import files
from featx.errors import OutputError, first_line
from featx.runs import formats
from featx.runs.formats import Array
from featx.runs.formats.columns import encoding_of

# Some rows of a table, by the names of its columns: texts, numbers (n,), or arrays (n, C) and (n, C, h, w).
Rows = Mapping[str, Array | list[str]]

# Bytes that are gathered into a row group.
ROW_GROUP = 64 << 20


def write(path: Path, empty: Rows, blocks: Iterable[Rows]) -> None:
    """Write a table in the format that its suffix names.

    Parameters
    ----------
    path : Path
        It appears there when it is complete.
    empty : Rows
        No rows, with all columns, of the types and shapes that the blocks have.
    blocks : iterable of Rows
        The rows, of which few are kept in memory.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        with files.complete(path) as place:
            TABLES[path.suffix.lower()](place, empty, blocks)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise OutputError(
            f"{path} cannot be written: {reason}", "Free some space, or choose another --output"
        ) from error


def require(suffix: str) -> None:
    """Refuse a format whose library is not installed.

    Raises
    ------
    FeatxError
        Naming it.
    """
    if suffix == ".parquet":
        formats.require("parquet")


def _write_csv(path: Path, empty: Rows, blocks: Iterable[Rows]) -> None:
    """One line a row; the numbers of a vector in columns of their own, with as many digits as bring them back."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(name for key, values in empty.items() for name in _names(key, values))
        for rows in blocks:
            columns = [column for values in rows.values() for column in _columns(values)]
            writer.writerows(zip(*columns, strict=True))


def _names(key: str, values: Array | list[str]) -> list[str]:
    if isinstance(values, list) or values.ndim == 1:
        return [key]
    return [f"{key}_{number}" for number in range(values.shape[1])]


def _columns(values: Array | list[str]) -> list[Iterable[Any]]:
    return [values] if isinstance(values, list) or values.ndim == 1 else list(values.T)


def _write_parquet(path: Path, empty: Rows, blocks: Iterable[Rows]) -> None:
    """Vectors as lists of float32, all of one length, in row groups of many rows."""
    from pyarrow import parquet

    texts = [key for key, values in empty.items() if isinstance(values, list)]
    vectors = [key for key, values in empty.items() if np.ndim(values) > 1]
    with parquet.ParquetWriter(path, _table(empty).schema, **encoding_of(empty, texts, vectors)) as writer:
        for table in _gathered(blocks):
            writer.write_table(table, row_group_size=len(table))


def _gathered(blocks: Iterable[Rows]) -> Iterator[Any]:
    import pyarrow as pa

    gathered: list[Any] = []
    for rows in blocks:
        gathered.append(_table(rows))
        if sum(table.nbytes for table in gathered) >= ROW_GROUP:
            yield pa.concat_tables(gathered)
            gathered = []
    if gathered:
        yield pa.concat_tables(gathered)


def _table(rows: Rows) -> Any:
    import pyarrow as pa

    def column(values: Array | list[str]) -> Any:
        if isinstance(values, list):
            return pa.array(values, pa.string())
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])

    fields = {key: column(values) for key, values in rows.items()}
    schema = pa.schema([pa.field(key, values.type, nullable=False) for key, values in fields.items()])
    return pa.Table.from_arrays(list(fields.values()), schema=schema)


def _write_npz(path: Path, empty: Rows, blocks: Iterable[Rows]) -> None:
    """One array a column. Rows are gathered in nameless files, since an array begins with its length."""
    texts: dict[str, list[str]] = {key: [] for key, values in empty.items() if isinstance(values, list)}
    with ExitStack() as stack:
        spools = {
            key: stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for key in empty if key not in texts
        }
        for rows in blocks:
            for key, values in rows.items():
                if isinstance(values, list):
                    texts[key] += values
                else:
                    spools[key].write(np.ascontiguousarray(values).tobytes())
        columns: dict[str, Any] = {
            key: np.array(values, np.str_) if isinstance(values, list) else _mapped(spools[key], values)
            for key, values in {**empty, **texts}.items()
        }
        with path.open("wb") as file:
            np.savez(file, **columns)


def _mapped(spool: BinaryIO, empty: Array) -> Array:
    """Return the array whose rows a file holds, memory-mapped."""
    rows = spool.tell() // (empty.dtype.itemsize * int(np.prod(empty.shape[1:])))
    spool.flush()
    return np.memmap(spool, empty.dtype, "r", 0, (rows, *empty.shape[1:])) if rows else empty


# By the suffixes of their names.
TABLES: dict[str, Callable[[Path, Rows, Iterable[Rows]], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".csv": _write_csv,
}

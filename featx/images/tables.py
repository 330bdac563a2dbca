# Parquet tables with a column of images: what the rows are called, and the bytes of a row.
"""Tables as folders of images.

A row's locator is ``photos.parquet::image::42``: the table, the column, and the row's number. Rows are read in order, a
few at a time, by row groups, so that memory does not grow with a table.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from threading import Lock
from typing import Any
from weakref import finalize

from featx.errors import FeatxError, UnreadableError, UsageError, first_line
from featx.images import storage
from featx.paths import path_text, without_query
from featx.text import listed
from featx.values import Stat

MARK, SUFFIX = "::", ".parquet"

# Bytes of images that are read at a time, the most rows, and how many such batches stay for threads that come late.
BATCH, ROWS, BEHIND = 1 << 23, 256, 8

# Names that are read at a time; how much of a file is, once it is wanted.
NAMES, BUFFER = 1 << 16, 1 << 20


def is_table(path: str) -> bool:
    """Whether a path or URL has the suffix of a table."""
    return without_query(path).lower().endswith(SUFFIX)


def without_suffix(table: str) -> str:
    """Return a table's name, or path, without its suffix."""
    return table[: -len(SUFFIX)]


def split_row(member: str) -> tuple[str, int] | None:
    """Return column and row of a member's name; None if it names a column alone."""
    column, _, row = member.rpartition(MARK)
    return (column, int(row)) if column and row.isascii() and row.isdigit() else None


class Table:
    """A Parquet file whose rows hold images; as `featx.images.archives.Archive` for those that read it.

    Parameters
    ----------
    path : str
        Where it is.
    stat : Stat
        Its size, time and version: a changed table is another one.
    rows : callable
        Returns what reads the rows of one of its columns.
    """

    def __init__(self, path: str, stat: Stat, rows: Callable[[str, Stat, str], Rows]) -> None:
        self._path, self.stat, self._rows = path, stat, rows

    def holds(self, name: str) -> bool:
        """Whether a row is there: a table is taken to hold what it held."""
        return bool(name)

    def place_of(self, name: str) -> int:
        """Return a row's number; a table as a whole comes first."""
        found = split_row(name)
        return found[1] if found else -1

    def is_stream(self) -> bool:
        """Whether its rows are best read one after the other."""
        return True

    def source(self, name: str, going_on: Callable[[], None]) -> tuple[int, Iterator[bytes]]:
        """Return an image's size, and its bytes.

        Raises
        ------
        UnreadableError
            If it has none, or the table is damaged.
        FileNotFoundError
            If there is no such row.
        """
        found = split_row(name)
        if found is None:
            names_in(self._path, self.stat, name)  # which says what is wrong with the table
            raise UnreadableError("read", "a table, not an image")
        data = self._rows(self._path, self.stat, found[0])(found[1], going_on)
        return len(data), iter((data,))


def names_in(path: str, stat: Stat, column: str) -> list[str]:
    """Name the rows of a table: by the path that is stored with an image, if no other row has it, or by its number.

    Raises
    ------
    UsageError
        If there is no such column, or it holds something else.
    UnreadableError
        If the table is damaged.
    """
    with _opened(path, stat) as table:
        count = table.metadata.num_rows
        numbers = [f"{row:0{len(str(max(count - 1, 0)))}}" for row in range(count)]
        if not _has_paths(table, column, path):
            return numbers
        names: list[str | None] = []
        try:
            for batch in table.iter_batches(NAMES, columns=[f"{column}.path"], use_threads=False):
                names += (_name_of(row) for row in batch.column(0).to_pylist())
        except (OSError, ValueError) as error:
            raise UnreadableError("read", f"it is damaged: {first_line(error)}") from error
    times = Counter(names)
    return [name if name and times[name] == 1 else number for name, number in zip(names, numbers, strict=True)]


def _name_of(value: Any) -> str | None:
    """Return the path that is stored with an image, if it is a name and leads nowhere else."""
    text = (value or {}).get("path") or ""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts or "\0" in text or text.isdigit() or len(text) > 4096:
        return None
    return "/".join(parts) or None


def _has_paths(table: Any, column: str, path: str) -> bool:
    """Make sure that a column has images; returns whether their paths are stored with them."""
    from pyarrow import types

    schema = table.schema_arrow
    if column not in schema.names:
        raise UsageError(f"{path_text(path)} has no column {column}", f"Its columns are {_all(schema)}")
    kind = schema.field(column).type
    inner = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
    data = inner.get("bytes") if types.is_struct(kind) else kind
    if data is None or not (types.is_binary(data) or types.is_large_binary(data)):
        raise UsageError(
            f"Column {column} of {path_text(path)} holds {kind}, not images",
            f"Images are bytes, or a struct of bytes and path; its columns are {_all(schema)}",
        )
    return types.is_struct(kind) and "path" in inner


def _all(schema: Any) -> str:
    return listed([*schema.names[:20], *(["others"] if len(schema.names) > 20 else [])], "and")


@contextmanager
def _opened(path: str, stat: Stat) -> Iterator[Any]:
    table = _read(path, stat)
    try:
        yield table
    finally:
        table.close(force=True)


def _read(path: str, stat: Stat) -> Any:
    """Open a table, which closes its file only if it is forced to."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise FeatxError("Parquet tables need pyarrow", "Run `pip install 'featx[parquet]'`") from error
    with ExitStack() as stack:
        try:
            file = stack.enter_context(storage.opened(path, stat))
            table = parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise UnreadableError("read", f"it is not a Parquet table, or damaged: {first_line(error)}") from error
        stack.pop_all()
        return table


class Rows:
    """The images in a column, which several threads read at nearly the same place, forwards.

    They are read once as long as nobody wants what lies far behind; and otherwise again from the beginning of the row
    group that has it.
    """

    def __init__(self, path: str, stat: Stat, column: str) -> None:
        self._table = _read(path, stat)
        finalize(self, self._table.close, force=True)
        self._column = f"{column}.bytes" if self._table.schema_arrow.field(column).type.num_fields else column
        sizes = (self._table.metadata.row_group(group).num_rows for group in range(self._table.num_row_groups))
        self._starts = list(accumulate(sizes, initial=0))
        self._lock = Lock()
        self._batches: Iterator[Any] | None = None
        self._next = 0  # the row that follows the last batch
        self._recent: deque[tuple[int, Any]] = deque(maxlen=BEHIND)
        self._broken: dict[int, tuple[int, str]] = {}  # groups, with the row from which on they cannot be read

    def __call__(self, row: int, going_on: Callable[[], None]) -> bytes:
        """Return the image in a row; see `Table.source`."""
        if not 0 <= row < self._starts[-1]:
            raise FileNotFoundError(row)
        while True:
            with self._lock:
                for start, batch in self._recent:
                    if start <= row < start + len(batch):
                        return _bytes_in(batch.column(0)[row - start].as_py())
                self._step(row)
            going_on()

    def _step(self, row: int) -> None:
        """Read the next batch on the way to a row."""
        group = bisect_right(self._starts, row) - 1
        first, reason = self._broken.get(group, (row + 1, ""))
        if row >= first:
            raise UnreadableError("read", reason)
        if self._batches is None or row < self._next or self._next < self._starts[group]:
            self._recent.clear()
            self._next, self._batches = self._starts[group], self._of_group(group)
        elif self._next == self._starts[group]:
            self._batches = self._of_group(group)
        try:
            batch = next(self._batches)
        except UnreadableError:  # of a connection, which may be better the next time
            self._batches = None
            raise
        except (OSError, ValueError, StopIteration) as error:
            self._batches = None
            self._broken[group] = self._next, f"the table is damaged: {first_line(error)}"
            raise UnreadableError("read", self._broken[group][1]) from error
        self._recent.append((self._next, batch))
        self._next += len(batch)

    def _of_group(self, group: int) -> Iterator[Any]:
        facts = self._table.metadata.row_group(group)
        chunks = (facts.column(place) for place in range(facts.num_columns))
        taken = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == self._column)
        rows = max(1, min(ROWS, BATCH * facts.num_rows // max(1, taken)))
        return iter(self._table.iter_batches(rows, row_groups=[group], columns=[self._column], use_threads=False))


def _bytes_in(value: Any) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        raise UnreadableError("read", "null: there is no image in this row")
    return bytes(data)

# Tar files, plain or compressed: what is in them by one pass over their headers, and the bytes of a member.
"""Reading tars, anybody's: headers with bounds on what they may take, and members by their place."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from threading import Lock
from typing import Any, BinaryIO

from featx.errors import UnreadableError
from featx.paths import to_text

# Bytes that are read at a time; that a compressed file keeps behind its place, for threads that come late; and that the
# header of a member may take, names included.
BLOCK, BEHIND, HEADER = 1 << 20, 64, 1 << 20

# Memory that decompressing an .xz may take; its best compression needs a quarter of it.
XZ_MEMORY = 1 << 28

# Letters of a name that an error shows.
SHOWN = 60

# What is written in place of the size of a member that gives no image, and why not.
LINK, SPECIAL, SPARSE = -1, -2, -3
REFUSED = {
    LINK: "a link, which featx does not follow in archives",
    SPECIAL: "not a file",
    SPARSE: "a sparse file, which featx does not read in archives",
}


def _open_xz(file: BinaryIO) -> lzma.LZMAFile:
    lzma.LZMADecompressor(memlimit=XZ_MEMORY).decompress(file.read(BLOCK), 1)
    file.seek(0)  # that first block says what the others take, unless the file was made to do harm
    return lzma.open(file)


# A plain tar on a server that serves no parts of files.
WHOLE = "whole"

# How an open tar is decompressed, by what `featx.signatures.archive_kind` says of it.
OPENERS: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": _open_xz, WHOLE: lambda file: file}


class _Headers:
    """A tar's file, of which tarfile reads only headers; what one of them may read is limited."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.last, self.left = b"", HEADER

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError("a header is too long")
        self.last = self._file.read(size)
        return self.last


def members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Go through an uncompressed tar, or through what is in a compressed one.

    Yields
    ------
    (str, int, int)
        Name, place of the first byte, and size of a member that is there in full; for one that is no plain file, a key
        of `REFUSED` for its size. Folders are left out.

    Raises
    ------
    UnreadableError
        Where it is damaged, or ends too early.
    """
    headers, last = _Headers(file), ""
    try:
        for info in _infos(headers, file):
            last = info.name
            if not info.isdir():
                yield last, info.offset_data, _size_of(info)
    except UnreadableError:
        raise
    except EOFError as error:
        raise UnreadableError("read", f"it ends too early, {_after(last)}; what follows is missing") from error
    except Exception as error:  # tarfile and decompressors raise more kinds than they say
        if not last and headers.last[257:262] != b"ustar":
            raise UnreadableError("read", "it is not a tar archive, or damaged at its beginning") from error
        raise UnreadableError("read", f"it is damaged, {_after(last)}; what follows cannot be read") from error
    if headers.last.strip(b"\0"):
        raise UnreadableError("read", f"it is damaged, {_after(last)}; what follows cannot be read")
    if len(headers.last) < tarfile.BLOCKSIZE:
        raise UnreadableError("read", f"it has no end, {_after(last)}; something may be missing")


def _infos(headers: _Headers, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Go from header to header, as long as members are there in full."""
    tar = tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape")  # type: ignore[call-overload]  # noqa: SIM115
    place = -1
    while (info := tar.next()) is not None:
        tar.members.clear()  # which would hold all of them
        if info.offset <= place or info.size < 0:
            raise tarfile.ReadError("a header leads back")
        place, headers.left = info.offset, HEADER
        if info.isreg() and info.size > 0 and not info.issparse():
            file.seek(info.offset_data + info.size - 1)
            if not file.read(1):
                raise UnreadableError("read", f"it ends in the middle of {shown(info.name)}; what follows is missing")
        yield info


def _after(name: str) -> str:
    return f"after {shown(name)}" if name else "at its beginning"


def shown(name: str) -> str:
    """Return a name as an error shows it, whatever is in it."""
    text = to_text(name if len(name) <= SHOWN else f"{name[:SHOWN]}…")
    return text if text.isprintable() else ascii(text)


def _size_of(info: tarfile.TarInfo) -> int:
    if info.issparse():
        return SPARSE
    if info.isreg():
        return info.size
    return LINK if info.islnk() or info.issym() else SPECIAL


class Stream:
    """A compressed file that several threads read at nearly the same place, forwards.

    It is decompressed once as long as nobody wants what lies more than `BEHIND` blocks before the furthest place that
    somebody wanted; and otherwise again from its beginning.

    Parameters
    ----------
    opener : callable
        Opens the file, decompressed, at its beginning.
    """

    def __init__(self, opener: Callable[[], AbstractContextManager[BinaryIO]]) -> None:
        self._opener, self._open = opener, ExitStack()
        self._lock = Lock()
        self._file: BinaryIO | None = None
        self._blocks: deque[bytes] = deque(maxlen=BEHIND)
        self._next = 0  # the number of the block that follows the last one

    def part(self, start: int, size: int, going_on: Callable[[], None]) -> Iterator[bytes]:
        """Read a part, piece by piece; `going_on` is called after every step of the way there, too."""
        end = start + size
        while start < end:
            with self._lock:
                block = self._step(start // BLOCK)
            going_on()
            piece = block[start % BLOCK :][: end - start]
            if piece:
                yield piece
            start += len(piece)

    def _step(self, number: int) -> bytes:
        """Return a block, or nothing yet after having gone one further towards it."""
        first = self._next - len(self._blocks)
        if self._file is None or number < first:
            self._rewind()
        if number >= self._next:
            assert self._file is not None  # noqa: S101 - it was opened
            try:
                self._blocks.append(_block(self._file))
            except UnreadableError:
                self._file = None  # a connection that broke is made again for the next one
                raise
            self._next += 1
        place = number - self._next + len(self._blocks)
        return self._blocks[place] if place < len(self._blocks) else b""

    def _rewind(self) -> None:
        self._open.close()
        self._blocks.clear()
        self._next, self._file = 0, self._open.enter_context(self._opener())


def _block(file: Any) -> bytes:
    """Read a block; what there is of it if the file is damaged behind that."""
    pieces: list[bytes] = []
    left = BLOCK
    try:
        while left and (piece := file.read1(left)):
            pieces.append(piece)
            left -= len(piece)
    except Exception:
        if not pieces:
            raise
    if not pieces:
        raise UnreadableError("read", "the archive ends in the middle of it")
    return b"".join(pieces)

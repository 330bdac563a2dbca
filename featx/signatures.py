# Signatures: kinds of files recognised by their first bytes, whatever their names say.
"""What a file is, whatever it is called."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Bytes of a file that are enough to recognise it.
HEAD = 1024

# Brands of HEIF files whose pictures are coded with HEVC (ISO/IEC 23008-12), and with AV1.
HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))

IMAGES = (
    rb"\xff\xd8\xff",  # JPEG
    rb"\x89PNG\r\n\x1a\n",
    rb"GIF8[79]a.[\x00-\x1f]",
    rb"RIFF.{4}WEBP",
    rb"BM.{4}\0{4}",
    rb"(II[*+]\0|MM\0[*+])",  # TIFF
    rb"P[1-7]\n(#[^\n]*\n)*\d+ \d+\n",  # PPM and its relatives
    rb"\0\0\0\x0c(jP  |JXL )",  # JPEG 2000 and JPEG XL
    rb"\xff\x4f\xff\x51|\xff\x0a",
    rb"\0\0\0.ftyp(mif1|msf1|miaf)",  # HEIF of any kind
)

ARCHIVES = {
    rb"PK(\x03\x04|\x05\x06)": "zip",
    rb"\x1f\x8b": "gzip",
    rb"BZh[1-9]1AY&SY": "bzip2",
    rb"\xfd7zXZ\0": "xz",
    rb"\x28\xb5\x2f\xfd": "Zstandard",
    rb"7z\xbc\xaf\x27\x1c": "7z",
    rb"Rar!\x1a\x07": "RAR",
    rb".{257}ustar": "tar",
}

VIDEOS = {
    rb".{4}ftyp(isom|iso\d|mp4\d|avc1|M4V|3g|MSNV|dash|[Ff]4v)": "an MP4 video",
    rb".{4}(ftypqt  |moov|mdat|wide)": "a QuickTime video",
    rb"\x1aE\xdf\xa3": "a Matroska or WebM video",
    rb"RIFF.{4}AVI ": "an AVI video",
    rb"\0\0\x01[\xb3\xba]": "an MPEG video",
}


def is_image(head: bytes) -> bool:
    """Whether a file with this beginning is an image."""
    return bool(_first(IMAGES, head)) or not _brands(head).isdisjoint(HEIC_BRANDS | AVIF_BRANDS)


def is_heic(head: bytes) -> bool:
    """Whether a file with this beginning is a HEIC; a HEIF file of another brand may hold one."""
    brands = _brands(head)
    return not brands.isdisjoint(HEIC_BRANDS) and brands.isdisjoint(AVIF_BRANDS)


def archive_kind(head: bytes) -> str:
    """Return what kind of archive has this beginning, such as ``zip`` or ``tar``; empty if none has."""
    return ARCHIVES.get(_first(ARCHIVES, head), "")


def video_kind(head: bytes) -> str:
    """Return what kind of video has this beginning, such as ``an MP4 video``; empty if none has."""
    return VIDEOS.get(_first(VIDEOS, head), "")


def is_text(head: bytes) -> bool:
    """Whether a file with this beginning is text in UTF-8."""
    if not head or re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # the last character may be cut off
    return True


def described(head: bytes) -> str:
    """Say what a file with this beginning is: ``an image``, ``a zip archive``, ``a text file``; empty if unknown."""
    if is_image(head):
        return "an image"
    if kind := archive_kind(head):
        return f"{'an' if kind == 'xz' else 'a'} {kind} archive"
    return video_kind(head) or ("a text file" if is_text(head) else "")


def _first(patterns: Iterable[bytes], head: bytes) -> bytes:
    return next((first for first in patterns if re.match(first, head, re.DOTALL)), b"")


def _brands(head: bytes) -> frozenset[bytes]:
    """Return the brands of a file that begins with a box of them (ISO/IEC 14496-12, "ftyp"): major, compatible."""
    if head[4:8] != b"ftyp":
        return frozenset()
    box = head[8 : int.from_bytes(head[:4])]
    return frozenset(box[place : place + 4] for place in range(0, len(box), 4) if place != 4)  # that is a version

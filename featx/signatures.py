# Signatures: images and archives recognised by their first bytes, for all who are given one in place of something else.
"""What a file is, whatever it is called."""

from __future__ import annotations

import re

# Bytes of a file that are enough to recognise it.
HEAD = 1024

IMAGES = (
    rb"\xff\xd8\xff",  # JPEG
    rb"\x89PNG\r\n\x1a\n",
    rb"GIF8[79]a.[\x00-\x1f]",
    rb"RIFF.{4}WEBP",
    rb"BM.{4}\0{4}",
    rb"(II[*+]\0|MM\0[*+])",  # TIFF
    rb"P[1-7]\n(#[^\n]*\n)*\d+ \d+\n",  # PPM and its relatives
    rb"\0\0\0.(ftyp|jP  )",  # AVIF and JPEG 2000
    rb"\xff\x4f\xff\x51",
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


def is_image(head: bytes) -> bool:
    """Whether a file that begins so is an image."""
    return any(re.match(first, head, re.DOTALL) for first in IMAGES)


def archive_kind(head: bytes) -> str:
    """Return what kind of archive begins so, ``zip`` or ``tar``, for example; empty if none does."""
    return next((kind for first, kind in ARCHIVES.items() if re.match(first, head, re.DOTALL)), "")

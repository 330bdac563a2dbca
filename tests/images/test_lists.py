# Lists of paths: how they may be written, and what is none.
from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.errors import UsageError
from featx.images.lists import read_file, read_list, read_stream
from tests.helpers import natural_image

PATHS = ("a/1.jpg", "b c/é.jpg", "照片/2.jpg", "😀.jpg")
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1).map(
    lambda name: f"./{name}"
)


def test_lists_may_be_split_by_lines_or_by_nul():
    assert read_list(b"a.jpg\n\nb c.jpg\r\n") == ("a.jpg", "b c.jpg")
    assert read_list(b"a\nb.jpg\0c.jpg\0") == ("a\nb.jpg", "c.jpg")
    assert read_list(b"caf\xe9.jpg\n")[0].encode("utf-8", "surrogateescape") == b"caf\xe9.jpg"


def test_lines_end_where_lines_end():
    assert read_list("a\u2028b.jpg\r\nc\x0bd.jpg\n\n".encode()) == ("a\u2028b.jpg", "c\x0bd.jpg")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_lists_may_be_in_any_unicode(encoding, end):
    assert read_list(end.join((*PATHS, "")).encode(encoding)) == PATHS


@pytest.mark.parametrize(("mark", "encoding"), [(codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")])
def test_the_order_of_bytes_is_that_of_the_mark(mark, encoding):
    assert read_list(mark + "\n".join(PATHS).encode(encoding)) == PATHS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_utf16_without_a_mark_is_recognised_by_its_zeros(encoding, end):
    text = end.join(("a/1.jpg", "b c/é.jpg", ""))
    expected = ("a/1.jpg", "b c/é.jpg")
    if end == "\0":
        assert read_list(codecs.BOM_UTF16 + text.encode("utf-16")[2:]) == expected
    else:
        assert read_list(text.encode(encoding)) == expected


@pytest.mark.parametrize(
    "names",
    [
        ("a", "b", "c"),
        ("a",),
        ("x", "./y"),
        (".", "./a.jpg"),
        ("é.jpg", "z"),
        ("1", "22", "3"),
        ("a\n", "b"),
        ("ab\n",),
    ],
)
def test_short_names_with_zeros_between_are_not_taken_for_utf16(names):
    assert read_list("".join(f"{name}\0" for name in names).encode()) == names


@given(st.lists(NAMES, min_size=1, max_size=6))
def test_what_find_prints_comes_back(names):
    assert read_list("".join(f"{name}\0" for name in names).encode()) == tuple(names)
    assert read_list("".join(f"{name}\n" for name in names).encode()) == tuple(names)


@pytest.mark.parametrize("data", [codecs.BOM_UTF16_LE + b"abc", codecs.BOM_UTF16_LE + b"\x00\xdc\n\0"])
def test_a_list_that_begins_like_utf16_and_is_none_is_refused(tmp_path, data):
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(UsageError, match=r"list looks like utf-16.*Write it as UTF-8"):
        read_file(tmp_path / "list")


def images():
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"):
        file = io.BytesIO()
        natural_image(1).save(file, kind)
        yield kind, file.getvalue()


def archives():
    for kind, pack in (("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)):
        yield kind, pack(b"a.jpg\n" * 1000)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", b"")
    yield "zip", file.getvalue()
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    yield "empty zip", file.getvalue()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    yield "tar", file.getvalue()


@pytest.mark.parametrize(
    ("kind", "data"), [*images(), *archives()], ids=lambda value: value if isinstance(value, str) else ""
)
def test_images_and_archives_are_no_lists(tmp_path, kind, data):
    what = "an image" if kind.isupper() else "an archive"  # as Pillow and people write them
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(UsageError, match=f"The list .*list is {what}, not a list of paths"):
        read_file(tmp_path / "list")
    with pytest.raises(UsageError, match=f"Standard input is {what}, not a list of paths"):
        read_stream(io.BytesIO(data), "Standard input")


@pytest.mark.parametrize(
    "text",
    [
        "BMW/1.jpg",
        "GIF89a/1.gif",
        "GIF89a.gif",
        "RIFFs/1.webp",
        "P6 1 2 .jpg",
        "P5\n1.jpg",
        "II/1.tif",
        "MM.jpg",
        "PK/1.jpg",
        "7z/1.jpg",
        "BZh9/1.jpg",
        "Rar!/1.jpg",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\0"])
def test_paths_that_begin_like_images_and_archives_are_paths(text, end):
    data = f"{text}{end}b.jpg{end}".encode()
    assert read_stream(io.BytesIO(data), "It") == read_list(data)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "No such file"),
        ("", "Is a directory"),
        (".", "Is a directory"),
        ("x" * 300, "File name too long"),
        ("a\0b", "null byte"),
    ],
)
def test_a_list_that_cannot_be_read_is_named_with_the_reason(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"The list .* cannot be read: .*{reason}"):
        read_file(name)

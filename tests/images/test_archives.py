# Archives: every member in full, whatever the container; hostile and torn ones cost one line, and nothing else.
from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import zipfile
import zlib

import pytest

from featx.errors import UnreadableError, UsageError
from featx.images import archives, locators, sources, tars, zips
from featx.options import Limits
from tests.helpers import natural_image

COMPRESSED = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tgz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}
KINDS = (*COMPRESSED, "zip")


def jpeg(seed=0) -> bytes:
    file = io.BytesIO()
    natural_image(seed, 20, 15).save(file, "JPEG")
    return file.getvalue()


def tarred(*members, form=tarfile.PAX_FORMAT) -> bytes:
    """Make a tar of names and contents, or of headers that are as they are."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            header.type = tarfile.DIRTYPE if header.name.endswith("/") else header.type
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


def zipped(*members, method=zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def packed(kind, *members) -> bytes:
    return zipped(*members) if kind == "zip" else COMPRESSED[kind](tarred(*members))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    archives.close()


def read(locator, **limits) -> bytes:
    with locators.opened(locator, Limits(**limits)) as file:
        return file.read()


def reason(locator, **limits) -> str:
    with pytest.raises(UnreadableError) as failure:
        read(locator, **limits)
    return failure.value.reason


def found(*inputs, listed=()):
    return {item.key: item.path for item in sources.find(inputs, listed).items}


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_images_of_a_folder_without_the_suffix(here, kind):
    contents = {f"cats/{number}.jpg": jpeg(number) for number in (2, 10, 1)} | {"./a//b.png": b"b"}
    (here / f"photos.{kind}").write_bytes(
        packed(
            kind,
            ("cats/", b""),
            *contents.items(),
            ("notes.txt", b"x"),
            ("cats/.hidden.jpg", b"x"),
            ("__M/._1.jpg", b"x"),
        )
    )
    result = sources.find([f"photos.{kind}"])
    assert [item.key for item in result.items] == [
        *("photos/cats/2.jpg", "photos/cats/10.jpg", "photos/cats/1.jpg", "photos/a/b.png"),
    ]
    assert result.items[0].path == f"photos.{kind}::cats/2.jpg"
    assert result.others == 1
    for name, content in reversed(contents.items()):  # in another order than they lie in
        assert read(f"photos.{kind}::{name.removeprefix('./').replace('//', '/')}") == content


@pytest.mark.parametrize("kind", KINDS)
def test_large_members_in_random_order(here, kind, monkeypatch):
    """Compressed tars keep little of what was passed over, and begin again where that is not enough."""
    monkeypatch.setattr(tars, "BLOCK", 1000)
    monkeypatch.setattr(tars, "BEHIND", 3)
    monkeypatch.setattr(zips, "BLOCK", 1000)
    monkeypatch.setattr(locators, "IN_MEMORY", 5000)
    chance = random.Random(1)
    contents = {f"{number}.jpg": chance.randbytes(chance.choice((0, 1, 999, 4000, 9000))) for number in range(40)}
    (here / f"a.{kind}").write_bytes(packed(kind, *contents.items()))
    names = [chance.choice(list(contents)) for _ in range(100)]
    for name in names:
        assert read(f"a.{kind}::{name}") == contents[name]


def test_a_compressed_tar_is_decompressed_once_for_members_in_order(here, monkeypatch):
    contents = [(f"{number}.jpg", random.Random(number).randbytes(50_000)) for number in range(200)]
    (here / "a.tar.gz").write_bytes(packed("tar.gz", *contents))
    opened = []
    opener = gzip.open
    monkeypatch.setitem(tars.OPENERS, "gzip", lambda path: opened.append(path) or opener(path))
    items = sources.find(["a.tar.gz"]).items
    assert len(opened) == 1
    order = [*items[1:], items[0]]
    assert locators.in_order(order) == items
    for item in items[::2]:
        assert len(read(item.path)) == 50_000
    for item in items[1::40]:  # a thread that comes late
        assert len(read(item.path)) == 50_000
    assert len(opened) == 2


HOSTILE = {
    "../../x.jpg": "1 name in it would lead elsewhere, such as ../../x.jpg",
    "/etc/x.jpg": "1 name in it would lead elsewhere, such as /etc/x.jpg",
    "a/../b.jpg": "1 name in it would lead elsewhere, such as a/../b.jpg",
    f"{'a' * 5000}.jpg": f"1 name in it would lead elsewhere, such as {'a' * 60}…",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:12])
def test_a_name_that_leads_elsewhere_is_one_line_of_the_archive(here, kind, name):
    (here / f"a.{kind}").write_bytes(packed(kind, ("1.jpg", jpeg()), (name, jpeg()), ("2.jpg", jpeg())))
    assert found(f"a.{kind}") == {
        "a/1.jpg": f"a.{kind}::1.jpg", "a/2.jpg": f"a.{kind}::2.jpg", f"a.{kind}": f"a.{kind}::"
    }  # fmt: skip
    assert reason(f"a.{kind}::") == HOSTILE[name]


def special(kind, **facts) -> tarfile.TarInfo:
    header = tarfile.TarInfo("x.jpg")
    header.type = kind
    for fact, value in facts.items():
        setattr(header, fact, value)
    return header


@pytest.mark.parametrize("compressed", COMPRESSED)
@pytest.mark.parametrize(
    ("header", "why"),
    [
        (special(tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
        (special(tarfile.LNKTYPE, linkname="1.jpg"), "a link"),
        (special(tarfile.CHRTYPE, devmajor=1, devminor=5), "not a file"),
        (special(tarfile.BLKTYPE), "not a file"),
        (special(tarfile.FIFOTYPE), "not a file"),
        (special(b"?"), "not a file"),
        (special(tarfile.GNUTYPE_SPARSE), "a sparse file"),
    ],
)
def test_members_of_tars_that_are_no_files_fail_alone(here, header, why, compressed):
    (here / f"a.{compressed}").write_bytes(
        COMPRESSED[compressed](tarred(("1.jpg", jpeg()), (header, b""), ("2.jpg", b"2")))
    )
    assert list(found(f"a.{compressed}")) == ["a/1.jpg", "a/x.jpg", "a/2.jpg"]
    assert reason(f"a.{compressed}::x.jpg").startswith(why)
    assert read(f"a.{compressed}::2.jpg") == b"2"


def test_members_of_zips_that_are_no_files_fail_alone(here):
    link, pipe = zipfile.ZipInfo("link.jpg"), zipfile.ZipInfo("pipe.jpg")
    link.external_attr, pipe.external_attr = (kind << 16 for kind in (stat.S_IFLNK | 0o777, stat.S_IFIFO))
    (here / "a.zip").write_bytes(zipped((link, "/etc/passwd"), (pipe, ""), ("1.jpg", b"1")))
    assert reason("a.zip::link.jpg").startswith("a link")
    assert reason("a.zip::pipe.jpg") == "not a file"
    assert read("a.zip::1.jpg") == b"1"


def test_encrypted_and_strangely_compressed_members_fail_alone(here):
    data = bytearray(zipped(("1.jpg", b"1"), ("2.jpg", b"2")))
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.find(signature) + place] |= 1
    (here / "a.zip").write_bytes(data)
    assert reason("a.zip::1.jpg") == "encrypted"
    assert read("a.zip::2.jpg") == b"2"
    (here / "b.zip").write_bytes(zipped(("1.jpg", b"1"), method=zipfile.ZIP_BZIP2))
    assert reason("b.zip::1.jpg") == "compressed by a method (number 12) that featx does not read"


def test_a_bomb_of_zeros_is_held_to_the_limits_of_files(here):
    for kind in KINDS:
        (here / f"a.{kind}").write_bytes(packed(kind, ("x.jpg", bytes(20_000_000)), ("1.jpg", b"1")))
        assert (here / f"a.{kind}").stat().st_size < 30_000 or kind == "tar"
        assert reason(f"a.{kind}::x.jpg", max_bytes=1_000_000).startswith("20.0 MB is more than the 1.00 MB allowed")
        assert read(f"a.{kind}::1.jpg", max_bytes=1_000_000) == b"1"


def test_a_zip_member_larger_than_it_says_is_cut_off(here, monkeypatch):
    monkeypatch.setattr(zips, "BLOCK", 1000)
    data = bytearray(zipped(("x.jpg", bytes(10_000_000))))
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<L", data, data.find(signature) + place, 5000)
    (here / "a.zip").write_bytes(data)
    taken = []
    with pytest.raises(UnreadableError, match="larger than the archive says"):
        taken.extend(archives.at("a.zip").source("x.jpg", lambda: None)[1])
    assert sum(map(len, taken)) <= 5000


def test_of_members_with_one_name_the_last_counts_as_in_a_folder(here):
    for kind in KINDS:
        with pytest.warns(UserWarning, match="Duplicate") if kind == "zip" else open(os.devnull):
            data = packed(kind, ("1.jpg", b"old"), ("2.jpg", b"2"), ("./1.jpg" if kind != "zip" else "1.jpg", b"new"))
        (here / f"a.{kind}").write_bytes(data)
        result = sources.find([f"a.{kind}"])
        assert sorted(item.key for item in result.items) == ["a/1.jpg", "a/2.jpg"]
        assert result.repeated == 1
        assert read(f"a.{kind}::1.jpg") == b"new"


def test_names_that_are_not_utf_8_are_written_as_those_of_files(here):
    raw = "caf\udce9.jpg"
    (here / "a.tar").write_bytes(tarred((raw, b"1"), form=tarfile.GNU_FORMAT))
    data = zipped(("caf_.jpg", b"1")).replace(b"caf_", b"caf\xe9")
    (here / "b.zip").write_bytes(data)
    (here / "c.zip").write_bytes(zipped(("café\n.jpg", b"1")))
    (here / "d.zip").write_bytes(zipped(("n_.jpg", b"1")).replace(b"n_.jpg", b"n.jpg\0"))
    assert list(found("a.tar", "b.zip", "c.zip", "d.zip")) == [
        "a/caf\\xe9.jpg",
        "b/caf\\xe9.jpg",
        "c/café\n.jpg",
        "d/n.jpg",
    ]
    for locator in (f"a.tar::{raw}", f"b.zip::{raw}", "c.zip::café\n.jpg", "d.zip::n.jpg"):
        assert read(locator) == b"1"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_and_long_names(here, form):
    long = "/".join(["folder" * 5] * 4) + "/1.jpg"
    (here / "a.tar").write_bytes(tarred((long, b"1"), ("2.jpg", b"2"), form=form))
    assert found("a.tar") == {f"a/{long}": f"a.tar::{long}", "a/2.jpg": "a.tar::2.jpg"}
    assert read(f"a.tar::{long}") == b"1"


def test_zip64_and_something_in_front(here):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open("1.jpg", "w", force_zip64=True) as member:
        member.write(b"1")
    plain = zipped(("1.jpg", b"1"), ("2.jpg", b"2"), method=zipfile.ZIP_STORED)
    end = plain.rfind(b"PK\5\6")
    count, length, offset = struct.unpack_from("<HLL", plain, end + 10)
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, offset)
    wide += struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    wide = (
        plain[:end]
        + wide
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 5)
        + b"notes"
    )
    for data in (file.getvalue(), plain, wide):
        for front in (b"", b"#!/bin/sh\n" * 50):
            (here / "a.zip").write_bytes(front + data)
            assert len(zipfile.ZipFile("a.zip").namelist()) == len(found("a.zip"))
            assert read("a.zip::1.jpg") == b"1"


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_cut_anywhere_gives_its_whole_members_and_one_line(here, kind):
    contents = {f"{number}.jpg": random.Random(number).randbytes(1500) for number in range(8)}
    data = packed(kind, *contents.items())
    chance = random.Random(3)
    for length in sorted(chance.sample(range(len(data)), 40)):
        (here / f"a.{kind}").write_bytes(data[:length])
        items = sources.find([f"a.{kind}"]).items
        *whole, line = (item.path for item in items)
        if line != f"a.{kind}::":  # only what is not needed is missing
            assert len(items) == 8
            assert length > len(data) * 0.8
            continue
        assert reason(line)
        for path in whole:
            assert read(path) == contents[path.partition("::")[2]]
        if kind in ("tar", "zip"):
            assert len(whole) == sum(length >= data.find(content) + 1500 > 1500 for content in contents.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_never_crashes(here, kind):
    data = packed(kind, *((f"{number}.jpg", bytes([number]) * 700) for number in range(6)))
    chance = random.Random(4)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        (here / f"a.{kind}").write_bytes(damaged)
        archives._archive.cache_clear()
        for item in sources.find([f"a.{kind}"]).items:
            try:
                read(item.path)
            except (UnreadableError, OSError, EOFError, zlib.error, lzma.LZMAError, OverflowError):
                continue


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_header_that_would_fill_the_memory_is_not_read(here, kind):
    header = special(kind)
    (here / "a.tar.gz").write_bytes(gzip.compress(tarred(("1.jpg", b"1"), (header, b"a" * 3_000_000), ("2.jpg", b"2"))))
    assert list(found("a.tar.gz")) == ["a/1.jpg", "a.tar.gz"]
    assert reason("a.tar.gz::") == "it is damaged, after 1.jpg; what follows cannot be read"


def test_more_members_than_anybody_has_are_left_out(here, monkeypatch):
    monkeypatch.setattr(archives, "MOST", 3)
    (here / "a.zip").write_bytes(zipped(*((f"{number}.jpg", b"1") for number in range(5))))
    assert list(found("a.zip")) == ["a/0.jpg", "a/1.jpg", "a/2.jpg", "a.zip"]
    assert reason("a.zip::") == "it has more than 3 members; the others are left out"


def test_a_tar_that_leads_back_ends(here):
    data = bytearray(tarred(("1.jpg", b"1"), ("2.jpg", b"2")))
    data[1024 + 124 : 1024 + 136] = b"\xff" * 10 + b"\xfc\x00"  # minus 1,024, in base 256
    block = data[1024:1536]
    block[148:156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(block)
    (here / "a.tar").write_bytes(data)
    assert list(found("a.tar")) == ["a/1.jpg", "a.tar"]


def test_an_archive_that_is_none_is_one_line(here):
    (here / "a.tar").write_text("a\nb\n")
    (here / "b.zip").write_bytes(b"")
    (here / "c.tar.gz").write_bytes(b"\x1f\x8b\x08 and nothing else")
    (here / "d.tar").write_bytes(jpeg())
    (here / "1.jpg").write_bytes(jpeg())
    assert list(found(".")) == ["1.jpg", "a.tar", "b.zip", "c.tar.gz", "d.tar"]
    assert [reason(f"{name}::") for name in ("a.tar", "b.zip", "c.tar.gz", "d.tar")] == [
        "it is a text file, not an archive",
        "it is not a zip archive, or damaged at its beginning",
        "it is not a tar archive, or damaged at its beginning",
        "it is an image, not an archive",
    ]
    (here / "none.zip").write_bytes(zipped(("a.txt", b"a")))
    with pytest.raises(UsageError, match=r"There are no images in none\.zip"):
        found("none.zip")


def test_archives_in_folders_and_patterns_and_beside_what_was_unpacked(here):
    (here / "d" / "cats").mkdir(parents=True)
    for name in ("cats", "dogs"):
        (here / "d" / f"{name}.zip").write_bytes(zipped((f"{name}.jpg", b"1")))
    (here / "d" / "cats" / "cats.jpg").write_bytes(b"1")
    result = sources.find(["d"])
    assert {item.key: item.path for item in result.items} == {
        "d/dogs/dogs.jpg": "d/dogs.zip::dogs.jpg",
        "d/cats/cats.jpg": "d/cats/cats.jpg",
    }
    assert result.unpacked == 1
    assert list(found("d/*.zip")) == ["d/cats/cats.jpg", "d/dogs/dogs.jpg"]
    assert found("d/*.zip")["d/cats/cats.jpg"] == "d/cats.zip::cats.jpg"
    assert list(found("d/dogs.zip::dogs.jpg")) == ["dogs/dogs.jpg"]
    assert found(listed=["d/dogs.zip::dogs.jpg"]) == {"d/dogs/dogs.jpg": "d/dogs.zip::dogs.jpg"}
    with pytest.raises(UsageError, match=r"would both be stored as cats/cats\.jpg"):
        found("d/cats.zip", "d/cats")
    assert len(found("d/dogs.zip", "d/dogs.zip")) == 1


def test_shards_have_webdataset_s_keys(here):
    def sample(number):
        return [(f"s/{number:04}.jpg", b"%d" % number), (f"s/{number:04}.json", b"{}")]

    for shard in range(8, 12):
        members = [member for number in range(shard * 3, shard * 3 + 3) for member in sample(number)]
        (here / f"shard-{shard:03}.tar").write_bytes(tarred(*members))
    (here / "shard-011.tar").write_bytes(tarred(("7.left.jpg", b"l"), ("7.right.jpg", b"r"), ("v1.0/8.x.jpg", b"8")))
    result = sources.find(["shard-{008..011}.tar"])
    assert [item.key for item in result.items] == [
        *(f"s/{n:04}" for n in range(24, 33)),
        "7.left.jpg",
        "7.right.jpg",
        "v1.0/8",
    ]
    assert result.items[0].path == "shard-008.tar::s/0024.jpg"
    assert result.others == 9
    assert next(iter(found("shard-008.tar"))) == "shard-008/s/0024.jpg"
    with pytest.raises(UsageError, match=r"There is no file or folder shard-012\.tar"):
        found("shard-{8..900000000}.tar".replace("{8", "{008"))
    (here / "shard-012.tar").write_bytes(tarred(*sample(24)))
    with pytest.raises(UsageError, match=r"both be stored as s/0024.*Give the archives"):
        found("shard-{008..012}.tar")


def test_a_folder_with_the_mark_in_its_name_is_a_folder(here):
    (here / "a.zip::b").mkdir()
    (here / "a.zip::b" / "1.jpg").write_bytes(b"1")
    assert read("a.zip::b/1.jpg") == b"1"
    assert locators.exists("a.zip::b/1.jpg")
    assert not locators.exists("b.zip::1.jpg")


def test_a_changed_archive_is_another_one(here):
    (here / "a.tar").write_bytes(tarred(("1.jpg", b"1")))
    assert read("a.tar::1.jpg") == b"1"
    before = locators.stat_of("a.tar::1.jpg")
    (here / "a.tar").write_bytes(tarred(("2.jpg", b"22"), ("1.jpg", b"new")))
    os.utime("a.tar", ns=(1, 1))
    assert read("a.tar::1.jpg") == b"new"
    assert locators.stat_of("a.tar::1.jpg") != before
    assert locators.exists("a.tar::2.jpg")
    assert not locators.exists("a.tar::3.jpg")
    with pytest.raises(FileNotFoundError):
        read("a.tar::3.jpg")

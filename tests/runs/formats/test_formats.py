# The formats: one contract for all of them, and what is special to the array and to the table.
from __future__ import annotations

import hashlib
import io
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars
import pyarrow.parquet
import pytest
from msgspec.structs import replace

from featx import files
from featx.errors import OutputError, UsageError
from featx.images.frame import Frame
from featx.runs import formats
from featx.runs.formats import Record, npy
from featx.runs.manifest import Done
from featx.values import Field, Item

FIELDS = (Field("embedding", (6,), "float32"),)
APPENDED = [name for name, row in formats.FORMATS.items() if not row.at_once]
SHARED = [name for name in APPENDED if formats.shares_files(name)]


def vector(number):
    return np.random.default_rng(number).standard_normal(6).astype(np.float32)


class Shelf:
    """A run's folder, and what its manifest would say: outputs and digests of what was committed and entered."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.done, self.digests, self.bytes = {}, {}, {}
        (folder / "unfinished").mkdir(parents=True)
        self.open()

    def open(self):
        """Begin as every run does."""
        self.writer = formats.writer(self.name, self.folder, self.folder / "unfinished", FIELDS)
        self.writer.collect_garbage(self.done, lambda: self.digests)

    def commit(self, *numbers, version=0):
        keys = [f"{number}.jpg" for number in numbers]
        stored = [
            self.writer.write(
                Record(Item(key, f"/in/{key}"), f"/in/{key}", (7, 5), {"embedding": vector(number + 1000 * version)})
            )
            for key, number in zip(keys, numbers, strict=True)
        ]
        return zip(keys, self.writer.commit(stored), stored, strict=True)

    def enter(self, *numbers, version=0):
        for key, output, stored in self.commit(*numbers, version=version):
            self.done[key], self.digests[key], self.bytes[key] = output, stored.sha256, stored.bytes

    def line(self, key):
        facts = {"output": self.done[key], "sha256": self.digests[key], "bytes": self.bytes[key]}
        return Done(key, f"/in/{key}", None, (7, 5), Frame.of((7, 5)), **facts)

    def require(self, versions):
        """Everything that is entered is there, once, and as it was written; and nothing else."""
        reader = formats.reader(self.name, self.folder)
        assert {*self.done} == {f"{number}.jpg" for number in versions}
        for number, version in versions.items():
            key = f"{number}.jpg"
            assert reader.holds(key, self.done[key], self.bytes[key])
            np.testing.assert_array_equal(
                reader.read(key, self.done[key])["embedding"], vector(number + 1000 * version)
            )
            assert reader.fault(self.line(key)) == ""
        blocks = list(reader.vectors(self.done.items()))
        assert sorted(key for keys, _ in blocks for key in keys) == sorted(self.done)
        for keys, rows in blocks:
            for key, row in zip(keys, rows, strict=True):
                np.testing.assert_array_equal(row, reader.read(key, self.done[key])["embedding"])
        files = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        assert files == (reader.files(self.done.values()) if self.done else set())

    def data(self, key):
        """Return the file that has the numbers of an image."""
        output = self.folder / self.done[key]
        return output / "embedding" / "c.0.0" if output.is_dir() else output


@pytest.fixture(params=APPENDED)
def shelf(request, tmp_path):
    return Shelf(request.param, tmp_path / "run")


@pytest.fixture(params=SHARED)
def rows(request, tmp_path):
    """A shelf whose images share files."""
    return Shelf(request.param, tmp_path / "run")


def test_what_was_committed_is_read(shelf):
    shelf.enter(3, 1, 2)
    shelf.enter(9)
    shelf.require({3: 0, 1: 0, 2: 0, 9: 0})
    reader = formats.reader(shelf.name, shelf.folder)
    assert not reader.holds("4.jpg", shelf.done["3.jpg"] if shelf.name in SHARED else f"4.jpg.{shelf.name}", 24)
    assert not reader.holds("3.jpg", shelf.done["3.jpg"], shelf.bytes["3.jpg"] + 1)


def test_a_run_goes_on_where_another_stopped(shelf):
    shelf.enter(1, 2)
    shelf.open()
    shelf.enter(3)
    shelf.open()
    shelf.require({1: 0, 2: 0, 3: 0})


def test_the_same_arrays_give_the_same_files(shelf, tmp_path):
    other = Shelf(shelf.name, tmp_path / "other")
    for each in (shelf, other):
        each.enter(1, 2)
        each.enter(3)

    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(shelf.folder) == contents(other.folder)


def test_images_that_were_done_again_are_there_once(shelf):
    shelf.enter(1, 2, 3)
    shelf.enter(2, version=1)
    shelf.open()
    shelf.require({1: 0, 2: 1, 3: 0})
    shelf.enter(1, version=1)
    shelf.enter(1, version=2)
    shelf.enter(4)
    shelf.open()
    shelf.require({1: 2, 2: 1, 3: 0, 4: 0})


def test_what_is_committed_and_not_entered_is_cleared_away(rows):
    """A kill between the two."""
    rows.enter(1, 2)
    list(rows.commit(3, 4))
    rows.open()
    rows.require({1: 0, 2: 0})
    rows.enter(3, 4)
    rows.require({1: 0, 2: 0, 3: 0, 4: 0})


def test_what_the_manifest_forgot_is_cleared_away(rows):
    rows.enter(1, 2, 3)
    rows.enter(4)
    del rows.done["2.jpg"], rows.done["4.jpg"]
    rows.open()
    rows.require({1: 0, 3: 0})
    rows.done.clear()
    rows.open()
    rows.require({})


def test_a_damaged_vector_is_found(shelf):
    shelf.enter(1, 2)
    path = shelf.data("2.jpg")
    data, needle = bytearray(path.read_bytes()), vector(2).tobytes()
    data[data.index(needle) + 5] ^= 4
    path.write_bytes(data)
    reader = formats.reader(shelf.name, shelf.folder)
    try:
        fault = reader.fault(shelf.line("2.jpg"))
    except OSError as error:  # a page's own checksum
        fault = str(error)
    assert "sha256 differs" in fault or "CRC" in fault


@pytest.mark.parametrize("rest", [0, 10, 100])
def test_of_a_torn_file_nothing_is_held(rows, rest):
    rows.enter(1, 2)
    path = rows.data("1.jpg")
    path.write_bytes(path.read_bytes()[:rest])
    assert not formats.reader(rows.name, rows.folder).holds("1.jpg", rows.done["1.jpg"], 24)
    rows.open()  # the run makes them again, and enters them
    rows.enter(1, 2, version=1)
    rows.open()
    rows.require({1: 1, 2: 1})


@pytest.mark.parametrize("name", ["npz", "safetensors", "webdataset", "hdf5"])
def test_many_vectors_are_read_with_few_files_open(name, tmp_path):
    shelf = Shelf(name, tmp_path)
    shelf.enter(*range(200))
    reader = formats.reader(name, tmp_path)
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 64, most))
    try:
        ((keys, rows),) = reader.vectors(shelf.done.items())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    assert keys == [f"{number}.jpg" for number in range(200)]
    np.testing.assert_array_equal(rows, [vector(number) for number in range(200)])


def test_what_a_format_cannot_hold_is_refused():
    level = Field("level_0", (3, 4, 5))
    formats.require("npz", [level, *FIELDS])
    formats.require("npy", FIELDS)
    with pytest.raises(UsageError, match="zarr stores arrays of one shape, and level_1 differs from image to image"):
        formats.require("zarr", [level, Field("level_1", (3, None, None))])
    for fields in ([level], [level, *FIELDS], []):
        with pytest.raises(UsageError, match="stores one vector per image"):
            formats.require("parquet", fields)
    with pytest.raises(UsageError, match=r"--format: expected npz, safetensors, .* zarr or hdf5, not 'csv'"):
        formats.require("csv")


# The array


def test_numpy_maps_the_array_at_any_moment(tmp_path):
    shelf = Shelf("npy", tmp_path / "run")
    for count in range(1, 12):
        shelf.enter(count)
        mapped = np.load(shelf.folder / "embeddings.npy", mmap_mode="r")
        assert mapped.shape == (count, 6)
        np.testing.assert_array_equal(mapped[-1], vector(count))
    assert (shelf.folder / "keys.txt").read_text().split() == [f"{number}.jpg" for number in range(1, 12)]


def test_a_header_is_as_long_for_any_number_of_rows():
    assert len({len(npy._header(10**power, 1280)) for power in range(13)}) == 1
    header = npy._header(3, 2) + bytes(24)
    np.testing.assert_array_equal(np.load(io.BytesIO(header)), np.zeros((3, 2)))


def test_a_collection_that_was_interrupted_between_its_files_is_made_good(tmp_path):
    shelf = Shelf("npy", tmp_path / "run")
    shelf.enter(1, 2, 3, 4)
    shelf.enter(2, version=1)
    (shelf.folder / "keys.txt").write_text("1.jpg\n3.jpg\n4.jpg\n2.jpg\n")  # the keys' new file, the array's old one
    shelf.open()
    shelf.require({1: 0, 2: 1, 3: 0, 4: 0})


def test_keys_that_are_gone_are_told_by_their_rows(tmp_path):
    shelf = Shelf("npy", tmp_path / "run")
    shelf.enter(1, 2, 3)
    (shelf.folder / "keys.txt").unlink()
    with pytest.raises(ValueError, match="0 keys for 3 rows"):
        formats.reader("npy", shelf.folder).read("1.jpg", "embeddings.npy")
    shelf.open()
    shelf.require({1: 0, 2: 0, 3: 0})
    shelf.enter(4)
    shelf.open()
    shelf.require({1: 0, 2: 0, 3: 0, 4: 0})


def test_two_kills_in_a_row(tmp_path):
    """An image done again and not entered; then the collection cut off between its files."""
    shelf = Shelf("npy", tmp_path / "run")
    shelf.enter(1, 2, 3)
    list(shelf.commit(1, version=1))
    (shelf.folder / "keys.txt").write_text("2.jpg\n3.jpg\n1.jpg\n")
    shelf.open()
    shelf.require({1: 0, 2: 0, 3: 0})


def test_of_two_rows_the_one_that_was_entered_counts(tmp_path):
    shelf = Shelf("npy", tmp_path / "run")
    shelf.enter(1, 2)
    list(shelf.commit(1, version=1))
    reader = formats.reader("npy", shelf.folder, shelf.digests.get)
    np.testing.assert_array_equal(reader.read("1.jpg", "embeddings.npy")["embedding"], vector(1))
    assert reader.fault(shelf.line("1.jpg")) == ""
    shelf.open()
    shelf.require({1: 0, 2: 0})


def test_an_array_that_was_cut_off_keeps_what_is_left(tmp_path):
    shelf = Shelf("npy", tmp_path / "run")
    shelf.enter(1, 2, 3)
    path = shelf.folder / "embeddings.npy"
    path.write_bytes(path.read_bytes()[:-1])
    reader = formats.reader("npy", shelf.folder)
    assert [reader.holds(f"{number}.jpg", path.name, 24) for number in (1, 2, 3)] == [True, True, False]
    shelf.open()
    shelf.enter(3)
    shelf.require({1: 0, 2: 0, 3: 0})


def test_links_are_not_followed(tmp_path):
    shelf = Shelf("npy", tmp_path / "run")
    shelf.enter(1)
    path, elsewhere = shelf.folder / "embeddings.npy", tmp_path / "elsewhere.npy"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with pytest.raises(OSError, match="symbolic links"):
        shelf.enter(2)
    assert elsewhere.read_bytes() == before


def test_commits_do_not_run_into_each_other(tmp_path, monkeypatch):
    """After an image that hangs, a run goes on beside a commit that is not finished; here there is room for it."""
    honest, nothing = files.synchronise, threading.Event()
    monkeypatch.setattr(files, "synchronise", lambda path: (nothing.wait(0.01), honest(path)))
    for name in SHARED:
        shelf = Shelf(name, tmp_path / name)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(shelf.enter, range(12)))
        shelf.open()
        shelf.require(dict.fromkeys(range(12), 0))


def test_lines_of_keys_are_lines(tmp_path):
    keys = ["plain.jpg", "two\nlines.jpg", "cr\r.jpg", r"a\x5cx0a.jpg", "é.jpg"]
    path = tmp_path / "keys.txt"
    path.write_text("".join(map(npy._line, keys)), newline="")
    assert path.read_bytes().count(b"\n") == len(keys)
    assert npy.read_keys(path) == keys
    path.write_bytes(path.read_bytes()[:-1])
    assert npy.read_keys(path) == keys[:-1]


# The table


def test_others_read_the_table(tmp_path):
    shelf = Shelf("parquet", tmp_path / "run")
    shelf.enter(1, 2)
    shelf.enter(3)
    table = polars.read_parquet(shelf.folder / "*.parquet")
    assert table.columns == ["key", "path", "width", "height", "embedding"]
    assert table["key"].to_list() == ["1.jpg", "2.jpg", "3.jpg"]
    assert table["path"].to_list()[2] == "/in/3.jpg"
    assert (table["width"].to_list(), table["height"].to_list()) == ([7] * 3, [5] * 3)
    np.testing.assert_array_equal(table["embedding"].to_numpy(), np.stack([vector(1), vector(2), vector(3)]))


def test_any_flipped_bit_of_what_describes_a_table_is_met(tmp_path):
    """In its schema, text may be no UTF-8 any more, which pyarrow itself does not expect."""
    shelf = Shelf("parquet", tmp_path / "run")
    shelf.enter(1, 2)
    path = shelf.data("1.jpg")
    content, held = path.read_bytes(), 0
    for bit in range(8 * (len(content) - 1500), 8 * len(content), 5):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        reader = formats.reader(shelf.name, shelf.folder)
        held += reader.holds("1.jpg", shelf.done["1.jpg"], shelf.bytes["1.jpg"])
        reader.strays(shelf.done)
    assert 0 < held < 2400


def test_a_shard_has_one_row_group_and_a_fixed_size_list(tmp_path):
    shelf = Shelf("parquet", tmp_path / "run")
    shelf.enter(*range(50))
    (output,) = set(shelf.done.values())
    file = pyarrow.parquet.ParquetFile(shelf.folder / output)
    assert (file.metadata.num_row_groups, file.metadata.num_rows) == (1, 50)
    assert file.schema_arrow.field("embedding").type.list_size == 6
    column = file.read()["embedding"].combine_chunks()
    assert hashlib.sha256(column.flatten().to_numpy()[6:12]).hexdigest() == shelf.digests["1.jpg"]


def test_a_shard_that_is_lost_is_not_taken_for_another(tmp_path):
    shelf = Shelf("parquet", tmp_path / "run")
    shelf.enter(1, 2)
    shelf.enter(3)
    (shelf.folder / shelf.done["3.jpg"]).unlink()
    shelf.open()
    shelf.enter(4)  # while nobody asks for 3
    assert shelf.done["4.jpg"] != shelf.done["3.jpg"]
    assert not formats.reader("parquet", shelf.folder).holds("3.jpg", shelf.done.pop("3.jpg"), 24)
    shelf.open()
    shelf.require({1: 0, 2: 0, 4: 0})


def test_rows_cannot_be_taken_out_of_a_damaged_shard(tmp_path):
    shelf = Shelf("parquet", tmp_path / "run")
    shelf.enter(1, 2)
    path = shelf.folder / shelf.done["1.jpg"]
    data = bytearray(path.read_bytes())
    data[data.index(vector(2).tobytes())] ^= 1
    path.write_bytes(data)
    del shelf.done["1.jpg"]
    with pytest.raises(OutputError, match="verify --repair"):
        shelf.open()
    shelf.done.clear()
    shelf.open()
    shelf.require({})


def test_a_row_that_says_another_thing_than_the_manifest_is_found(tmp_path):
    shelf = Shelf("parquet", tmp_path / "run")
    shelf.enter(1)
    reader = formats.reader("parquet", shelf.folder)
    assert "not {'path': '/elsewhere.jpg'" in reader.fault(replace(shelf.line("1.jpg"), path="/elsewhere.jpg"))

# Zarr stores grow in place: a kill, a full disk or a broken one at any call loses nothing, and leaves the same bytes.
from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal

import numpy as np
import pytest
import xarray
import zarr

from featx.errors import FeatxError
from featx.runs import formats
from featx.runs.formats import Record, zarr_store
from featx.sharding import WHOLE, Shard
from featx.values import Field, Item
from tests.faults import faults

KINDS, KEYS = ("kill", "ENOSPC", "EIO"), f"{zarr_store.STORE}/key/c.0"

# A vector of which four make a chunk, with those that are not there yet; a map that is a chunk of its own.
FIELDS = (Field("embedding", (6,), "float32"), Field("level_0", (2, 5, 5), "float16"))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Eight rows a shard, and chunks that differ; nothing waits for the disk, since only processes are killed."""
    monkeypatch.setattr(zarr_store, "ROWS", 8)
    monkeypatch.setattr(zarr_store, "CHUNK", 96)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setitem(faults.HONEST, "fsync", os.fsync)


def arrays(number):
    values = np.random.default_rng(number).standard_normal(56)
    return {"embedding": values[:6].astype("float32"), "level_0": values[6:].astype("float16").reshape(2, 5, 5)}


class Run:
    """A store, and what its manifest would say: numbers of images, whose versions differ, by their keys."""

    def __init__(self, folder):
        (folder / "unfinished").mkdir(parents=True, exist_ok=True)
        self.folder, self.manifest = folder, folder.with_suffix(".json")
        self.numbers, self.digests = json.loads(self.manifest.read_text()) if self.manifest.exists() else ({}, {})

    def begin(self, shard=WHOLE):
        self.writer = formats.writer("zarr", self.folder, self.folder / "unfinished", FIELDS, shard)
        self.writer.collect_garbage(dict.fromkeys(self.numbers, zarr_store.STORE), lambda: self.digests)

    def commit(self, numbers):
        """Commit images, by their keys, that are not in the manifest, in which they are afterwards."""
        numbers = {key: number for key, number in numbers.items() if self.numbers.get(key) != number}
        stored = [
            self.writer.write(Record(Item(key, key), key, (7, 5), arrays(number))) for key, number in numbers.items()
        ]
        self.writer.commit(stored)
        self.numbers |= numbers
        self.digests |= {key: each.sha256 for key, each in zip(numbers, stored, strict=True)}
        self.manifest.write_text(json.dumps([self.numbers, self.digests]))

    def require_all(self):
        """What is in the manifest is read, whatever else there is."""
        reader = formats.reader("zarr", self.folder, self.digests.get)
        for key, number in self.numbers.items():
            found = reader.read(key, zarr_store.STORE)
            assert all(np.array_equal(found[name], values) for name, values in arrays(number).items()), key

    def require_only_this(self):
        """Zarr and xarray read it, and nothing else."""
        path = self.folder / zarr_store.STORE
        for store in (zarr.open_group(path, mode="r"), xarray.open_zarr(path, consolidated=True)):
            keys = np.asarray(store["key"][:]).tolist()
            assert sorted(keys) == sorted(self.numbers)
            found = {name: np.asarray(store[name][:]) for name in ("embedding", "level_0")}
            for row, key in enumerate(keys):
                for name, values in arrays(self.numbers[key]).items():
                    np.testing.assert_array_equal(found[name][row], values)


def contents(folder):
    paths = (path for path in (folder / zarr_store.STORE).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rows_of(data):
    """The files of a store but its metadata."""
    return {name: each for name, each in data.items() if not name.endswith(".json")}


def images(*numbers, version=0):
    return {f"{number}.jpg": number + 1000 * version for number in numbers}


def append(run):
    """To a chunk that is there, and to new ones, of this shard and the next."""
    run.begin()
    run.commit(images(5, 6))
    run.commit(images(7, 8, 9))
    run.begin()


def replace(run):
    """Two images of seven are done again: their old rows are dropped, and others move there."""
    run.begin()
    run.commit(images(1, 3, version=1))
    run.begin()


def made(folder, count):
    run = Run(folder)
    run.begin()
    run.commit(images(*range(count)))
    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("change", "count"), [(append, 5), (replace, 7)])
def test_calls_fail_in_turn(tmp_path, change, count, kind, request):
    """With --large all of them; otherwise others for each kind."""
    before = made(tmp_path / "before", count)
    whole = made(tmp_path / "whole", count)
    change(whole)
    whole.require_only_this()
    expected, there = contents(whole.folder), contents(before.folder)
    step, first = (1, 1) if request.config.getoption("large") else (24, 1 + 8 * KINDS.index(kind))
    for number in itertools.count(first, step):
        shutil.copytree(before.folder, tmp_path / "run")
        shutil.copy(before.manifest, tmp_path / "run.json")
        if not struck(Run(tmp_path / "run"), change, number, kind):
            assert number > 40
            return
        run = Run(tmp_path / "run")
        run.require_all()
        if (change, kind) == (append, "ENOSPC") and contents(run.folder)[KEYS] == there[KEYS]:
            assert rows_of(contents(run.folder)) == rows_of(there)  # the room is free for others
        change(run)
        assert contents(run.folder) == expected, number  # which zarr and xarray read
        shutil.rmtree(run.folder)


def struck(run, change, number, kind):
    """Change it in a process of its own, whose n-th call fails, or is its last; False if it makes fewer."""
    child = os.fork()
    if not child:
        injected = faults.Faults(number, kind, "", "", [str(run.folder)], faults.WRITES)
        try:
            change(run)
        except OSError as error:
            os._exit(1 if error.errno == getattr(errno, kind) else 2)
        os._exit(0 if len(injected.calls) < number else 3)
    _, status = os.waitpid(child, 0)
    if kind == "kill" and os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) in (0, 1)
    return bool(status)


@pytest.mark.parametrize("place", [0, 40, 70])
def test_a_torn_index_is_put_right(tmp_path, place):
    """The rows are read without it; what reads by it is told by the checksum, until the next run."""
    run = made(tmp_path / "run", 7)
    path, whole = tmp_path / "run" / zarr_store.STORE / "level_0" / "c.0.0.0.0", contents(run.folder)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"torn")
    run.require_all()
    with pytest.raises(ValueError, match="checksum"):
        run.require_only_this()
    run.begin()
    assert contents(run.folder) == whole
    run.require_only_this()


def test_rows_that_count_are_not_written_again(tmp_path):
    """The file stays the same one, and what others have mapped stays as it was."""
    run = made(tmp_path / "run", 5)
    path = tmp_path / "run" / zarr_store.STORE / "level_0" / "c.0.0.0.0"
    mapped, file = formats.reader("zarr", run.folder).read("4.jpg", zarr_store.STORE), path.stat().st_ino
    run.commit(images(5, 6, 7))
    assert path.stat().st_ino == file
    assert all(np.array_equal(mapped[name], values) for name, values in arrays(4).items())
    assert mapped["level_0"].offset % zarr_store.ALIGNMENT == 0


def test_an_older_store_is_refused(tmp_path):
    """Its index comes after the rows: nothing is read out of its place or written over, until it is to be replaced."""
    run = made(tmp_path / "run", 7)
    whole, layout = contents(run.folder), run.writer._store.layout
    for name, spec in layout.arrays.items():
        path, start = run.writer._store.path(name, 0), spec.start(layout.rows)
        path.write_bytes(path.read_bytes()[start:] + path.read_bytes()[:start])
    described = tmp_path / "run" / zarr_store.STORE / zarr_store.METADATA
    described.write_text(described.read_text().replace('"start"', '"end"'))
    older = contents(run.folder)
    with pytest.raises(FeatxError, match="older featx"):
        run.require_all()
    with pytest.raises(FeatxError, match="older featx"):
        run.begin()
    assert contents(run.folder) == older
    run.manifest.unlink()
    assert contents(made(tmp_path / "run", 7).folder) == whole


def test_a_shard_that_starts_leaves_what_another_is_about_to_record(tmp_path):
    """Its rows are in the store, while no manifest has a line yet."""
    first, second = Run(tmp_path / "run"), Run(tmp_path / "run")
    first.begin(Shard(1, 2))
    first.commit(images(1, 2))
    second.begin(Shard(2, 2))
    second.commit(images(3))
    first.require_all()
    second.require_all()

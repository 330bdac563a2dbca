# The pipeline: in order, bounded, overlapped, and clean when it is cut short.
from __future__ import annotations

import os
import threading
from contextlib import closing

import numpy as np
import pytest
import torch

import featx
from featx.engine import pipeline
from featx.engine.computing import Computer
from featx.engine.isolation import Reader
from featx.engine.reducing import StoredType
from featx.engine.resources import Workers
from featx.engine.work import Work
from featx.errors import ModelError, OutputError
from featx.options import Limits
from featx.runs import formats
from featx.runs.formats import npz
from featx.runs.layout import UNFINISHED
from featx.values import Item
from tests.helpers import HANGS, natural_image, wait_until

WORKERS = Workers(batch_size=4, forwards=2, threads=1, readers=2, writers=2)


@pytest.fixture(scope="module")
def computer():
    pyramid = featx.load_pyramid("test_resnet", weights="random", image_size=64, device="cpu")
    return Computer(pyramid, [StoredType("float32")], 4)


@pytest.fixture
def items(tmp_path):
    natural_image(0, 80, 70).save(tmp_path / "photo.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    return lambda count, broken=(): [
        Item(f"{number}.jpg", str(tmp_path / ("broken.jpg" if number in broken else "photo.jpg")))
        for number in range(count)
    ]


@pytest.fixture
def work(computer, tmp_path):
    """The pipeline on some items, into the folder ``out``."""
    (tmp_path / "out" / UNFINISHED).mkdir(parents=True)
    reader = Reader(computer.pyramid.preprocessor, Limits(), tmp_path)
    writer = formats.writer("npz", tmp_path / "out", tmp_path / "out" / UNFINISHED, computer.pyramid.fields)
    yield lambda items, **options: one_by_one(
        pipeline.run([computer], items, writer, WORKERS, options.pop("reader", reader), **options)
    )
    reader.close()


def one_by_one(groups):
    with closing(groups):
        for group in groups:
            assert group
            yield from group


def outputs(folder):
    return [path for path in folder.iterdir() if path.name != UNFINISHED]


def test_outcomes_come_in_the_order_of_the_items(computer, items, work, tmp_path):
    broken = {0, 3, 4, 5, 6, 17, 29}
    outcomes = list(work(items(30, broken)))
    assert [outcome.item.key for outcome in outcomes] == [f"{number}.jpg" for number in range(30)]
    assert {number for number, outcome in enumerate(outcomes) if not outcome.done} == broken
    assert len(outputs(tmp_path / "out")) == 23


def test_images_that_are_all_broken_need_no_pass(computer, items, work, tmp_path, monkeypatch):
    monkeypatch.setattr(Computer, "__call__", lambda *_: pytest.fail("nothing to compute"))
    outcomes = list(work(items(9, range(9))))
    assert len(outcomes) == 9
    assert not any(outcome.done for outcome in outcomes)


def test_a_run_of_broken_images_is_not_held_back(computer, items, work, tmp_path):
    """However many there are, and though no batch ever fills: a bounded number of them waits."""
    taken = told = furthest = 0

    def counted():
        nonlocal taken, furthest
        for item in items(400, range(1, 400)):
            taken += 1
            furthest = max(furthest, taken - told)
            yield item

    for outcome in work(counted()):
        assert outcome.done == (told == 0)
        told += 1
    assert told == 400
    assert furthest < 120


def test_it_works_a_bounded_number_of_images_ahead(computer, items, work, tmp_path):
    taken = done = furthest = 0

    def counted():
        nonlocal taken, furthest
        for item in items(300):
            taken += 1
            furthest = max(furthest, taken - done)
            yield item

    for outcome in work(counted()):
        done += outcome.done
    assert done == 300
    assert furthest < 80


def test_stages_work_at_the_same_time(computer, items, work, tmp_path, monkeypatch):
    """While a pass waits, images go on being read; it would wait for ever if they were not."""
    read_on = threading.Event()
    prepared = []
    honest_prepare, honest_call = Work.prepare, Computer.__call__

    def prepare(self, item):
        prepared.append(item)
        if len(prepared) > 10:
            read_on.set()
        return honest_prepare(self, item)

    def call(self, *batch):
        assert read_on.wait(HANGS)
        return honest_call(self, *batch)

    monkeypatch.setattr(Work, "prepare", prepare)
    monkeypatch.setattr(Computer, "__call__", call)
    assert len(list(work(items(24)))) == 24


def test_an_error_ends_it_and_leaves_no_half_files(computer, items, work, tmp_path, monkeypatch):
    calls = []
    honest = Computer.__call__

    def fail_later(self, *batch):
        calls.append(1)
        if len(calls) >= 6:
            raise ModelError("the device is gone")
        return honest(self, *batch)

    monkeypatch.setattr(Computer, "__call__", fail_later)
    outcomes = []
    with pytest.raises(ModelError, match="the device is gone"):
        outcomes.extend(work(items(100)))
    written = outputs(tmp_path / "out")
    assert all(path.suffix == ".npz" for path in written)
    assert len(written) < 24


def test_leaving_early_ends_the_threads(computer, items, work, tmp_path):
    before = threading.active_count()
    running = work(items(200))
    assert next(running).done
    running.close()
    wait_until(lambda: threading.active_count() <= before)  # those that read may be in a decoder
    assert all(path.suffix == ".npz" for path in outputs(tmp_path / "out"))


def test_what_is_written_is_what_was_computed(computer, items, work, tmp_path):
    (outcome,) = work(items(1))
    pixels, _ = computer.pyramid.preprocess(items(1)[0].path)
    expected = computer.pyramid(torch.stack([pixels] + [torch.zeros(3, 64, 64)] * 3))
    with np.load(tmp_path / "out" / outcome.output) as arrays:
        for index, level in enumerate(expected):
            np.testing.assert_allclose(arrays[f"level_{index}"], level[0].numpy(), rtol=1e-4, atol=1e-5)


def writer_of(computer, folder):
    (folder / UNFINISHED).mkdir(parents=True)
    return formats.writer("npz", folder, folder / UNFINISHED, computer.pyramid.fields)


def test_a_group_is_committed_after_its_time_though_no_further_image_comes(computer, items, tmp_path):
    """The next images come when the first ones are told of; it would wait for ever if they were held back."""
    writer = writer_of(computer, tmp_path / "out")
    writer.group, writer.seconds = 1000, 0.2
    seen = threading.Event()

    def slowly():
        yield from items(8)
        assert seen.wait(HANGS)
        yield from items(12)[8:]

    reader = Reader(computer.pyramid.preprocessor, Limits(), tmp_path)
    outcomes = one_by_one(pipeline.run([computer], slowly(), writer, WORKERS, reader))
    assert all(next(outcomes).done for _ in range(8))
    assert len(outputs(tmp_path / "out")) == 8
    seen.set()
    assert len(list(outcomes)) == 4
    reader.close()


def test_stopping_commits_what_is_finished_before_the_passes_that_run(computer, items, tmp_path, monkeypatch):
    """Two passes are through, the third hangs until what the others made is committed."""
    writer = writer_of(computer, tmp_path / "out")
    writer.group, writer.seconds = 1000, 1e9
    committed, hangs = threading.Event(), threading.Event()
    honest = Work.compute

    def compute(self, batch):
        if int(batch.values[0].item.key.removesuffix(".jpg")) >= 8:
            hangs.set()
            assert committed.wait(HANGS)
        return honest(self, batch)

    monkeypatch.setattr(Work, "compute", compute)
    reader = Reader(computer.pyramid.preprocessor, Limits(), tmp_path)
    outcomes = one_by_one(pipeline.run([computer], items(40), writer, WORKERS, reader, hangs.is_set))
    for number in range(8):
        assert next(outcomes).item.key == f"{number}.jpg"
    assert len(outputs(tmp_path / "out")) == 8
    committed.set()
    assert 0 < len(list(outcomes)) <= 12  # the passes that ran were finished; no other was begun
    reader.close()


def test_what_was_finished_is_committed_when_writing_fails(computer, items, work, tmp_path, monkeypatch):
    """The tenth image finds no room: the nine before it are kept, and nothing of those after it."""
    honest = npz.Writer.write

    def write(self, record):
        if int(record.item.key.removesuffix(".jpg")) >= 9:
            raise OSError(28, "No space left on device")
        return honest(self, record)

    monkeypatch.setattr(npz.Writer, "write", write)
    outcomes = []
    with pytest.raises(OutputError, match="No space left on device"):
        outcomes.extend(work(items(100)))
    names = [f"{number}.jpg.npz" for number in range(9)]
    assert [f"{outcome.item.key}.npz" for outcome in outcomes] == names
    assert sorted(path.name for path in outputs(tmp_path / "out")) == names


def test_those_before_one_that_cannot_be_renamed_are_kept(computer, items, work, tmp_path, monkeypatch):
    honest = os.replace

    def replace(source, target):
        if str(target).endswith("5.jpg.npz"):
            raise OSError(28, "No space left on device")
        honest(source, target)

    monkeypatch.setattr("featx.files.os.replace", replace)
    outcomes = []
    with pytest.raises(OutputError, match="No space left on device"):
        outcomes.extend(work(items(8)))
    assert [outcome.item.key for outcome in outcomes] == [f"{number}.jpg" for number in range(5)]
    assert {path.name for path in outputs(tmp_path / "out")} == {f"{number}.jpg.npz" for number in range(5)}

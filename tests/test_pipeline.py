# The pipeline: in order, bounded, overlapped, and clean when it is cut short.
from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import featx
from featx import formats, pipeline
from featx.computing import Computer
from featx.errors import ModelError
from featx.isolation import Reader
from featx.naming import UNFINISHED
from featx.records import Item, Limits, Workers
from tests.conftest import natural_image

WORKERS = Workers(batch_size=4, forwards=2, threads=1, readers=2, writers=2)


@pytest.fixture(scope="module")
def computer():
    return Computer(featx.load_pyramid("test_resnet", weights="random", image_size=64, device="cpu"), torch.float32, 4)


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
    yield lambda items, **options: pipeline.run(
        [computer], items, writer, WORKERS, options.pop("reader", reader), **options
    )
    reader.close()


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
    honest_prepare, honest_call = pipeline.Work.prepare, Computer.__call__

    def prepare(self, item):
        prepared.append(item)
        if len(prepared) > 10:
            read_on.set()
        return honest_prepare(self, item)

    def call(self, pixels):
        assert read_on.wait(30)
        return honest_call(self, pixels)

    monkeypatch.setattr(pipeline.Work, "prepare", prepare)
    monkeypatch.setattr(Computer, "__call__", call)
    assert len(list(work(items(24)))) == 24


def test_an_error_ends_it_and_leaves_no_half_files(computer, items, work, tmp_path, monkeypatch):
    calls = []
    honest = Computer.__call__

    def fail_later(self, pixels):
        calls.append(1)
        if len(calls) == 6:
            raise ModelError("the device is gone")
        return honest(self, pixels)

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
    for _ in range(100):  # those that read may be in a decoder, and are not waited for
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before
    assert all(path.suffix == ".npz" for path in outputs(tmp_path / "out"))


@pytest.mark.parametrize("depth", [0, 1, 5, 100])
def test_ahead_is_a_map_in_order(depth):
    def wait(value, future):
        return future.result()

    with ThreadPoolExecutor(3) as pool:
        assert list(pipeline._ahead(pool, lambda value: value * value, range(20), depth, wait)) == [
            n * n for n in range(20)
        ]


def test_groups_are_full_but_for_the_last():
    assert list(pipeline.groups(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(pipeline.groups([], 3)) == []


def test_what_is_written_is_what_was_computed(computer, items, work, tmp_path):
    (outcome,) = work(items(1))
    pixels, _ = computer.pyramid.preprocess(items(1)[0].path)
    expected = computer.pyramid(torch.stack([pixels] + [torch.zeros(3, 64, 64)] * 3))
    with np.load(tmp_path / "out" / outcome.output) as arrays:
        for index, level in enumerate(expected):
            np.testing.assert_allclose(arrays[f"level_{index}"], level[0].numpy(), rtol=1e-4, atol=1e-5)


def test_what_has_become_of_a_group_does_not_wait_for_the_next_one(computer, items, tmp_path):
    (tmp_path / "out" / UNFINISHED).mkdir(parents=True)
    writer = formats.writer("npz", tmp_path / "out", tmp_path / "out" / UNFINISHED, computer.pyramid.fields)
    writer.group, writer.seconds = 1000, 0.2
    taken = []

    def slowly():
        for item in items(60):
            taken.append(item)
            time.sleep(0.05)
            yield item

    reader = Reader(computer.pyramid.preprocessor, Limits(), tmp_path)
    outcomes = pipeline.run([computer], slowly(), writer, WORKERS, reader)
    assert next(outcomes).done
    assert len(taken) < 40
    outcomes.close()
    reader.close()

# Shards that are killed, that start at the same moment, and merging that is interrupted by every call in turn.
from __future__ import annotations

import json
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

import featx
from featx.explore.verify import verify
from tests.conftest import Forge
from tests.faults.conftest import make_photos, require_complete, require_only_complete_files
from tests.helpers import lines, outputs, wait_until

COUNT = 16


@pytest.fixture(scope="module")
def second():
    """Another forge, for a command that runs at the same time."""
    running = Forge()
    yield running
    running.close()


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    folder = make_photos(tmp_path_factory.mktemp("some") / "photos", 120)
    (folder / "0030.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def undivided(forge, some, tmp_path_factory):
    """What a run in one go writes."""
    folder = tmp_path_factory.mktemp("undivided")
    assert forge.extract(folder, some, "out")["status"] == 3
    return folder / "out"


def shard(forge, folder, photos, written, *more, **request):
    return forge.extract(folder, photos, "out", "--shard", written, *more, **request)


def require_merged(forge, folder, undivided, *, order=True):
    """Merged, the folder is that of a run in one go; the order of lines may tell of another number of shards."""
    assert forge(folder, "merge", "out")["status"] == 0
    folder = folder / "out"
    found, expected = lines(folder), lines(undivided)
    assert found == expected if order else sorted(found, key=str) == sorted(expected, key=str)
    assert outputs(folder) == outputs(undivided)
    summaries = [json.loads((each / "summary.json").read_text()) for each in (folder, undivided)]
    assert summaries[0]["counts"] == summaries[1]["counts"]
    assert summaries[0]["state"] == "done"
    assert {path.name for path in folder.iterdir()} == {path.name for path in undivided.iterdir()}


def test_a_job_array_some_twice_two_at_once_one_killed(forge, second, some, undivided, tmp_path):
    chance = random.Random(8)
    tasks = [*range(COUNT), *chance.sample(range(COUNT), 5)]
    chance.shuffle(tasks)
    statuses = []

    def work(on, tasks):
        for task in tasks:
            steps = [("pause", chance.uniform(0, 0.3)), ("signal", signal.SIGKILL)] if chance.random() < 0.5 else []
            statuses.append(shard(on, tmp_path, some, f"{task}/{COUNT}", steps=steps, isolation=True)["status"])
            verified = second if on is second else forge
            assert verified(tmp_path, "verify", "out")["status"] in (0, 1, 11)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, (forge, second), (tasks[::2], tasks[1::2])))
    assert set(statuses) <= {0, 3, -9, 11}
    assert -9 in statuses
    require_only_complete_files(tmp_path / "out", outputs(undivided))
    for task in range(1, COUNT + 1):
        assert shard(forge, tmp_path, some, f"{task}/{COUNT}", isolation=True)["status"] in (0, 3)
    require_merged(forge, tmp_path, undivided)


def test_a_shard_twice_at_once(forge, second, some, undivided, tmp_path):
    mark, go_on = tmp_path / "a pass is held up", tmp_path / "go on"
    hold = {"name": "hold", "mark": str(mark), "until": str(go_on)}
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(shard, second, tmp_path, some, "2/2", fault=hold)
        wait_until(mark.exists, unless=first.done)
        again = shard(forge, tmp_path, some, "2/2")
        whole = forge.extract(tmp_path, some, "out")
        assert shard(forge, tmp_path, some, "1/2")["status"] in (0, 3)
        go_on.touch()
    assert first.result()["status"] in (0, 3)
    assert (again["status"], again["stderr"]) == (
        11,
        "featx: Shard 2/2 of out is running already. Wait for it to end.\n",
    )
    assert (whole["status"], whole["stderr"]) == (
        11,
        "featx: Shard 2/2 of out is running. Wait for the shards to end, or choose another folder.\n",
    )
    require_merged(forge, tmp_path, undivided)


@pytest.mark.parametrize("other", [(), ("--dtype", "float16")])
def test_two_shards_that_start_at_the_same_moment(forge, second, some, tmp_path, other):
    """On an empty folder: the first decides what the run is."""
    few = make_photos(tmp_path / "photos", 6)
    for _ in range(8):
        with ThreadPoolExecutor(2) as threads:
            one = threads.submit(shard, forge, tmp_path, few, "1/2")
            two = threads.submit(shard, second, tmp_path, few, "2/2", *other)
        done = [one.result(), two.result()]
        assert sorted(each["status"] for each in done) == ([0, 1] if other else [0, 0])
        run = featx.open_run(tmp_path / "out", raw=True)
        assert {str(run[key]["level_4"].dtype) for key in run} == {run.summary["recipe"]["dtype"]}
        if other:
            assert "different recipe (dtype" in "".join(each["stderr"] for each in done)
        assert verify(tmp_path / "out").sound
        shutil.rmtree(tmp_path / "out")


def killed_by_every_call(forge, folder, *arguments, before, step=1):
    """Start a command again and again, each time killed by a later call about the folder, and yield in between."""
    number = 1
    while True:
        shutil.rmtree(folder / "out", ignore_errors=True)
        if before:
            shutil.copytree(before, folder / "out")
        fault = {"name": "call", "number": number, "kind": "kill", "below": [str(folder / "out")]}
        status = forge(folder, *arguments, fault=fault)["status"]
        if status != -9:
            assert status in (0, 3)
            assert number > 10
            return
        yield number
        number += step


def test_merging_is_killed_by_every_call(forge, some, undivided, tmp_path):
    for written in ("2/3", "1/3", "3/3"):
        assert shard(forge, tmp_path, some, written)["status"] in (0, 3)
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    followed = [
        lambda: None,
        lambda: shard(forge, tmp_path, some, "3/3"),
        lambda: shard(forge, tmp_path, some, "2/5"),
        lambda: forge.extract(tmp_path, some, "out"),
    ]
    for number in killed_by_every_call(forge, tmp_path, "merge", "out", before=tmp_path / "before"):
        verified = verify(tmp_path / "out")
        assert (verified.sound, verified.complete, verified.foreign) == (True, True, []), number
        assert len(featx.open_run(tmp_path / "out")) == 119
        followed[number % len(followed)]()
        require_merged(forge, tmp_path, undivided)


def test_a_shard_is_killed_by_every_call(forge, tmp_path, request):
    """Beside another that is done, and as the first of all."""
    few = make_photos(tmp_path / "photos", 5)
    assert forge.extract(tmp_path, few, "out")["status"] == 0
    (tmp_path / "out").rename(tmp_path / "undivided")
    undivided = tmp_path / "undivided"
    assert shard(forge, tmp_path, few, "1/2")["status"] == 0
    (tmp_path / "out").rename(tmp_path / "before")
    command = ("extract", few, "--model", "test_resnet", "--weights", "random", "--image-size", "64", "--device", "cpu")
    step = 1 if request.config.getoption("large") else 19
    for written, before in (("2/2", tmp_path / "before"), ("1/1", None), ("1/3", tmp_path / "before")):
        arguments = (*command, "--output", "out", "--shard", written)
        for number in killed_by_every_call(forge, tmp_path, *arguments, before=before, step=step):
            require_only_complete_files(tmp_path / "out", outputs(undivided))
            if (tmp_path / "out" / "summary.json").exists():
                assert verify(tmp_path / "out").sound, number
            count = written.partition("/")[2]
            for each in range(int(count)):
                assert shard(forge, tmp_path, few, f"{each}/{count}", isolation=True)["status"] == 0, number
            require_merged(forge, tmp_path, undivided, order=written != "1/3")
            require_complete(tmp_path / "out", outputs(undivided))

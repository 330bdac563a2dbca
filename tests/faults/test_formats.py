# kill -9 at random moments of runs in every format that holds maps: nothing lost, nothing twice, nothing damaged.
from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

import featx
from featx.explore.verify import verify
from tests.faults.conftest import make_photos
from tests.faults.test_kills import moment

PHOTOS = 60


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("few") / "photos", PHOTOS)


@pytest.fixture(scope="module")
def expected(forge, few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    assert forge.extract(folder, few, "out")["status"] == 0
    return {key: {name: np.array(values) for name, values in arrays.items()} for key, arrays in _run(folder).items()}


def _run(folder):
    return featx.open_run(folder / "out")


@pytest.mark.parametrize("format_", ["safetensors", "webdataset", "zarr"])
def test_kills_lose_nothing(forge, few, expected, tmp_path, format_, request):
    """What the manifest has is there in full after each kill; in the end it is what a run without kills writes."""
    wanted = 300 if request.config.getoption("large") else 5
    chance, kills = random.Random(format_), 0
    fault = {"name": "call", "number": 0, "kind": "EIO", "group": 8}  # nothing but small groups
    for _ in range(wanted):
        while kills < wanted:
            steps = moment(chance, PHOTOS)
            done = forge.extract(tmp_path, few, "out", "--format", format_, steps=steps, isolation=True, fault=fault)
            if done["status"] == 0:
                break
            assert done["status"] == -9, done
            kills += 1
            if (tmp_path / "out" / "summary.json").exists():
                checked = verify(tmp_path / "out")
                assert (checked.missing, checked.damaged, checked.foreign) == ([], {}, [])
        assert forge.extract(tmp_path, few, "out", "--format", format_, isolation=True)["status"] == 0
        run = _run(tmp_path)
        assert {*run} == {*expected}
        assert all(np.array_equal(run[key][name], expected[key][name]) for key in run for name in run[key])
        checked = verify(tmp_path / "out")
        assert (checked.sound, checked.complete, checked.uncommitted, checked.foreign) == (True, True, [], [])
        assert not (tmp_path / "out" / ".unfinished").exists()
        if kills >= wanted:
            return
        shutil.rmtree(tmp_path / "out")
    pytest.fail("hardly a kill struck")

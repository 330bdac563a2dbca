# kill -9 at any moment: nothing lost, nothing twice, nothing corrupt, nothing stale; and a test that the tests bite.
from __future__ import annotations

import random
import shutil

import pytest

from tests.faults.conftest import (
    everything,
    make_photos,
    outputs,
    require_complete,
    require_only_complete_files,
)

# What a run takes until its first image, and at most until a kill.
SHORTEST, LONGEST = 0.05, 0.55


@pytest.fixture(scope="module")
def undisturbed(forge, photos, tmp_path_factory):
    """What a run without kills writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert forge.extract(folder, photos, "out")["status"] == 0
    return outputs(folder / "out")


def kill_until_done(forge, folder, inputs, expected, moments, **request) -> int:
    """Start, kill and start again, until the kills are used up; then let it finish. Returns the kills that struck."""
    kills = 0
    for moment in moments:
        done = forge.extract(folder, inputs, "out", kill_after=moment, isolation=True, **request)
        require_only_complete_files(folder / "out", expected)
        if done["status"] == 0:
            break
        assert done["status"] == -9, done
        kills += 1
    assert forge.extract(folder, inputs, "out", isolation=True, **request)["status"] == 0
    require_complete(folder / "out", expected)
    return kills


def test_kills_at_random_moments_of_a_long_run(forge, photos, undisturbed, tmp_path, request):
    wanted = 1000 if request.config.getoption("--large") else 100
    moments = random.Random(5)
    kills = 0
    while kills < wanted:
        endless = (moments.uniform(SHORTEST, LONGEST) for _ in range(wanted - kills))
        kills += kill_until_done(forge, tmp_path, photos, undisturbed, endless)
        shutil.rmtree(tmp_path / "out")


def test_short_runs_killed_three_times_each(forge, undisturbed, tmp_path, request):
    few = make_photos(tmp_path / "photos", 150)
    expected = {name: undisturbed[name] for name in list(undisturbed)[:150]}
    moments = random.Random(6)
    runs = 250 if request.config.getoption("--large") else 25
    kills = 0
    for _ in range(runs):
        three = [moments.uniform(SHORTEST, 0.3) for _ in range(3)]
        kills += kill_until_done(forge, tmp_path, few, expected, three)
        shutil.rmtree(tmp_path / "out")
    assert kills > 2.8 * runs  # a fast machine may finish before the third


def test_the_kill_tests_bite(forge, photos, tmp_path):
    """A writer that is numpy's `savez`, straight to the final name, must be found out."""
    naive = {"name": "naive"}
    assert forge.extract(tmp_path, photos, "whole", fault=naive)["status"] == 0
    expected = outputs(tmp_path / "whole")
    assert len(expected) == 500
    moments = random.Random(7)
    for _ in range(100):
        forge.extract(tmp_path, photos, "out", kill_after=moments.uniform(0.25, LONGEST), fault=naive)
        try:
            require_only_complete_files(tmp_path / "out", expected)
        except AssertionError:
            return
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    pytest.fail("a hundred kills, and no half-written file was noticed")


def test_two_runs_at_once_on_one_folder(forge, photos, tmp_path, featx_command):
    """The second ends with status 11 and changes nothing."""
    import threading

    answers = []
    first = threading.Thread(
        target=lambda: answers.append(forge.extract(tmp_path, photos, "out", fault={"name": "slow", "seconds": 0.2}))
    )
    first.start()
    while not (tmp_path / "out" / "summary.json").exists():
        pass
    second = featx_command(
        *("extract", photos, "--model", "test_resnet", "--weights", "random", "--image-size", 64),
        *("--output", tmp_path / "out"),
    )
    assert first.is_alive()
    first.join()
    assert second.returncode == 11
    assert second.stderr == (
        f"featx: Another run is working in {tmp_path / 'out'}. Wait for it, or choose another --output.\n"
    )
    assert answers[0]["status"] == 0
    assert len(outputs(tmp_path / "out")) == 500


def test_a_stale_temporary_is_swept_by_the_next_run(forge, photos, undisturbed, tmp_path):
    assert forge.extract(tmp_path, photos, "out")["status"] == 0
    (tmp_path / "out" / ".unfinished").mkdir()
    (tmp_path / "out" / ".unfinished" / "17").write_bytes(b"half of an output")
    assert forge.extract(tmp_path, photos, "out")["status"] == 0
    require_complete(tmp_path / "out", undisturbed)
    assert len(everything(tmp_path / "out")) == 502

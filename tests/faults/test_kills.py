# kill -9 at any moment: nothing lost, nothing twice, nothing corrupt, nothing stale; and a test that the tests bite.
from __future__ import annotations

import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.conftest import make_photos, require_complete, require_only_complete_files
from tests.helpers import MODEL, outputs, tree, wait_until

# Seconds from a run's beginning to a kill while it gets ready; and from some of its lines to a kill in full swing.
READY, SHORTLY = 0.2, 0.02


@pytest.fixture(scope="module")
def undisturbed(forge, photos, tmp_path_factory):
    """What a run without kills writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert forge.extract(folder, photos, "out")["status"] == 0
    return outputs(folder / "out")


def moment(chance, most):
    """Steps to a kill: one in four comes before there are lines, the others after up to `most` of them."""
    if chance.random() < 0.25:
        return [("pause", chance.uniform(0, READY)), ("signal", signal.SIGKILL)]
    lines = ("lines", chance.randint(1, most))
    return [lines, ("pause", chance.uniform(0, SHORTLY)), ("signal", signal.SIGKILL)]


def kill_until_done(forge, folder, inputs, expected, moments) -> int:
    """Start, kill and start again, until the kills are used up; then let it finish. Returns the kills that struck."""
    kills = 0
    for steps in moments:
        done = forge.extract(folder, inputs, "out", steps=steps, isolation=True)
        require_only_complete_files(folder / "out", expected)
        if done["status"] == 0:
            break
        assert done["status"] == -9, done
        kills += 1
    assert forge.extract(folder, inputs, "out", isolation=True)["status"] == 0
    require_complete(folder / "out", expected)
    return kills


def test_kills_at_random_moments_of_a_long_run(forge, photos, undisturbed, tmp_path, request):
    wanted = 1000 if request.config.getoption("--large") else 15
    chance = random.Random(5)
    kills = 0
    for _ in range(wanted):
        moments = (moment(chance, 100) for _ in range(wanted - kills))
        kills += kill_until_done(forge, tmp_path, photos, undisturbed, moments)
        shutil.rmtree(tmp_path / "out")
        if kills >= wanted:
            return
    pytest.fail("hardly a kill struck")


def test_short_runs_killed_three_times_each(forge, undisturbed, tmp_path, request):
    few = make_photos(tmp_path / "photos", 150)
    expected = {name: undisturbed[name] for name in list(undisturbed)[:150]}
    chance = random.Random(6)
    runs = 250 if request.config.getoption("--large") else 6
    kills = 0
    for _ in range(runs):
        kills += kill_until_done(forge, tmp_path, few, expected, [moment(chance, 16) for _ in range(3)])
        shutil.rmtree(tmp_path / "out")
    assert kills > runs  # a fast machine may finish before the third


def test_the_kill_tests_bite(forge, photos, tmp_path):
    """A writer that is numpy's `savez`, straight to the final name, must be found out."""
    naive = {"name": "naive"}
    assert forge.extract(tmp_path, photos, "whole", fault=naive)["status"] == 0
    expected = outputs(tmp_path / "whole")
    assert len(expected) == 500
    chance = random.Random(7)
    for _ in range(100):
        forge.extract(tmp_path, photos, "out", steps=moment(chance, 100), fault=naive)
        try:
            require_only_complete_files(tmp_path / "out", expected)
        except AssertionError:
            return
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    pytest.fail("a hundred kills, and no half-written file was noticed")


def test_two_runs_at_once_on_one_folder(forge, photos, tmp_path, fresh_command):
    """The second ends with status 11 and changes nothing."""
    mark, go_on = tmp_path / "a pass is held up", tmp_path / "go on"
    hold = {"name": "hold", "mark": str(mark), "until": str(go_on)}
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(forge.extract, tmp_path, photos, "out", fault=hold)
        wait_until(mark.exists, unless=first.done)
        second = fresh_command("extract", photos, *MODEL, "--output", tmp_path / "out")
        go_on.touch()
    assert second.returncode == 11
    assert second.stderr == (
        f"featx: Another run is using {tmp_path / 'out'}. Wait for it to end, or choose another folder.\n"
    )
    assert first.result()["status"] == 0
    assert len(outputs(tmp_path / "out")) == 500


def test_a_stale_temporary_is_swept_by_the_next_run(forge, photos, undisturbed, tmp_path):
    assert forge.extract(tmp_path, photos, "out")["status"] == 0
    (tmp_path / "out" / ".unfinished").mkdir()
    (tmp_path / "out" / ".unfinished" / "17").write_bytes(b"half of an output")
    assert forge.extract(tmp_path, photos, "out")["status"] == 0
    require_complete(tmp_path / "out", undisturbed)
    assert len(tree(tmp_path / "out")) == 502

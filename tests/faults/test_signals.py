# Signals and streams: a run that is asked to stop finishes what it has begun, and one that nobody listens to goes on.
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import make_photos, require_complete
from tests.helpers import HANGS, MODEL, lines, outputs, wait_until

# Seconds that a signal leaves a run for what it is at: so many that no machine is too slow.
PATIENT = 3600


@pytest.fixture(scope="module")
def many(forge, tmp_path_factory):
    """120 photos, and what a run without signals writes."""
    folder = tmp_path_factory.mktemp("many")
    photos = make_photos(folder / "photos", 120)
    assert forge.extract(folder, photos, "out")["status"] == 0
    return photos, outputs(folder / "out")


def stop_in_a_pass(forge, photos, tmp_path, *steps, **hold):
    """Hold the third pass up, and do something to the run meanwhile."""
    mark = tmp_path / "a pass is held up"
    mark.unlink(missing_ok=True)
    fault = {"name": "hold", "after": 2, "mark": str(mark), **hold}
    steps = [("exists", str(mark)), *steps]
    return forge.extract(tmp_path, photos, "out", steps=steps, fault=fault, grace=PATIENT)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_with_all_that_it_did(forge, many, tmp_path, number, status):
    photos, expected = many
    stopped = stop_in_a_pass(forge, photos, tmp_path, ("signal", number), until="asked")
    assert stopped["status"] == status
    said = re.search(r"featx: Stopped: (\d+) of 120 done\. Run the same command to resume\.", stopped["stderr"])
    assert re.search(r"^Finishing [12] batch(es)?; press Ctrl-C again to stop now$", stopped["stderr"], re.MULTILINE)
    entries = lines(tmp_path / "out")
    assert len(entries) == int(said[1]) == len(outputs(tmp_path / "out"))
    assert 24 <= len(entries) < 120
    assert len(entries) % 8 == 0  # what was being computed was finished
    assert not (tmp_path / "out" / ".unfinished").exists()
    assert '"stopped"' in (tmp_path / "out" / "summary.json").read_text()
    assert forge.extract(tmp_path, photos, "out")["status"] == 0
    require_complete(tmp_path / "out", expected)


def test_a_hang_up_is_ignored_under_nohup(many, tmp_path):
    photos, expected = many
    with subprocess.Popen(
        ["nohup", *command_of(photos, tmp_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as run:
        wait_until((tmp_path / "out" / "summary.json").exists, unless=lambda: run.poll() is not None)
        run.send_signal(signal.SIGHUP)
        assert run.wait(HANGS) == 0
    require_complete(tmp_path / "out", expected)


def test_a_pass_that_takes_too_long_is_given_up_and_costs_nothing_else(forge, many, tmp_path):
    """What the passes before it gave is kept, though no group of outputs was full. The alarm is the clock's."""
    photos, expected = many
    steps = (("signal", signal.SIGTERM), ("lines", 16), ("signal", signal.SIGALRM))
    stopped = stop_in_a_pass(forge, photos, tmp_path, *steps)
    assert stopped["status"] == 143
    assert "Stopped: 16 of 120 done" in stopped["stderr"]
    assert len(lines(tmp_path / "out")) == len(outputs(tmp_path / "out")) == 16
    assert forge.extract(tmp_path, photos, "out")["status"] == 0
    require_complete(tmp_path / "out", expected)


def test_a_run_that_is_killed_in_a_slow_pass_has_its_lines(forge, many, tmp_path):
    """Killed again and again where passes take longer than a group may wait, it gets on every time."""
    photos, expected = many
    before = 0
    for _ in range(3):
        killed = stop_in_a_pass(forge, photos, tmp_path, ("lines", 16), ("signal", signal.SIGKILL))
        assert killed["status"] == -9
        done = len(lines(tmp_path / "out"))
        assert done == before + 16
        before = done
    assert forge.extract(tmp_path, photos, "out", isolation=True)["status"] == 0
    require_complete(tmp_path / "out", expected)


def test_a_second_signal_leaves_at_once(forge, many, tmp_path):
    photos, expected = many
    heard = str(tmp_path / "heard")
    steps = (("signal", signal.SIGINT), ("exists", heard), ("signal", signal.SIGINT))
    stopped = stop_in_a_pass(forge, photos, tmp_path, *steps, heard=heard)
    assert stopped["status"] == 130
    assert stopped["stderr"].endswith(
        "Stopped at once: images that were not finished are computed again by the same command\n"
    )
    assert forge.extract(tmp_path, photos, "out", isolation=True)["status"] == 0
    require_complete(tmp_path / "out", expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_is_loaded(many, tmp_path, number):
    photos, _ = many
    command = [sys.executable, "-m", "featx", "extract", photos, *MODEL, "--output", tmp_path / "out"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        maps = Path(f"/proc/{run.pid}/maps")
        wait_until(lambda: "libtorch" in maps.read_text(), unless=lambda: run.poll() is not None)
        run.send_signal(number)
        _, said = run.communicate(timeout=HANGS)
    assert run.returncode == 128 + number
    assert said.endswith("featx: Stopped.\n")
    assert not (tmp_path / "out").exists()


def command_of(photos, tmp_path, *more):
    return [sys.executable, "-m", "featx", "extract", photos, *MODEL, "--output", tmp_path / "out", *more]


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_do_not_end_a_run(many, tmp_path, closed):
    """Nor does anything that is meant for them end up in a file that was opened in their place."""
    photos, expected = many
    done = subprocess.run(
        command_of(photos, tmp_path), preexec_fn=lambda: [os.close(number) for number in closed], check=False
    )
    assert done.returncode == 0
    require_complete(tmp_path / "out", expected)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_readers_that_leave_do_not_end_a_run(many, tmp_path, options):
    photos, expected = many
    ends = [os.pipe(), os.pipe()]
    for reader, _ in ends:
        os.close(reader)
    done = subprocess.run(command_of(photos, tmp_path, *options), stdout=ends[0][1], stderr=ends[1][1], check=False)
    for _, writer in ends:
        os.close(writer)
    assert done.returncode == 0
    require_complete(tmp_path / "out", expected)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_data_that_finds_no_room_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "featx", "list-models", "--names"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1

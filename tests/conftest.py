# What the tests share: options, and fixtures for a real photo, a few made-up ones, and the real command.
from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import HANGS, MODEL, PHOTO, ROOT, TESTS, make_photos

# What is started in the background, or by nohup, was told to ignore them, and hands that on to every command here.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# The files that take longest: begun first, so that several workers come to an end together.
LONGEST = (
    *("models/timm/test_description.py", "faults/test_disk.py", "models/timm/test_outputs.py"),
    *("faults/test_vectors.py", "models/test_catalogue.py", "test_scripts.py", "engine/test_tiles.py"),
    *("engine/test_inputs.py", "runs/test_shards.py", "models/timm/test_attention.py", "faults/test_combinations.py"),
    *("faults/test_shards.py", "test_readme.py", "cli/test_screens.py", "models/test_runtimes.py"),
    *("faults/test_hostile.py", "cli/test_wrong_values.py", "models/test_centres.py", "engine/test_native.py"),
    *("faults/test_temporaries.py", "cli/test_commands.py", "faults/test_signals.py", "faults/test_kills.py"),
    *("models/test_yolo.py", "engine/test_extract.py", "engine/test_ray.py", "engine/test_smaller.py"),
    *("images/test_containers.py", "engine/test_archive_runs.py", "models/test_weights.py", "runs/test_remote.py"),
    *("faults/test_stores.py", "faults/test_stores_in_place.py"),
)


def pytest_addoption(parser):
    parser.addoption("--large", action="store_true", help="also run the long versions")


def pytest_collection_modifyitems(items):
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish():
    """Keep Python's cycle collector from looking at torch and all tests again and again, which takes its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def photo() -> Path:
    """A real photo."""
    return PHOTO


@pytest.fixture
def photos(tmp_path) -> Path:
    """Return a folder of three photos: ``0.jpg``, ``1.jpg`` and ``2.jpg``."""
    return make_photos(tmp_path / "photos", 3)


@pytest.fixture
def threads():
    """Set torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Forge:
    """Runs of the real command, each in a process of its own, of which none has to load torch: see `tests.forge`."""

    def __init__(self, **environment: str) -> None:
        self._process = subprocess.Popen(
            # No module's own file is the main one, which the fork server's processes would import, torch and all.
            [sys.executable, "-c", "from tests import forge; forge.main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "400", "HF_HUB_VERBOSITY": "error", **environment},
            text=True,
        )

    def __call__(self, folder: Path, *arguments: object, **request) -> dict:
        request |= {"folder": str(folder), "arguments": [str(argument) for argument in arguments]}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer

    def extract(self, folder: Path, inputs: object, output: str, *more: object, **request) -> dict:
        return self(folder, "extract", inputs, *MODEL, "--output", output, *more, **request)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(HANGS)


@pytest.fixture(scope="session")
def forge():
    running = Forge()
    yield running
    running.close()


@pytest.fixture
def no_hub(tmp_path):
    """What a command finds in its environment: no terminal, no hub, nothing in its caches."""
    gone = dict.fromkeys(("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "NO_COLOR", "FORCE_COLOR"))
    caches = {"HF_HOME": str(tmp_path / "hub-cache"), "TORCH_HOME": str(tmp_path / "torch-cache")}
    return {**gone, **caches, "COLUMNS": "200"}


@pytest.fixture
def featx_command(forge, tmp_path, no_hub):
    """Run ``featx`` in this folder, or a ``script`` of Python; in another process, which has torch already."""

    def run(*arguments: object, stdin: bytes = b"", script: str = "", **environment: str):
        request = {"stdin": stdin.decode("latin-1"), "environment": no_hub | environment, "isolation": True}
        if script:
            request["script"] = script
        done = forge(tmp_path, *arguments, **request)
        return subprocess.CompletedProcess(arguments, done["status"], done["stdout"], done["stderr"])

    return run


@pytest.fixture
def fresh_command(tmp_path, no_hub):
    """Run ``featx`` in this folder, as a person would: a new Python, which sees all of its environment."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        found = {**os.environ, **no_hub, **environment}
        return subprocess.run(
            [sys.executable, "-m", "featx", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=tmp_path,
            env={name: value for name, value in found.items() if value is not None},
            encoding="utf-8",
            errors="replace",
            timeout=HANGS,
            check=False,
        )

    return run

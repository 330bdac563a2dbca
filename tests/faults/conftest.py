# What the fault tests share: many small photos, and what must hold for a run's folder.
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import helpers
from tests.conftest import Forge
from tests.helpers import lines, outputs


def make_photos(folder: Path, count: int) -> Path:
    """Photos whose names sort as their numbers do."""
    return helpers.make_photos(folder, count, "{:04}.jpg")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Return a folder of 500 photos."""
    return make_photos(tmp_path_factory.mktemp("faults") / "photos", 500)


@pytest.fixture(scope="session")
def hostile():
    """A forge whose processes decode pictures that crash, hang or hog; see ``hostile/sitecustomize.py``."""
    paths = (str(Path(__file__).parent / "hostile"), os.environ.get("PYTHONPATH", ""))
    running = Forge(PYTHONPATH=os.pathsep.join(paths))
    yield running
    running.close()


def require_complete(folder: Path, expected: dict[str, str]) -> None:
    """Nothing lost, nothing twice, nothing corrupt, nothing stale."""
    assert outputs(folder) == expected
    entries = lines(folder)
    assert sorted(line["output"] for line in entries) == sorted(expected)
    assert {line["output"]: line["sha256"] for line in entries} == expected
    assert json.loads((folder / "summary.json").read_text())["state"] == "done"
    left = {path.name for path in folder.rglob("*") if path.is_file()} - {Path(name).name for name in expected}
    assert left == {"manifest.jsonl", "summary.json"}
    assert not (folder / ".unfinished").exists()


def require_only_complete_files(folder: Path, expected: dict[str, str]) -> None:
    """What a kill may leave under a final name: nothing, or all of it."""
    for name, digest in outputs(folder).items() if folder.exists() else ():
        if not name.startswith(".unfinished/"):
            assert digest == expected[name], f"{name} is not complete"

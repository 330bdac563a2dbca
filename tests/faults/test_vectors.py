# Images that share files: a disk that fails at any call, a kill at any call and at any moment, nothing lost or twice.
from __future__ import annotations

import json
import random
import shutil
import signal
import tarfile
from functools import cache

import numpy as np
import pytest
import zarr

import featx
from featx.explore.verify import verify
from tests.faults.conftest import make_photos
from tests.helpers import lines

FORMATS = ("npy", "parquet", "boxes", "webdataset", "zarr")

# The files that hold vectors.
PLACES = ("embeddings*", "*.tar", "features.zarr/embedding/c.*")

KINDS = ("ENOSPC", "EIO", "kill")


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("five") / "photos", 5)


@pytest.fixture(autouse=True)
def boxes(tmp_path):
    write_boxes(tmp_path)


def write_boxes(folder):
    """Boxes of more photos than there are, of which not all have the same number."""
    rows = [f"{number:04}.jpg,10,{row},60,50\n" for number in range(60) for row in range(number % 3 + 1)]
    (folder / "boxes.csv").write_text(f"key,x1,y1,x2,y2\n{''.join(rows)}")


@pytest.fixture(scope="module")
def undisturbed(forge, five, tmp_path_factory):
    """Runs without faults, into an empty folder or again after photos changed: one for each format."""

    @cache
    def run(format_, anew):
        folder = tmp_path_factory.mktemp("undisturbed")
        write_boxes(folder)
        photos, counter = shutil.copytree(five, folder / "photos"), folder / "calls"
        if not anew:
            assert forge.extract(folder, photos, "before", *options(format_))["status"] in (0, 3)
            change(photos, five)
            shutil.copytree(folder / "before", folder / "whole")
        status = forge.extract(folder, photos, "whole", *options(format_), fault=striking(counter, 0, "EIO"))["status"]
        assert status == (0 if anew and format_ != "boxes" else 3)
        return folder, status, vectors(folder / "whole"), counter.read_text().split()

    return run


def striking(counter, number, kind):
    """Return the fault that strikes a call, with groups of two images."""
    return {"name": "call", "number": number, "kind": kind, "counter": str(counter), "group": 2}


def options(format_):
    what = (
        ("--boxes", "boxes.csv", "--format", "parquet") if format_ == "boxes" else ("--embedding", "--format", format_)
    )
    return (*what, "--batch-size", "1")


def vectors(folder):
    """Every row as others read it: from the files alone."""
    run = featx.open_run(folder)
    if "boxes" in {field.key for field in run.fields}:
        return {
            key: np.concatenate([values.ravel() for values in run[key].values() if values.dtype.kind == "f"])
            for key in run
        }
    rows = [(key, row.copy()) for keys, block in run.embeddings() for key, row in zip(keys, block, strict=True)]
    assert len({key for key, _ in rows}) == len(rows)
    return dict(rows)


def rows_in_files(folder):
    if (folder / "features.zarr").exists():
        keys = zarr.open_group(folder / "features.zarr", mode="r")["key"][:].tolist()
        return len(keys), len(set(keys) - {""})
    if (folder / "embeddings.npy").exists():
        return len(np.load(folder / "embeddings.npy", mmap_mode="r")), len((folder / "keys.txt").read_text().split())
    if tars := list(folder.glob("*.tar")):
        names = []
        for path in tars:
            with tarfile.open(path) as tar:
                names += [name for name in tar.getnames() if name.endswith(".json")]
        return len(names), len(set(names))
    from pyarrow import parquet

    counts = [parquet.read_metadata(path).num_rows for path in folder.glob("*.parquet")]
    return sum(counts), sum(counts)


def require_no_other_rows(folder):
    run = featx.open_run(folder)
    rows = sum(len(run[key].get("boxes", [0])) for key in run)
    assert rows_in_files(folder) == (rows, rows)


def require_complete(folder, expected):
    found = vectors(folder)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    require_no_other_rows(folder)
    assert json.loads((folder / "summary.json").read_text())["state"] == "done"
    last = {line["key"]: line["status"] for line in lines(folder)}
    assert sorted(key for key, status in last.items() if status == "done") == sorted(expected)
    verified = verify(folder)
    assert (verified.sound, verified.foreign, verified.unfinished) == (True, [], 0)
    assert not (folder / ".unfinished").exists()


def change(photos, others):
    """One image becomes another, one breaks, and one comes."""
    shutil.copy(others / "0004.jpg", photos / "0001.jpg")
    (photos / "0003.jpg").write_bytes(b"broken")
    shutil.copy(others / "0002.jpg", photos / "0007.jpg")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anew", [True, False])
def test_calls_fail_in_turn(forge, undisturbed, tmp_path, format_, kind, anew, request):
    """Of a run into an empty folder; and of one for which rows are dropped and replaced."""
    whole, sound, expected, calls = undisturbed(format_, anew)
    photos, counter = whole / "photos", tmp_path / "calls"
    assert len(expected) == 5
    step = 1 if request.config.getoption("large") else max(10, len(calls) // 3)
    for number in range(1 + 3 * KINDS.index(kind) + anew, len(calls) + 1, step):
        counter.unlink(missing_ok=True)
        if not anew:
            shutil.copytree(whole / "before", tmp_path / "out")
        fault = striking(counter, number, kind)
        failed = forge.extract(tmp_path, photos, "out", *options(format_), fault=fault)
        made = counter.read_text().split()
        if kind == "kill":
            assert failed["status"] == -9, (number, made)
        elif failed["status"] != sound:  # what is only cleared up at the end may be left to the next run
            errors = [line for line in failed["stderr"].splitlines() if line.startswith("featx:")]
            assert (failed["status"], len(errors)) == (1, 1), (made, failed)
            assert "Unexpected" not in errors[0]
        if (tmp_path / "out" / "embeddings.npy").exists():
            np.load(tmp_path / "out" / "embeddings.npy", mmap_mode="r")
        resumed = forge.extract(tmp_path, photos, "out", *options(format_), isolation=True)
        assert resumed["status"] == sound, (made, resumed)
        require_complete(tmp_path / "out", expected)
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("format_", FORMATS)
def test_images_that_change_and_break_between_kills(forge, tmp_path, format_, request):
    """Rows are replaced and dropped while runs are killed at random moments; what is left is what the images are."""
    chance = random.Random(format_)
    photos = make_photos(tmp_path / "photos", 40)
    others = make_photos(tmp_path / "others", 60)
    extract = (tmp_path, photos, "out", *options(format_))
    assert forge.extract(*extract)["status"] in (0, 3)
    for turn in range(40 if request.config.getoption("large") else 6):
        for number in chance.sample(range(40), 8):
            shutil.copy(others / f"{40 + (turn + number) % 20:04}.jpg", photos / f"{number:04}.jpg")
        (photos / f"{chance.randrange(40):04}.jpg").write_bytes(b"broken")
        steps = [("lines", chance.randint(0, 8)), ("pause", chance.uniform(0, 0.05)), ("signal", signal.SIGKILL)]
        forge.extract(*extract, steps=steps, isolation=True)
    final = forge.extract(*extract, "--retry-failed", isolation=True)
    assert final["status"] in (0, 3), final
    forge.extract(tmp_path, photos, "anew", *options(format_))
    expected, found = vectors(tmp_path / "anew"), vectors(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    require_no_other_rows(tmp_path / "out")
    assert verify(tmp_path / "out").sound


@pytest.mark.parametrize("format_", FORMATS)
def test_damage_is_found_forgotten_and_made_good(forge, five, tmp_path, format_):
    extract = (tmp_path, five, "out", *options(format_))
    sound = forge.extract(*extract)["status"]
    expected = vectors(tmp_path / "out")
    (file,) = (path for place in PLACES for path in (tmp_path / "out").glob(place))
    data = bytearray(file.read_bytes())
    place = data.index(expected["photos/0002.jpg"][-6:].astype(np.float32).tobytes())
    data[place + 9] ^= 1
    file.write_bytes(data)
    verified = verify(tmp_path / "out")
    assert not verified.sound
    assert "photos/0002.jpg" in verified.damaged
    assert verify(tmp_path / "out", repair=True).repaired
    assert forge.extract(*extract)["status"] == sound
    require_complete(tmp_path / "out", expected)

# verify: every flipped bit, cut end and missing file is found, forgotten, and made again, and nothing else is.
from __future__ import annotations

import json
import random

import numpy as np
import pytest

import featx
from tests.faults.conftest import make_photos
from tests.helpers import lines, outputs, tree


def flip(path, generator):
    data = bytearray(path.read_bytes())
    position = generator.randrange(len(data) * 8)
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)


def test_all_damage_is_found_and_just_that_is_made_again(forge, tmp_path, request):
    flips, cuts, deletions, untouched = (2000, 200, 50, 150) if request.config.getoption("large") else (500, 50, 20, 50)
    many = make_photos(tmp_path / "many", flips + cuts + deletions + untouched)
    arguments = (many, "out", "--out-indices", 4)
    assert forge.extract(tmp_path, *arguments)["status"] == 0
    out = tmp_path / "out"
    before = outputs(out)
    generator = random.Random(8)
    names = list(before)
    generator.shuffle(names)
    flipped, cut, deleted = names[:flips], names[flips : flips + cuts], names[flips + cuts :][:deletions]
    for name in flipped:
        flip(out / name, generator)
    for name in cut:
        data = (out / name).read_bytes()
        (out / name).write_bytes(data[: generator.randrange(len(data))])
    for name in deleted:
        (out / name).unlink()

    found = forge(tmp_path, "verify", "out", "--json")
    assert found["status"] == 1
    verified = json.loads(found["stdout"])
    assert set(verified["missing"]) == {name.removesuffix(".npz") for name in deleted}
    assert set(verified["damaged"]) == {name.removesuffix(".npz") for name in (*flipped, *cut)}
    assert (verified["checked"], verified["foreign"], verified["sound"]) == (len(names), [], False)

    assert forge(tmp_path, "verify", "out", "--repair")["status"] == 1
    assert len(lines(out)) == untouched
    resumed = forge.extract(tmp_path, *arguments, "--json")
    assert resumed["status"] == 0
    assert f"{untouched} done before" not in resumed["stderr"]  # --json is quiet
    assert outputs(out) == before
    kept = {line["key"] for line in lines(out)[:untouched]}
    assert {f"{key}.npz" for key in kept} == set(names) - {*flipped, *cut, *deleted}
    sound = forge(tmp_path, "verify", "out")
    assert (sound["status"], sound["stdout"]) == (0, f"{len(names)} of {len(names)} outputs intact\n")


@pytest.fixture
def run(forge, photos, tmp_path):
    few = [photos / f"{number:04}.jpg" for number in range(5)]
    assert forge.extract(tmp_path, few[0], "out", *few[1:])["status"] == 0
    return tmp_path / "out"


def test_numpy_load_is_no_verifier(run):
    """Why there is a command: numpy reads some damaged files as if nothing was."""
    name, generator, silent = "0000.jpg.npz", random.Random(9), 0
    whole = (run / name).read_bytes()
    with np.load(run / name) as arrays:
        expected = {key: arrays[key] for key in arrays.files}
    for _ in range(400):
        flip(run / name, generator)
        try:
            with np.load(run / name) as arrays:
                same = all(np.array_equal(arrays[key], expected[key]) for key in expected)
                silent += same or list(arrays.files) != list(expected)
        except Exception:  # noqa: BLE001 - numpy noticed
            pass
        assert "sha256" in json.dumps(verify(run).damaged)
        (run / name).write_bytes(whole)
    assert silent > 0
    assert verify(run).sound


def verify(folder, **options):
    from featx.explore.verify import verify as check

    return check(folder, **options)


def test_unexpected_files_are_named_and_left_alone(run):
    (run / "notes.txt").write_text("mine")
    (run / "other.jpg.npz").write_bytes(b"not known")
    (run / ".unfinished").mkdir()
    (run / ".unfinished" / "3").write_bytes(b"")
    verified = verify(run, repair=True)
    assert (verified.foreign, verified.unfinished, verified.sound) == (["notes.txt", "other.jpg.npz"], 1, True)
    assert verified.uncommitted == []
    assert (run / "notes.txt").exists()


def test_what_the_arrays_should_be_is_checked_beyond_the_hash(run):
    """A manifest that agrees with a wrong file does not help it."""
    import hashlib

    for number, arrays in enumerate(
        (
            {"level_0": np.zeros((32, 32, 32), np.float32)},
            {f"level_{index}": np.zeros((1, 1, 1), np.float32) for index in range(5)},
        )
    ):
        path = run / f"000{number}.jpg.npz"
        np.savez(path, **arrays)
        replace_line(run, path.stem, bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    damaged = verify(run).damaged
    assert damaged["0000.jpg"].startswith("holds level_0, not level_0, level_1")
    assert damaged["0001.jpg"].startswith("level_0 is float32 (1, 1, 1), not float32 (32, 32, 32)")


def replace_line(run, key, **changes):
    entries = [{**line, **changes} if line["key"] == key else line for line in lines(run)]
    (run / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries))


def test_infinity_is_found(run):
    import hashlib

    path = run / "0000.jpg.npz"
    with np.load(path) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    values["level_2"][0, 0, 0] = np.inf
    np.savez(path, **values)
    replace_line(run, "0000.jpg", bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert verify(run).damaged == {"0000.jpg": "level_2 holds NaN or infinity"}


def test_a_damaged_manifest_is_said_and_repaired(forge, run, photos, tmp_path):
    before = outputs(run)
    text = (run / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    text[1] = text[1].replace(b'"key"', b'"kex"')
    text[2] = text[2].replace(b'"done"', b'"dome"')
    text[3] = b"\0" * 40 + b"\n"
    (run / "manifest.jsonl").write_bytes(b"".join(text))
    verified = verify(run)
    assert verified.unreadable == [
        "manifest.jsonl line 2: Object missing required field `key`",
        "manifest.jsonl line 3: Invalid value 'dome' - at `$.status`",
        "manifest.jsonl line 4: JSON is malformed: invalid character (byte 0)",
    ]
    assert (verified.checked, verified.sound) == (2, False)
    assert verify(run, repair=True).repaired
    assert len(lines(run)) == 2
    assert verify(run).sound
    few = [photos / f"{number:04}.jpg" for number in range(5)]
    assert forge.extract(tmp_path, few[0], "out", *few[1:])["status"] == 0
    assert outputs(run) == before
    assert verify(run).sound


def test_a_manifest_that_points_outside_touches_nothing_there(forge, run, photos, tmp_path):
    (tmp_path / "precious.npz").write_bytes(b"precious")
    replace_line(run, "0000.jpg", output="../precious.npz")
    assert verify(run).unreadable == ["manifest.jsonl line 1: the output is outside the folder: ../precious.npz"]
    with pytest.raises(KeyError):
        featx.open_run(run)["0000.jpg"]
    assert forge.extract(tmp_path, photos / "0000.jpg", "out", "--overwrite")["status"] == 0
    assert (tmp_path / "precious.npz").read_bytes() == b"precious"


def test_making_outputs_again(forge, run, photos, tmp_path):
    again = verify(run, recompute=4).recomputed
    assert (again.images, again.deviation, again.where, again.versions) == (4, 0.0, "", [])
    assert verify(run, recompute=4).sound


def test_an_output_that_comes_out_otherwise_is_named(run):
    """As a manifest would have it that was written with other weights."""
    import hashlib

    path = run / "0003.jpg.npz"
    with np.load(path) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    values["level_3"] *= 1.01
    np.savez(path, **values)
    replace_line(run, "0003.jpg", bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    verified = verify(run, recompute=5)
    assert verified.damaged == {}
    assert verified.recomputed.where == "level_3 of 0003.jpg"
    assert 0.009 < verified.recomputed.deviation < 0.011
    assert not verified.sound


def test_repairing_and_making_again_at_once(run):
    (run / "0000.jpg.npz").write_bytes(b"damaged")
    verified = verify(run, repair=True, recompute=4)
    assert list(verified.damaged) == ["0000.jpg"]
    assert (verified.recomputed.images, verified.recomputed.deviation) == (4, 0.0)
    assert [line["key"] for line in lines(run)] == [f"000{number}.jpg" for number in range(1, 5)]
    assert json.loads((run / "summary.json").read_text())["counts"]["done"] == 4


def test_images_that_changed_or_fail_now_are_not_called_equal(forge, tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "some", 2)
    assert forge.extract(tmp_path, photos, "out")["status"] == 0
    out = tmp_path / "out"

    def fail(*_):
        raise ValueError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("featx.images.decoding.upright_rgb", fail)
        verified = verify(out, recompute=2)
    assert sorted(verified.recomputed.failed) == ["some/0000.jpg", "some/0001.jpg"]
    assert not verified.sound
    for path in photos.iterdir():
        path.touch()
    said = forge(tmp_path, "verify", "out", "--recompute", 2)
    assert said["status"] == 1
    assert "not reproduced: no image extracted again, 2 images skipped: changed or deleted since" in said["stdout"]


def test_half_precision_files_are_held_to_what_they_can_hold(forge, photos, tmp_path):
    few = [photos / f"{number:04}.jpg" for number in range(3)]
    assert forge.extract(tmp_path, few[0], "out", *few[1:], "--dtype", "float16")["status"] == 0
    again = verify(tmp_path / "out", recompute=3).recomputed
    assert (again.images, again.deviation, again.tolerance) == (3, 0.0, 1e-3)


def test_verify_needs_a_run(forge, tmp_path):
    failed = forge(tmp_path, "verify", ".")
    assert failed["status"] == 1
    assert failed["stderr"].startswith("featx: . is not a featx run")


def test_verify_changes_nothing(forge, run, tmp_path):
    before = tree(run)
    assert forge(tmp_path, "verify", "out", "--recompute", "2")["status"] == 0
    assert tree(run) == before
    assert len(featx.open_run(run)) == 5


def test_what_a_stopped_run_has_not_done_is_said(forge, photos, run, tmp_path):
    """As it is after Ctrl-C: two of five are done, one failed, one is in its place and not in the manifest."""
    entries = lines(run)
    failed = {**{name: entries[2][name] for name in ("key", "path", "input")}, "stage": "decode", "error": "broken"}
    kept = [*entries[:2], {**failed, "status": "failed"}]
    (run / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    for line in entries[2:4]:
        (run / line["output"]).unlink()
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"state": "stopped", "counts": {"done": 2, "failed": 1, "total": 5}}
    (run / "summary.json").write_text(json.dumps(summary))
    verified = verify(run)
    assert (verified.checked, verified.to_do, verified.failed) == (2, 2, 1)
    assert (verified.uncommitted, verified.foreign) == (["0004.jpg.npz"], [])
    assert (verified.sound, verified.complete) == (True, False)
    said = forge(tmp_path, "verify", "out")
    assert said["status"] == 1
    assert said["stdout"].splitlines() == [
        "not in the manifest: 0004.jpg.npz; the next extract makes it again",
        "2 of 4 outputs intact",
        "2 images not computed yet; run the same extract command to resume",
        "1 image failed; the manifest says why",
    ]


@pytest.mark.parametrize("format_", ["npy", "parquet", "webdataset", "zarr"])
def test_rows_that_the_manifest_lacks_are_named(forge, photos, tmp_path, format_):
    few = [photos / f"{number:04}.jpg" for number in range(3)]
    made = forge.extract(tmp_path, few[0], "out", *few[1:], "--embedding", "--format", format_)
    assert made["status"] == 0
    entries, out = lines(tmp_path / "out"), tmp_path / "out"
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries[:2]))
    name = {
        "npy": "embeddings.npy",
        "parquet": "embeddings-00000.parquet",
        "webdataset": "features-00000.tar",
        "zarr": "features.zarr",
    }[format_]
    verified = verify(out)
    assert (verified.uncommitted, verified.foreign, verified.to_do) == ([f"0002.jpg in {name}"], [], 1)
    (out / "manifest.jsonl").write_text("")
    assert verify(out).uncommitted == [f"000{number}.jpg in {name}" for number in range(3)]
    assert forge.extract(tmp_path, few[0], "out", *few[1:], "--embedding", "--format", format_)["status"] == 0
    assert verify(out).uncommitted == []


def test_files_of_a_store_that_is_not_described_are_not_foreign(forge, photos, tmp_path):
    """As after a kill in a run's first commit."""
    assert forge.extract(tmp_path, photos / "0000.jpg", "out", "--format", "zarr")["status"] == 0
    out = tmp_path / "out"
    (out / "features.zarr" / "zarr.json").unlink()
    (out / "manifest.jsonl").write_text("")
    (out / "features.zarr" / "notes.txt").write_text("mine")
    (out / "features.zarr" / "key" / "notes.txt").write_text("mine")
    assert verify(out).foreign == ["features.zarr/notes.txt", "features.zarr/key/notes.txt"]
    assert forge.extract(tmp_path, photos / "0000.jpg", "out", "--format", "zarr")["status"] == 0
    assert (verify(out).sound, len(verify(out).foreign)) == (True, 2)


def test_a_suspect_does_not_outlive_its_image(forge, photos, tmp_path):
    from featx.runs.layout import UNFINISHED
    from featx.runs.suspects import Marks, read_suspects
    from featx.values import Item

    (tmp_path / "gone.jpg").write_bytes(b"")
    (tmp_path / "there.jpg").write_bytes(b"")
    assert forge.extract(tmp_path, photos / "0000.jpg", "out")["status"] == 0
    unfinished = tmp_path / "out" / UNFINISHED
    unfinished.mkdir()
    marks = Marks(unfinished)
    for name in ("gone.jpg", "there.jpg"):
        marks.enter(Item(name, str(tmp_path / name)))
    (tmp_path / "gone.jpg").unlink()
    assert forge.extract(tmp_path, photos / "0001.jpg", "out", isolation=True)["status"] == 0
    assert read_suspects(unfinished) == {b"there.jpg": str(tmp_path / "there.jpg").encode()}
    (tmp_path / "there.jpg").unlink()
    assert forge.extract(tmp_path, photos / "0001.jpg", "out", isolation=True)["status"] == 0
    assert not unfinished.exists()

# convert: the same arrays and recipe in another format; interrupted anywhere; the source is never touched.
from __future__ import annotations

import json
import random

import numpy as np
import pytest

import featx
from featx.errors import FeatxError, UsageError
from featx.explore.verify import verify
from featx.runs.formats import Record, hdf5
from featx.runs.recorder import Recorder
from featx.values import Field, Item
from tests.helpers import extract, lines, make_photos, tree

OTHERS = ("safetensors", "webdataset", "zarr", "hdf5")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converting")
    photos = make_photos(folder / "photos", 9)
    (photos / "broken.jpg").write_bytes(b"broken")
    extract(photos, folder / "run", out_indices=(2, 4), embedding=True)
    return folder / "run"


def require_same(folder, run, name):
    """The same images and arrays, with lines and a summary of its own format; and a source as it was."""
    made, source = featx.open_run(folder), featx.open_run(run)
    assert (list(made), made.failed) == (list(source), source.failed)
    for key in source:
        assert all(np.array_equal(made[key][each], source[key][each]) for each in source[key])
        assert made.frame(key) == source.frame(key)
        assert [made.level(key, level) for level in made.maps] == [source.level(key, level) for level in source.maps]
    assert made.summary["recipe"] == {**source.summary["recipe"], "format": name}
    assert made.summary["counts"] == source.summary["counts"]
    checked = verify(folder)
    assert (checked.sound, checked.complete, checked.foreign, checked.uncommitted) == (True, True, [], [])
    assert not (folder / ".unfinished").exists()


@pytest.mark.parametrize("name", OTHERS)
def test_there_and_back(run, tmp_path, name):
    before = tree(run)
    made = featx.convert(run, tmp_path / "made", format=name)
    assert (made.done, made.failed, made.converted) == (9, 1, 9)
    files = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    beside = {"manifest.jsonl", "summary.json"}
    assert made.bytes == sum(path.stat().st_size for path in files if path.name not in beside)
    require_same(tmp_path / "made", run, name)
    featx.convert(tmp_path / "made", tmp_path / "back", format="npz")
    outputs = {name: digest for name, digest in before.items() if name.endswith(".npz")}
    assert outputs.items() <= tree(tmp_path / "back").items()
    assert [line.get("sha256") for line in lines(tmp_path / "back")] == [line.get("sha256") for line in lines(run)]
    assert tree(run) == before
    assert featx.convert(run, tmp_path / "made", format=name).converted == 0


@pytest.mark.parametrize("name", OTHERS)
def test_smaller_maps_keep_their_scales_and_components(tmp_path, name):
    photos = make_photos(tmp_path / "photos", 5)
    extract(photos, tmp_path / "run", out_indices=(1, 2), grid=3, components=4, dtype="int8")
    featx.convert(tmp_path / "run", tmp_path / "made", format=name)
    require_same(tmp_path / "made", tmp_path / "run", name)
    assert (tmp_path / "made" / "basis.npz").read_bytes() == (tmp_path / "run" / "basis.npz").read_bytes()
    raw = featx.open_run(tmp_path / "made", raw=True)["photos/1.jpg"]
    assert (raw["level_1"].dtype, raw["level_1"].shape, raw["level_1_scale"].shape) == (np.int8, (4, 3, 3), (4,))
    if name != "hdf5":
        extract(photos, tmp_path / "anew", out_indices=(1, 2), grid=3, components=4, dtype="int8", format=name)
        require_same(tmp_path / "anew", tmp_path / "run", name)


def test_a_converted_run_goes_on(run, tmp_path):
    featx.convert(run, tmp_path / "made", format="zarr")
    photos = make_photos(tmp_path / "photos", 11)
    for path in sorted(photos.iterdir())[:-1]:
        path.unlink()
    report = extract(photos, tmp_path / "made", out_indices=(2, 4), embedding=True, format="zarr", batch_size=8)
    assert (report.computed, report.summary["counts"]["done"]) == (1, 10) or report.computed == 1
    assert verify(tmp_path / "made").sound


@pytest.mark.parametrize("name", ["npz", *OTHERS])
def test_an_interrupted_conversion_goes_on(run, tmp_path, monkeypatch, name):
    """Each time a commit, or the lines after it, is the last thing that is done."""
    from featx.runs import formats

    chance = random.Random(name)
    made = type(formats.writer(name, tmp_path, tmp_path, [Field("embedding", (1,), "float32")]))
    monkeypatch.setattr(made, "group", 2)
    honest = {"commit": made.commit, "enter": Recorder.enter}

    def interrupted(of, which):
        def call(self, *arguments):
            before = chance.random() < 0.5
            if before and chance.random() < 0.4:
                raise KeyboardInterrupt
            answer = honest[which](self, *arguments)
            if not before and chance.random() < 0.4:
                raise KeyboardInterrupt
            return answer

        monkeypatch.setattr(of, which, call)

    interrupted(made, "commit")
    interrupted(Recorder, "enter")
    for _ in range(60):
        try:
            featx.convert(run, tmp_path / "made", format=name)
            break
        except KeyboardInterrupt:
            assert json.loads((tmp_path / "made" / "summary.json").read_text())["state"] == "stopped"
    monkeypatch.undo()
    featx.convert(run, tmp_path / "made", format=name)
    assert {line["key"] for line in lines(tmp_path / "made")} == {line["key"] for line in lines(run)}
    require_same_but_for_order(tmp_path / "made", run)


def require_same_but_for_order(folder, run):
    made, source = featx.open_run(folder), featx.open_run(run)
    assert {*made} == {*source}
    for key in source:
        assert all(np.array_equal(made[key][each], source[key][each]) for each in source[key])
    checked = verify(folder)
    assert (checked.sound, checked.foreign, checked.uncommitted, checked.unfinished) == (True, [], [], 0)
    assert made.summary["counts"] == source.summary["counts"]


def test_what_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="lies in the run"):
        featx.convert(run, run / "inside", format="zarr")
    with pytest.raises(UsageError, match="parquet stores one vector per image"):
        featx.convert(run, tmp_path / "made", format="parquet")
    with pytest.raises(UsageError, match=r"--format: expected npz, .* or hdf5, not 'csv'"):
        featx.convert(run, tmp_path / "made", format="csv")
    assert not (tmp_path / "made").exists()
    featx.convert(run, tmp_path / "made", format="npz")
    with pytest.raises(FeatxError, match="made holds another run"):
        featx.convert(run, tmp_path / "made", format="zarr")
    data = bytearray((tmp_path / "made" / "photos" / "3.jpg.npz").read_bytes())
    data[5000] ^= 1
    (tmp_path / "made" / "photos" / "3.jpg.npz").write_bytes(data)
    with pytest.raises(FeatxError, match=r"The output of photos/3.jpg in .* is damaged: sha256 differs"):
        featx.convert(tmp_path / "made", tmp_path / "zarr", format="zarr")
    verify(tmp_path / "made", repair=True)
    with pytest.raises(FeatxError, match="made is not complete"):
        featx.convert(tmp_path / "made", tmp_path / "new", format="zarr")


def test_boxes_and_photos_of_their_own_sizes(tmp_path):
    photos = make_photos(tmp_path / "photos", 4)
    (tmp_path / "boxes.csv").write_text(
        "key,x1,y1,x2,y2,label\n0.jpg,10,10,60,50,cät\n2.jpg,1,1,9,9,\n2.jpg,2,2,30,9,x\n"
    )
    extract(photos, tmp_path / "run", boxes=str(tmp_path / "boxes.csv"), fit="native", image_size=None, grid=2)
    for name in ("safetensors", "webdataset", "hdf5"):
        featx.convert(tmp_path / "run", tmp_path / name, format=name)
        require_same(tmp_path / name, tmp_path / "run", name)
    with pytest.raises(UsageError, match="zarr stores arrays of one shape"):
        featx.convert(tmp_path / "run", tmp_path / "zarr", format="zarr")


def test_a_key_that_hdf5_has_no_room_for_is_refused(tmp_path):
    writer = hdf5.Writer(tmp_path, tmp_path, [])
    arrays = {"level_0": np.zeros((1, 2, 2), np.float32)}
    writer.write(Record(Item("a", "a"), "a", (1, 1), arrays))
    with pytest.raises(FeatxError, match="a/level_0 cannot be a group of an HDF5 file"):
        writer.write(Record(Item("a/level_0", "b"), "b", (1, 1), arrays))


def test_the_command_says_what_it_did(run, tmp_path, featx_command):
    done = featx_command("convert", run, "--format", "webdataset", "-o", "made", "--shard-mb", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("9 done, 1 failed as webdataset (9 converted now)\n")
    done = featx_command("convert", run, "--format", "webdataset", "-o", "made", "--json")
    assert json.loads(done.stdout)["converted"] == 0

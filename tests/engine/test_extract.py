# extract, as a function: files on the disk equal to timm's maps, resuming, failing, refusing.
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import featx
from featx import naming
from featx.engine.events import Foreseen, Phase, Planned
from featx.engine.work import Work
from featx.errors import BusyError, FeatxError, OutputError, StoppedError, UsageError
from featx.models.pyramid import Pyramid
from featx.runs.formats import npz
from featx.values import Note, Outcome
from tests.helpers import extract, lines, make_photos, natural_image, outputs, tree

MODEL = "test_resnet"


@pytest.fixture
def photos(tmp_path):
    """Eleven images in a folder and one below it: more than a batch, and not a multiple of one."""
    folder = make_photos(tmp_path / "photos", 10)
    (folder / "deep").mkdir()
    natural_image(10).save(folder / "deep" / "10.png")
    return folder


def test_outputs_equal_timm_on_the_same_batches(photos, tmp_path, threads):
    report = extract(photos, tmp_path / "out", batch_size=4, image_size=160)
    threads(report.summary["recipe"]["threads"])
    torch.manual_seed(0)
    reference = timm.create_model(MODEL, features_only=True).eval().to(memory_format=torch.channels_last)
    transform = create_transform(**resolve_model_data_config(reference), is_training=False)
    paths = [photos / f"{number}.jpg" for number in range(10)] + [photos / "deep" / "10.png"]
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths] + [torch.zeros(3, 160, 160)])
    with torch.no_grad():
        maps = [reference(batch.contiguous(memory_format=torch.channels_last)) for batch in pixels.split(4)]
    expected = [torch.cat(level) for level in zip(*maps, strict=True)]
    assert (report.computed, report.failures) == (11, [])
    for number, path in enumerate(paths):
        with np.load(tmp_path / "out" / f"photos/{path.relative_to(photos)}.npz") as arrays:
            assert arrays.files == [f"level_{index}" for index in range(5)]
            for index, level in enumerate(expected):
                np.testing.assert_array_equal(arrays[f"level_{index}"], level[number].numpy())


def test_the_books(photos, tmp_path):
    report = extract(photos, tmp_path / "out", out_indices=(2, 4), batch_size=4)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == report.summary
    assert next(iter(summary)) == "featx_format"
    assert summary["state"] == "done"
    assert summary["counts"] == {"done": 11, "failed": 0, "total": 11}
    assert [
        (level["index"], level["channels"], level["stride"], level["height"], level["dtype"])
        for level in summary["levels"]
    ] == [
        (2, 48, 8, 8, "float32"),
        (4, 96, 32, 2, "float32"),
    ]
    assert summary["weights"]["note"] == "random weights: shapes are right, but nothing was learned"
    entries = lines(tmp_path / "out")
    assert len(entries) == 11
    for line in entries:
        data = (tmp_path / "out" / line["output"]).read_bytes()
        assert (line["bytes"], line["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert line["output"] == f"{line['key']}.npz"
        with Image.open(line["path"]) as image:
            assert tuple(line["size"]) == image.size


def test_running_again_computes_nothing(photos, tmp_path, monkeypatch):
    extract(photos, tmp_path / "out")
    before = outputs(tmp_path / "out")
    monkeypatch.setattr(Work, "prepare", lambda *_: pytest.fail("an image was read again"))
    report = extract(photos, tmp_path / "out")
    assert report.computed == 0
    assert outputs(tmp_path / "out") == before
    assert report.summary["counts"] == {"done": 11, "failed": 0, "total": 11}


def test_an_interrupted_run_goes_on_to_the_same_bytes(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(npz.Writer, "group", 4)
    extract(photos, tmp_path / "whole", batch_size=4)

    def interrupt(event):
        if isinstance(event, Outcome) and event.item.key.endswith("5.jpg"):
            raise KeyboardInterrupt

    with pytest.raises(StoppedError, match=r"8 of 11 done.*resume"):
        extract(photos, tmp_path / "parts", batch_size=4, listener=interrupt)
    assert json.loads((tmp_path / "parts" / "summary.json").read_text())["state"] == "stopped"
    report = extract(photos, tmp_path / "parts", batch_size=4)
    assert report.computed == 3
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")


def test_a_batch_size_that_nobody_asked_for_stays_what_it_was(photos, tmp_path):
    first = extract(photos / "0.jpg", tmp_path / "out")
    assert first.summary["recipe"]["batch_size"] == 1
    more = extract([photos / "0.jpg", photos / "1.jpg", photos / "2.jpg"], tmp_path / "out")
    assert (more.computed, more.summary["recipe"]["batch_size"]) == (2, 1)
    assert more.summary["counts"]["total"] == 3


def test_broken_images_are_lines_and_cost_nothing_else(photos, tmp_path):
    whole = (photos / "3.jpg").read_bytes()
    (photos / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "4.jpg").write_bytes(b"no image at all")
    (photos / "5.jpg").write_bytes(b"")
    (photos / "6.jpg").unlink()
    (photos / "6.jpg").symlink_to("nowhere")
    report = extract(photos, tmp_path / "out", batch_size=4)
    assert report.summary["counts"] == {"done": 7, "failed": 4, "total": 11}
    reasons = {failure.item.key: (failure.stage, failure.error) for failure in report.failures}
    assert set(reasons) == {f"photos/{number}.jpg" for number in (3, 4, 5, 6)}
    assert reasons["photos/6.jpg"] == ("read", "no such file")
    assert reasons["photos/3.jpg"][0] == "decode"
    assert "truncated" in reasons["photos/3.jpg"][1]
    assert all("\n" not in error and str(photos) not in error for _, error in reasons.values())
    assert len(outputs(tmp_path / "out")) == 7

    # What failed is not tried again while it is unchanged, and is when it has been mended.
    again = extract(photos, tmp_path / "out", batch_size=4)
    assert (again.computed, len(again.failures)) == (0, 4)
    (photos / "3.jpg").write_bytes(whole)
    mended = extract(photos, tmp_path / "out", batch_size=4)
    assert (mended.computed, len(mended.failures)) == (1, 3)
    assert mended.summary["counts"] == {"done": 8, "failed": 3, "total": 11}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (IndexError, "the file is damaged"),
        (SyntaxError, "first line"),
        (ValueError, "first line"),
        (MemoryError, "not enough memory"),
        (NotImplementedError, "first line"),
        (RecursionError, "first line"),
    ],
)
def test_whatever_a_decoder_raises_is_one_line(photos, tmp_path, monkeypatch, error, reason):
    def explode(*_):
        raise error("first line\nsecond line")

    monkeypatch.setattr("featx.images.decoding.upright_rgb", explode)
    report = extract(photos / "0.jpg", tmp_path / "out")
    assert [failure.error for failure in report.failures] == [reason]


def test_changed_inputs_and_damaged_outputs_are_done_again(photos, tmp_path):
    extract(photos, tmp_path / "out")
    before = outputs(tmp_path / "out")
    natural_image(99).save(photos / "0.jpg")
    (tmp_path / "out" / "photos" / "1.jpg.npz").write_bytes(b"short")
    (tmp_path / "out" / "photos" / "2.jpg.npz").unlink()
    report = extract(photos, tmp_path / "out")
    after = outputs(tmp_path / "out")
    assert report.computed == 3
    assert {name for name in before if before[name] != after[name]} == {"photos/0.jpg.npz"}


def test_a_torn_last_line_is_done_again(photos, tmp_path):
    extract(photos, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.jsonl"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-20])
    report = extract(photos, tmp_path / "out")
    assert report.computed == 1
    assert len(lines(tmp_path / "out")) == 11


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, "weights"),
        ({"out_indices": (1,)}, "levels"),
        ({"image_size": 96}, "input.height 64 -> 96"),
        ({"batch_size": 2}, "batch_size 8 -> 2"),
        ({"precision": "bf16"}, "precision fp32 -> bf16"),
        ({"dtype": "float16"}, "dtype float32 -> float16"),
        ({"backend": "compile"}, "backend torch -> compile"),
        ({"output_stride": 8}, "output_stride None -> 8"),
        ({"model": "test_efficientnet"}, "model test_resnet -> test_efficientnet"),
    ],
)
def test_another_recipe_is_refused_and_nothing_is_touched(photos, tmp_path, change, field):
    extract(photos, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(OutputError, match="a different recipe") as caught:
        extract(photos, tmp_path / "out", **change)
    assert field in caught.value.message
    assert tree(tmp_path / "out") == before


FOLLOWING = [
    ({"strides": [8]}, "(levels [0, 1, 2, 3, 4] -> [2])"),
    ({"model": "test_efficientnet"}, "(model test_resnet -> test_efficientnet)"),
    ({"embedding": True, "maps": False}, "(embedding False -> True, maps True -> False)"),
    ({"embedding": True, "format": "npy"}, "(embedding False -> True, format npz -> npy)"),
]


@pytest.mark.parametrize(("change", "named"), FOLLOWING)
def test_what_only_follows_from_a_change_is_not_named(photos, tmp_path, change, named):
    """Other levels have other random weights, and another model has other levels."""
    extract(photos, tmp_path / "out")
    with pytest.raises(OutputError, match="a different recipe") as caught:
        extract(photos, tmp_path / "out", **change)
    assert caught.value.message.endswith(named)


def test_nothing_is_converted_where_nothing_is_to_do(photos, tmp_path, monkeypatch):
    extract(photos, tmp_path / "out")
    monkeypatch.setattr(Pyramid, "use_backend", lambda *_: pytest.fail("converted for nothing"))
    assert extract(photos, tmp_path / "out").computed == 0
    with pytest.raises(OutputError, match="a different recipe"):
        extract(photos, tmp_path / "out", seed=1)


def test_one_photo_gets_all_cores_and_its_run_keeps_them(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("featx.engine.resources.cores", lambda: 4)
    before = torch.get_num_threads()
    assert extract(photos / "0.jpg", tmp_path / "one").summary["recipe"]["threads"] == 4
    assert extract(photos, tmp_path / "many", batch_size=2).summary["recipe"]["threads"] == 1
    assert extract(photos, tmp_path / "few", batch_size=8).summary["recipe"]["threads"] == 2
    again = extract(photos, tmp_path / "one")
    assert (again.summary["recipe"]["threads"], again.computed) == (4, 10)
    assert torch.get_num_threads() == before


def test_the_bytes_are_the_same_whatever_works_on_them(photos, tmp_path, monkeypatch):
    """Workers, order and interruption; the photos are shuffled, so that each lies elsewhere in its batch."""
    monkeypatch.setattr("featx.engine.resources.cores", lambda: 1)  # so that all of them have one thread
    extract(photos, tmp_path / "one", batch_size=4, workers=1)
    expected = outputs(tmp_path / "one")
    names = [photos / f"{number}.jpg" for number in (7, 3, 0, 9, 5, 1, 8, 2, 6, 4)]
    for workers in (2, 3):
        extract(photos, tmp_path / str(workers), batch_size=4, workers=workers)
        assert outputs(tmp_path / str(workers)) == expected
        extract(names, tmp_path / f"shuffled-{workers}", batch_size=4, workers=workers)
        shuffled = outputs(tmp_path / f"shuffled-{workers}")
        assert shuffled == {name.removeprefix("photos/"): expected[name] for name in expected if "deep" not in name}


def test_two_runs_do_not_share_a_folder(photos, tmp_path):
    def start_another(event):
        if isinstance(event, Planned):
            with pytest.raises(BusyError):
                extract(photos, tmp_path / "out")

    assert extract(photos, tmp_path / "out", listener=start_another).computed == 11


@pytest.mark.parametrize("kind", ["a file", "other things", "a broken summary", "a later format"])
def test_folders_that_are_no_run_are_refused(photos, tmp_path, kind):
    output = tmp_path / "out"
    if kind == "a file":
        output.write_bytes(b"")
    else:
        output.mkdir()
        (output / ("thesis.tex" if kind == "other things" else "manifest.jsonl")).write_bytes(b"")
        if kind == "a broken summary":
            (output / "summary.json").write_text("{")
        if kind == "a later format":
            (output / "summary.json").write_text('{"featx_format": 2}')
    before = tree(output) if output.is_dir() else output.read_bytes()
    with pytest.raises(OutputError):
        extract(photos, output)
    assert (tree(output) if output.is_dir() else output.read_bytes()) == before


def test_a_full_disk_ends_the_run_and_can_be_resumed(photos, tmp_path, monkeypatch):
    written = []

    class Full(list):
        """Pieces of which only the first finds room."""

        readings = 0

        def __iter__(self):
            self.readings += 1
            yield self[0]
            if self.readings == 2:  # the first time they are hashed, the second time written
                raise OSError(28, "No space left on device")
            yield from self[1:]

    def full_after_three(arrays):
        written.append(1)
        return honest(arrays) if len(written) <= 3 else Full(honest(arrays))

    honest = npz.pack_npz
    monkeypatch.setattr(npz, "pack_npz", full_after_three)
    with pytest.raises(OutputError, match=r"\.jpg cannot be written: No space left on device"):
        extract(photos, tmp_path / "out", batch_size=4)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    monkeypatch.undo()
    done = len(outputs(tmp_path / "out"))
    assert extract(photos, tmp_path / "out", batch_size=4).computed == 11 - done
    extract(photos, tmp_path / "whole", batch_size=4)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_numbers_that_are_none_fail_the_image_and_name_the_level(photos, tmp_path, monkeypatch):
    honest = Pyramid.run

    def poisoned(self, batch):
        maps = honest(self, batch)
        maps[3][1, 0, 0, 0] = float("nan")
        return maps

    monkeypatch.setattr(Pyramid, "run", poisoned)
    report = extract(photos, tmp_path / "out", batch_size=16)
    (failure,) = report.failures
    assert (failure.item.key, failure.stage) == ("photos/1.jpg", "forward")
    assert "level_3" in failure.error
    assert not (tmp_path / "out" / "photos" / "1.jpg.npz").exists()


def test_half_precision_outputs_are_the_rounded_maps(photos, tmp_path):
    extract(photos, tmp_path / "whole", batch_size=4)
    report = extract(photos, tmp_path / "half", batch_size=4, dtype="float16")
    assert {level["dtype"] for level in report.summary["levels"]} == {"float16"}
    whole, half = featx.open_run(tmp_path / "whole"), featx.open_run(tmp_path / "half")
    for key in whole:
        for name, values in whole[key].items():
            np.testing.assert_array_equal(half[key][name], values.astype(np.float16))


def test_what_does_not_fit_half_precision_fails_and_is_not_written(photos, tmp_path, monkeypatch):
    honest = Pyramid.run
    monkeypatch.setattr(Pyramid, "run", lambda self, batch: [level * 1e6 for level in honest(self, batch)])
    report = extract(photos, tmp_path / "out", dtype="float16")
    assert {failure.stage for failure in report.failures} == {"forward"}
    assert len(report.failures) == 11
    assert outputs(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"workers": 0}, "--workers: expected a whole number from 1"),
        ({"dtype": "int16"}, "float32, float16, bfloat16 or int8"),
        ({"backend": "tpu"}, "torch, compile"),
    ],
)
def test_wrong_ways_to_run(photos, tmp_path, wrong, words):
    with pytest.raises(UsageError, match=words):
        extract(photos, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_lists_and_what_the_listener_hears(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photos / "notes.txt").write_text("not an image")
    (tmp_path / "list.txt").write_text("photos/0.jpg\nphotos/none.jpg\n")
    heard = []
    report = extract("photos/deep", tmp_path / "out", from_file="list.txt", listener=heard.append)
    kinds = [type(event) for event in heard if not isinstance(event, Phase)]
    assert kinds == [Foreseen, Planned, Outcome, Outcome, Outcome]
    assert [failure.item.key for failure in report.failures] == ["photos/none.jpg"]
    heard.clear()
    extract("photos", tmp_path / "all", listener=heard.append)
    assert isinstance(heard[0], Note)
    assert heard[0].text == "Skipped 1 file without an image suffix"


def test_the_folder_s_default_name():
    assert naming.folder_name("resnet50.a1_in1k") == "resnet50.a1_in1k"
    assert naming.folder_name("hf-hub:someone/net") == "someone--net"
    assert naming.folder_name("local-dir:/models/net/") == "net"


def test_a_batch_of_none_is_refused(photos, tmp_path):
    with pytest.raises(UsageError, match="batch"):
        extract(photos, tmp_path / "out", batch_size=0)


def test_the_same_pixels_give_the_same_bytes_in_any_order(photos, tmp_path):
    extract(photos, tmp_path / "one", batch_size=4)
    names = [f"photos/{number}.jpg" for number in (7, 3, 0, 9, 5, 1)] + ["photos/deep/10.png"]
    (tmp_path / "list.txt").write_text("\n".join(str(tmp_path / name) for name in names))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        extract((), tmp_path / "two", from_file="list.txt", batch_size=4)
    one, two = outputs(tmp_path / "one"), outputs(tmp_path / "two")
    assert len(two) == 7
    assert {name: one[name] for name in two} == two
    shutil.rmtree(tmp_path / "two")


def test_another_folder_s_images_of_the_same_names_are_refused(photos, tmp_path):
    """Their keys are the same; they would take each other's place without a word."""
    shutil.copytree(photos, tmp_path / "other" / "photos")
    extract(photos, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(UsageError, match=r"is stored as photos/0\.jpg in .*, and so would be .*other/photos/0\.jpg"):
        extract(tmp_path / "other" / "photos", tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_images_that_were_moved_are_the_same_ones(photos, tmp_path, monkeypatch):
    extract(photos, tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    photos.rename(tmp_path / "elsewhere" / "photos")
    assert extract(tmp_path / "elsewhere" / "photos", tmp_path / "out").computed == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert extract("photos", tmp_path / "out").computed == 0


def test_images_that_are_gone_are_said_and_their_features_kept(photos, tmp_path):
    extract(photos, tmp_path / "out")
    before = outputs(tmp_path / "out")
    (photos / "3.jpg").unlink()
    (photos / "4.jpg").unlink()
    heard = []
    report = extract([photos, photos / "4.jpg"][:1], tmp_path / "out", listener=heard.append)
    assert "2 images no longer exist; the features are kept" in [getattr(event, "text", "") for event in heard]
    assert (report.computed, report.summary["counts"]["done"]) == (0, 11)
    (tmp_path / "list").write_text(f"{photos}/4.jpg\n")
    extract((), tmp_path / "out", from_file=tmp_path / "list")
    assert outputs(tmp_path / "out") == before


def test_hashes_tell_what_times_do_not(photos, tmp_path):
    extract(photos, tmp_path / "out", hash_inputs=True)
    line = lines(tmp_path / "out")[0]
    assert line["input"]["sha256"] == hashlib.sha256((photos / "0.jpg").read_bytes()).hexdigest()
    (photos / "0.jpg").touch()
    assert extract(photos, tmp_path / "out", hash_inputs=True).computed == 0
    natural_image(77, 80, 70).save(photos / "1.bmp")
    report = extract(photos, tmp_path / "out", hash_inputs=True)
    assert report.computed == 1
    stat = (photos / "1.bmp").stat()
    natural_image(78, 80, 70).save(photos / "1.bmp")
    os.utime(photos / "1.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert extract(photos, tmp_path / "out").computed == 1  # 0.jpg, by its time
    assert extract(photos, tmp_path / "out", hash_inputs=True).computed == 1  # 1.bmp


def test_asking_for_hashes_later_computes_nothing_anew(photos, tmp_path):
    extract(photos, tmp_path / "out")
    assert extract(photos, tmp_path / "out", hash_inputs=True).computed == 0
    (photos / "0.jpg").touch()
    assert extract(photos, tmp_path / "out", hash_inputs=True).computed == 1
    (photos / "0.jpg").touch()
    assert extract(photos, tmp_path / "out", hash_inputs=True).computed == 0


def test_one_network_under_two_names_is_one_recipe(photos, tmp_path):
    extract(photos, tmp_path / "out")
    assert extract(photos, tmp_path / "out", model="test_resnet.r160_in1k").tried == 0


def test_a_version_that_an_earlier_featx_did_not_write_down_is_no_difference(photos, tmp_path):
    extract(photos, tmp_path / "out")
    path = tmp_path / "out" / "summary.json"
    summary = json.loads(path.read_text())
    del summary["recipe"]["versions"]["pillow"]
    path.write_text(json.dumps(summary))
    assert extract(photos, tmp_path / "out").tried == 0
    summary["recipe"]["versions"]["pillow"] = "1.0"
    path.write_text(json.dumps(summary))
    with pytest.raises(OutputError, match=r"versions.pillow 1.0 -> "):
        extract(photos, tmp_path / "out")


def test_an_output_of_an_image_that_broke_is_removed(photos, tmp_path):
    extract(photos, tmp_path / "out")
    (photos / "3.jpg").write_bytes(b"broken")
    report = extract(photos, tmp_path / "out")
    assert report.summary["counts"] == {"done": 10, "failed": 1, "total": 11}
    assert "photos/3.jpg.npz" not in outputs(tmp_path / "out")


def test_overwriting_starts_anew(photos, tmp_path):
    extract(photos, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    report = extract(photos / "0.jpg", tmp_path / "out", seed=1, overwrite=True)
    assert report.summary["counts"]["total"] == 1
    assert sorted(tree(tmp_path / "out")) == ["0.jpg.npz", "manifest.jsonl", "notes.txt", "summary.json"]


def test_overwriting_mends_a_damaged_manifest_and_leaves_what_links_lead_to(photos, tmp_path):
    extract(photos, tmp_path / "out")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a.npz").write_bytes(b"precious")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "precious")
    manifest = tmp_path / "out" / "manifest.jsonl"
    text = manifest.read_text().splitlines()
    first, second = json.loads(text[0]), json.loads(text[1])
    del first["output"]
    second["output"] = "link/a.npz"
    manifest.write_text("\n".join([json.dumps(first), json.dumps(second), *text[2:]]) + "\n")
    assert extract(photos, tmp_path / "out", overwrite=True).computed == 11
    assert (tmp_path / "precious" / "a.npz").read_bytes() == b"precious"


def test_features_without_their_summary_are_not_gone_on_with(photos, tmp_path):
    extract(photos, tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    with pytest.raises(OutputError, match="no summary"):
        extract(photos, tmp_path / "out")
    (tmp_path / "out" / "summary.json").write_text('{"featx_format": 1}')
    with pytest.raises(OutputError, match="damaged: Object missing required field `state`"):
        extract(photos, tmp_path / "out")


def test_images_whose_outputs_may_be_taken_for_each_other_s(photos, tmp_path):
    """Also if the first of them was there long before the second."""
    for name in ("A.jpg", "a.jpg"):
        shutil.copy(photos / "0.jpg", tmp_path / name)
    extract(tmp_path / "A.jpg", tmp_path / "out")
    extract([tmp_path / "a.jpg", tmp_path / "A.jpg"], tmp_path / "out")
    names = sorted(outputs(tmp_path / "out"))
    assert names[0] == "A.jpg.npz"
    assert re.fullmatch(r"a\.jpg~[0-9a-f]{16}\.npz", names[1])


# Vectors


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_another_format_is_another_recipe_and_overwriting_leaves_nothing_of_the_old_one(photos, tmp_path):
    options = {"embedding": True, "batch_size": 4}
    for format_, names in {
        "npy": {"embeddings.npy", "keys.txt"},
        "parquet": {"embeddings-00000.parquet"},
        "zarr": {"features.zarr"},
        "safetensors": {"photos"},
        "webdataset": {"features-00000.tar"},
        "npz": {"photos"},
    }.items():
        if format_ != "npy":
            with pytest.raises(OutputError, match=r"a different recipe .*format "):
                extract(photos, tmp_path / "out", format=format_, **options)
        extract(photos, tmp_path / "out", format=format_, overwrite=True, **options)
        assert names_in(tmp_path / "out") == {"summary.json", "manifest.jsonl", *names}
        if format_ == "parquet":  # one that was settled when a run was killed
            (tmp_path / "out" / "embeddings-00007.parquet").write_bytes(b"")
    assert {path.suffix for path in (tmp_path / "out" / "photos").rglob("*.*")} == {".npz"}


@pytest.mark.parametrize("format_", ["npy", "parquet", "webdataset", "zarr"])
def test_images_that_change_or_break_have_one_row_or_none(photos, tmp_path, format_):
    options = {"embedding": True, "batch_size": 4, "format": format_}
    extract(photos, tmp_path / "out", **options)
    natural_image(99).save(photos / "1.jpg")
    (photos / "2.jpg").write_bytes(b"broken")
    report = extract(photos, tmp_path / "out", **options)
    assert (report.computed, len(report.failures)) == (1, 1)
    extract(photos, tmp_path / "anew", **options)
    run, anew = featx.open_run(tmp_path / "out"), featx.open_run(tmp_path / "anew")
    assert {*run} == {*anew}
    for key in anew:
        np.testing.assert_array_equal(run[key]["embedding"], anew[key]["embedding"])
    assert sum(len(keys) for keys, _ in run.embeddings()) == len(anew)
    assert extract(photos, tmp_path / "out", **options).tried == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "npy"}, "holds only embeddings, and none were asked for. Add --embedding"),
        ({"format": "npy", "embedding": True, "maps": True}, "holds only embeddings. Leave out --maps"),
        ({"format": "parquet", "embedding": True, "norm": True}, "holds only embeddings. Leave out --norm"),
        ({"format": "hdf5"}, "--format: expected npz, .* webdataset or zarr, not 'hdf5'"),
        (
            {"format": "zarr", "fit": "native", "image_size": None},
            "arrays of one shape for all images, which --fit",
        ),
        ({"format": "zarr", "boxes": "boxes.csv"}, "arrays of one shape for all images, which --boxes does not give"),
        ({"format": "zarr", "shard_mb": 5}, "--shard-mb is the size of tar files, and --format zarr has none"),
        ({"format": "webdataset", "engine": "ray"}, "in --format webdataset images share files"),
        ({"embedding": True, "maps": False, "dtype": "float16"}, "--dtype is about maps"),
        ({"embedding": True, "maps": False, "strides": [8]}, "Levels were chosen, but --no-maps keeps none"),
    ],
)
def test_what_cannot_go_together_is_refused_and_nothing_written(photos, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        extract(photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_run_of_an_earlier_version_goes_on(photos, tmp_path):
    """Its summary says nothing of what there was not then."""
    extract(photos, tmp_path / "out", batch_size=4)
    path = tmp_path / "out" / "summary.json"
    summary = json.loads(path.read_text())
    del summary["arrays"]
    for fact in (
        "part",
        "maps",
        "norm",
        "prefix_tokens",
        "attention",
        "final",
        "embedding",
        "pool",
        "format",
        "strides",
    ):
        del summary["recipe"][fact]
    path.write_text(json.dumps(summary))
    assert [field.key for field in featx.open_run(tmp_path / "out").fields] == [f"level_{index}" for index in range(5)]
    assert extract(photos, tmp_path / "out", batch_size=4).tried == 0


def test_vectors_that_are_missing_are_said(photos, tmp_path):
    for format_ in ("npz", "npy", "parquet", "safetensors"):
        folder = tmp_path / format_
        extract(photos, folder, embedding=True, format=format_)
        next(path for path in folder.rglob("*") if path.suffix == f".{format_}").unlink()
        with pytest.raises(FeatxError, match=r"missing or damaged.*verify --repair"):
            list(featx.open_run(folder).embeddings())


def test_a_dataset_has_every_array_by_its_name(photos, tmp_path):
    extract(photos, tmp_path / "out", embedding=True, final=True)
    run = featx.open_run(tmp_path / "out")
    item = run.dataset()[0]
    assert [*item] == ["key", *(f"level_{index}" for index in range(5)), "final", "embedding"]
    assert [*run.dataset([1, "embedding"])[0]] == ["key", "level_1", "embedding"]
    with pytest.raises(UsageError, match="no neck_1"):
        run.dataset(["neck_1"])

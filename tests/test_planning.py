# Planning: what is in the manifest is not computed again, under whatever key, and few images do not bind many.
from __future__ import annotations

import pytest

import featx
from tests.runs import extract, lines, make_photos, notes, tree


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos", 6)


def test_a_photo_that_was_alone_is_not_computed_again_with_its_folder(photos, tmp_path):
    extract(photos / "2.jpg", tmp_path / "out")
    heard = []
    report = extract(photos, tmp_path / "out", listener=heard.append)
    assert (report.computed, report.summary["counts"]["total"]) == (5, 6)
    assert (
        "1 image is in the run under another key already, and not computed twice: photos/2.jpg is there as 2.jpg"
        in (notes(heard))
    )
    assert set(featx.open_run(tmp_path / "out")) == {"2.jpg", *(f"photos/{number}.jpg" for number in (0, 1, 3, 4, 5))}
    assert extract(photos, tmp_path / "out").tried == 0


def test_nor_is_one_of_a_folder_that_is_named_alone(photos, tmp_path, monkeypatch):
    extract(photos, tmp_path / "out")
    assert extract(photos / "2.jpg", tmp_path / "out").tried == 0
    monkeypatch.chdir(photos)
    assert extract("./../photos/2.jpg", tmp_path / "out").tried == 0
    assert len(lines(tmp_path / "out")) == 6


def test_one_that_is_known_under_another_key_and_was_changed_keeps_that_key(photos, tmp_path):
    extract(photos / "2.jpg", tmp_path / "out")
    (photos / "3.jpg").replace(photos / "2.jpg")
    report = extract(photos, tmp_path / "out")
    assert report.computed == 5
    run = featx.open_run(tmp_path / "out")
    assert "2.jpg" in run
    assert "photos/2.jpg" not in run
    assert extract(photos, tmp_path / "out").tried == 0


def test_a_link_and_its_target_are_two_images(photos, tmp_path):
    (photos / "link.jpg").symlink_to("2.jpg")
    extract(photos / "2.jpg", tmp_path / "out")
    report = extract(photos, tmp_path / "out")
    assert report.computed == 6
    assert "photos/link.jpg" in featx.open_run(tmp_path / "out")


def test_one_photo_first_does_not_bind_the_many_after_it(tmp_path):
    photos = make_photos(tmp_path / "photos", 20)
    extra = make_photos(tmp_path / "extra", 1) / "0.jpg"
    assert extract(extra, tmp_path / "out").summary["recipe"]["batch_size"] == 1
    heard = []
    report = extract(photos, tmp_path / "out", listener=heard.append)
    assert (report.summary["recipe"]["batch_size"], report.computed) == (8, 21)
    assert "1 image is of an earlier call computed again, in batches of 8 as the others" in notes(heard)
    assert report.summary["counts"] == {"done": 21, "failed": 0, "total": 21}
    extract([photos, extra], tmp_path / "together")
    assert {name: digest for name, digest in tree(tmp_path / "out").items() if name.endswith(".npz")} == {
        name: digest for name, digest in tree(tmp_path / "together").items() if name.endswith(".npz")
    }
    assert extract([photos, extra], tmp_path / "out").tried == 0


@pytest.mark.parametrize("bound", ["by its batch size", "by its workers", "by a photo that is gone", "by many"])
def test_what_was_asked_for_or_cannot_be_done_again_stays(tmp_path, bound):
    photos = make_photos(tmp_path / "photos", 20)
    extra = make_photos(tmp_path / "extra", 2)
    first = {"by its batch size": {"batch_size": 1}, "by its workers": {"workers": 1}}.get(bound, {})
    extract(extra if bound == "by many" else extra / "0.jpg", tmp_path / "out", **first)
    if bound == "by a photo that is gone":
        (extra / "0.jpg").unlink()
    heard = []
    report = extract(photos, tmp_path / "out", listener=heard.append)
    assert (report.computed, report.summary["recipe"]["batch_size"]) == (20, 2 if bound == "by many" else 1)
    assert any("larger ones may be faster" in text for text in notes(heard))


def test_vectors_of_one_photo_do_not_bind_many_either(tmp_path):
    photos = make_photos(tmp_path / "photos", 20)
    extra = make_photos(tmp_path / "extra", 1) / "0.jpg"
    for kind in ("npy", "parquet"):
        extract(extra, tmp_path / kind, embedding=True, format=kind)
        report = extract(photos, tmp_path / kind, embedding=True, format=kind)
        assert (report.summary["recipe"]["batch_size"], report.computed) == (8, 21)
        blocks = list(featx.open_run(tmp_path / kind).embeddings())
        assert sum(len(keys) for keys, _ in blocks) == 21


def test_a_recipe_with_several_numbers_is_the_same_the_second_time(tmp_path):
    """What is a tuple in memory is a list when it is read again."""
    pytest.importorskip("ultralytics")
    pytest.importorskip("cv2", exc_type=ImportError, reason="OpenCV misses libraries of the system")
    photos = make_photos(tmp_path / "photos", 1)
    again = {"weights": "random", "device": "cpu", "part": "all", "strides": (8, 16), "image_size": 64}
    assert featx.extract(photos, "yolov8n", tmp_path / "out", **again).computed == 1
    assert featx.extract(photos, "yolov8n", tmp_path / "out", **again).tried == 0

# Planning: what is in the manifest is not computed again, under whatever key, and few images do not bind many.
from __future__ import annotations

import pytest

import featx
from featx.engine.events import Planned
from tests.helpers import extract, lines, make_photos, notes, outputs


def test_a_photo_that_was_alone_is_not_computed_again_with_its_folder(photos, tmp_path):
    extract(photos / "2.jpg", tmp_path / "out")
    heard = []
    report = extract(photos, tmp_path / "out", listener=heard.append)
    assert (report.computed, report.summary["counts"]["total"]) == (2, 3)
    assert "1 image already in the run under another key, not computed again: photos/2.jpg is stored as 2.jpg" in (
        notes(heard)
    )
    assert set(featx.open_run(tmp_path / "out")) == {"2.jpg", *(f"photos/{number}.jpg" for number in (0, 1))}
    assert extract(photos, tmp_path / "out").tried == 0


def test_nor_is_one_of_a_folder_that_is_named_alone(photos, tmp_path, monkeypatch):
    extract(photos, tmp_path / "out")
    assert extract(photos / "2.jpg", tmp_path / "out").tried == 0
    monkeypatch.chdir(photos)
    assert extract("./../photos/2.jpg", tmp_path / "out").tried == 0
    assert len(lines(tmp_path / "out")) == 3


def test_one_that_is_known_under_another_key_and_was_changed_keeps_that_key(photos, tmp_path):
    extract(photos / "2.jpg", tmp_path / "out")
    (photos / "1.jpg").replace(photos / "2.jpg")
    report = extract(photos, tmp_path / "out")
    assert report.computed == 2
    run = featx.open_run(tmp_path / "out")
    assert "2.jpg" in run
    assert "photos/2.jpg" not in run
    assert extract(photos, tmp_path / "out").tried == 0


def test_a_link_and_its_target_are_two_images(photos, tmp_path):
    (photos / "link.jpg").symlink_to("2.jpg")
    extract(photos / "2.jpg", tmp_path / "out")
    report = extract(photos, tmp_path / "out")
    assert report.computed == 3
    assert "photos/link.jpg" in featx.open_run(tmp_path / "out")


def test_one_photo_first_does_not_bind_the_many_after_it(tmp_path):
    photos = make_photos(tmp_path / "photos", 20)
    assert extract(photos / "3.jpg", tmp_path / "out").summary["recipe"]["batch_size"] == 1
    heard = []
    report = extract(photos, tmp_path / "out", listener=heard.append)
    assert (report.summary["recipe"]["batch_size"], report.computed) == (8, 20)
    assert "Computing 1 image again, so that all are computed in batches of 8" in notes(heard)
    assert report.summary["counts"] == {"done": 20, "failed": 0, "total": 20}
    extract(photos, tmp_path / "together")
    expected, found = outputs(tmp_path / "together"), outputs(tmp_path / "out")
    assert found.pop("3.jpg.npz") == expected.pop("photos/3.jpg.npz")
    assert found == expected
    assert extract(photos, tmp_path / "out").tried == 0


def test_doing_it_again_loses_nothing_where_it_is_interrupted(tmp_path):
    photos = make_photos(tmp_path / "photos", 20)
    extract(photos / "3.jpg", tmp_path / "out")

    def interrupt(event):
        if isinstance(event, Planned):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(photos, tmp_path / "out", listener=interrupt)
    assert extract(photos, tmp_path / "out").summary["counts"] == {"done": 20, "failed": 0, "total": 20}
    assert extract(photos, tmp_path / "out").tried == 0


@pytest.mark.parametrize(
    "bound", ["by its batch size", "by its workers", "by a photo that is gone", "by many", "by a photo from elsewhere"]
)
def test_what_was_asked_for_or_is_not_made_again_by_the_same_command_stays(tmp_path, bound):
    photos = make_photos(tmp_path / "photos", 20)
    extra = make_photos(tmp_path / "extra", 1) / "0.jpg"
    first = {"by its batch size": {"batch_size": 1}, "by its workers": {"workers": 1}}.get(bound, {})
    few = {"by many": [photos / "3.jpg", photos / "4.jpg"], "by a photo from elsewhere": [extra]}
    made = extract(few.get(bound, [photos / "3.jpg"]), tmp_path / "out", **first)
    if bound == "by a photo that is gone":
        (photos / "3.jpg").unlink()
    heard = []
    report = extract(photos, tmp_path / "out", listener=heard.append)
    assert report.summary["recipe"]["batch_size"] == made.summary["recipe"]["batch_size"]
    assert len(featx.open_run(tmp_path / "out")) == 20 + (bound == "by a photo from elsewhere")
    assert any("larger ones may be faster" in text for text in notes(heard))


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_vectors_of_one_photo_do_not_bind_many_either(tmp_path, kind):
    photos = make_photos(tmp_path / "photos", 20)
    extract(photos / "3.jpg", tmp_path / kind, embedding=True, format=kind)
    report = extract(photos, tmp_path / kind, embedding=True, format=kind)
    assert (report.summary["recipe"]["batch_size"], report.computed) == (8, 20)
    blocks = list(featx.open_run(tmp_path / kind).embeddings())
    assert sum(len(keys) for keys, _ in blocks) == 20


def test_a_recipe_with_several_numbers_is_the_same_the_second_time(tmp_path):
    """What is a tuple in memory is a list when it is read again."""
    pytest.importorskip("ultralytics")
    pytest.importorskip("cv2", exc_type=ImportError, reason="OpenCV misses libraries of the system")
    photos = make_photos(tmp_path / "photos", 1)
    again = {"weights": "random", "device": "cpu", "part": "all", "strides": (8, 16), "image_size": 64}
    assert featx.extract(photos, "yolov8n", tmp_path / "out", **again).computed == 1
    assert featx.extract(photos, "yolov8n", tmp_path / "out", **again).tried == 0

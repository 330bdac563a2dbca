# Features of boxes: those of the maps, whatever the file, the format and the photo's orientation; and what is refused.
from __future__ import annotations

import json
import warnings

import numpy as np
import polars
import pytest
from PIL import Image

import featx
from featx.engine import resources
from featx.errors import FeatxError, UsageError
from featx.explore.similarity import similar
from featx.explore.verify import verify
from featx.runs.formats import parquet
from featx.values import Note
from tests.helpers import extract, lines, make_photos, natural_image, notes, outputs, tree

HEAD = "key,x1,y1,x2,y2,id,label\n"

# Of photos of 80 + n x 70 pixels, whose middle 70 the model sees, or a little less.
ROWS = [
    ("0.jpg", (20, 10, 50, 40), "a", "cat"),
    ("1.jpg", (30, 20, 31.5, 22), "", ""),
    ("0.jpg", (-3, -3, 90, 90), "b", "dog, or so"),
    ("0.jpg", (10.25, 0, 69, 69.01), "c", "cat"),
    ("2.jpg", (0, 0, 40, 40), "d", "ä"),
]

BAD = """\
nobody.jpg,1,2,3,4,x,
0.jpg,5,5,5,9,flat,
0.jpg,200,200,300,300,far,
0.jpg,0,0,1,70,cropped,
2.jpg,1,2,nan,4,none,
"""


def as_csv(path, rows=ROWS, more=""):
    path.write_text(
        HEAD + "".join(f'{name},{",".join(map(str, box))},{mark},"{label}"\n' for name, box, mark, label in rows) + more
    )
    return path


def as_coco(path, rows=ROWS, sizes=None):
    names = sorted({row[0] for row in rows})
    labels = sorted({row[3] for row in rows} - {""})
    images = [{"id": name, "file_name": name} for name in names]
    for image in images:
        image |= dict(zip(("width", "height"), (sizes or {}).get(image["id"], ()), strict=False))
    annotations = [
        {"image_id": name, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        | ({"id": mark} if mark else {})
        | ({"category_id": labels.index(label)} if label else {})
        for name, (x1, y1, x2, y2), mark, label in rows
    ]
    categories = [{"id": number, "name": label} for number, label in enumerate(labels)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture
def boxes(tmp_path):
    return as_csv(tmp_path / "boxes.csv")


def arrays_of(folder):
    run = featx.open_run(folder)
    return {key: {name: np.array(values) for name, values in run[key].items()} for key in run}


def require_equal(one, other):
    assert one.keys() == other.keys()
    for key, arrays in one.items():
        assert list(arrays) == list(other[key])
        for name, values in arrays.items():
            np.testing.assert_array_equal(values, other[key][name], err_msg=f"{name} of {key}")


@pytest.mark.parametrize(
    "options",
    [
        {"box_size": 7},
        {"format": "parquet"},
        {"box_size": "2x3", "maps": True},
        {"fit": "native", "image_size": None},
        {"fit": "pad", "precision": "bf16"},
    ],
    ids=str,
)
def test_the_numbers_are_those_of_the_maps(photos, boxes, tmp_path, options):
    report = extract(photos, tmp_path / "out", boxes=boxes, batch_size=2, workers=1, **{"maps": False, **options})
    assert (report.computed, report.box_faults, report.counted) == (3, [], "line")
    same = {name: value for name, value in options.items() if name in ("fit", "image_size", "precision")}
    extract(photos, tmp_path / "maps", batch_size=2, workers=1, **same)
    maps = featx.open_run(tmp_path / "maps")
    size = report.summary["recipe"]["box_size"]
    for key, found in arrays_of(tmp_path / "out").items():
        rows = [row for row in ROWS if key.endswith(row[0])]
        np.testing.assert_array_equal(found["boxes"], [row[1] for row in rows])
        assert found["box_ids"].tolist() == [row[2] for row in rows]
        assert found["box_labels"].tolist() == [row[3] for row in rows]
        expected = maps.regions(key, found["boxes"], size=tuple(size))
        for level in maps.levels:
            np.testing.assert_array_equal(found[f"{level.key}_boxes"], expected[level.key])
        assert ("level_2" in found) == (options.get("maps", False))
    assert verify(tmp_path / "out", recompute=3).recomputed.same


def test_the_share_that_was_seen(tmp_path):
    """Of a photo of 100 x 50, the model sees the middle square, cropped."""
    natural_image(1, 100, 50).save(tmp_path / "1.png")
    (tmp_path / "b.csv").write_text(f"{HEAD}1.png,0,0,100,50,,\n1.png,40,20,60,30,,\n")
    extract(tmp_path / "1.png", tmp_path / "out", boxes=tmp_path / "b.csv", maps=False)
    run = featx.open_run(tmp_path / "out")
    pct = run.summary["input"]["crop_pct"]
    np.testing.assert_allclose(run["1.png"]["box_seen"], [(50 * pct) ** 2 / 5000, 1], rtol=0.05)


@pytest.mark.parametrize("options", [{}, {"format": "parquet"}], ids=str)
def test_boxes_whose_area_is_no_float_are_boxes(photos, tmp_path, options):
    """Nothing is warned of, and verify finds nothing wrong."""
    rows = "0.jpg,-1e300,-1e300,1e300,1e300,,\n0.jpg,-1.7e308,20,1.7e308,40,,\n0.jpg,0,0,1e-170,1e-170,,\n"
    (tmp_path / "b.csv").write_text(HEAD + rows)
    with warnings.catch_warnings(action="error", category=RuntimeWarning):
        extract(photos, tmp_path / "out", boxes=tmp_path / "b.csv", maps=False, fit="squash", **options)
    np.testing.assert_array_equal(featx.open_run(tmp_path / "out")["photos/0.jpg"]["box_seen"], [0, 0, 1])
    assert verify(tmp_path / "out", recompute=1).sound


@pytest.mark.parametrize("options", [{}, {"format": "parquet"}], ids=str)
def test_a_dataset_has_ids_and_labels_as_text(photos, boxes, tmp_path, options):
    extract(photos, tmp_path / "out", boxes=boxes, maps=False, **options)
    item = featx.open_run(tmp_path / "out").dataset()[0]
    assert (item["box_ids"], item["box_labels"]) == (["a", "b", "c"], ["cat", "dog, or so", "cat"])
    assert item["boxes"].shape == (3, 4)


@pytest.mark.parametrize("options", [{}, {"format": "parquet"}], ids=str)
def test_coco_and_csv_give_the_same_files_and_continue_each_other(photos, boxes, tmp_path, options):
    coco = as_coco(tmp_path / "boxes.json", sizes={"0.jpg": (80, 70)})
    keep = {"maps": False, **options}
    extract(photos, tmp_path / "csv", boxes=boxes, **keep)
    extract(photos, tmp_path / "coco", boxes=coco, **keep)
    assert featx.open_run(tmp_path / "csv").summary["recipe"] == featx.open_run(tmp_path / "coco").summary["recipe"]
    one, other = (
        {name: digest for name, digest in tree(tmp_path / name_).items() if name.endswith(("npz", "parquet"))}
        for name_ in ("csv", "coco")
    )
    assert one == other
    assert one
    assert extract(photos, tmp_path / "csv", boxes=coco, **keep).tried == 0


def test_the_table_has_a_row_for_each_box(photos, boxes, tmp_path):
    extract(photos, tmp_path / "npz", boxes=boxes, maps=False, out_indices=(2, 4))
    extract(photos, tmp_path / "out", boxes=boxes, format="parquet", out_indices=(2, 4))
    table = polars.read_parquet(tmp_path / "out" / "*.parquet")
    assert table.columns == [
        "key",
        "path",
        "width",
        "height",
        "x1",
        "y1",
        "x2",
        "y2",
        "id",
        "label",
        "seen",
        "level_2",
        "level_4",
    ]
    expected = sorted(ROWS, key=lambda row: row[0])
    assert table["key"].to_list() == [f"photos/{row[0]}" for row in expected]
    assert table.select("x1", "y1", "x2", "y2").rows() == [row[1] for row in expected]
    assert table.select("id", "label").rows() == [row[2:] for row in expected]
    assert table["path"][0] == str(photos / "0.jpg")
    assert set(table["width"].to_list()) == {80, 81, 82}
    require_equal(arrays_of(tmp_path / "out"), arrays_of(tmp_path / "npz"))
    vectors = np.concatenate([arrays["level_4_boxes"][:, :, 0, 0] for arrays in arrays_of(tmp_path / "npz").values()])
    np.testing.assert_array_equal(table["level_4"].to_numpy(), vectors)
    assert [line["boxes"] for line in lines(tmp_path / "out")] == [3, 1, 1]
    assert [line["bytes"] for line in lines(tmp_path / "out")] == [
        4 * count * vectors_bytes(table) for count in (3, 1, 1)
    ]


def vectors_bytes(table):
    return sum(table.schema[name].size for name in ("level_2", "level_4"))


TURNS = {
    1: (),
    2: ("FLIP_LEFT_RIGHT",),
    3: ("ROTATE_180",),
    4: ("FLIP_TOP_BOTTOM",),
    5: ("TRANSPOSE",),
    6: ("ROTATE_90",),
    7: ("TRANSVERSE",),
    8: ("ROTATE_270",),
}


def test_the_orientation_makes_no_difference(tmp_path):
    """The same photo stored in eight ways, each lossless: a box means what a viewer shows."""
    (tmp_path / "photos").mkdir()
    photo = natural_image(5, 90, 70)
    for orientation, steps in TURNS.items():
        stored, exif = photo, Image.Exif()
        for step in steps:
            stored = stored.transpose(getattr(Image.Transpose, step))
        exif[0x0112] = orientation
        stored.save(tmp_path / "photos" / f"{orientation}.png", exif=exif)
    boxes = as_csv(
        tmp_path / "boxes.csv",
        [(f"{turn}.png", box, "", "") for turn in TURNS for box in ((20, 10, 45, 60), (60, 0, 90, 20))],
    )
    report = extract(tmp_path / "photos", tmp_path / "out", boxes=boxes, maps=False, box_size=2)
    found = arrays_of(tmp_path / "out")
    assert (len(found), report.box_faults) == (8, [])
    assert {line["frame"]["orientation"] for line in lines(tmp_path / "out")} == set(TURNS)
    first = found["photos/1.png"]
    assert not np.array_equal(first["level_4_boxes"][0], first["level_4_boxes"][1])
    for arrays in found.values():
        for name, values in first.items():
            np.testing.assert_array_equal(arrays[name], values)


@pytest.mark.parametrize("format_", ["npz", "parquet"])
def test_bad_boxes_are_listed_now_and_later_and_cost_nothing(forge, photos, tmp_path, format_):
    as_csv(tmp_path / "boxes.csv", more=BAD)
    words = ("--boxes", "boxes.csv", "--no-maps", "--format", format_)
    expected = {
        7: ("nobody.jpg", "no photo of the run has this name"),
        8: ("photos/0.jpg", "the box has no area"),
        9: ("photos/0.jpg", "the box lies outside the photo, which is 80 x 70"),
        10: ("photos/0.jpg", "the box lies in a part of the photo that was cropped away"),
        11: ("2.jpg", "x2 is not a number: 'nan'"),
    }
    for call in ("first", "second", "third"):
        done = forge.extract(tmp_path, photos, "out", *words, *(["--json"] if call == "third" else []))
        assert done["status"] == 3, done
        if call == "third":
            faults = {each["line"]: (each["key"], each["reason"]) for each in json.loads(done["stdout"])["box_faults"]}
            assert faults == expected
        else:
            for line, (key, reason) in expected.items():
                assert any(
                    f"{line} " in text and key in text and reason in text for text in done["stderr"].splitlines()
                )
            assert "5 lines have no features" in done["stderr"]
    assert [len(arrays["boxes"]) for arrays in arrays_of(tmp_path / "out").values()] == [3, 1, 1]
    assert verify(tmp_path / "out", recompute=3).recomputed.same


@pytest.mark.parametrize("format_", ["npz", "parquet"])
def test_a_photo_without_usable_boxes_is_done_and_has_none(photos, tmp_path, format_):
    boxes = as_csv(tmp_path / "b.csv", ROWS[1:2], more="0.jpg,0,0,0,0,,\n2.jpg,500,500,600,600,,\n")
    for tried in (3, 0):
        report = extract(photos, tmp_path / "out", boxes=boxes, maps=False, format=format_)
        assert (report.tried, len(report.box_faults), report.summary["counts"]["done"]) == (tried, 2, 3)
    found = arrays_of(tmp_path / "out")
    assert [len(found[f"photos/{number}.jpg"]["boxes"]) for number in range(3)] == [0, 1, 0]
    assert found["photos/0.jpg"]["level_4_boxes"].shape == (0, *found["photos/1.jpg"]["level_4_boxes"].shape[1:])
    verified = verify(tmp_path / "out", recompute=3)
    assert (verified.sound, verified.uncommitted) == (True, [])
    alone = extract(photos / "0.jpg", tmp_path / "alone", boxes=boxes, maps=False, format=format_)
    assert alone.computed == 1
    assert verify(tmp_path / "alone").sound
    assert extract(photos / "0.jpg", tmp_path / "alone", boxes=boxes, maps=False, format=format_).tried == 0


def test_a_shard_holds_no_more_than_there_is_room_for(photos, boxes, tmp_path, monkeypatch):
    extract(photos, tmp_path / "whole", boxes=boxes, format="parquet", batch_size=1)
    size = lines(tmp_path / "whole")[1]["bytes"]  # of one box
    monkeypatch.setattr(parquet.Writer, "room", size)
    extract(photos, tmp_path / "out", boxes=boxes, format="parquet", batch_size=1)
    assert len({line["output"] for line in lines(tmp_path / "whole")}) == 1
    assert len({line["output"] for line in lines(tmp_path / "out")}) == 2
    require_equal(arrays_of(tmp_path / "out"), arrays_of(tmp_path / "whole"))


def test_photos_without_boxes_are_left_out_and_counted(tmp_path, boxes):
    photos = make_photos(tmp_path / "photos", 5)
    heard = []
    report = extract(photos, tmp_path / "out", boxes=boxes, maps=False, listener=heard.append)
    assert (report.computed, report.summary["counts"]["total"]) == (3, 3)
    assert [text for text in notes(heard) if "boxes" in text] == [f"2 images without boxes in {boxes}, left out"]


@pytest.mark.parametrize("format_", ["npz", "parquet"])
def test_another_file_is_another_recipe_and_a_corrected_size_is_not(photos, boxes, tmp_path, format_):
    keep = {"maps": False, "format": format_}
    extract(photos, tmp_path / "out", boxes=as_coco(tmp_path / "b.json", sizes={"0.jpg": (70, 80)}), **keep)
    assert [line["boxes"] for line in lines(tmp_path / "out")] == [0, 1, 1]
    for tried in (1, 0):  # the same boxes, of a photo of the right size
        report = extract(photos, tmp_path / "out", boxes=as_coco(tmp_path / "b.json"), **keep)
        assert (report.tried, report.box_faults) == (tried, [])
    extract(photos, tmp_path / "anew", boxes=boxes, **keep)
    require_equal(arrays_of(tmp_path / "anew"), dict(sorted(arrays_of(tmp_path / "out").items())))
    as_csv(boxes, ROWS[:4])
    with pytest.raises(FeatxError, match=r"a different recipe \(boxes "):
        extract(photos, tmp_path / "anew", boxes=boxes, **keep)
    assert extract(photos, tmp_path / "anew", boxes=boxes, overwrite=True, **keep).computed == 2


def test_a_name_may_leave_out_folders_and_the_run_may_know_the_photo_by_another(photos, boxes, tmp_path, monkeypatch):
    extract(photos, tmp_path / "out", boxes=boxes, maps=False)
    monkeypatch.chdir(photos)
    natural_image(77, 80, 70).save(photos / "0.jpg")  # which has to be done again
    report = extract("*.jpg", tmp_path / "out", boxes=boxes, maps=False)
    assert (report.tried, report.computed, report.box_faults) == (1, 1, [])
    assert [line["boxes"] for line in lines(tmp_path / "out")] == [3, 1, 1, 3]


def test_a_corrected_size_is_noticed_of_a_photo_that_the_run_knows_by_another_name(photos, tmp_path, monkeypatch):
    extract(photos, tmp_path / "out", boxes=as_coco(tmp_path / "b.json", sizes={"0.jpg": (70, 80)}), maps=False)
    monkeypatch.chdir(tmp_path)
    report = extract(f"{photos.name}/*.jpg", tmp_path / "out", boxes=as_coco(tmp_path / "b.json"), maps=False)
    assert (report.tried, report.box_faults) == (1, [])
    assert [line["boxes"] for line in lines(tmp_path / "out")] == [0, 1, 1, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"boxes": None, "box_size": 3}, "--box-size needs --boxes. Add --boxes FILE"),
        ({"format": "npy"}, "npy holds only embeddings, not features of boxes"),
        ({"format": "parquet", "box_size": 7}, "parquet holds one vector per box"),
        ({"format": "parquet", "embedding": True}, "parquet holds embeddings of images or vectors of boxes, not both"),
        (
            {"format": "parquet", "maps": True},
            "parquet holds only embeddings, or only vectors of boxes. Leave out --maps",
        ),
        ({"format": "parquet", "dtype": "float16"}, "parquet holds float32"),
        ({"box_size": 0}, "--box-size: expected one side"),
        ({"boxes": "none.json"}, "The boxes in none.json cannot be read: No such file"),
    ],
)
def test_what_does_not_go_together_is_refused(photos, boxes, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        extract(photos, tmp_path / "out", **{"boxes": boxes, **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [(HEAD, "holds no boxes"), (f"{HEAD}x.jpg,1,2,3,4,,\n", "line 2, x.jpg: no photo of the run has this name")],
)
def test_a_file_of_which_nothing_can_be_used_is_refused(photos, tmp_path, text, words):
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(UsageError, match=words):
        extract(photos, tmp_path / "out", boxes=tmp_path / "b.csv")


def test_levels_whose_cells_have_no_place_are_refused(photos, boxes, tmp_path, monkeypatch):
    from msgspec.structs import replace

    from featx.models.timm import description

    honest = description._measure
    monkeypatch.setattr(
        description, "_measure", lambda *given: tuple(replace(level, offset=None) for level in honest(*given))
    )
    with pytest.raises(FeatxError, match="The offset of level_0 is unknown"):
        extract(photos, tmp_path / "out", boxes=boxes)
    assert not (tmp_path / "out").exists()


def test_the_forecast_counts_boxes(photos, boxes, tmp_path):
    forecast = extract(photos, tmp_path / "out", boxes=boxes, maps=False, dry_run=True).forecast
    assert not (tmp_path / "out").exists()
    done = extract(photos, tmp_path / "out", boxes=boxes, maps=False)
    assert forecast.bytes == pytest.approx(done.summary["bytes"], rel=0.3)


def test_the_forecast_knows_the_memory_of_the_photo_with_the_most_boxes(photos, boxes, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "memory", lambda: resources.Memory(1 << 30, 1 << 40))
    name = ROWS[0][0]
    many = tmp_path / "many.csv"
    many.write_text("key,x1,y1,x2,y2\n" + f"{name},1,1,20,20\n" * 64)  # as many as level_2 might have channels
    few, most = (
        extract(photos / name, tmp_path / "out", boxes=file, box_size=14, maps=True, dry_run=True).forecast
        for file in (boxes, many)
    )
    channels = sum(level["channels"] for level in extract(photos, tmp_path / "maps").summary["levels"])
    rows = 64 - sum(row[0] == name for row in ROWS)
    assert most.memory - few.memory == pytest.approx(3 * rows * channels * 14 * 14 * 4, rel=0.001)


def test_a_dry_run_says_which_options_differ_from_the_folder_s(photos, boxes, tmp_path):
    heard = []

    def dry(**options):
        heard.clear()
        extract(photos, tmp_path / "out", dry_run=True, listener=heard.append, **options)
        return [event.text for event in heard if isinstance(event, Note) and "other options" in event.text]

    extract(photos, tmp_path / "out")
    assert dry() == []
    others = "--fit, --maps, --box-size, --boxes"
    assert dry(fit="pad", boxes=boxes, maps=False) == [
        f"{tmp_path / 'out'} holds features made with other options ({others}); the run may be refused"
    ]
    assert dry(fit="pad", overwrite=True) == []


def test_half_precision_and_embeddings_beside_boxes(photos, boxes, tmp_path):
    extract(photos, tmp_path / "out", boxes=boxes, maps=False, dtype="float16", embedding=True)
    extract(photos, tmp_path / "full", boxes=boxes, maps=False, embedding=True)
    half, full = arrays_of(tmp_path / "out"), arrays_of(tmp_path / "full")
    for key, arrays in half.items():
        np.testing.assert_array_equal(arrays["embedding"], full[key]["embedding"])
        np.testing.assert_array_equal(arrays["level_3_boxes"], full[key]["level_3_boxes"].astype(np.float16))
    assert verify(tmp_path / "out", recompute=3).recomputed.same
    found = similar(tmp_path / "out", photos / "0.jpg", count=1, with_self=True)
    assert found.found[0].key == "photos/0.jpg"


def test_outputs_in_files_of_their_own_are_those_of_an_interrupted_run(photos, boxes, tmp_path):
    keep = {"boxes": boxes, "maps": False, "batch_size": 2, "workers": 2}
    extract(photos, tmp_path / "whole", **keep)
    extract([photos / "1.jpg", photos / "0.jpg"], tmp_path / "parts", **keep)
    report = extract([photos / "0.jpg", photos / "2.jpg", photos / "1.jpg"], tmp_path / "parts", **keep)
    assert report.tried == 1
    assert sorted(outputs(tmp_path / "parts").values()) == sorted(outputs(tmp_path / "whole").values())

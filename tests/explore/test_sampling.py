# sample: tables of features in boxes and at points, in every format, and what bad rows and bad requests cost.
from __future__ import annotations

import csv
import json
import shutil
import sys

import numpy as np
import pytest
from pyarrow import parquet

import featx
from featx.errors import FeatxError, OutputError
from featx.explore import sampling, vector_tables
from tests.helpers import extract, make_photos

BOXES = """key,x1,y1,x2,y2,id,label
photos/0.jpg,10,10,40.25,50,a,cat
photos/2.jpg,-10,20,30,50.5,b,"a ""big"" dog, häse"
photos/0.jpg,30,30,44,44,,
"""
POINTS = "key,x,y,label\nphotos/1.jpg,40,30,nose\nphotos/0.jpg,44.5,20.25,\n"

BAD = """key,x1,y1,x2,y2,id,label
photos/0.jpg,10,10,40,50,a,cat
photos/0.jpg,10,10,10,40,b,dog
photos/1.jpg,0,0,5,70,c,dog
photos/1.jpg,100,100,300,300,d,dog
9.jpg,1,2,3,4,e,dog
photos/broken.jpg,1,2,3,4,f,dog
photos/2.jpg,ten,2,3,4,g,dog
photos/2.jpg,1,2
photos/2.jpg,20,20,30,nan,i,dog
2.jpg,20,20,30,40,j,dog
"""
REASONS = {
    3: ("photos/0.jpg", "the box has no area"),
    4: ("photos/1.jpg", "the box lies in a part of the photo that was cropped away"),
    5: ("photos/1.jpg", "the box lies outside the photo, which is 81 x 70"),
    6: ("9.jpg", "no photo of the run has this name"),
    7: ("photos/broken.jpg", "the photo failed in the run, and has no features"),
    8: ("photos/2.jpg", "x1 is not a number: 'ten'"),
    9: ("photos/2.jpg", "the row ends after 3 cells"),
    10: ("photos/2.jpg", "y2 is not a number: 'nan'"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    photos = make_photos(tmp_path_factory.mktemp("input") / "photos", 3)
    (photos / "broken.jpg").write_bytes(b"broken")
    output = tmp_path_factory.mktemp("output") / "run"
    extract(photos, output, out_indices=(2, 3))
    return output


@pytest.fixture
def here(tmp_path, folder):
    """A folder with the run and the annotations."""
    (tmp_path / "run").symlink_to(folder)
    for name, text in (("boxes.csv", BOXES), ("points.csv", POINTS), ("bad.csv", BAD)):
        (tmp_path / name).write_text(text)
    return tmp_path


def read(path):
    """Return a table's columns, read by somebody else."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        return {name: np.array(table[name].to_pylist()) for name in table.column_names}
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    found = {}
    for name, values in columns.items():
        if name.startswith("level_"):
            found.setdefault(name.rpartition("_")[0], []).append(np.array(values, np.float32))
        else:
            found[name] = np.array(values, np.str_ if name in ("key", "id", "label") else np.float64)
    return {name: np.stack(values, 1) if isinstance(values, list) else values for name, values in found.items()}


@pytest.mark.parametrize("block", [1, 1 << 25])
@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_rows_of_boxes_are_the_run_s_own_regions(here, suffix, block, monkeypatch):
    monkeypatch.setattr(sampling, "BLOCK", block)
    monkeypatch.setattr(vector_tables, "ROW_GROUP", block)
    path = here / f"table{suffix}"
    heard = []
    sampled = sampling.sample(here / "run", path, boxes=here / "boxes.csv", listener=heard.append)
    assert (sampled.rows, sampled.photos, sampled.faults) == (3, 2, [])
    assert [(event.done, event.total) for event in heard] == [(1, 2), (2, 2)]
    found = read(path)
    assert list(found) == ["key", "x1", "y1", "x2", "y2", "id", "label", "seen", "level_2", "level_3"]
    # Photo by photo, as the file first names them.
    assert found["key"].tolist() == ["photos/0.jpg", "photos/0.jpg", "photos/2.jpg"]
    assert found["id"].tolist() == ["a", "", "b"]
    assert found["label"].tolist() == ["cat", "", 'a "big" dog, häse']
    boxes = np.stack([found[name] for name in ("x1", "y1", "x2", "y2")], axis=1)
    np.testing.assert_array_equal(boxes, [[10, 10, 40.25, 50], [30, 30, 44, 44], [-10, 20, 30, 50.5]])
    run = featx.open_run(here / "run")
    for row, key in enumerate(found["key"].tolist()):
        for name, values in run.regions(key, boxes[[row]]).items():
            assert found[name].dtype == (np.float64 if suffix == ".parquet" else np.float32)  # lists are Python's
            np.testing.assert_array_equal(found[name][row], values[0, :, 0, 0])
    left = run.frame("photos/2.jpg").to_original(-0.5, 0)[0] + 0.5  # edge of the crop, to which the last box is cut
    np.testing.assert_allclose(found["seen"], [1, 1, (30 - left) / 40], rtol=1e-6)
    if suffix == ".parquet":
        file = parquet.ParquetFile(path)
        assert file.num_row_groups == (3 if block == 1 else 1)
        assert str(file.schema_arrow.field("level_2").type) == "fixed_size_list<element: float>[48]"


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_rows_of_points_are_the_run_s_own_samples(here, suffix):
    path = here / f"table{suffix}"
    sampling.sample(here / "run", path, points=here / "points.csv", levels=["level_3"])
    found = read(path)
    assert list(found) == ["key", "x", "y", "id", "label", "level_3"]
    assert found["label"].tolist() == ["nose", ""]
    run = featx.open_run(here / "run")
    for row, (key, point) in enumerate((("photos/1.jpg", [40, 30]), ("photos/0.jpg", [44.5, 20.25]))):
        assert (found["key"][row], found["x"][row], found["y"][row]) == (key, *point)
        np.testing.assert_array_equal(found["level_3"][row], run.sample(key, [point])["level_3"][0])


def test_larger_boxes_are_arrays(here):
    sampled = sampling.sample(here / "run", here / "table.npz", boxes=here / "boxes.csv", box_size="7x5", levels=[2])
    assert sampled.arrays == {"level_2": (48, 7, 5)}
    found = read(here / "table.npz")["level_2"]
    expected = featx.open_run(here / "run").regions("photos/2.jpg", [[-10, 20, 30, 50.5]], 2, (7, 5))
    np.testing.assert_array_equal(found[2], expected["level_2"][0])


def test_coco_gives_the_same_rows(here):
    images = [{"id": 7, "file_name": "0.jpg", "width": 80, "height": 70}, {"id": 8, "file_name": "photos/2.jpg"}]
    boxes = [(7, "a", 1, [10, 10, 30.25, 40]), (8, "b", 2, [-10, 20, 40, 30.5]), (7, "", "", [30, 30, 14, 14])]
    fields = ("image_id", "id", "category_id", "bbox")
    coco = {
        "images": images,
        "annotations": [dict(zip(fields, box, strict=True)) for box in boxes],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": 'a "big" dog, häse'}],
    }
    (here / "boxes.json").write_text(json.dumps(coco))
    for name in ("csv", "json"):
        sampling.sample(here / "run", here / f"from-{name}.csv", boxes=here / f"boxes.{name}")
    assert (here / "from-json.csv").read_bytes() == (here / "from-csv.csv").read_bytes()


def test_bad_rows_cost_themselves_alone_and_are_listed(here, featx_command):
    done = featx_command("sample", "run", "--boxes", "bad.csv", "-o", "table.npz", "--level", "2")
    assert done.returncode == 3
    listed = [tuple(line.split(maxsplit=2)) for line in done.stderr.splitlines() if line.strip()[:1].isdigit()]
    expected = [(str(line), key, reason) for line, (key, reason) in REASONS.items()]
    assert [(line, key, reason.strip()) for line, key, reason in listed[:-1]] == expected
    assert "8 lines have no features" in done.stderr
    assert "2 boxes of 2 photos" in done.stdout
    assert read(here / "table.npz")["id"].tolist() == ["a", "j"]

    done = featx_command("sample", "run", "--boxes", "bad.csv", "-o", "table.csv", "--json")
    assert (done.returncode, done.stderr) == (3, "")
    printed = json.loads(done.stdout)
    assert {each["line"]: (each["key"], each["reason"]) for each in printed.pop("faults")} == REASONS
    assert printed == {"rows": 2, "output": "table.csv", "arrays": {"level_2": [48], "level_3": [192]}}

    done = featx_command("sample", "run", "--points", "points.csv", "-o", "table.parquet")
    assert (done.returncode, done.stdout.splitlines()[:2]) == (0, ["level_2 48 float32", "level_3 192 float32"])


def test_sizes_that_are_not_the_photos_are_said(here):
    images = [{"id": 1, "file_name": "0.jpg", "width": 800, "height": 700}, {"id": 2, "file_name": "1.jpg"}]
    boxes = [{"image_id": number, "bbox": [20, 20, 9, 9]} for number in (1, 2)]
    (here / "boxes.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    sampled = sampling.sample(here / "run", here / "table.csv", boxes=here / "boxes.json")
    assert (sampled.rows, sampled.counted) == (1, "annotation")
    (fault,) = sampled.faults
    assert (fault.line, fault.key) == (1, "photos/0.jpg")
    assert "800 x 700, but it is 80 x 70" in fault.reason


def test_a_damaged_output_costs_its_rows(here, folder):
    (here / "run").unlink()
    shutil.copytree(folder, here / "run")
    (here / "run" / "photos" / "0.jpg.npz").write_bytes(b"nothing")
    sampled = sampling.sample(here / "run", here / "table.npz", boxes=here / "boxes.csv")
    assert read(here / "table.npz")["id"].tolist() == ["b"]
    assert [fault.line for fault in sampled.faults] == [2, 4]
    assert all("missing or damaged" in fault.reason for fault in sampled.faults)


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_a_table_without_rows_has_its_columns(here, suffix):
    (here / "boxes.csv").write_text("key,x1,y1,x2,y2\nphotos/0.jpg,3,3,3,3\n")
    sampled = sampling.sample(here / "run", here / f"table{suffix}", boxes=here / "boxes.csv")
    assert (sampled.rows, sampled.photos, len(sampled.faults)) == (0, 0, 1)
    if suffix == ".npz":
        assert read(here / "table.npz")["level_2"].shape == (0, 48)
    elif suffix == ".parquet":
        assert parquet.read_table(here / "table.parquet").column_names[-1] == "level_3"
    else:
        assert (here / "table.csv").read_text().startswith("key,x1,y1,x2,y2,id,label,seen,level_2_0,")


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_an_interrupted_table_leaves_nothing(here, suffix):
    def stop(event):
        if event.done == 2:
            raise KeyboardInterrupt

    before = sorted(here.iterdir())
    with pytest.raises(KeyboardInterrupt):
        sampling.sample(here / "run", here / f"table{suffix}", boxes=here / "boxes.csv", listener=stop)
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_a_full_disk_is_said_and_leaves_nothing(forge, here, suffix):
    before = sorted(here.iterdir())
    limits = {"RLIMIT_FSIZE": 1024}
    done = forge(here, "sample", "run", "--boxes", "boxes.csv", "-o", f"table{suffix}", limits=limits)
    assert done["status"] == 1
    assert done["stderr"].startswith(f"featx: table{suffix} cannot be written: ")
    assert sorted(here.iterdir()) == before


WRONG = [
    ((), 2, "sample needs boxes or points. Add --boxes FILE or --points FILE."),
    (("--boxes", "boxes.csv", "--points", "points.csv"), 2, "--boxes and --points cannot be combined."),
    (("--boxes", "boxes.csv", "-o", "table.txt"), 2, "End it in .parquet, .npz or .csv."),
    (("--boxes", "boxes.csv", "-o", "none/table.csv"), 1, "There is no folder none."),
    (("--boxes", "boxes.csv", "-o", "boxes.csv"), 1, "boxes.csv exists. Choose another --output"),
    (("--boxes", "boxes.csv", "--box-size", "7"), 2, "Only .npz holds 7 x 7 cells per box."),
    (("--points", "points.csv", "-o", "t.npz", "--box-size", "7"), 2, "--box-size is for --boxes."),
    (("--boxes", "boxes.csv", "--box-size", "0"), 2, "--box-size: expected one side (7)"),
    (("--boxes", "boxes.csv", "--level", "1"), 2, "The run has no map level_1. It has level_2, level_3."),
    (("--boxes", "none.csv"), 2, "The boxes in none.csv cannot be read"),
    (("--points", "boxes.csv"), 2, "boxes.csv has no column x in its first line."),
]


@pytest.mark.parametrize(("arguments", "status", "said"), WRONG)
def test_what_is_wrong_is_said_in_a_line(here, featx_command, arguments, status, said):
    output = () if "-o" in arguments else ("-o", "table.csv")
    done = featx_command("sample", "run", *arguments, *output)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (status, "", 1)
    assert said in done.stderr
    assert (here / "boxes.csv").read_text() == BOXES
    assert not (here / "table.csv").exists()


def test_a_run_without_maps_is_refused(here, photos, featx_command):
    extract(photos, here / "vectors", embedding=True, maps=False)
    done = featx_command("sample", "vectors", "--boxes", "boxes.csv", "-o", "table.csv")
    assert (done.returncode, done.stderr) == (2, "featx: The run has no maps. Extract it without --no-maps.\n")


def test_without_pyarrow_the_extra_is_named(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "featx.runs.formats.parquet", raising=False)
    with pytest.raises(FeatxError, match=r"needs pyarrow.*featx\[parquet\]"):
        sampling.sample(here / "run", here / "table.parquet", boxes=here / "boxes.csv")


def test_a_file_that_names_no_places_is_refused(here):
    (here / "boxes.csv").write_text("key,x1,y1,x2,y2\n")
    with pytest.raises(FeatxError, match=r"boxes\.csv holds no boxes"):
        sampling.sample(here / "run", here / "table.csv", boxes=here / "boxes.csv")
    with pytest.raises(OutputError, match="exists"):
        sampling.sample(here / "run", here / "points.csv", boxes=here / "boxes.csv")

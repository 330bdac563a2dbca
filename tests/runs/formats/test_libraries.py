# What the libraries of the formats read, without featx; files as many as can be; forecasts that are right.
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import featx
from featx.errors import OutputError
from featx.runs import formats
from featx.runs.formats import Record, tar_samples, webdataset, zarr, zarr_store
from featx.values import Field, Item
from tests.helpers import extract, make_photos

# What each library makes of a run: keys to arrays. It prints them as one .npz, whose names are those of both.
SCRIPTS = {
    "safetensors": """
from pathlib import Path
from safetensors.numpy import load_file
root = Path(folder)
found = {str(path.relative_to(root))[:-len(".safetensors")]: load_file(path) for path in root.rglob("*.safetensors")}
""",
    "zarr": """
import zarr
store = zarr.open_group(folder + "/features.zarr", mode="r")
keys = store["key"][:].tolist()
arrays = {name: array[:] for name, array in store.arrays() if name != "key"}
found = {key: {name: values[row] for name, values in arrays.items()} for row, key in enumerate(keys)}
""",
    "xarray": """
import xarray
store = xarray.open_zarr(folder + "/features.zarr", consolidated=True)
assert store.level_2.dims == ("image", "level_2_channel", "level_2_y", "level_2_x")
assert list(store.coords) == ["key"]
keys = store.key.values.tolist()
found = {key: {name: store[name].values[row] for name in store.data_vars} for row, key in enumerate(keys)}
""",
    "webdataset": """
from glob import glob
import webdataset
found = {}
for sample in webdataset.WebDataset(sorted(glob(folder + "/*.tar")), shardshuffle=False).decode():
    facts = sample["json"]
    assert sample["__key__"] == facts["key"].replace(".jpg", "%2Ejpg")
    found[facts["key"]] = {name[:-len(".npy")]: values for name, values in sample.items() if name.endswith(".npy")}
""",
    "hdf5": """
import h5py
found = {}
with h5py.File(folder + "/features.h5") as file:
    for name in (f"photos/{number}.jpg" for number in range(7)):
        found[name] = {key: values[()] for key, values in file[name].items()}
        assert file[name].attrs["height"] == 70
""",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same photos in every format, and one that is broken."""
    folder = tmp_path_factory.mktemp("formats")
    photos = make_photos(folder / "photos", 7)
    (photos / "broken.jpg").write_bytes(b"broken")
    for name in ("npz", "safetensors", "webdataset", "zarr"):
        extract(photos, folder / name, embedding=True, format=name, dtype="float16", batch_size=2)
    featx.convert(folder / "zarr", folder / "hdf5", format="hdf5")
    return folder


@pytest.mark.parametrize("library", SCRIPTS)
def test_its_own_library_reads_a_format(runs, tmp_path, library):
    folder = runs / ("zarr" if library == "xarray" else library)
    script = f"""
import sys, warnings
import numpy
folder, output = sys.argv[1:]
{SCRIPTS[library]}
assert not any(name.startswith("featx") for name in sys.modules)
numpy.savez(output, **{{key + "|" + name: values for key, arrays in found.items() for name, values in arrays.items()}})
"""
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", script, str(folder), str(tmp_path / "found.npz")]
    subprocess.run(command, check=True, cwd=tmp_path, env=without)
    expected = featx.open_run(runs / "npz", raw=True)
    with np.load(tmp_path / "found.npz") as found:
        assert {*found} == {f"{key}|{name}" for key in expected for name in expected[key]}
        for each in found:
            key, name = each.split("|")
            np.testing.assert_array_equal(found[each], expected[key][name])
            assert found[each].dtype == expected[key][name].dtype


@pytest.mark.parametrize("name", ["safetensors", "webdataset", "zarr", "hdf5"])
def test_a_run_is_the_same_in_every_format_and_mapped(runs, name):
    run, expected = featx.open_run(runs / name, raw=True), featx.open_run(runs / "npz", raw=True)
    assert {*run} == {*expected}
    assert run.failed == {"photos/broken.jpg"}
    for key in expected:
        assert list(run[key]) == list(expected[key])
        assert all(isinstance(values, np.memmap) and not values.flags.writeable for values in run[key].values())
        assert all(np.array_equal(run[key][each], expected[key][each]) for each in expected[key])
    assert list(run.read_maps("photos/1.jpg", run.maps[1:3])) == ["level_1", "level_2"]


def bytes_on_the_disk(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "json" not in path.suffix)


@pytest.mark.parametrize("name", ["npz", "safetensors", "webdataset", "zarr"])
def test_forecasts_are_right_to_two_percent(tmp_path, name):
    photos = make_photos(tmp_path / "photos", 80 if name == "zarr" else 40)  # its indices, of 64 kB, do not count
    report = extract(photos, tmp_path / name, embedding=True, format=name)
    assert report.forecast.bytes == pytest.approx(bytes_on_the_disk(tmp_path / name), rel=0.02)
    assert report.summary["bytes"] == pytest.approx(report.forecast.bytes, rel=0.02)


# A stream through the writer


def stream(writer, count, arrays, start=0):
    """Commit as the pipeline does; returns the outputs by their keys."""
    done, waiting = {}, []
    for number in range(start, start + count):
        key = f"{number:05}.jpg"
        record = Record(Item(key, key), key, (7, 5), {name: values + number for name, values in arrays.items()})
        waiting.append((key, writer.write(record)))
        if len(waiting) == writer.group or number == start + count - 1:
            outputs = writer.commit([stored for _, stored in waiting])
            done |= dict(zip((key for key, _ in waiting), outputs, strict=True))
            waiting = []
    return done


def arrays_of(count):
    return {f"level_{level}": np.zeros((2, 4 >> level % 3, 4), np.float32) for level in range(count)}


def fields_of(arrays):
    return [Field(name, values.shape, "float32") for name, values in arrays.items()]


def test_ten_thousand_images_make_few_files(tmp_path, monkeypatch):
    """As many rows a shard as of the five levels of a ResNet-50, of which the first two have 3.2 MB an image."""
    shapes = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    resnet50 = [Field(f"level_{level}", shape, "float32") for level, shape in enumerate(shapes)]
    monkeypatch.setattr(zarr_store, "ROWS", zarr_store.layout_of(resnet50).rows)
    arrays = arrays_of(len(resnet50))
    (tmp_path / "unfinished").mkdir()
    writer = formats.writer("zarr", tmp_path, tmp_path / "unfinished", fields_of(arrays))
    done = {}
    for start in range(0, 10_000, 700):  # a slow run commits every few seconds
        done |= stream(writer, min(700, 10_000 - start), arrays, start)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) < 100
    reader = formats.reader("zarr", tmp_path)
    for number in (0, 1023, 1024, 9999):
        np.testing.assert_array_equal(reader.read(f"{number:05}.jpg", done["00000.jpg"])["level_1"], number)
    layout, rows = zarr_store.read_layout(tmp_path / "features.zarr" / "zarr.json")
    assert (layout.rows, rows) == (1024, 10_000)


@pytest.fixture
def small(monkeypatch):
    """Two rows a shard."""
    monkeypatch.setattr(zarr_store, "ROWS", 2)


@pytest.mark.parametrize("gone", [{0}, {0, 1}, {1, 2, 6}, {6}, {0, 1, 2, 3, 4, 5}])
def test_the_last_rows_fill_the_gaps(small, tmp_path, gone):
    """Whatever the manifest forgets, a store has no rows of nothing."""
    arrays = arrays_of(2)
    (tmp_path / "unfinished").mkdir()
    done = stream(zarr.Writer(tmp_path, tmp_path / "unfinished", fields_of(arrays)), 7, arrays)
    left = {key: output for number, (key, output) in enumerate(done.items()) if number not in gone}
    writer = zarr.Writer(tmp_path, tmp_path / "unfinished", fields_of(arrays))
    writer.collect_garbage(left, dict)
    left |= stream(writer, 2, arrays, 20)
    _, rows = zarr_store.read_layout(tmp_path / "features.zarr" / "zarr.json")
    reader = formats.reader("zarr", tmp_path)
    assert rows == len(left)
    assert reader.strays(left) == {}
    for key in left:
        np.testing.assert_array_equal(reader.read(key, "features.zarr")["level_0"], int(key[:-4]))


@pytest.mark.parametrize("name", ["level_0/c.1.0.0.0", "key/c.1", "key/c.2", "level_1/c.3.0.0.0", "zarr.json"])
@pytest.mark.parametrize("rest", [None, 0, 9, -1])
def test_of_a_store_that_is_damaged_the_rest_is_kept(small, tmp_path, name, rest):
    arrays, store = arrays_of(2), tmp_path / "features.zarr"
    (tmp_path / "unfinished").mkdir()
    done = stream(zarr.Writer(tmp_path, tmp_path / "unfinished", fields_of(arrays)), 8, arrays)
    shutil.copytree(store, tmp_path / "whole")
    if rest is None:
        (store / name).unlink()
    else:
        (store / name).write_bytes((store / name).read_bytes()[:rest])
    size = zarr_store.layout_of(fields_of(arrays)).bytes
    held = {key for key in done if formats.reader("zarr", tmp_path).holds(key, done[key], size)}
    assert len(held) == (0 if name == "zarr.json" else 6)
    writer = zarr.Writer(tmp_path, tmp_path / "unfinished", fields_of(arrays))
    writer.collect_garbage(done, lambda: dict.fromkeys(done, ""))
    for number, key in enumerate(done):
        if key not in held:
            done |= stream(writer, 1, arrays, number)
    digests = {}
    reader = formats.reader("zarr", tmp_path, digests.get)
    for number, key in enumerate(done):
        digests[key] = zarr_store_digest(number, arrays)
        np.testing.assert_array_equal(reader.read(key, done[key])["level_1"], number)
    writer.collect_garbage(done, lambda: digests)
    _, rows = zarr_store.read_layout(store / "zarr.json")
    assert rows == 8


def zarr_store_digest(number, arrays):
    from featx.runs.formats.arrays import digest_of

    return digest_of({name: values + number for name, values in arrays.items()})


def test_links_out_of_a_store_are_not_followed(tmp_path):
    arrays, store = arrays_of(1), tmp_path / "run" / "features.zarr"
    (tmp_path / "run" / "unfinished").mkdir(parents=True)
    writer = zarr.Writer(tmp_path / "run", tmp_path / "run" / "unfinished", fields_of(arrays))
    done = stream(writer, 2, arrays)
    (store / "level_0").rename(tmp_path / "elsewhere")
    (store / "level_0").symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere" / "c.0.0.0.0").read_bytes()
    with pytest.raises(OutputError, match="points outside"):
        formats.reader("zarr", tmp_path / "run").read("00000.jpg", done["00000.jpg"])
    with pytest.raises(OutputError, match="points outside"):
        stream(writer, 1, arrays, 2)
    writer.collect_garbage({}, dict)
    assert (tmp_path / "elsewhere" / "c.0.0.0.0").read_bytes() == before


@pytest.mark.parametrize("dtype", ["object", "O", "|O8", "string", "datetime64[s]"])
def test_a_store_of_objects_is_not_read(tmp_path, dtype):
    layout = zarr_store.layout_of([Field("level_0", (2,), "float32")])
    document = json.loads(zarr_store.metadata_of(layout, 1)[""])
    document["consolidated_metadata"]["metadata"]["level_0"]["data_type"] = dtype
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="does not describe a store of featx"):
        zarr_store.read_layout(tmp_path / "zarr.json")


# Tar files


def test_tar_files_grow_to_their_size(tmp_path):
    arrays = {"level_0": np.zeros((2, 100, 100), np.float32)}
    (tmp_path / "unfinished").mkdir()
    writer = webdataset.Writer(tmp_path, tmp_path / "unfinished", fields_of(arrays), megabytes=1)
    done = {}
    for start in range(0, 25, 5):
        done |= stream(writer, 5, arrays, start)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.tar")}
    assert list(sizes) == sorted(sizes) or len(sizes) == 3
    assert all(size <= 1_001_024 for size in sizes.values())
    done |= stream(writer, 1, arrays, 3)  # done again: a tar has no two samples of one key
    assert done["00003.jpg"] != done["00002.jpg"]
    writer.collect_garbage(done, dict)
    assert formats.reader("webdataset", tmp_path).strays(done) == {}


@pytest.mark.parametrize("key", ["a.jpg", "cats.v1/1.jpg", ".hidden.jpg", "50%2Ejpg", "a b/é%.x.tar.gz", "%", "x"])
def test_a_key_comes_back_from_its_sample_s_name(key):
    name = tar_samples.escaped(key)
    assert "." not in name.rpartition("/")[2]
    assert tar_samples.unescaped(name) == key


def test_long_and_foreign_names_are_found_again(tmp_path):
    arrays = {"level_0": np.arange(8, dtype=np.float32).reshape(2, 2, 2)}
    (tmp_path / "unfinished").mkdir()
    writer = webdataset.Writer(tmp_path, tmp_path / "unfinished", fields_of(arrays))
    for key in ("d" * 90 + "/" + "é" * 60 + ".jpg", "猫.v2/1.jpg", "50%.jpg"):
        stored = writer.write(Record(Item(key, key), key, (1, 1), arrays))
        (output,) = writer.commit([stored])
        reader = formats.reader("webdataset", tmp_path)
        assert reader.holds(key, output, stored.bytes)
        np.testing.assert_array_equal(reader.read(key, output)["level_0"], arrays["level_0"])

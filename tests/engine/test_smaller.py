# Smaller maps: a grid, components and int8 are what numpy makes of the full maps, and survive whatever a run does.
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import featx
from featx.cli.descriptions import levels_table
from featx.engine.losses import SUMS
from featx.errors import FeatxError, OutputError, UsageError
from featx.explore.patches import similar_patches
from featx.explore.verify import verify
from featx.explore.viewing import view
from featx.images import cells
from featx.images.frame import Frame
from featx.images.grid import pooled, shares
from featx.runs import basis
from featx.runs.manifest import digests
from featx.values import Level
from tests.helpers import extract, natural_image, outputs, tree
from tests.servers import site_of

FITTED = 6
ALL = {"grid": "3x2", "components": 6, "dtype": "int8", "fit_on": FITTED}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve photos, wide and tall; the fifth cannot be read."""
    folder = tmp_path_factory.mktemp("smaller") / "photos"
    folder.mkdir()
    for number in range(12):
        size = (96, 40) if number % 2 else (50, 80)
        natural_image(number, *size).save(folder / f"{number:02}.png")
    (folder / "04.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def run_of(photos, tmp_path_factory):
    """Make a run with some options, once, in batches of four."""
    made = {}

    def run(**options):
        name = json.dumps(options, sort_keys=True)
        if name not in made:
            made[name] = tmp_path_factory.mktemp("run") / "out"
            size = {"image_size": None} if options.get("fit") == "native" else {}
            extract(photos, made[name], batch_size=4, **size, **options)
        return featx.open_run(made[name])

    return run


def weights(length, most, first=0, end=None):
    """The share that each part of a side has of each cell between two, by counting small pieces; of all if of none."""
    count, end = min(length, most), length if end is None else end
    pieces = np.arange(length * count)
    whole = np.zeros((count, length))
    np.add.at(whole, (pieces // length, pieces // count), 1)
    seen = whole * ((np.arange(length) >= first) & (np.arange(length) < end))
    found = np.where(seen.any(1, keepdims=True), seen, whole)
    return found / found.sum(1, keepdims=True)


def on_photo(run, key, level):
    """The rows and columns between the bars, by the frame's own arithmetic."""
    frame, full = run.frame(key), run._map(level)
    height, width = run.sizes(key)[full.key]
    found = []
    for axis, length in ((1, height), (0, width)):
        stride, offset = (
            value[1 - axis] if isinstance(value, tuple) else value for value in (full.stride, full.offset)
        )
        low = frame.to_input(-0.5, -0.5)[axis]
        high = frame.to_input(frame.original[0] - 0.5, frame.original[1] - 0.5)[axis]
        centres = offset + stride * np.arange(length)
        keep = np.ones(length, bool)
        if low > -0.4:
            keep &= centres >= low
        if high < frame.input[axis] - 0.6:
            keep &= centres <= high
        places = np.flatnonzero(keep)
        found.append((places[0], places[-1] + 1) if len(places) else (0, length))
    return found


def averaged(run, key, level, grid):
    """A map of a full run as a grid, by the share of each cell on the photo; exact."""
    values = run[key][level].astype(np.float64)
    (top, bottom), (left, right) = on_photo(run, key, level)
    down = weights(values.shape[1], grid[0], top, bottom)
    across = weights(values.shape[2], grid[1], left, right)
    return np.einsum("ih,jw,chw->cij", down, across, values)


def projected(values, level, folder):
    """A map on the components of a run, exact; a level that has none of them keeps its channels."""
    with np.load(folder / "basis.npz") as basis:
        if f"{level}_components" not in basis:
            return values
        mean, components = (basis[f"{level}_{name}"].astype(np.float64) for name in ("mean", "components"))
    return np.einsum("kc,chw->khw", components, values - mean[:, None, None])


@pytest.mark.parametrize("fit", ["squash", "pad", "native"])
@pytest.mark.parametrize("grid", [(3, 2), (1, 1), (4, 4)])
def test_a_grid_averages_the_cells_on_the_photo_by_the_share_that_it_covers(run_of, fit, grid):
    full, small = run_of(fit=fit), run_of(fit=fit, grid=grid)
    assert list(full) == list(small)
    for key in full:
        for level in full.levels:
            expected = averaged(full, key, level.key, grid)
            np.testing.assert_allclose(small[key][level.key], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("format_", ["npz", "safetensors", "webdataset", "zarr"])
@pytest.mark.parametrize("options", [{"components": 6, "dtype": "float16", "fit_on": FITTED}, ALL], ids="-".join)
def test_every_format_holds_what_numpy_makes_of_the_full_maps(run_of, format_, options):
    """Within rounding: of float32, of float16, or of half a step of int8."""
    full, small = run_of(fit="pad"), run_of(fit="pad", format=format_, **options)
    raw = featx.open_run(small.folder, raw=True)
    assert list(full) == list(small) == list(raw)
    for key in full:
        stored = raw[key]
        for level in full.levels:
            whole = full[key][level.key].astype(np.float64)
            expected = averaged(full, key, level.key, (3, 2)) if "grid" in options else whole
            expected = projected(expected, level.key, small.folder)
            found, rounding = small[key][level.key], 1e-4 * np.abs(expected) + 1e-5 * np.abs(whole).max()
            assert (found.dtype, found.shape) == (np.float32, expected.shape)
            assert stored[level.key].dtype == options["dtype"]
            if options["dtype"] == "float16":
                rounding += np.abs(expected) / 2**11
            else:
                scale, steps = stored[f"{level.key}_scale"].astype(np.float64), np.abs(expected).max((1, 2)) / 127
                np.testing.assert_allclose(scale, steps, rtol=1e-4, atol=rounding.max() / 127)
                np.testing.assert_array_equal(found, stored[level.key] * stored[f"{level.key}_scale"][:, None, None])
                rounding += 0.501 * scale[:, None, None]
            assert (np.abs(found - expected) <= rounding).all(), (key, level.key)


def test_whole_numbers_of_cells_are_plain_means_and_maxima(run_of):
    full = run_of(fit="squash")
    for pool in ("avg", "max"):
        small = run_of(fit="squash", grid=4, grid_pool=pool)
        for key in full:
            for level in full.levels:
                values = full[key][level.key]
                channels, height, width = values.shape
                split = values.reshape(channels, min(4, height), -1, min(4, width), max(1, width // 4))
                expected = split.mean((2, 4)) if pool == "avg" else split.max((2, 4))
                np.testing.assert_allclose(small[key][level.key], expected, rtol=1e-5, atol=1e-6)


def test_maxima_leave_out_bars(run_of):
    full, small = run_of(fit="pad"), run_of(fit="pad", grid=1, grid_pool="max")
    for key in full:
        for level in full.levels:
            (top, bottom), (left, right) = on_photo(full, key, level.key)
            expected = full[key][level.key][:, top:bottom, left:right].max((1, 2))
            np.testing.assert_array_equal(small[key][level.key][:, 0, 0], expected)


@given(st.integers(1, 60), st.integers(1, 70))
def test_parts_share_a_side_evenly(length, most):
    places, covered = shares(length, most)
    count = min(length, most)
    found = np.zeros((count, length))
    for part in range(count):
        np.add.at(found[part], places[part], covered[part])
    assert (found.sum(1) == length).all()
    assert (found.sum(0) == count).all()


@settings(deadline=None)
@given(
    st.tuples(*[st.integers(1, 40)] * 2),
    st.tuples(*[st.integers(1, 12)] * 2),
    st.tuples(*[st.sampled_from([1, 2, 4.5, 16])] * 2),
    st.tuples(*[st.floats(-8, 40)] * 2),
)
def test_the_cells_of_a_grid_divide_the_map(size, grid, stride, offset):
    """The outer edges stay, and all cells are of one size: in the photo as well, through any frame."""
    full = Level(0, "", 8, stride, offset, *size)
    small = pooled(full, size, grid)
    frame = Frame((300, 200), (224, 224), (0.5, 0.7), (3.0, -2.0), 1)
    assert (small.height, small.width) == tuple(map(min, size, grid))
    edges = [cells.box_of(frame, each, *np.indices((each.height, each.width))) for each in (full, small)]
    outer = [(left.min(), top.min(), right.max(), bottom.max()) for left, top, right, bottom in edges]
    np.testing.assert_allclose(outer[0], outer[1], atol=1e-9)
    across = size[1] // small.width
    if size[1] % small.width == 0:
        np.testing.assert_allclose(edges[1][0][0], edges[0][0][0][::across], atol=1e-9)


def test_the_cells_of_each_photo_are_found_where_photos_have_sizes_of_their_own(run_of):
    full, small = run_of(fit="native"), run_of(fit="native", grid=(3, 2))
    for key in full:
        level = small.level(key, 1)
        height, width = full.sizes(key)["level_1"]
        assert (level.height, level.width) == (min(3, height), min(2, width)) == small.sizes(key)["level_1"]
        whole = full.cell_box(key, 1, [0, height - 1], [0, width - 1])
        grid = small.cell_box(key, 1, [0, level.height - 1], [0, level.width - 1])
        np.testing.assert_allclose([whole[0][0], whole[3][1]], [grid[0][0], grid[3][1]])
        x, y = small.cell_to_pixel(key, 1, 1, 1)
        np.testing.assert_allclose(small.pixel_to_cell(key, 1, x, y), [1, 1])
        frame = small.frame(key)
        if 0 <= x < frame.original[0] and 0 <= y < frame.original[1]:
            np.testing.assert_array_equal(small.sample(key, [[x, y]], 1)["level_1"][0], small[key]["level_1"][:, 1, 1])


def test_components_are_those_of_all_cells_of_the_first_photos(run_of):
    full, small = run_of(fit="pad", grid=(3, 2)), run_of(fit="pad", grid=(3, 2), components=6, fit_on=FITTED)
    basis = np.load(small.folder / "basis.npz")
    first = list(full)[: FITTED - 1]  # one of them cannot be read
    fitted = json.loads(str(basis["fitted"][0]))
    assert fitted["images"] == len(first)
    for level in full.levels:
        rows = []
        for key in first:
            (top, bottom), (left, right) = on_photo(full, key, level.key)
            rows.append(full[key][level.key][:, top:bottom, left:right].reshape(level.channels, -1).T)
        found = np.concatenate(rows).astype(np.float64)
        assert fitted["cells"][level.key] == len(found)
        variance = np.linalg.svd(found - found.mean(0), compute_uv=False) ** 2 / (len(found) - 1)
        np.testing.assert_allclose(basis[f"{level.key}_variance"], variance[:6], rtol=1e-6, atol=1e-9 * variance[0])
        np.testing.assert_allclose(basis[f"{level.key}_share"], variance[:6] / variance.sum(), rtol=1e-6, atol=1e-9)
        mean, components = basis[f"{level.key}_mean"], basis[f"{level.key}_components"].astype(np.float64)
        np.testing.assert_allclose(mean, found.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(components @ components.T, np.eye(6), atol=1e-5)
        assert (components[range(6), np.abs(components).argmax(1)] > 0).all()
        for key in full:
            values = full[key][level.key].astype(np.float64)
            expected = np.einsum("kc,chw->khw", components, values - mean[:, None, None])
            scale = np.abs(values).max()
            np.testing.assert_allclose(small[key][level.key], expected, rtol=1e-4, atol=1e-5 * scale)
            back = np.einsum("kc,khw->chw", components, expected) + mean[:, None, None]
            np.testing.assert_allclose(small.unproject(level, small[key][level.key]), back, atol=2e-5 * scale)
            points = small.unproject(level.key, small[key][level.key].reshape(6, -1).T)
            np.testing.assert_allclose(points, back.reshape(level.channels, -1).T, atol=2e-5 * scale)


def test_a_level_with_no_more_channels_than_components_keeps_them(run_of):
    full, small = run_of(fit="squash"), run_of(fit="squash", components=40)
    with np.load(small.folder / "basis.npz") as basis:
        assert {name.split("_")[1] for name in basis if name != "fitted"} == {"2", "3", "4"}
    assert [level.channels for level in small.levels] == [32, 32, 40, 40, 40]
    for key in full:
        for level in (0, 1):
            values = small[key][f"level_{level}"]
            np.testing.assert_array_equal(values, full[key][f"level_{level}"])
            np.testing.assert_array_equal(small.unproject(level, values), values)


def test_int8_is_each_channel_s_largest_value_in_127_steps(run_of):
    full, small = run_of(), run_of(dtype="int8")
    raw = featx.open_run(small.folder, raw=True)
    assert [field.dtype for field in small.fields] == ["float32"] * len(full.levels)
    for key in full:
        for level in full.levels:
            values, stored = full[key][level.key], raw[key]
            largest = np.abs(values).max((1, 2))
            scale = (largest / np.float32(127)).astype(np.float32)
            steps = np.rint(values / np.where(scale > 0, scale, 1)[:, None, None]).clip(-127, 127)
            np.testing.assert_array_equal(stored[f"{level.key}_scale"], scale)
            np.testing.assert_array_equal(stored[level.key], steps.astype(np.int8))
            assert isinstance(stored[level.key], np.memmap)
            np.testing.assert_array_equal(small[key][level.key], stored[level.key] * scale[:, None, None])
            error = np.linalg.norm(small[key][level.key] - values) / np.linalg.norm(values)
            assert error < 0.012
    tensors = small.dataset()[0]
    assert list(tensors) == ["key", *(level.key for level in full.levels)]
    assert str(tensors["level_2"].dtype) == "torch.float32"


def test_channels_of_zeros_stay_zeros():
    import torch

    from featx.engine.scaling import scaled

    maps = torch.zeros(2, 3, 4, 4)
    maps[1, 2, 0, 0], maps[0, 1] = 1e-45, 5.0
    whole, scale = scaled(maps)
    assert torch.isfinite(scale).all()
    assert torch.equal(whole.float() * scale[:, :, None, None], torch.where(maps == 5, maps, 0.0))
    maps[0, 0, 0, 0] = torch.nan
    assert torch.isnan(scaled(maps)[1][0, 0])


@pytest.mark.parametrize("fit", ["pad", "native"])
def test_together_they_survive_what_runs_do(run_of, photos, tmp_path, fit):
    """Some first, the others in another order and in other company, on a basis that is given: the same bytes."""
    options = {"fit": fit, "final": True, "embedding": True, "batch_size": 4, **ALL}
    size = {"image_size": None} if fit == "native" else {}
    whole = tmp_path / "whole"
    extract(photos, whole, **size, **options)
    checked = verify(whole, recompute=20)
    assert (checked.sound, checked.recomputed.images, checked.recomputed.deviation) == (True, 11, 0)
    assert checked.foreign == []
    paths = sorted(photos.glob("*.png"))
    extract(paths[: FITTED + 1], tmp_path / "out", **size, **options)
    extract([paths[0], *paths[:0:-1]], tmp_path / "out", **size, **options)
    assert sorted(outputs(tmp_path / "out").values()) == sorted(outputs(whole).values())
    extract(photos, tmp_path / "other", **size, **{**options, "fit_on": None}, basis=whole)
    assert outputs(tmp_path / "other") == outputs(whole)
    featx.extract(photos, output=tmp_path / "like", like=whole, device="cpu")
    assert outputs(tmp_path / "like") == outputs(whole)


def test_shards_share_the_basis_of_the_first(photos, tmp_path):
    options = {"batch_size": 4, **ALL}
    extract(photos, tmp_path / "whole", **options)
    for number in (2, 1, 3):
        extract(photos, tmp_path / "out", shard=f"{number}/3", **options)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")
    assert verify(tmp_path / "out").sound


def test_no_photo_is_projected_on_another_basis(run_of, photos, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run_of(**ALL).folder, out)
    again = {"batch_size": 4, **ALL}
    before = tree(out)
    assert extract(photos, out, **again).tried == 0
    content = (out / "basis.npz").read_bytes()
    extract(photos, tmp_path / "other", batch_size=4, **{**ALL, "fit_on": 3})
    for change in ((tmp_path / "other" / "basis.npz").read_bytes(), content[:-1], None):
        (out / "basis.npz").unlink()
        if change:
            (out / "basis.npz").write_bytes(change)
        with pytest.raises(OutputError, match=r"basis\.npz of .* (was changed|is missing)"):
            extract(photos, out, **again)
        assert not verify(out).sound
        with pytest.raises(OutputError, match="basis"):
            featx.open_run(out).unproject(3, np.zeros(6))
        (out / "basis.npz").touch()
    (out / "basis.npz").write_bytes(content)
    with pytest.raises(OutputError, match="different recipe \\(basis"):
        extract(photos, out, **{**again, "fit_on": None}, basis=tmp_path / "other")
    assert tree(out) == before
    assert extract(photos, out, overwrite=True, batch_size=4, grid="3x2", components=8).computed == 11
    assert (out / "basis.npz").read_bytes() != content
    extract(photos, out, overwrite=True, batch_size=4)
    assert not (out / "basis.npz").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"components": 4000}, "No level has more than 4000 channels"),
        ({"components": 40, "grid": 1, "fit_on": 3}, "3 images have 3 cells of level_2, too few for 40 components"),
        ({"components": 40, "basis": "nowhere"}, "There is no basis nowhere"),
        ({"components": 40, "basis": "photos"}, "photos has no basis.npz"),
        ({"components": 40, "basis": "photos/00.png"}, "holds no basis"),
        ({"components": 40, "basis": "{run}"}, "has 6 components of level_2, fewer than 40"),
        ({"components": 4, "basis": "{run}", "seed": 3}, "fitted on a network with other weights"),
        ({"components": 8, "basis": "{run}", "fit_on": 3}, "--fit-on fits components, and --basis takes"),
        ({"fit_on": 3}, "--fit-on needs --components"),
        ({"basis": "{run}"}, "--basis needs --components"),
        ({"grid_pool": "max"}, "--grid-pool needs --grid"),
        ({"grid": 3, "maps": False, "embedding": True}, "--grid is about maps, and none are kept"),
        ({"grid": 0}, "--grid: expected cells per side"),
    ],
)
def test_what_cannot_be_is_said(run_of, photos, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(photos.parent)
    folder = str(run_of(**ALL).folder)
    options = {name: folder if value == "{run}" else value for name, value in options.items()}
    with pytest.raises((UsageError, featx.FeatxError), match=said):
        extract("photos", tmp_path / "out", **options)
    assert not outputs(tmp_path / "out") if (tmp_path / "out").exists() else True


def test_a_basis_of_any_program_is_taken(run_of, photos, tmp_path):
    full = run_of(fit="squash", out_indices=(3,))
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((192, 5)))[0].T
    np.savez(tmp_path / "own.npz", level_3_mean=np.zeros(192), level_3_components=directions)
    options = {"fit": "squash", "out_indices": (3,), "components": 4, "batch_size": 4}
    extract(photos, tmp_path / "out", basis=tmp_path / "own.npz", **options)
    run = featx.open_run(tmp_path / "out")
    for key in run:
        expected = np.einsum("kc,chw->khw", directions[:4], full[key]["level_3"])
        np.testing.assert_allclose(run[key]["level_3"], expected, rtol=1e-4, atol=1e-4)


def test_losses_are_norms_of_differences(run_of, photos):
    full, grid = run_of(), run_of(grid="3x2")
    small = run_of(**ALL)
    cost = small.summary["cost"]
    assert cost["images"] == 11
    for level in full.levels:
        sums = dict.fromkeys(SUMS, 0.0)
        for key in full:
            whole, cells_ = full[key][level.key], grid[key][level.key]
            back = small.unproject(level.key, small[key][level.key])
            sums["pooled"] += (cells_.astype(np.float64) ** 2).sum()
            sums["together"] += ((back - cells_).astype(np.float64) ** 2).sum()
            sums["map"] += (whole.astype(np.float64) ** 2).sum()
            height, width = whole.shape[1:]
            rows = ((np.arange(height) + 0.5) * min(3, height) / height).astype(int)
            columns = ((np.arange(width) + 0.5) * min(2, width) / width).astype(int)
            sums["grid"] += ((whole - cells_[:, rows][:, :, columns]).astype(np.float64) ** 2).sum()
        found = cost["levels"][level.key]
        assert found["together"] == pytest.approx(np.sqrt(sums["together"] / sums["pooled"]), rel=1e-3)
        assert found["grid"] == pytest.approx(np.sqrt(sums["grid"] / sums["map"]), rel=1e-3)
        assert found["dtype"] < 0.02
    assert "cost" not in full.summary


def test_losses_stay_known_where_nothing_is_to_do(run_of, photos, tmp_path):
    folder = shutil.copytree(run_of(**ALL).folder, tmp_path / "out")
    report = extract(photos, folder, batch_size=4, workers=1, **ALL)
    assert (report.tried, report.summary["cost"]) == (0, run_of(**ALL).summary["cost"])


@pytest.mark.parametrize("fit", ["squash", "native"])
def test_places_are_found_and_drawn(run_of, tmp_path, fit):
    run = run_of(fit=fit, **ALL)
    key = next(iter(run))
    strides = list(levels_table(run.summary["levels"], run.summary["recipe"]["grid"]).columns[3].cells)
    assert ("varies" in strides) == (fit == "native")
    x, y = (float(value) for value in run.cell_to_pixel(key, 1, 1, 0))
    found = similar_patches(run, key, at=(x, y), level=1, with_self=True, count=3)
    assert (found.found[0].key, found.found[0].score) == (key, pytest.approx(1, abs=1e-6))
    assert (found.found[0].x, found.found[0].y) == (pytest.approx(x), pytest.approx(y))
    other = tmp_path / "other.png"
    shutil.copy(run.line(key).path, other)
    fresh = similar_patches(run, other, at=(x, y), level=1, count=1)
    assert (fresh.found[0].key, fresh.found[0].score) == (key, pytest.approx(1, abs=1e-3))
    view(run, tmp_path / "levels.png", levels=[1, 3], at=(x, y))
    with Image.open(tmp_path / "levels.png") as picture:
        assert picture.width > 100


def test_boxes_are_taken_from_whole_maps(photos, tmp_path):
    rows = [f"{number:02}.png,1,2,30,35" for number in range(4)]
    (tmp_path / "boxes.csv").write_text("\n".join(["key,x1,y1,x2,y2", *rows]))
    extract(photos, tmp_path / "full", boxes=tmp_path / "boxes.csv", maps=True)
    extract(photos, tmp_path / "small", boxes=tmp_path / "boxes.csv", maps=True, **{**ALL, "components": 4})
    full, small = (featx.open_run(tmp_path / name) for name in ("full", "small"))
    for key in full:
        np.testing.assert_array_equal(full[key]["level_3_boxes"], small[key]["level_3_boxes"])
        assert small[key]["level_3"].shape[0] == 4
    assert verify(tmp_path / "small", recompute=4).recomputed.same


def test_a_photo_called_basis_does_not_take_the_basis_s_place(photos, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "s-000.tar", "w") as archive:
        archive.add(photos / "00.png", "basis.png")
        archive.add(photos / "01.png", "b.png")
    out = tmp_path / "out"
    extract(str(tmp_path / "s-{000..000}.tar"), out, components=5)
    assert sorted(featx.open_run(out)) == ["b", "basis"]
    assert verify(out, recompute=2).sound


def test_the_forecast_knows_what_each_would_write(run_of, photos, tmp_path):
    def foreseen(**options):
        return extract(photos, tmp_path / "none", dry_run=True, batch_size=4, **options).forecast

    whole = foreseen()
    saved = {each.options: each.bytes for each in whole.savings}
    assert {"--grid 1", "--grid 7", "--components 64", "--dtype float16", "--dtype int8"} <= saved.keys()
    for name, value in (("grid", 7), ("dtype", "int8"), ("components", 64)):
        assert foreseen(**{name: value}).bytes == saved[f"--{name} {value}"]
    for options in ({}, {"grid": "3x2"}, ALL):
        run = run_of(**options)
        assert foreseen(**options).bytes_per_image == run.line(next(iter(run))).bytes
    limit = whole.bytes // 8
    fitting = foreseen(max_disk=limit).fitting
    assert fitting
    sizes = [each.bytes for each in fitting]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(OutputError, match=r"more than --max-disk") as caught:
        extract(photos, tmp_path / "none", max_disk=limit)
    assert fitting[0].options in str(caught.value)
    words = fitting[0].options.split()
    options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert extract(photos, tmp_path / "fits", max_disk=limit, **options).summary["bytes"] <= limit


def test_a_run_behind_a_url_has_its_basis_there(run_of, photos, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    url, paths = "memory://smaller/run", sorted(photos.glob("*.png"))
    extract(paths[: FITTED + 1], url, batch_size=4, **ALL)
    extract(paths, url, batch_size=4, **ALL)
    run, local = featx.open_run(url), run_of(**ALL)
    for key in run:
        values = run[key]["level_3"]
        np.testing.assert_array_equal(values, local[f"photos/{key}"]["level_3"])
        np.testing.assert_array_equal(run.unproject(3, values), local.unproject(3, values))
    checked = verify(url, recompute=2)
    assert (checked.sound, checked.foreign) == (True, [])
    for name, place in (("run", url), ("file", f"{url}/basis.npz")):
        options = {name: value for name, value in ALL.items() if name != "fit_on"}
        extract(paths, tmp_path / name, batch_size=4, basis=place, **options)
        assert digests(tmp_path / name) == {key: run.line(key).sha256 for key in run}
    featx.extract(paths, output=tmp_path / "like", like=url, device="cpu")
    assert digests(tmp_path / "like") == digests(tmp_path / "run")
    with pytest.raises(UsageError, match=r"memory://nowhere has no basis\.npz"):
        extract(paths, tmp_path / "none", basis="memory://nowhere", components=6)
    fsspec.filesystem("memory").rm_file("/smaller/run/basis.npz")
    assert verify(url).basis == "is missing"
    extract(paths, url, batch_size=4, overwrite=True)
    assert not fsspec.filesystem("memory").exists("/smaller/run/basis.npz")


def test_the_query_of_a_basis_on_the_web_fetches_it_and_is_not_shown(tmp_path):
    pytest.importorskip("aiohttp")
    expected = basis.packed({"level_1_mean": np.zeros(3), "level_1_components": np.eye(3)[:2]}, {}).content
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "basis.npz").write_bytes(expected)
    with site_of(tmp_path) as site:
        for place in ("run?key=SECRET/1", "run/basis.npz?key=SECRET/1"):
            assert basis.read(f"{site.url}/{place}").content == expected
        (tmp_path / "run" / "basis.npz").write_bytes(b"broken")
        site.status["away.npz"] = 403
        for place in ("run", "none", "run/basis.npz", "away.npz"):
            with pytest.raises(FeatxError) as raised:
                basis.read(f"{site.url}/{place}?key=SECRET/1")
            assert "SECRET" not in str(raised.value), place

# A run's features at points and in boxes: the cells' own, roi_align's, and found again where they were in the photo.
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import roi_align

import featx
from featx.errors import FeatxError, UsageError
from tests.helpers import PHOTO, extract, make_photos, natural_image

KEY = "cats/3.png"


@pytest.fixture(scope="module", params=["float32", "float16"])
def folder(request, tmp_path_factory):
    """A run of photos of which the left and the right were cropped away."""
    photos = make_photos(tmp_path_factory.mktemp("input") / "cats", 4, "{}.png")
    output = tmp_path_factory.mktemp("output") / "run"
    extract(photos, output, out_indices=(1, 3), final=True, dtype=request.param)
    return output


@pytest.fixture
def run(folder):
    return featx.open_run(folder)


def to_input(frame, x, y):
    """As the documentation has it, by hand."""
    return x * frame.scale[0] + frame.offset[0], y * frame.scale[1] + frame.offset[1]


@pytest.mark.parametrize("name", [1, 3, "final"])
def test_samples_at_the_centres_of_cells_are_the_cells(run, name):
    key = name if name == "final" else f"level_{name}"
    values = run[KEY][key]
    rows, columns = run.valid(KEY, name)
    values = values[:, rows, columns].astype(np.float32)
    y, x = np.mgrid[rows, columns]
    x, y = run.cell_to_pixel(KEY, name, y.reshape(-1), x.reshape(-1))
    found = run.sample(KEY, np.stack([x, y], axis=1), name)[key]
    assert found.dtype == np.float32
    assert found.tobytes() == values.reshape(len(values), -1).T.tobytes()


def test_regions_are_roi_align_on_the_map(run):
    boxes = np.array([[10, 5, 30, 60], [20.5, 20.25, 21, 50], [12, 6, 70, 65], [40, 30, 48, 38]])
    frame = run.frame(KEY)
    for size in (1, (7, 7), (2, 5)):
        found = run.regions(KEY, boxes, size=size)
        assert list(found) == ["level_1", "level_3", "final"]
        for level in run.maps:
            (x1, y1), (x2, y2) = (to_input(frame, *(boxes[:, at : at + 2].T - 0.5)) for at in (0, 2))
            edges = np.stack([x1, y1, x2, y2], axis=1)
            rois = torch.from_numpy((edges - level.offset) / level.stride + 0.5).float()
            image = torch.from_numpy(np.array(run[KEY][level.key])).float()
            expected = roi_align(image[None], [rois], size, aligned=True).numpy()
            np.testing.assert_array_equal(found[level.key], expected)


def test_the_box_of_a_cell_lies_around_its_pixel(run):
    level, (across, _) = run.levels[0], run.frame(KEY).scale
    x1, y1, x2, y2 = run.cell_box(KEY, level, 9, 7)
    x, y = run.cell_to_pixel(KEY, level, 9, 7)
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((x + 0.5, y + 0.5))
    assert x2 - x1 == pytest.approx(level.stride / across)
    assert run.pixel_to_cell(KEY, level, x, y) == pytest.approx((9, 7))
    assert run.valid(KEY, level) == (slice(0, level.height), slice(0, level.width))


def test_places_that_the_model_did_not_see_give_no_numbers(run):
    # 83 x 70 in 64 x 64: the crop has the columns from about 11 to 73, and the rows from about 5 to 66.
    found = run.sample(KEY, [[40, 40], [1, 40], [40, 69], [-1, -1], [900, 40], [np.nan, 40]])
    for values in found.values():
        np.testing.assert_array_equal(np.isnan(values).all(axis=1), [False, True, True, True, True, True])
        assert np.isfinite(values[0]).all()
    wide, whole, beyond = [-50, 20, 500, 40], [0, 20, 83, 40], [0, 0, 5, 70]
    boxes = [wide, whole, beyond, [40, 20, 40, 30], [40, 30, 50, 20], [40, 20, np.inf, 30]]
    for values in run.regions(KEY, boxes).values():
        np.testing.assert_array_equal(values[0], values[1])
        np.testing.assert_array_equal(np.isnan(values).all(axis=(1, 2, 3)), [False, False, True, True, True, True])
        assert np.isfinite(values[:2]).all()


def test_no_place_depends_on_the_others(run):
    generator = np.random.default_rng(0)
    corners = generator.uniform(-5, 60, (20, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(0.1, 40, (20, 2))], axis=1)
    together, points = run.regions(KEY, boxes, size=2), run.sample(KEY, corners)
    for place in range(20):
        for name in together:
            np.testing.assert_array_equal(run.regions(KEY, boxes[[place]], size=2)[name][0], together[name][place])
            np.testing.assert_array_equal(run.sample(KEY, corners[[place]])[name][0], points[name][place])


def test_nothing_asked_for_is_nothing(run):
    assert {name: values.shape for name, values in run.sample(KEY, []).items()} == {
        level.key: (0, level.channels) for level in run.maps
    }
    assert run.regions(KEY, [], 1, 7)["level_1"].shape == (0, run.levels[0].channels, 7, 7)


def test_what_cannot_be_asked_is_said(run, tmp_path):
    for call in (lambda: run.sample(KEY, [[1, 2]], 2), lambda: run.cell_box(KEY, "level_2", 0, 0)):
        with pytest.raises(UsageError, match=r"no map level_2\. It has level_1, level_3, final"):
            call()
    with pytest.raises(UsageError, match=r"Expected points.*\(P, 2\).*shape \(2,\)"):
        run.sample(KEY, [1, 2])
    with pytest.raises(UsageError, match=r"Expected boxes.*\(B, 4\).*shape \(1, 3\)"):
        run.regions(KEY, [[1, 2, 3]])
    with pytest.raises(UsageError, match="size: expected one side"):
        run.regions(KEY, [[1, 2, 3, 4]], size=0)
    with pytest.raises(KeyError):
        run.sample("cats/9.png", [[1, 2]])
    copied = tmp_path / "run"
    shutil.copytree(run.folder, copied)
    (copied / f"{KEY}.npz").write_bytes(b"nothing")
    with pytest.raises(FeatxError, match=r"The maps of cats/3\.png are missing or damaged.*verify --repair"):
        featx.open_run(copied).sample(KEY, [[1, 2]])


def test_a_level_without_an_offset_is_said(folder, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    summary = json.loads((copied / "summary.json").read_text())
    summary["levels"][1]["offset"] = None
    (copied / "summary.json").write_text(json.dumps(summary))
    run = featx.open_run(copied)
    assert run.sample(KEY, [[30, 30]], [1])["level_1"].shape == (1, run.levels[0].channels)
    with pytest.raises(FeatxError, match="The offset of level_3 is unknown"):
        run.sample(KEY, [[30, 30]])


def test_a_run_without_maps_has_no_places(tmp_path, photos):
    extract(photos, tmp_path / "run", embedding=True, maps=False)
    with pytest.raises(UsageError, match=r"The run has no maps\. Extract it without --no-maps"):
        featx.open_run(tmp_path / "run").sample("photos/0.jpg", [[1, 2]])


def test_a_box_has_the_same_vector_whatever_the_orientation(tmp_path):
    """Photos that look the same, stored in each of the eight ways of EXIF."""
    upright = natural_image(5, 90, 70)
    turns = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)
    turns += (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE)
    turns += (Image.Transpose.ROTATE_270,)
    for orientation, turn in enumerate(turns, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright if turn is None else upright.transpose(turn)
        stored.save(tmp_path / f"{orientation}.png", exif=exif)
    extract(tmp_path / "*.png", tmp_path / "run")
    run = featx.open_run(tmp_path / "run")
    assert sorted(run.frame(key).orientation for key in run) == list(range(1, 9))
    found = [run.regions(key, [[30, 10, 55, 60]], 2)["level_2"] for key in run]
    points = [run.sample(key, [[30, 10], [44.5, 20.25]], 2)["level_2"] for key in run]
    for other, at in zip(found, points, strict=True):
        np.testing.assert_array_equal(other, found[0])
        np.testing.assert_array_equal(at, points[0])


@pytest.mark.parametrize(("taken", "planted"), [((96, 40), (37, 150)), ((20, 60), (130, 21)), ((110, 130), (61, 80))])
def test_a_crop_planted_in_another_photo_is_found_there(tmp_path, taken, planted):
    """By the cell most similar to the one at its middle in the photo that it was taken from."""
    source, other = Image.open(PHOTO).convert("RGB").resize((256, 256)), natural_image(2, 256, 256)
    other.paste(source.crop((*taken, taken[0] + 80, taken[1] + 80)), planted)
    source.save(tmp_path / "source.png")
    other.save(tmp_path / "other.png")
    extract(tmp_path / "*.png", tmp_path / "run", image_size=256, out_indices=[2])
    run = featx.open_run(tmp_path / "run")
    source, other = sorted(run, reverse=True)
    middle = np.round(run.pixel_to_cell(source, 2, taken[0] + 39.5, taken[1] + 39.5))
    across, down = run.cell_to_pixel(source, 2, *middle)
    query = run.sample(source, [[across, down]])["level_2"][0]
    values = np.array(run[other]["level_2"])
    mean = values.mean(axis=(1, 2))  # which all cells share, and which tells nothing
    centred = values - mean[:, None, None]
    cosines = np.einsum("chw,c->hw", centred, query - mean) / np.linalg.norm(centred, axis=0)
    row, column = np.unravel_index(cosines.argmax(), cosines.shape)
    x1, y1, x2, y2 = run.cell_box(other, 2, row, column)
    x, y = run.cell_to_pixel(other, 2, row, column)
    assert abs(x - planted[0] - (across - taken[0])) < x2 - x1
    assert abs(y - planted[1] - (down - taken[1])) < y2 - y1


@pytest.mark.parametrize("fit", ["crop", "squash", "pad", "native"])
def test_every_fit_has_its_places(tmp_path, fit):
    """Photos of several shapes: valid cells are those on the photo, and each is its own sample."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, size in enumerate([(90, 70), (60, 100), (64, 64)]):
        natural_image(number, *size).save(photos / f"{number}.png")
    sizes = {} if fit == "native" else {"image_size": (64, 96)}
    featx.extract(photos, "test_resnet", tmp_path / "run", weights="random", device="cpu", fit=fit, **sizes)
    run = featx.open_run(tmp_path / "run")
    assert len(run) == 3
    for key in run:
        frame = run.frame(key)
        for level in run.maps:
            values = run[key][level.key]
            assert run.sizes(key)[level.key] == values.shape[1:]
            rows, columns = run.valid(key, level)
            inside = values[:, rows, columns]
            y, x = np.mgrid[rows, columns]
            points = np.stack(run.cell_to_pixel(key, level, y.reshape(-1), x.reshape(-1)), axis=1)
            found = run.sample(key, points, level)[level.key]
            assert found.tobytes() == inside.reshape(len(values), -1).T.tobytes()
            around = np.stack(run.cell_to_pixel(key, level, *np.indices(values.shape[1:])))
            on_photo = np.all((around >= -0.5) & (around <= np.array(frame.original)[:, None, None] - 0.5), axis=0)
            assert on_photo.sum() == inside[0].size
        if fit != "crop":  # which alone leaves something out
            whole = run.sample(key, [[0, 0], [frame.original[0] - 1, frame.original[1] - 1]])
            assert all(np.isfinite(each).all() for each in whole.values())

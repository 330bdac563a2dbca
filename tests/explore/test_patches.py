# similar --at and --box: the same as brute force, planted patches, and the command's table, JSON and picture.
from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import featx
from featx.engine import again, resources
from featx.errors import FeatxError, UsageError
from featx.explore import cosines, patches
from featx.explore.patches import similar_patches
from featx.runs.formats.npz import pack_npz
from featx.values import Level
from tests.helpers import PHOTO, extract, make_photos, natural_image

LEVEL = "level_3"


def brute_force(run, level, vector, count, per_photo, *, without=()):
    """Compare every cell on a photo, one by one; take the best of a photo, cross out what touches it, and go on."""
    vector, found = vector / np.linalg.norm(vector), []
    for key in run:
        values, (rows, columns) = np.array(run[key][level], np.float64), run.valid(key, level)
        left = {}
        for cell in itertools.product(range(rows.start, rows.stop), range(columns.start, columns.stop)):
            feature = np.array(values[:, *cell])
            left[cell] = np.einsum("d,d->", feature, vector) / (np.sqrt(np.einsum("d,d->", feature, feature)) or 1)
        for _ in range(0 if key in without else per_photo):
            if left:
                best = max(left, key=lambda cell: left[cell])  # the first of equals
                x, y = run.cell_to_pixel(key, level, *best)
                found.append((key, float(x), float(y), float(left[best])))
                apart = (cell for cell in left if max(abs(cell[0] - best[0]), abs(cell[1] - best[1])) > 1)
                left = {cell: left[cell] for cell in apart}
    return sorted(found, key=lambda hit: -hit[3])[:count]


def require_equal(found, expected):
    assert [(each.key, each.x, each.y) for each in found] == [hit[:3] for hit in expected]
    np.testing.assert_allclose([each.score for each in found], [hit[3] for hit in expected], atol=1e-12)


@pytest.fixture(scope="module", params=["crop", "pad", "native"])
def fitted(request, tmp_path_factory):
    """A run of photos of several shapes: cropped, between bars, or with maps of their own size."""
    photos = tmp_path_factory.mktemp("input") / "photos"
    photos.mkdir()
    for number, size in enumerate([(96, 72), (60, 130), (64, 64), (140, 48), (96, 72), (64, 64), (75, 96)]):
        natural_image(number, *size).save(photos / f"{number}.png")
    folder = tmp_path_factory.mktemp("output") / "run"
    size = {"image_size": None} if request.param == "native" else {}
    extract(photos, folder, fit=request.param, out_indices=(1, 3), dtype="float16", **size)
    return folder


def replace_maps(run, make):
    """Write other numbers in place of a run's, of the same shapes."""
    for key in run:
        arrays = {name: make(key, values.shape) for name, values in run[key].items()}
        (run.folder / run.output(key)).write_bytes(b"".join(pack_npz(arrays)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6),
    st.sampled_from(["far", "near", "equal", "tiny", "huge"]),
    st.sampled_from(["float32", "float16"]),
    st.integers(1, 25),
    st.sampled_from([1, 3, 100]),
    st.sampled_from([1, 4]),
)
def test_brute_force_finds_the_same(fitted, monkeypatch, seed, kind, dtype, count, per_photo, cores):
    """Where cells differ much, less than single precision tells, not at all, or by numbers whose squares it lacks."""
    monkeypatch.setattr(resources, "cores", lambda: cores)
    for name, value in (("PHOTOS", 2), ("CELLS", 3)):
        monkeypatch.setattr(patches, name, value)
    monkeypatch.setattr(cosines, "BLOCK", 256)
    generator, run = np.random.default_rng(seed), featx.open_run(fitted)
    base = generator.standard_normal((4, run.maps[1].channels))
    scale = {"tiny": 1e-25, "huge": 1e25}.get(kind, 1) if dtype == "float32" else 1

    def make(key, shape):
        chosen = base[generator.integers(len(base), size=shape[1:])].transpose(2, 0, 1)[: shape[0]]
        noise = {"near": 1e-4, "equal": 0}.get(kind, 1) * generator.standard_normal(shape)
        values = ((chosen + noise) * scale).astype(dtype)
        values[:, generator.integers(shape[1]), generator.integers(shape[2])] = 0
        return values

    replace_maps(run, make)
    key = list(run)[seed % len(run)]
    rows, columns = run.valid(key, LEVEL)
    at = [float(each) for each in run.cell_to_pixel(key, LEVEL, rows.start, columns.start)]
    vector = run.sample(key, [at], LEVEL)[LEVEL][0].astype(np.float64)
    for with_self in (True, False):
        if not vector.any():
            continue
        asked = {"at": at, "level": 3, "count": count, "per_photo": per_photo, "with_self": with_self}
        found = similar_patches(run, key, **asked)
        expected = brute_force(run, LEVEL, vector, count, per_photo, without=() if with_self else (key,))
        require_equal(found.found, expected)


def test_a_box_is_the_average_of_its_cells(fitted):
    run = featx.open_run(fitted)
    key, box = list(run)[2], (8, 10, 50.5, 40)
    vector = run.regions(key, [box], 1)["level_1"][0, :, 0, 0].astype(np.float64)
    found = similar_patches(run, key, box="8,10,50.5,40", level="level_1", per_photo=2, count=9)
    assert (found.at, found.box, found.level, found.images) == (None, box, "level_1", 7)
    require_equal(found.found, brute_force(run, "level_1", vector, 9, 2, without=(key,)))


# Where the left upper corner of the planted part is in the photo that has it, and its side.
PLANTED, SIDE = (56, 104), 96


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run of 200 photos, of which one has a part of a real one."""
    folder = tmp_path_factory.mktemp("planted")
    photos = make_photos(folder / "photos", 200, "{}.png")
    with_part(137, PLANTED).save(photos / "137.png")
    extract(photos, folder / "run", image_size=224, fit="squash", out_indices=(1, 2))
    return folder


def with_part(seed, place):
    """Make a photo that has a part of a real one at a place."""
    photo = natural_image(seed, 224, 224)
    with Image.open(PHOTO) as real:
        photo.paste(real.convert("RGB").resize((224, 224)).crop((80, 48, 80 + SIDE, 48 + SIDE)), place)
    return photo


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("place", [(80, 48), (32, 64), (112, 24)])
def test_a_planted_patch_is_found_among_200_photos(planted, tmp_path, place, level):
    """At its place, by another photo that has it elsewhere, and which is not in the run."""
    with_part(500, place).save(tmp_path / "query.png")
    found = similar_patches(
        planted / "run",
        tmp_path / "query.png",
        at=(place[0] + SIDE // 2, place[1] + SIDE // 2),
        level=level,
        count=5,
        device="cpu",
    )
    best = found.found[0]
    assert (best.key, len(found.found), found.images) == ("photos/137.png", 5, 200)
    assert len({each.key for each in found.found}) == 5
    assert abs(best.x - PLANTED[0] - SIDE // 2) < best.box[2] - best.box[0]
    assert abs(best.y - PLANTED[1] - SIDE // 2) < best.box[3] - best.box[1]


def test_the_run_s_own_features_are_used_if_it_has_the_photo(planted, tmp_path):
    """By its key, its file or a link; without torch. A copy is another photo, whose features come out the same."""
    run, at = featx.open_run(planted / "run"), (50.25, 40)
    file = planted / "photos" / "101.png"
    (tmp_path / "link.png").symlink_to(file)
    shutil.copy(file, tmp_path / "copy.png")
    others = similar_patches(run, "photos/101.png", at=at)
    own = similar_patches(run, "photos/101.png", at=at, with_self=True)
    assert (others.level, others.path, own.found[0].key) == ("level_2", str(file), "photos/101.png")
    assert [each.key for each in own.found[1:]] == [each.key for each in others.found[:-1]]
    for name in (file, tmp_path / "link.png"):
        assert similar_patches(run, name, at=at).found == others.found
    assert similar_patches(run, tmp_path / "copy.png", at=at, device="cpu").found == own.found
    script = (
        "import sys, featx\n"
        f"found = featx.similar_patches({str(planted / 'run')!r}, {str(file)!r}, at=(50.25, 40)).found\n"
        "assert len(found) == 10 and not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_file_that_a_key_is_the_name_of_is_another_photo(planted, tmp_path, monkeypatch):
    """Unless the run's own file is gone."""
    run, name = featx.open_run(planted / "run"), "photos/17.png"
    (tmp_path / "photos").mkdir()
    shutil.copy(planted / "photos" / "101.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    at = [float(each) for each in run.cell_to_pixel("photos/101.png", 2, 10, 14)]
    found = similar_patches(run, name, at=at, count=1, device="cpu")
    assert (found.path, found.found[0].key) == (str(tmp_path / name), "photos/101.png")
    moved = planted / "photos" / "17.png"
    moved.rename(tmp_path / "moved.png")
    try:
        monkeypatch.setattr(again, "set_up_again", None)
        found = similar_patches(run, name, at=(50, 40))
    finally:
        (tmp_path / "moved.png").rename(moved)
    assert (found.path, "photos/17.png" in {each.key for each in found.found}) == (str(moved), False)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({}, "similar_patches needs a place", "Give at=(x, y) or box=(x1, y1, x2, y2)"),
        ({"at": (1, 2), "box": (1, 2, 3, 4)}, "--at and --box cannot be combined", "Use one of them"),
        ({"at": "1"}, "--at: expected 2 comma-separated numbers, such as 320,240, not '1'", ""),
        ({"at": (1, float("nan"))}, "--at: expected 2 comma-separated numbers, such as 320,240, not (1, nan)", ""),
        ({"box": "1,2,3"}, "--box: expected 4 comma-separated numbers, such as 300,200,400,320, not '1,2,3'", ""),
        ({"box": (5, 5, 5, 9)}, "--box 5,5,5,9 has no area", "Give x1,y1,x2,y2 with x1 < x2 and y1 < y2"),
        ({"at": (1, 2), "level": "1,3"}, "--level: expected one level, such as 3 or level_3, not '1,3'", ""),
        ({"at": (1, 2), "level": 2}, "The run has no map level_2", "It has level_1, level_3"),
        ({"at": (1, 2), "per_photo": 0}, "--per-photo: expected a whole number of at least 1, not 0", ""),
        (
            {"at": (90, 2.5)},
            "--at 90,2.5 lies outside what the model saw of photos/4.png",
            "It saw x from 13 to 81 and y from 2 to 70; the photo is 96 x 72",
        ),
        (
            {"box": (84, 0, 300, 72)},
            "--box 84,0,300,72 lies outside what the model saw of photos/4.png",
            "It saw x from 13 to 81 and y from 3 to 70; the photo is 96 x 72",
        ),
    ],
)
@pytest.mark.parametrize("fitted", ["crop"], indirect=True)
def test_what_cannot_be_meant_is_refused(fitted, options, message, hint):
    with pytest.raises(UsageError) as failure:
        similar_patches(fitted, "photos/4.png", **options)
    assert (failure.value.message, failure.value.hint) == (message, hint)


@pytest.mark.parametrize("damage", ["missing", "cut", "nan", "inf", "channels"])
@pytest.mark.parametrize("broken", ["photos/2.jpg", "photos/0.jpg"])
def test_damaged_maps_end_the_search_in_one_line(tmp_path, damage, broken):
    """Of the photos that are searched, and of the query's."""
    extract(make_photos(tmp_path / "photos", 4), tmp_path / "run")
    run = featx.open_run(tmp_path / "run")
    file = run.folder / run.output(broken)
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-5000])
    else:
        arrays = {name: np.array(values) for name, values in run[broken].items()}
        level = arrays[LEVEL]
        level[2, 0, 1] = {"nan": np.nan, "inf": -np.inf}.get(damage, 0)
        file.write_bytes(b"".join(pack_npz({**arrays, LEVEL: level[:-1] if damage == "channels" else level})))
    with pytest.raises(FeatxError, match=f"^The maps of {broken} are missing or damaged: .*featx verify --repair"):
        similar_patches(run, "photos/0.jpg", at=(40, 30), level=3)


def test_a_feature_of_zeros_has_no_direction(tmp_path):
    extract(make_photos(tmp_path / "photos", 2), tmp_path / "run", out_indices=[3])
    run = featx.open_run(tmp_path / "run")
    replace_maps(run, lambda key, shape: np.zeros(shape, np.float32))
    with pytest.raises(UsageError, match="The feature of --at 40,30 on level_3 is zero, and has no direction"):
        similar_patches(run, "photos/0.jpg", at=(40, 30))


def test_the_level_that_is_chosen():
    """The last of stride 16 or less; or the last of the smallest, of those whose places are known."""

    def chosen(*strides):
        levels = [Level(place, "", 8, stride, 0 if stride else None, 4, 4) for place, stride in enumerate(strides)]
        return patches.choose_level(levels).index

    assert [chosen(2, 4, 8, 16, 32), chosen(14, 14, 14), chosen(32, 32), chosen(64, 32), chosen(8, (16, 32))] == [
        3,
        2,
        1,
        1,
        0,
    ]
    assert chosen(8, 16, None) == 1
    with pytest.raises(FeatxError, match="offset of level_0 is unknown"):
        chosen(None, None)


def test_the_command(featx_command, planted, tmp_path):
    (tmp_path / "run").symlink_to(planted / "run")
    (tmp_path / "photos").symlink_to(planted / "photos")
    words = ("similar", "run", "photos/137.png", "--at", "105,149", "--level", "1", "-k", "6", "--per-photo", "2")
    done = featx_command(*words, "--with-self", "--output", "sheet.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["rank", "cosine", "x", "y", "image"]
    assert len(done.stdout.splitlines()) == 7
    assert done.stderr.splitlines() == [
        "random weights: shapes are right, but nothing was learned, so similarity means little",
        "6 places in 200 images, compared on level_1",
        "wrote sheet.png, 6 places",
    ]
    value = json.loads(featx_command(*words, "--with-self", "--json").stdout)
    assert list(value) == ["query", "path", "size", "at", "box", "level", "images", "found", "weights"]
    assert (value["at"], value["level"], len(value["found"])) == ([105, 149], "level_1", 6)
    best = value["found"][0]
    assert list(best) == ["key", "path", "size", "x", "y", "level", "score", "box"]
    assert done.stdout.splitlines()[1].split() == [
        "1",
        f"{best['score']:.4f}",
        f"{best['x']:.1f}",
        f"{best['y']:.1f}",
        best["key"],
    ]
    box = Image.open(tmp_path / "sheet.png").convert("RGB")
    tile = np.array(box.crop((12, 12, 12 + 224, 12 + 224)), int)  # the query's, as large as it is
    red = np.argwhere(abs(tile - (200, 60, 30)).sum(2) == 0)
    assert np.abs(red.mean(0) - (149, 105)).max() < 1  # row and column
    refused = featx_command("similar", "run", "photos/137.png", "--level", "1")
    assert (refused.returncode, refused.stderr) == (
        2,
        "featx: --level is for patches. Add --at X,Y or --box X1,Y1,X2,Y2.\n",
    )
    without = featx_command("similar", "run", "photos/137.png", "--per-photo", "1")
    assert without.stderr == "featx: --per-photo is for patches. Add --at X,Y or --box X1,Y1,X2,Y2.\n"


def test_a_run_without_maps(tmp_path, photos):
    extract(photos, tmp_path / "run", embedding=True, format="npy")
    with pytest.raises(UsageError, match=r"The run has no maps\. Extract it without --no-maps"):
        similar_patches(tmp_path / "run", photos / "0.jpg", at=(1, 2))

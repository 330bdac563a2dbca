# Views: cells are drawn where they are centred, alike cells alike; and the command, from good calls to wrong ones.
from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image, ImageFilter

import featx
from featx.command_options import ViewOptions
from featx.errors import FeatxError
from featx.explore import contact, drawing, panels, shown, viewing
from featx.images import cells
from featx.images.frame import Frame
from featx.values import RANDOM_SIMILARITY, Level
from tests.helpers import MODEL, PHOTO, make_photos, natural_image


def level_of(stride, offset, channels=3, index=0):
    return Level(index, "layer", channels, stride, offset, None, None)


FRAMES = {
    "crop": Frame.of((300, 200)).resized((96, 64)).centred((64, 64)),
    "pad": Frame.of((300, 200)).resized((64, 43)).centred((64, 64)),
    "squash": Frame.of((300, 200)).resized((64, 64)),
    "native": Frame.of((50, 60)).filled_up((64, 64)),
}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize(
    ("stride", "offset", "height", "width"), [(8, 3.5, 8, 8), ((16, 8), (0, 7), 4, 8), (32, 11, 2, 2)]
)
def test_a_pixel_has_the_colour_of_the_cell_that_it_lies_in(name, stride, offset, height, width):
    frame, level = FRAMES[name], level_of(stride, offset)
    generator = np.random.default_rng(0)
    base = Image.fromarray(generator.integers(0, 256, (120, 120, 3), dtype=np.uint8))
    colours = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    drawn = np.asarray(panels.paint(base, colours, frame, level, 1.0, smooth=False))
    expected = np.array(base)
    for row in range(120):
        for column in range(120):
            x, y = frame.to_original((column + 0.5) / 120 * 64 - 0.5, (row + 0.5) / 120 * 64 - 0.5)
            down, across = (int(np.floor(place + 0.5)) for place in cells.to_cell(frame, level, x, y))
            if 0 <= down < height and 0 <= across < width:
                expected[row, column] = colours[down, across]
    assert (drawn != expected).any(-1).mean() < 0.001  # but for edges of cells, where rounding decides


def test_half_a_share_is_half_the_photo_and_smooth_colours_meet_at_centres():
    frame, level = Frame.of((64, 64)), level_of(16, 7.5)
    base = Image.new("RGB", (64, 64), (100, 100, 100))
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    half = np.asarray(panels.paint(base, colours, frame, level, 0.5, smooth=False)).astype(float)
    np.testing.assert_allclose(half[::16, ::16], 50 + colours / 2, atol=0.5)
    smooth = np.asarray(panels.paint(base, colours, frame, level, 1.0, smooth=True)).astype(float)
    between = smooth[7:9, 7:9].mean((0, 1))  # the centre of a cell lies between these four pixels
    np.testing.assert_allclose(between, colours[0, 0], atol=6)
    middle = smooth[15:17, 7:9].mean((0, 1))  # half way to the next cell
    np.testing.assert_allclose(middle, (colours[0, 0].astype(float) + colours[1, 0]) / 2, atol=6)


@pytest.mark.parametrize("name", FRAMES)
def test_a_photo_is_drawn_as_the_model_saw_it(name, tmp_path):
    """Compared with sampling the photo through the frame, pixel by pixel."""
    frame = FRAMES[name]
    photo = natural_image(3, *frame.original).filter(ImageFilter.GaussianBlur(6))
    photo.save(tmp_path / "a.png")
    each = shown.Shown("a.png", str(tmp_path / "a.png"), frame, {}, {})
    drawn = np.asarray(shown.as_seen(each, 64, 64)).astype(float)
    values = np.asarray(photo).astype(float)
    for row in range(2, 62, 5):
        for column in range(2, 62, 5):
            x, y = frame.to_original(column, row)
            if -0.5 <= x < frame.original[0] - 0.5 and -0.5 <= y < frame.original[1] - 0.5:
                np.testing.assert_allclose(drawn[row, column], values[round(y), round(x)], atol=14)
            elif not (-8 < x < frame.original[0] + 8 and -8 < y < frame.original[1] + 8):
                assert tuple(drawn[row, column]) == shown.GREY


def textures(path, side=256):
    """A photo of four textures, each the same in all cells of stride 4: stripes, a chessboard, and a plain grey."""
    y, x = np.mgrid[:side, :side]
    kinds = [(x // 2 % 2) * 255, (y // 2 % 2) * 255, ((x // 2 + y // 2) % 2) * 255, 0 * x + 90]
    half = side // 2
    values = np.empty((side, side), np.uint8)
    for kind, (top, left) in zip(kinds, ((0, 0), (0, half), (half, 0), (half, half)), strict=True):
        values[top : top + half, left : left + half] = kind[:half, :half]
    Image.fromarray(np.stack([values] * 3, -1)).save(path)


def test_four_textures_come_out_as_four_colours(tmp_path):
    textures(tmp_path / "four.png")
    options = {"weights": "random", "device": "cpu", "image_size": 256, "crop_pct": 1.0}
    featx.extract(tmp_path / "four.png", "resnet18", tmp_path / "run", **options)
    run = featx.open_run(tmp_path / "run")
    viewing.view(run, tmp_path / "a.png", levels=[1], columns=2)
    viewing.view(run, tmp_path / "b.png", levels=[1], columns=2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    made = viewing._Sheet(run, ["four.png"], ViewOptions(levels=[1], columns=2))
    panel = np.asarray(made._block(made._photos[0]).panels[1].picture).astype(float)
    quarter = len(panel) // 8
    means, spreads = [], []
    for down in (1, 5):
        for across in (1, 5):
            patch = panel[down * quarter : (down + 2) * quarter, across * quarter : (across + 2) * quarter]
            means.append(patch.mean((0, 1)))
            spreads.append(patch.std((0, 1)).max())
    apart = [np.linalg.norm(one - other) for place, one in enumerate(means) for other in means[place + 1 :]]
    assert min(apart) > 40
    assert min(apart) > 2 * max(spreads)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six photos, with embeddings."""
    folder = tmp_path_factory.mktemp("view")
    photos = make_photos(folder / "photos", 6)
    featx.extract(photos, "test_resnet", folder / "run", weights="random", embedding=True, device="cpu")
    return featx.open_run(folder / "run")


def test_the_nearest_cells_are_those_of_brute_force(run):
    at, levels = (40, 30), [run.levels[3]]
    photos = [shown.shown(run, key, levels) for key in run]
    found = viewing._similarity(run, photos, levels, at)
    vector = run.sample(photos[0].key, [at], levels)[levels[0].key][0]
    for photo in photos[1:]:
        values = np.asarray(run[photo.key][levels[0].key], np.float64)
        cosines = np.einsum("chw,c->hw", values, vector) / np.linalg.norm(values, axis=0) / np.linalg.norm(vector)
        row, column = np.unravel_index(cosines.argmax(), cosines.shape)
        assert found.best[photo.key, levels[0].key] == (row, column)
    assert (photos[0].key, levels[0].key) not in found.best


def test_contact_sheets_put_like_beside_like(run, tmp_path):
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((5, 16)) * 10
    kinds = generator.permutation(np.repeat(np.arange(5), 7))
    order = contact.chain(centres[kinds] + generator.standard_normal((35, 16)) * 0.01)
    assert sorted(order) == list(range(35))
    assert (np.diff(kinds[order]) != 0).sum() == 4
    made = viewing.view(run, tmp_path / "grid.png", grid=True)
    assert (made.photos, made.levels, made.gone) == (6, ["embedding"], [])
    by_level = viewing.view(run, tmp_path / "grid.png", grid=True, levels=[2], columns=3)
    assert by_level.levels == ["mean of level_2"]


def test_photos_that_are_gone_are_shown_without_them_and_named(tmp_path):
    photos = make_photos(tmp_path / "photos", 3)
    featx.extract(photos, "test_resnet", tmp_path / "run", weights="random", device="cpu")
    (photos / "0.jpg").unlink()
    natural_image(1, 50, 50).save(photos / "1.jpg")
    made = viewing.view(tmp_path / "run", tmp_path / "a.png")
    assert made.gone == ["photos/0.jpg", "photos/1.jpg"]
    assert viewing.view(tmp_path / "run", tmp_path / "a.png", grid=True).gone == ["photos/0.jpg"]


def test_a_photo_too_narrow_for_any_cell_s_centre_is_shown_all_the_same(tmp_path):
    """Fitted to 160 x 160 with bars, it is two pixels high, between the centres of all cells of stride 32."""
    (tmp_path / "photos").mkdir()
    natural_image(0, 800, 10).save(tmp_path / "photos" / "narrow.png")
    natural_image(1, 90, 90).save(tmp_path / "photos" / "square.png")
    featx.extract(tmp_path / "photos", "test_resnet", tmp_path / "run", weights="random", fit="pad", device="cpu")
    run, picture = featx.open_run(tmp_path / "run"), tmp_path / "a.png"
    narrow, square = run
    assert run.valid(narrow, "level_4") == (slice(0, 0), slice(0, 0))
    for options in ({}, {"activation": True}, {"at": (400, 5)}, {"grid": True, "levels": [4]}):
        assert viewing.view(run, picture, [narrow], **options).photos == 1
    for key in (narrow, square):
        assert viewing.view(run, picture, at=(40, 5), key=key).photos == 2
    assert viewing.view(run, picture, grid=True).photos == 2


def test_photos_are_named_by_their_keys_or_files(run, tmp_path, monkeypatch):
    photos = run.folder.parent / "photos"
    one, two = str(photos / "1.jpg"), os.path.relpath(photos / "2.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert shown.choose(run, ["photos/0.jpg", one, two, "photos/1.jpg"], 8) == [f"photos/{n}.jpg" for n in range(3)]
    assert viewing._keys(run, [], ViewOptions(at=(1, 1), key=two, max_photos=2)) == ["photos/2.jpg", "photos/0.jpg"]
    natural_image(9).save(tmp_path / "other.jpg")
    with pytest.raises(FeatxError, match=r"The run has no photo other\.jpg"):
        shown.choose(run, ["other.jpg"], 8)


def test_pictures_are_named_after_what_they_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holiday.2024").mkdir()
    natural_image(0).save(tmp_path / "a.b.jpg")
    names = {"holiday.2024": "holiday.2024", "a.b.jpg": "a.b", "*.jpg": "photos", "-": "photos", "/": "photos"}
    assert {first: str(viewing.default_output(first)) for first in names} == {
        first: f"{name}-view.png" for first, name in names.items()
    }


def test_a_page_is_not_taken_for_a_picture(run, tmp_path):
    with pytest.raises(FeatxError, match="html asks for a page"):
        viewing.view(run, tmp_path / "a.png", html=tmp_path / "a.html")


@pytest.mark.parametrize("fonts", [drawing.FONTS, ()])
def test_letters_that_a_font_lacks_are_not_drawn_as_boxes(monkeypatch, fonts):
    monkeypatch.setattr(drawing, "FONTS", fonts)
    drawing._fonts.cache_clear()
    for text in ("plain.png", "\u00e4\u00df.png", "\u732b.png", "\u0416.png"):
        font, said = drawing._font_for(text, 13)
        box = bytes(font.getmask("\uffff"))
        assert all(bytes(font.getmask(letter)) != box for letter in said)
        if not fonts:
            assert said == text.encode("ascii", "backslashreplace").decode()
    drawing._fonts.cache_clear()


def test_the_command_shows_runs_and_photos(featx_command, tmp_path):
    photos = make_photos(tmp_path / "photos", 3)
    assert featx_command("extract", photos, *MODEL, "--output", "run").returncode == 0
    for _ in range(2):
        done = featx_command("view", "run")
        assert (done.returncode, done.stdout) == (0, "run-view.png\n")
        assert done.stderr == f"{RANDOM_SIMILARITY}\n3 of 3 photos\n"
    with Image.open(tmp_path / "run-view.png") as sheet:
        assert sheet.width <= 1200
    value = json.loads(featx_command("view", "run", "photos/2.jpg", "--level", "1,2", "--json").stdout)
    assert value == {
        "output": "run-view.png",
        "photos": 1,
        "images": 3,
        "levels": ["level_1", "level_2"],
        "gone": [],
        "weights": "random",
    }
    for more in (
        ["--activation", "--overlay", "0.5", "--smooth"],
        ["--at", "40,30"],
        ["--at", "40,30", "--key", "photos/1.jpg", "--max-photos", "2"],
        ["--grid"],
    ):
        done = featx_command("view", "run", *more, "--output", "more.jpg")
        assert done.returncode == 0, done.stderr
    done = featx_command("view", PHOTO, "--model", "test_vit", "--weights", "random", "--fit", "pad", "-o", "photo.png")
    assert (done.returncode, done.stdout) == (0, "photo.png\n"), done.stderr
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    none = featx_command("view", "broken.jpg", *MODEL)
    assert none.returncode == 1
    assert none.stderr.endswith("featx: None of the photos could be read. Give other photos.\n")
    looks = ("view", PHOTO, "--model", "test_vit", "--weights", "random", "--attention", "-o", "photo.png")
    assert featx_command(*looks).returncode == 0
    some = featx_command("view", "photos", *MODEL, "--max-photos", "2", "-o", "photo.png")
    assert "only the first 2 of 3 photos; raise --max-photos for more" in some.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "There is no run or photo nothing. Check the path."),
        (
            ["photos/0.jpg"],
            "photos/0.jpg is not a run, and photos need a model. Add a model, such as",
        ),
        (["run", "photos/9.jpg"], "The run has no photo photos/9.jpg. Did you mean photos/0.jpg"),
        (["run", "--model", "resnet18"], "--model is for photos, but run is a run. Leave it out."),
        (["run", "--level", "9"], "The run has no map level_9. It has level_0, level_1"),
        (["run", "--at", "7"], "--at: expected 2 comma-separated numbers, such as 320,240, not '7'."),
        (["run", "--at", "4000,1"], "--at 4000,1 lies outside what the model saw of photos/0.jpg. It saw x from"),
        (["run", "--grid", "--at", "1,2"], "--grid and --at cannot be combined. Use one of them."),
        (["run", "--grid", "--level", "1,2"], "--grid compares photos on one level. Give --level only one."),
        (["run", "--key", "photos/1.jpg"], "--key is for --at."),
        (["run", "--attention"], "The run run has no attention. Extract it with --attention."),
        (["vectors"], "The run has embeddings, but no maps. Compare its photos with --grid."),
        (["run", "-o", "sheet.txt"], "sheet.txt is not the name of an image file. Use a name that ends in .png"),
        (["run", "-o", "photos/0.jpg"], "photos/0.jpg exists and was not drawn by featx. Choose another"),
        (["run", "-o", "no/sheet.png"], "There is no folder no. Create it, or choose another --output."),
        (
            ["run", "--max-photos", "1", "photos/0.jpg", "photos/1.jpg"],
            "2 photos were named, but at most 1 can be shown. Name fewer",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_drawn(run, featx_command, tmp_path, arguments, said):
    os.symlink(run.folder, tmp_path / "run")
    os.symlink(run.folder.parent / "photos", tmp_path / "photos")
    if arguments == ["vectors"]:
        assert featx_command("extract", "photos", *MODEL, "--no-maps", "--embedding", "-o", "vectors").returncode == 0
    done = featx_command("view", *arguments)
    assert done.stdout == ""
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(f"featx: {said}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_a_folder_that_takes_no_files_is_refused_at_once(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FeatxError, match="cannot be written: Permission denied"):
        viewing.view(run, tmp_path / "a.png")

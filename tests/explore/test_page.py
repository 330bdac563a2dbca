# Pages: what is packed, what fits, what a browser makes of it, and what is refused.
from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import featx
from featx.errors import FeatxError
from featx.explore import packing
from featx.explore.page import write_page
from featx.explore.shown import Shown
from featx.images.frame import Frame
from featx.values import Level
from tests.helpers import extract, make_photos, natural_image, tree

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

HOSTILE = ("<img src=x onerror=alert(1)>.png", "</script><script>alert(2)<!--.png", "&lt;b&amp;\u202egnp.png")


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)


def cosines(rows):
    rows = unit(np.asarray(rows, np.float64))
    return rows @ rows.T


def made_up(features, side):
    """Show photos of which each has a map of features (cells, C)."""
    level = Level(0, "layer", features.shape[-1], 8, 3.5, side, side)
    frame = Frame.of((8 * side, 8 * side))
    maps = [rows.reshape(side, side, -1).transpose(2, 0, 1) for rows in features]
    return [
        Shown(str(number), "", frame, {level.key: each}, {level.key: level}) for number, each in enumerate(maps)
    ], level


@settings(deadline=None, max_examples=40)
@given(
    photos=st.integers(1, 3),
    side=st.integers(1, 9),
    channels=st.integers(1, 24),
    rank=st.integers(1, 24),
    seed=st.integers(0, 99),
)
def test_the_cost_of_packing_is_what_brute_force_finds(photos, side, channels, rank, seed):
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(photos, side * side, rank)) @ generator.normal(size=(rank, channels))
    features = mixed.astype(np.float32)
    features[0, 0] = 0  # a cell without a direction
    views, level = made_up(features, side)
    basis = packing.fit(views, level)
    count = basis.needed(1e-3)
    packed = packing.pack(views, level, basis, count)
    rows = np.concatenate(packed.values).astype(np.float64) * packed.scales
    assert rows.shape == (photos * side * side, count)
    assert count <= min(rank, channels, photos * side * side)
    differences = np.abs(cosines(rows) - cosines(features.reshape(-1, channels)))[np.triu_indices(len(rows), 1)]
    assert packed.cost.components == count
    if len(rows) <= packing.COMPARED:
        assert packed.cost.pairs == len(differences)
        if len(differences):
            assert packed.cost.mean == pytest.approx(differences.mean(), abs=1e-5)
            assert packed.cost.largest == pytest.approx(differences.max(), abs=1e-5)
    assert not len(differences) or differences.mean() < 0.01


def test_components_leave_out_the_share_that_they_say():
    features = np.random.default_rng(0).normal(size=(2, 100, 30)).astype(np.float32) * np.geomspace(1, 0.01, 30)
    views, level = made_up(features.astype(np.float32), 10)
    basis = packing.fit(views, level)
    rows = unit(features.reshape(-1, 30).astype(np.float64))
    kept = [np.square(rows @ basis.vectors[:, :count]).sum() / np.square(rows).sum() for count in (1, 5, 20)]
    np.testing.assert_allclose(1 - basis.lost[[0, 4, 19]], kept, atol=1e-6)
    assert basis.needed(basis.lost[4]) == 5
    # No other directions keep more: the singular values say how much these can.
    best = np.cumsum(np.linalg.svd(rows, compute_uv=False) ** 2) / len(rows)
    np.testing.assert_allclose(kept, best[[0, 4, 19]], atol=1e-6)


def described(page):
    """Read what a page's script reads: the description, and each level's features (cells, k), photo by photo."""
    text = page.read_text("utf-8")
    about = json.loads(re.search(r'<script type="application/json" id="page">(.*?)</script>', text)[1])
    levels = []
    for number, level in enumerate(about["levels"]):
        data = base64.b64decode(re.search(rf'id="features-{number}">(.*?)</script>', text)[1])
        count = level["components"]
        scales, values = np.frombuffer(data[: 4 * count], "<f4"), np.frombuffer(data[4 * count :], np.int8)
        levels.append(values.reshape(-1, count) * scales.astype(np.float64))
    return about, levels


def test_a_page_holds_the_features_of_the_run(tmp_path):
    extract([make_photos(tmp_path / "photos", 3)], tmp_path / "run", fit="pad")
    run = featx.open_run(tmp_path / "run")
    made = write_page(run, tmp_path / "page.html")
    about, levels = described(tmp_path / "page.html")
    assert made.photos == list(run)
    assert made.bytes == (tmp_path / "page.html").stat().st_size
    assert about["model"] == "test_resnet"
    assert "random" in about["warning"]
    assert any("cosines" in note for note in made.notes)
    assert set(made.notes) < set(about["notes"])
    for level, rows in zip(run.maps, levels, strict=True):
        valid = [run[key][level.key][(slice(None), *run.valid(key, level))] for key in run]
        whole = np.concatenate([values.reshape(len(values), -1).T for values in valid])
        assert len(rows) == len(whole)
        off = np.abs(cosines(rows) - cosines(whole))
        assert off.mean() < 0.003
        assert made.levels[level.key].mean == pytest.approx(off[np.triu_indices(len(off), 1)].mean(), rel=0.2)


def test_a_page_is_as_small_as_asked_or_says_the_least_that_works(tmp_path):
    extract([make_photos(tmp_path / "photos", 6)], tmp_path / "run", image_size=128)
    path = tmp_path / "page.html"
    whole = write_page(tmp_path / "run", path)
    assert not any("MB" in note for note in whole.notes)
    worst = []
    for limit in (0.6, 0.3, 0.15):
        made = write_page(tmp_path / "run", path, max_mb=limit)
        assert path.stat().st_size == made.bytes <= 1e6 * limit
        assert any(f"fit into {limit} MB" in note for note in made.notes)
        worst.append((len(made.photos), -max(cost.mean for cost in made.levels.values())))
    assert worst == sorted(worst, reverse=True)
    assert worst[-1][0] < 6
    before = path.read_bytes()
    with pytest.raises(FeatxError, match=r"does not fit into 0.05 MB. Raise --max-mb to [\d.]+") as refused:
        write_page(tmp_path / "run", path, max_mb=0.05)
    assert path.read_bytes() == before
    least = float(re.search(r"max-mb to ([\d.]+)", str(refused.value))[1])
    assert len(write_page(tmp_path / "run", path, max_mb=least).photos) == 1
    assert write_page(tmp_path / "run", path, levels=[4], max_mb=least).bytes <= 1e6 * least


class Tags(HTMLParser):
    """The tags of a page, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, "src" in dict(attrs), any(name.startswith("on") for name, _ in attrs)))


@pytest.fixture
def hostile(tmp_path):
    """A run of photos whose names are markup."""
    folder = tmp_path / "photos"
    for number, name in enumerate(HOSTILE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        natural_image(number).save(folder / name)
    extract([folder], tmp_path / "run", out_indices=(2, 3))
    return tmp_path / "run"


def test_names_of_photos_are_text(hostile, tmp_path):
    write_page(hostile, tmp_path / "page.html")
    make_photos(tmp_path / "plain", 3)
    extract([tmp_path / "plain"], tmp_path / "other", out_indices=(2, 3))
    write_page(tmp_path / "other", tmp_path / "other.html")
    text, other = ((tmp_path / name).read_text("utf-8") for name in ("page.html", "other.html"))
    assert Tags(text).found == Tags(other).found
    assert "onerror" in text
    assert not any(source or handler for _, source, handler in Tags(text).found)


def test_what_is_refused_costs_nothing(featx_command, forge, tmp_path, photos):
    assert forge.extract(tmp_path, photos, "run", "--out-indices", "3")["status"] == 0
    assert forge.extract(tmp_path, photos, "vectors", "--embedding", "--no-maps")["status"] == 0
    (tmp_path / "foreign.html").write_text("<!doctype html>\n<html lang='en'>my own")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link.html").symlink_to("nowhere.html")
    before = tree(tmp_path)
    refusals = {
        ("vectors", "--html", "page.html"): "has no maps",
        ("run", "photos/9.jpg", "--html", "page.html"): "has no photo photos/9.jpg",
        ("run", "--html", "page.html", "--level", "4"): "has no map level_4",
        ("run", "--html", "foreign.html"): "foreign.html exists and was not written by featx",
        ("run", "--html", "folder.html"): "folder.html exists and was not written by featx",
        ("run", "--html", "link.html"): "link.html exists and was not written by featx",
        ("run", "--html", "page.png"): "page.png is not the name of a page",
        ("run", "--html", "none/page.html"): "There is no folder none",
        ("run", "--html", "/proc/page.html"): "cannot be written",
        ("run", "--html", "page.html", "--max-mb", "0.01"): "does not fit into 0.01 MB. Raise --max-mb to",
        ("run", "--html", "page.html", "--max-mb", "nan"): "expected a number above 0",
        ("run", "--html", "page.html", "--smooth"): "--smooth is for pictures",
        ("run", "--html", "page.html", "--output", "sheet.png"): "--output and --html cannot be combined",
        ("run", "--max-mb", "3"): "--max-mb is for --html",
    }
    for arguments, reason in refusals.items():
        done = featx_command("view", *arguments)
        assert done.returncode in (1, 2), arguments
        assert reason in done.stderr, (arguments, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert tree(tmp_path) == before


def test_a_page_replaces_a_page(featx_command, forge, tmp_path, photos):
    assert forge.extract(tmp_path, photos, "run", "--out-indices", "3")["status"] == 0
    first, again = (featx_command("view", "run", "--html", "page.html", "--max-photos", "2") for _ in range(2))
    assert (first.returncode, first.stdout) == (again.returncode, again.stdout) == (0, "page.html\n")
    assert "random weights" in first.stderr
    assert "2 of 3 photos" in first.stderr
    (photos / "1.jpg").unlink()
    Image.new("RGB", (9, 9)).save(photos / "2.jpg")
    done = json.loads(featx_command("view", "run", "--html", "page.html", "--json").stdout)
    assert done["gone"] == ["photos/1.jpg", "photos/2.jpg"]
    assert done["photos"] == ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg"]
    assert any("The files of 2 photos are gone or changed" in note for note in done["notes"])
    about, _ = described(tmp_path / "page.html")
    assert [bool(each["jpeg"]) for each in about["photos"]] == [True, False, False]


def test_levels_without_a_cell_on_any_photo_are_left_out(tmp_path):
    natural_image(0, 800, 10).save(tmp_path / "narrow.png")  # two pixels high in 160, between centres of stride 32
    featx.extract(tmp_path / "narrow.png", "test_resnet", tmp_path / "run", weights="random", fit="pad", device="cpu")
    made = write_page(tmp_path / "run", tmp_path / "page.html")
    assert "level_4" not in made.levels
    assert "level_4 is left out, as no cell of it is centred on a photo." in made.notes
    about, _ = described(tmp_path / "page.html")
    assert all(any(each["cells"][number]["rows"] for each in about["photos"]) for number in range(len(about["levels"])))
    with pytest.raises(FeatxError, match="No cell of level_4 is centred on the photos"):
        write_page(tmp_path / "run", tmp_path / "page.html", levels=[4])


@pytest.fixture(scope="session")
def chromium():
    """A browser without a window."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Opened:
    """A page in a browser, and everything that it complained of or asked the network for."""

    def __init__(self, browser, path, **options):
        self.page = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        self.complaints = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requested(request.url))
        self.page.goto(path.as_uri())
        self.settle()

    def requested(self, url):
        if not url.startswith(("file:", "data:")):
            self.complaints.append(url)

    def settle(self):
        """Wait until what was asked for is drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def box(self, photo):
        stage = self.page.locator(".stage").nth(photo)
        stage.scroll_into_view_if_needed()
        return stage.bounding_box()

    def point(self, photo, u, v):
        box = self.box(photo)
        return box["x"] + u * box["width"], box["y"] + v * box["height"]

    def move(self, photo, u, v):
        self.page.mouse.move(*self.point(photo, u, v))
        self.settle()

    def click(self, photo, u, v):
        self.page.mouse.click(*self.point(photo, u, v))
        self.settle()

    def press(self, key):
        self.page.keyboard.press(key)
        self.settle()

    def pictures(self):
        """Return the colours of all cells."""
        return self.page.evaluate(
            "() => [...document.querySelectorAll('.stage canvas')].map((each) => each.toDataURL())"
        )

    def mark(self, photo, kind):
        """Return where a mark lies, in shares of the photo's width and height; None where there is none."""
        script = """([photo, kind]) => {
            const mark = document.querySelectorAll('.stage')[photo].querySelector(kind);
            return mark.hidden ? null : [parseFloat(mark.style.left) / 100, parseFloat(mark.style.top) / 100];
        }"""
        return self.page.evaluate(script, [photo, kind])

    def text(self, place):
        return self.page.locator(place).inner_text()


@pytest.fixture
def opened(chromium):
    """Open pages; no page may complain, or ask for anything."""
    pages = []

    def open_page(path, **options):
        pages.append(Opened(chromium, path, **options))
        return pages[-1]

    yield open_page
    for each in pages:
        assert each.complaints == []
        each.page.close()


@pytest.fixture
def twins(tmp_path):
    """A page of a photo, the same once more, and another one; wide, so that they have bars."""
    folder = tmp_path / "twins"
    folder.mkdir()
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        natural_image(seed, 120, 80).save(folder / name)
    extract([folder], tmp_path / "run", image_size=96, fit="pad", out_indices=(1, 2, 3))
    write_page(tmp_path / "run", tmp_path / "page.html")
    return featx.open_run(tmp_path / "run"), tmp_path / "page.html"


def test_moving_the_pointer_compares_cells(opened, twins):
    run, path = twins
    shown = opened(path)
    first = shown.pictures()
    for u, v in ((0.31, 0.42), (0.77, 0.66), (0.05, 0.28)):
        shown.move(0, u, v)
        assert shown.mark(0, ".best") == shown.mark(0, ".cross") == shown.mark(1, ".best")
        assert shown.mark(1, ".cross") is None
        assert [each.inner_text() for each in shown.page.locator(".score").all()][:2] == ["1.000", "1.000"]
        assert shown.pictures() != first
    # The numbers are those of the features: of the cell at a pixel, and of the one most similar to it.
    x, y = map(int, re.search(r"x (\d+), y (\d+) of", shown.text("#point")).groups())
    key, level = next(iter(run)), run.maps[int(shown.page.locator("#choices input:checked").get_attribute("value"))]
    row, column = (round(float(each)) for each in run.pixel_to_cell(key, level, x, y))
    vector, other = run[key][level.key][:, row, column], run["twins/c.png"][level.key]
    rows, columns = run.valid("twins/c.png", level)
    found = np.einsum("chw,c->hw", unit_map(other[:, rows, columns]), vector / np.linalg.norm(vector))
    score = float(shown.page.locator(".score").nth(2).inner_text())
    assert score == pytest.approx(found.max(), abs=0.01)
    shown.click(0, 0.5, 0.5)
    shown.move(2, 0.5, 0.5)
    read = float(re.search(r"Similarity (\S+) at", shown.text("#under"))[1].replace("\u2212", "-"))
    x, y = map(int, re.search(r"x (\d+), y (\d+) of", shown.text("#under")).groups())
    there = [round(float(each)) for each in run.pixel_to_cell("twins/c.png", level, x, y)]
    x, y = map(int, re.search(r"x (\d+), y (\d+) of", shown.text("#point")).groups())
    here = [round(float(each)) for each in run.pixel_to_cell(key, level, x, y)]
    expected = cosines([run[key][level.key][:, *here], other[:, *there]])[0, 1]
    assert read == pytest.approx(expected, abs=0.01)


def unit_map(values):
    return values / np.linalg.norm(values, axis=0)


def test_cells_lie_where_they_are_centred_and_not_on_bars(opened, twins):
    run, path = twins
    shown = opened(path)
    frame = run.frame("twins/a.png")
    for level in run.maps:
        shown.page.locator(f"#choices input[value='{run.maps.index(level)}']").check(force=True)
        shown.settle()
        rows, columns = run.valid("twins/a.png", level)
        first = run.cell_box("twins/a.png", level, rows.start, columns.start)
        last = run.cell_box("twins/a.png", level, rows.stop - 1, columns.stop - 1)
        (left, top), (right, bottom) = (frame.to_input(x - 0.5, y - 0.5) for x, y in (first[:2], last[2:]))
        stage, heat = (shown.page.locator(place).first.bounding_box() for place in (".stage", ".stage canvas"))
        scale = stage["width"] / frame.input[0]
        assert heat["x"] - stage["x"] == pytest.approx((left + 0.5) * scale, abs=0.5)
        assert heat["y"] - stage["y"] == pytest.approx((top + 0.5) * scale, abs=0.5)
        assert heat["width"] == pytest.approx((right - left) * scale, abs=0.5)
        assert heat["height"] == pytest.approx((bottom - top) * scale, abs=0.5)


def test_a_click_pins_and_keys_do_the_same(opened, twins):
    shown = opened(twins[1])
    shown.click(0, 0.3, 0.5)
    pinned, pictures = shown.mark(0, ".cross"), shown.pictures()
    shown.move(2, 0.6, 0.6)
    assert (shown.mark(0, ".cross"), shown.pictures()) == (pinned, pictures)
    assert shown.text("#point").startswith("Pinned: x ")
    shown.press("Escape")
    assert shown.mark(0, ".cross") is None
    assert shown.mark(2, ".cross") == shown.mark(2, ".best")

    shown.page.locator(".stage").nth(1).focus()
    shown.press("ArrowRight")
    before = shown.mark(1, ".cross")
    shown.press("ArrowRight")
    shown.press("ArrowDown")
    after = shown.mark(1, ".cross")
    assert after[0] > before[0]
    assert after[1] > before[1]
    shown.press("Enter")
    shown.press("ArrowLeft")
    assert shown.mark(1, ".cross") == after
    assert "twins/b.png" in shown.text("#under")
    assert shown.page.locator("#under").get_attribute("aria-live") == "polite"

    level = shown.text("#about-level")
    shown.press("]")
    assert shown.text("#about-level") != level
    shown.press("[")
    assert shown.text("#about-level") == level
    shown.press("1")
    assert shown.page.locator("#choices input:checked + span").inner_text() == "1"
    shown.press("0")  # of which there is none
    assert shown.page.locator("#choices input:checked + span").inner_text() == "1"


def test_a_finger_drags_and_taps(opened, twins):
    shown = opened(twins[1], has_touch=True, is_mobile=True)
    first = shown.pictures()
    touch = shown.page.context.new_cdp_session(shown.page)
    (x, y), (end, _) = shown.point(0, 0.2, 0.5), shown.point(0, 0.8, 0.5)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        at = {"x": x + share * (end - x), "y": y}
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [at]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    shown.settle()
    assert shown.mark(0, ".cross")[0] == pytest.approx(0.8, abs=0.1)
    assert shown.pictures() != first
    assert shown.text("#point").startswith("Point: ")
    shown.page.touchscreen.tap(*shown.point(0, 0.4, 0.5))
    shown.page.locator("#unpin").wait_for()
    assert shown.mark(0, ".cross")[0] == pytest.approx(0.4, abs=0.1)
    assert shown.text("#point").startswith("Pinned: ")


def test_the_page_follows_the_colour_scheme_and_its_switches(opened, twins):
    shown = opened(twins[1], color_scheme="dark")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    dark = shown.page.evaluate(paper)
    shown.page.locator("#theme").select_option("light")
    assert shown.page.evaluate(paper) != dark
    shown.page.locator("#opacity").fill("20")
    assert shown.page.locator(".stage canvas").first.evaluate("(each) => getComputedStyle(each).opacity") == "0.2"
    low = shown.text("#low")
    shown.page.locator("#stretch").check()
    shown.settle()
    assert shown.text("#low") != low
    for width in (1200, 400, 320):
        shown.page.set_viewport_size({"width": width, "height": 800})
        assert shown.page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_a_browser_shows_hostile_names_as_text(opened, hostile, tmp_path):
    write_page(hostile, tmp_path / "page.html")
    shown = opened(tmp_path / "page.html")
    shown.move(0, 0.5, 0.5)
    captions = [each.inner_text() for each in shown.page.locator(".key").all()]
    assert len(captions) == len(HOSTILE)
    assert any("<img src=x onerror=alert(1)>.png" in each for each in captions)
    assert any("</script><script>alert(2)<!--.png" in each for each in captions)
    assert any("&lt;b&amp;\\u202egnp.png" in each for each in captions)
    assert shown.page.locator("img").count() == len(HOSTILE)
    assert shown.page.locator("[onerror]").count() == 0


def test_a_photo_without_cells_or_without_a_file(opened, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    natural_image(0, 64, 64).save(folder / "0.png")
    Image.new("RGB", (640, 12), "green").save(folder / "1.png")  # between the centres of coarse cells
    extract([folder], tmp_path / "run", fit="pad", image_size=64)
    (folder / "0.png").unlink()
    write_page(tmp_path / "run", tmp_path / "page.html")
    shown = opened(tmp_path / "page.html")
    assert shown.text(".gone") == "photo is gone"
    for number in range(len(described(tmp_path / "page.html")[0]["levels"])):
        shown.page.locator(f"#choices input[value='{number}']").check(force=True)
        shown.move(1, 0.5, 0.5)
        shown.move(0, 0.5, 0.5)
        assert shown.mark(0, ".best") == shown.mark(0, ".cross")
    assert shown.page.locator(".score").nth(1).inner_text() == "no cell"
    assert shown.mark(1, ".best") is None

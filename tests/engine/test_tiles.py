# Pictures in tiles, through the real pipeline: the maps of one pass where that can be, and told where it cannot.
from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import featx
from featx.cli.descriptions import losses_table
from featx.engine.beside import Part
from featx.engine.mosaic import Tiles
from featx.engine.reducing import Photo
from featx.engine.reductions import reductions_of
from featx.errors import ModelError, OutputError, StoppedError, UsageError
from featx.explore.verify import verify
from featx.images.tiff_blocks import TiffBlocks
from featx.images.tiles import Tiling
from featx.models.pyramid import draw_up, load
from featx.models.reach import reach_of
from featx.requests import Job, ModelRequest
from featx.runs.basis import FITTED, read
from featx.runs.formats.large import InMemory, Nameless
from featx.values import Note, Outcome
from tests.helpers import extract, lines, natural_image, notes, outputs


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A picture of 310 x 250 pixels in strips, which several tiles cover, the last ones only in part."""
    path = tmp_path_factory.mktemp("photos") / "photo.tif"
    natural_image(0, 310, 250).save(path, compression="tiff_lzw", strip_size=310 * 3 * 16)
    return path


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """Weights by name, drawn so that no branch of a network is switched off, as some are in new ones."""

    def of(name):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            module = timm.create_model(name)
            for key, values in module.named_parameters():
                if values.ndim == 1:
                    torch.nn.init.uniform_(values, *((-0.1, 0.1) if "bias" in key else (0.5, 1)))
            save_file(module.state_dict(), path)
        return path

    folder = tmp_path_factory.mktemp("weights")
    return of


def native(inputs, output, **options):
    return extract(inputs, output, **{"image_size": None, "fit": "native", **options})


def deviations(found, expected):
    return {name: float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected}


def test_tiles_of_a_convolutional_network_are_exact(photo, tmp_path, lively):
    options = {"weights": lively("test_resnet"), "final": True}
    native(photo, tmp_path / "whole", **options)
    report = native(photo, tmp_path / "tiles", tile=64, **options)
    tiling = report.summary["tiling"]
    assert (tiling["tile"], tiling["exact"]) == (64, False)  # the halo is a quarter of so small a tile
    report = native(photo, tmp_path / "tiles", tile=64, halo=96, overwrite=True, **options)
    tiling = report.summary["tiling"]
    assert tiling == {"tile": 64, "halo": 96, "reach": 96, "exact": True, "deviation": tiling["deviation"]}
    whole, tiles = (featx.open_run(tmp_path / name) for name in ("whole", "tiles"))
    assert max(deviations(tiles["photo.tif"], whole["photo.tif"]).values()) <= 5e-7
    assert max(tiling["deviation"].values()) <= 5e-7
    assert tiles.frame("photo.tif") == whole.frame("photo.tif")
    assert lines(tmp_path / "tiles")[0]["levels"] == lines(tmp_path / "whole")[0]["levels"]
    verified = verify(tmp_path / "tiles", recompute=1)
    assert verified.sound
    assert verified.recomputed.deviation == 0


def test_one_tile_is_the_map_bit_for_bit(photo, tmp_path, lively):
    options = {"model": "test_efficientnet", "weights": lively("test_efficientnet")}
    native(photo, tmp_path / "whole", **options)
    native(photo, tmp_path / "tile", tile=320, **options)
    assert outputs(tmp_path / "tile") == outputs(tmp_path / "whole")


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_where_the_whole_picture_counts_the_deviation_is_told(name, tmp_path, lively, request):
    """It is measured on two tiles side by side; here that is all of the picture."""
    if name.startswith("swin") and not request.config.getoption("large"):
        pytest.skip("a large network")
    tile, width, height = (224, 448, 224) if name.startswith("swin") else (96, 192, 96)
    natural_image(0, width, height).save(tmp_path / "photo.png")
    heard = []
    options = {"model": name, "weights": lively(name)}
    native(tmp_path / "photo.png", tmp_path / "whole", **options)
    report = native(tmp_path / "photo.png", tmp_path / "tiles", tile=tile, halo=0, listener=heard.append, **options)
    tiling = report.summary["tiling"]
    assert not tiling["exact"]
    assert any("approximate" in event.text for event in heard if isinstance(event, Note))
    whole, tiles = (featx.open_run(tmp_path / run)["photo.png"] for run in ("whole", "tiles"))
    expected = deviations(tiles, whole)
    assert max(expected.values()) > 1e-3
    assert tiling["deviation"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"])
def test_the_reach_is_that_of_a_change_of_pixels(name, lively):
    """Brute force: pixels beyond the reach change no cell, and those within it do, as far as numbers can show."""
    blueprint = draw_up(ModelRequest(name, fit="native", weights=str(lively(name))))
    reach = reach_of(blueprint)
    module = blueprint.library.build(blueprint.description, blueprint.request)[0].double()
    length = 2048
    picture = torch.randn(1, 3, 32, length, generator=torch.Generator().manual_seed(0)).double()
    changed = picture.clone()
    changed[..., : length // 2] *= 1000
    with torch.no_grad():
        pairs = zip(module(picture), module(changed), strict=True)
        farthest = 0
        for before, after in pairs:
            same = (before == after).all(1)[0].all(0)
            first = int(same.nonzero()[0]) if same.any() else len(same)
            farthest = max(farthest, first * length // len(same) - length // 2)
    reach = length // 2 if reach is None else reach
    assert reach - 32 <= farthest <= reach


@pytest.fixture(scope="module")
def basis(photo, tmp_path_factory, lively):
    """The folder of a run with five components."""
    folder = tmp_path_factory.mktemp("basis") / "run"
    native(photo, folder, weights=lively("test_resnet"), final=True, components=5)
    return folder


@pytest.fixture(scope="module")
def tiled(photo, tmp_path_factory, lively, request):
    """The options of a run in tiles, and the run."""
    folder = tmp_path_factory.mktemp("tiled") / "run"
    options = {"weights": str(lively("test_resnet")), "final": True, "tile": 64, "halo": request.param}
    native(photo, folder, **options)
    return options, featx.open_run(folder)


SMALLER = [
    {"grid": (3, 5)},
    {},
    {"grid": (40, 3), "grid_pool": "max"},
    {"components": 5},
    {"dtype": "int8"},
    {"grid": (7, 2), "grid_pool": "max", "dtype": "float16"},
    {"grid": (6, 6), "components": 5, "dtype": "int8"},
]


@pytest.mark.parametrize(
    ("tiled", "options"),
    [*((96, options) for options in SMALLER), (32, SMALLER[0]), (32, SMALLER[-1])],
    indirect=["tiled"],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(value) or "whole",
)
def test_maps_of_tiles_are_made_smaller(photo, tmp_path, basis, tiled, monkeypatch, options):
    """Row by row, on the disk: as the steps make smaller the whole map, which is that of one pass where it is exact."""
    given, whole = tiled
    own = {"basis": str(basis)} if "components" in options else {}
    monkeypatch.setattr("featx.engine.beside.AT_A_TIME", 1)
    for name in ("BESIDE", "IN_MEMORY"):
        monkeypatch.setattr(f"featx.engine.bands.{name}", 0)
    native(photo, tmp_path / "small", **given, **own, **options)
    small = featx.open_run(tmp_path / "small", raw=True)
    job = Job("test_resnet", **{"fit": "native", **given, **own, **options})
    pyramid = load(job.request, torch.device("cpu"))
    steps = reductions_of(job, pyramid.fields, pyramid.maps, basis=read(basis))
    fields, photos = list(pyramid.fields), [Photo("photo.tif", whole.frame("photo.tif"))]
    values = [torch.from_numpy(np.array(whole["photo.tif"][field.key]))[None] for field in fields]
    for step in steps:
        values, fields = step(values, photos), step.fields(fields)
    assert list(small["photo.tif"]) == [field.key for field in fields]
    for field, value in zip(fields, values, strict=True):
        found, expected = small["photo.tif"][field.key], value[0].numpy().astype(field.dtype)
        if "components" not in options:  # of which sums may be made in another order
            np.testing.assert_array_equal(found, expected)
        allowed = 1 if field.dtype == "int8" else 2e-6 * np.abs(expected).max()
        assert np.abs(found.astype(float) - expected).max() <= allowed
    if options == SMALLER[-1]:
        checked = verify(tmp_path / "small", recompute=1)
        assert (checked.sound, checked.recomputed.deviation) == (True, 0)
        assert not native(photo, tmp_path / "small", **given, **own, **options).tried
        x, y = small.cell_to_pixel("photo.tif", 1, 5, 5)
        assert (250 < x < 310, 200 < y < 250) == (True, True)  # the last cell of the grid


def test_no_whole_map_is_held_on_the_way_to_a_grid(photo, tmp_path, lively, monkeypatch):
    """What is kept of tiles, and of their maps, are rows of the grid alone."""
    kept = []
    whole, part = InMemory.__init__, Part.put
    monkeypatch.setattr(
        InMemory, "__init__", lambda self, shape, dtype: kept.append(shape) or whole(self, shape, dtype)
    )
    monkeypatch.setattr(Part, "put", lambda self, row, values: kept.append(values.shape) or part(self, row, values))
    monkeypatch.setattr(Tiles, "_measured", lambda *_: {})
    native(photo, tmp_path / "out", weights=lively("test_resnet"), tile=64, halo=96, grid=(4, 3))
    written = featx.open_run(tmp_path / "out")["photo.tif"]
    assert {values.shape for values in written.values()} < set(kept)
    rows = [shape for shape in kept if shape[1:] != (4, 3)]
    assert {height for _, height, _ in rows} == {1}
    assert len(rows) == 4 * 5 * len(written)  # four rows of the grid, of five columns of tiles


@pytest.mark.parametrize("grid", [None, "9x4"])
def test_components_are_fitted_on_pictures_in_tiles(photo, tmp_path, lively, monkeypatch, grid):
    """A picture's cells are summed up row by row; with those of a smaller one, they give the basis of whole maps."""
    natural_image(3, 60, 90).save(tmp_path / "a.png")
    photos, heard = [tmp_path / "a.png", photo], []
    options = {"weights": lively("test_resnet"), "components": 4, "grid": grid}
    native(photos, tmp_path / "whole", **options)
    monkeypatch.setattr("featx.engine.beside.AT_A_TIME", 1)
    report = native(photos, tmp_path / "tiles", tile=64, halo=96, listener=heard.append, **options)
    whole, tiles = (np.load(tmp_path / name / "basis.npz") for name in ("whole", "tiles"))
    for name in whole.files:
        if name.startswith("level"):
            np.testing.assert_allclose(tiles[name], whole[name], rtol=1e-3, atol=1e-4)
    assert str(tiles[FITTED]) == str(whole[FITTED])
    assert report.summary["cost"] == {"images": 0, "levels": {}}
    assert "What smaller maps lose is not measured with --tile" in notes(heard)
    assert [list(column.cells) for column in losses_table(report.summary).columns] == [
        ["not measured, since --tile was given"]
    ]
    assert verify(tmp_path / "tiles", recompute=2).recomputed.deviation == 0


def test_what_a_picture_takes_is_said_once(tmp_path, monkeypatch):
    """Not for fitting components too, which decodes it once more."""
    monkeypatch.setattr("featx.engine.mosaic.MUCH", 0)
    natural_image(3, 300, 200).save(tmp_path / "a.png")
    heard = []
    native(tmp_path / "a.png", tmp_path / "out", tile=64, halo=96, components=2, listener=heard.append)
    assert sum("a.png is decoded as a whole" in note for note in notes(heard)) == 1


def test_a_picture_is_read_band_by_band(photo, tmp_path, lively, monkeypatch):
    """No strip is read before its band is due, and maps that memory should not hold are written all the same."""
    monkeypatch.setattr("featx.engine.bands.IN_MEMORY", 0)
    decoded = []
    honest = TiffBlocks.decoded
    monkeypatch.setattr(TiffBlocks, "decoded", lambda self, number: decoded.append(number) or honest(self, number))
    monkeypatch.setattr(Tiles, "_measured", lambda *_: {})
    options = {"weights": lively("test_resnet"), "tile": 64, "halo": 32}
    native(photo, tmp_path / "out", **options)
    # Windows of 128 rows that begin at 0, 32, 96 and 128; strips have 16.
    assert decoded == [*range(8), *range(2, 10), *range(6, 14), *range(8, 16)]
    monkeypatch.undo()
    native(photo, tmp_path / "in_memory", **options)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "in_memory")


@pytest.mark.parametrize("options", [{}, {"components": 4}, {"dtype": "int8"}], ids="-".join)
def test_a_full_disk_is_not_the_fault_of_the_picture(photo, tmp_path, lively, monkeypatch, options):
    """Maps, and the cells that components are fitted on, wait on the disk; the run goes on once there is room."""
    options = {"weights": lively("test_resnet"), "tile": 64, "halo": 96, **options}
    native(photo, tmp_path / "straight", **options)
    for name in ("BESIDE", "IN_MEMORY"):
        monkeypatch.setattr(f"featx.engine.bands.{name}", 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Nameless, "write", full)
        with pytest.raises(OutputError, match=r"photo\.tif cannot be written: No space"):
            native(photo, tmp_path / "out", **options)
    assert native(photo, tmp_path / "out", **options).summary["counts"]["done"] == 1
    assert outputs(tmp_path / "out") == outputs(tmp_path / "straight")


def test_what_is_not_finite_is_not_compared(photo, tmp_path, lively):
    """A summary without NaN; the maps of the next picture are compared."""
    weights = load_file(lively("test_resnet"))
    large = {key: values * 300 if key.endswith("bn1.weight") else values for key, values in weights.items()}
    save_file(large, tmp_path / "large.safetensors")
    report = native(photo, tmp_path / "out", weights=tmp_path / "large.safetensors", tile=64, halo=96, dtype="float16")
    assert "holds NaN or infinity" in report.failures[0].error
    assert "deviation" not in report.summary["tiling"]


def test_a_halo_may_be_as_wide_as_a_tile(tmp_path, lively):
    """Brute force: the weighted sum of what all tiles give, where the second row of them reaches the first cell."""
    picture, weights = natural_image(0, 192, 160), str(lively("test_resnet"))
    picture.save(tmp_path / "photo.png")
    native(tmp_path / "photo.png", tmp_path / "tiles", tile=32, halo=32, weights=weights)
    found, pixels = featx.open_run(tmp_path / "tiles")["photo.png"], torch.from_numpy(np.array(picture))
    pyramid = load(Job("test_resnet", fit="native", weights=weights).request, torch.device("cpu"))
    tiling, sums = Tiling(32, 32, 96), {key: np.zeros(values.shape) for key, values in found.items()}
    for row, down in enumerate(tiling.spans(160)):
        for column, across in enumerate(tiling.spans(192)):
            window = pixels[down.first : down.last, across.first : across.last]
            maps = pyramid.run(pyramid.normalise(window[None]))
            for values, total in zip(maps, sums.values(), strict=True):
                rows, columns = (tiling.shares(*sides) for sides in zip((160, 192), total.shape[1:], strict=True))
                (top, bottom, above, tall), (left, right, before, wide) = rows[row], columns[column]
                part = values[0, :, above : above + bottom - top, before : before + right - left].detach().numpy()
                total[:, top:bottom, left:right] += part * tall[:, None] * wide
    assert max(deviations(found, sums).values()) <= 1e-6


def test_a_stopped_picture_is_begun_again(photo, tmp_path, lively):
    small = tmp_path / "a.png"
    natural_image(1, 60, 60).save(small)
    options = {"weights": lively("test_resnet"), "tile": 64, "halo": 96}

    def interrupt(event):
        if isinstance(event, Outcome):
            raise KeyboardInterrupt

    with pytest.raises(StoppedError):
        native([small, photo], tmp_path / "out", listener=interrupt, **options)
    report = native([small, photo], tmp_path / "out", **options)
    assert report.summary["counts"]["done"] == 2
    native([small, photo], tmp_path / "straight", **options)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "straight")
    again = native([small, photo], tmp_path / "out", **options)
    assert again.tried == 0
    assert again.summary["tiling"] == report.summary["tiling"]


def test_a_broken_or_isolated_picture(photo, tmp_path, lively):
    """A file that ends early fails with a line; pictures read in processes of their own give the same bytes."""
    options = {"weights": lively("test_resnet"), "tile": 64, "halo": 96}
    (tmp_path / "in").mkdir()
    data = photo.read_bytes()
    (tmp_path / "in" / "photo.tif").write_bytes(data)
    native(tmp_path / "in", tmp_path / "out", **options)
    native(tmp_path / "in", tmp_path / "apart", isolate=True, **options)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "apart")
    strips = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    (tmp_path / "in" / "broken.tif").write_bytes(strips)
    report = native(tmp_path / "in", tmp_path / "out", **options)
    assert [(each.item.key, each.stage) for each in report.failures] == [("in/broken.tif", "decode")]
    assert not list((tmp_path / "out").rglob("broken*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fit": None, "image_size": 64}, "--tile is for --fit native"),
        ({"max_side": 100}, "--max-side shrinks"),
        ({"embedding": True}, "--embedding needs the whole picture"),
        ({"level_mpp": 0.5, "isolate": True}, "cannot read slides at a --level-mpp"),
        ({"engine": "ray"}, "--engine local"),
        ({"tile": None, "halo": 32}, "--halo is for tiles"),
        ({"tile": None, "level_mpp": 0.5}, "--level-mpp is for slides"),
    ],
)
def test_contradictions_are_refused(photo, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        extract(photo, tmp_path / "out", **{"image_size": None, "fit": "native", "tile": 64, **options})


def test_sizes_are_rounded_up_and_other_networks_refused(photo, tmp_path):
    heard = []
    report = native(photo, tmp_path / "out", tile=50, halo=90, listener=heard.append)
    assert (report.summary["recipe"]["tile"], report.summary["recipe"]["halo"]) == (64, 96)
    said = "--tile 50 became 64, --halo 90 became 96: test_resnet takes multiples of 32 pixels"
    assert said in [event.text for event in heard if isinstance(event, Note)]
    with pytest.raises(ModelError, match=r"inception_v3 cannot be run in tiles: its level_0 does not grow"):
        native(photo, tmp_path / "other", model="inception_v3", tile=192)


def test_the_forecast_counts_tiles(photo, tmp_path):
    path = tmp_path / "photo.png"
    natural_image(0, 1600, 1000).save(path)
    plain = native(path, tmp_path / "out", dry_run=True).forecast
    tiled = native(path, tmp_path / "out", tile=256, halo=96, dry_run=True).forecast
    assert tiled.tiles == (256, 96, 28, 448)
    assert tiled.bytes == plain.bytes
    assert tiled.pass_memory < plain.pass_memory / 4
    assert json.dumps(tiled.tiles)
    assert tiled.savings == plain.savings
    small = native(path, tmp_path / "out", tile=256, halo=96, grid=7, dtype="int8", dry_run=True).forecast
    assert (small.pass_memory, small.tiles) == (tiled.pass_memory, tiled.tiles)
    assert small.bytes < tiled.bytes / 50

# Photos at their own size, through the real pipeline: the same bits in any company, what timm gives, bounded memory.
from __future__ import annotations

import json
import random
import re
import threading

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config

import featx
from featx.engine import batching, room
from featx.engine.events import Foreseen
from featx.engine.room import Need, Room
from featx.errors import ModelError, StoppedError
from featx.explore.verify import verify
from featx.images.frame import Frame
from featx.values import Item, Outcome, Stat
from tests.helpers import extract, lines, natural_image, outputs

SIZES = [(96, 72), (72, 96), (64, 64), (120, 40), (33, 65), (20, 10)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two hundred photos of six sizes in a mixed order, and their names."""
    folder = tmp_path_factory.mktemp("mixed")
    chance = random.Random(1)
    for number in range(200):
        natural_image(number, *chance.choice(SIZES)).save(folder / f"{number}.png")
    return folder


def native(inputs, output, **options):
    return extract(inputs, output, image_size=None, fit="native", **options)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_same_bytes_in_any_order_and_after_an_interruption(mixed, tmp_path, batch_size):
    paths = sorted(mixed.iterdir())
    native(paths, tmp_path / "whole", batch_size=batch_size)
    shuffled = random.Random(batch_size).sample(paths, len(paths))

    def interrupt(event):
        if isinstance(event, Outcome):
            seen.append(event)
        if len(seen) == 90:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(StoppedError):
        native(shuffled, tmp_path / "out", batch_size=batch_size, listener=interrupt)
    assert 90 <= len(lines(tmp_path / "out")) < 200
    report = native(paths[::-1], tmp_path / "out", batch_size=batch_size)
    assert 0 < report.computed < 200
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")
    assert len(outputs(tmp_path / "out")) == 200
    again = native(paths, tmp_path / "out", batch_size=batch_size)
    assert (again.tried, again.failures) == (0, [])


def test_maps_equal_timm_on_the_padded_photo(tmp_path, threads):
    for number, size in enumerate(SIZES):
        natural_image(number, *size).save(tmp_path / f"{number}.png")
    report = native(tmp_path, tmp_path / "out")
    threads(report.summary["recipe"]["threads"])
    torch.manual_seed(0)
    reference = timm.create_model("test_resnet", features_only=True).eval().to(memory_format=torch.channels_last)
    config = resolve_model_data_config(reference)
    mean, std = (np.array(config[name], np.float32) for name in ("mean", "std"))
    run = featx.open_run(tmp_path / "out")
    for number, (width, height) in enumerate(SIZES):
        tall, wide = (-(-side // 32) * 32 for side in (height, width))
        pixels = np.full((tall, wide, 3), np.round(255 * mean), np.uint8)
        pixels[:height, :width] = Image.open(tmp_path / f"{number}.png")
        values = torch.from_numpy(((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None].copy())
        with torch.no_grad():
            maps = reference(values.contiguous(memory_format=torch.channels_last))
        (key,) = (key for key in run if key.endswith(f"/{number}.png"))
        for index, level in enumerate(maps):
            np.testing.assert_array_equal(run[key][f"level_{index}"], level[0].numpy())


def test_the_books_say_the_sizes(mixed, tmp_path):
    paths = sorted(mixed.iterdir())[:12]
    summary = native(paths, tmp_path / "out", final=True, embedding=True).summary
    assert summary["input"] == {
        **summary["input"],
        "height": None,
        "width": None,
        "fit": "native",
        "multiple": 32,
    }
    assert all(level["height"] is None and level["width"] is None for level in summary["levels"])
    shapes = {array["key"]: array["shape"] for array in summary["arrays"]}
    assert shapes["level_2"] == [48, None, None]
    assert shapes["embedding"] == [96]
    run = featx.open_run(tmp_path / "out")
    for line in lines(tmp_path / "out"):
        width, height = (-(-side // 32) * 32 for side in line["size"])
        assert line["frame"]["input"] == [width, height]
        sizes = {f"level_{index}": [height >> index + 1, width >> index + 1] for index in range(5)}
        assert line["levels"] == {**sizes, "final": sizes["level_4"]}
        for name, size in line["levels"].items():
            assert list(run[line["key"]][name].shape[1:]) == size
    verified = verify(tmp_path / "out", recompute=5)
    assert verified.sound
    assert verified.recomputed.deviation == 0
    assert [summary["recipe"]["batch_size"], verified.checked] == [1, 12]


def test_larger_photos_are_reduced(tmp_path):
    natural_image(0, 200, 100).save(tmp_path / "large.png")
    natural_image(1, 40, 60).save(tmp_path / "small.png")
    native(tmp_path, tmp_path / "out", max_side=90)
    frames = {line["key"].rpartition("/")[2]: line["frame"] for line in lines(tmp_path / "out")}
    assert frames["large.png"]["input"] == [96, 64]
    assert frames["large.png"]["scale"] == [0.45, 0.45]
    assert (frames["small.png"]["input"], frames["small.png"]["scale"]) == ([64, 64], [1, 1])


def test_a_photo_that_does_not_fit_into_memory_fails_alone(tmp_path, monkeypatch):
    natural_image(0, 2000, 1500).save(tmp_path / "large.png")
    for number in range(3):
        natural_image(number, 64, 64).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(room, "available", lambda: 60_000_000)
    report = native(tmp_path, tmp_path / "out")
    assert report.computed == 3
    (failure,) = report.failures
    assert failure.stage == "forward"
    assert failure.error.startswith("a pass of 2016 x 1504 pixels takes about ")
    side = int(failure.error.partition("--max-side ")[2].split()[0])
    assert 64 < side < 2000
    again = native(tmp_path, tmp_path / "again", max_side=side)
    assert (again.computed, again.failures) == (4, [])


def test_a_run_whose_typical_photo_does_not_fit_is_refused(tmp_path, monkeypatch):
    natural_image(0, 2000, 1500).save(tmp_path / "large.png")
    monkeypatch.setattr("featx.engine.remedies.available", lambda: 60_000_000)
    with pytest.raises(ModelError, match=r"test_resnet cannot take a photo of 2000 x 1500 pixels: .* --max-side \d+"):
        native(tmp_path / "large.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arrays_that_are_too_large_for_a_file_fail_alone(tmp_path, monkeypatch):
    natural_image(0, 300, 300).save(tmp_path / "large.png")
    natural_image(1, 64, 64).save(tmp_path / "small.png")
    monkeypatch.setattr("featx.runs.formats.npz.Writer.largest", 4_000_000)
    report = native(tmp_path, tmp_path / "out")
    assert report.computed == 1
    assert [failure.stage for failure in report.failures] == ["write"]
    assert "--format safetensors" in report.failures[0].error


def test_the_forecast_is_of_the_photos_own_sizes(mixed, tmp_path):
    foreseen = []
    report = native(
        mixed, tmp_path / "out", listener=lambda event: foreseen.append(event) if isinstance(event, Foreseen) else None
    )
    forecast = foreseen[0].forecast
    assert forecast.input.height is None
    assert sorted(forecast.largest) == [72, 96]
    assert forecast.bytes == pytest.approx(report.summary["bytes"], rel=0.02)


@pytest.mark.parametrize("model", ["test_vit", "swin_tiny_patch4_window7_224", "inception_v3", "vit_tiny_patch16_224"])
def test_networks_of_other_kinds(tmp_path, model):
    natural_image(0, 250, 90).save(tmp_path / "photo.png")
    report = native(tmp_path, tmp_path / "out", model=model)
    assert report.failures == []
    (line,) = lines(tmp_path / "out")
    multiple = {"test_vit": 16, "vit_tiny_patch16_224": 16, "inception_v3": 32}.get(model, 224)
    assert line["frame"]["input"] == [-(-250 // multiple) * multiple, max(96, -(-90 // multiple) * multiple)]
    assert verify(tmp_path / "out", recompute=1).sound


@pytest.mark.parametrize("model", ["beit_base_patch16_224", "crossvit_tiny_240", "levit_128s"])
def test_networks_that_are_built_for_one_size_say_so(tmp_path, model):
    with pytest.raises(ModelError, match="has to be built for one size of input") as refused:
        featx.load_pyramid(model, weights="random", fit="native")
    assert "--fit pad" in refused.value.hint


def test_naflexvit_gives_what_its_own_patches_and_mask_give():
    """Its weights were trained on patches with coordinates, and a mask for those that only fill a batch up."""
    pyramid = featx.load_pyramid("naflexvit_base_patch16_gap", weights="random", fit="native", device="cpu")
    pixels, frame = pyramid.preprocess(natural_image(0, 140, 70))
    assert frame.input == (144, 80)
    ours = pyramid(pixels[None])[-1]
    torch.manual_seed(0)
    reference = timm.create_model("naflexvit_base_patch16_gap").eval()
    reference.load_state_dict(pyramid.module.state_dict(), strict=False)
    rows, columns, blank = 5, 9, 20
    patches = pixels.reshape(3, rows, 16, columns, 16).permute(1, 3, 2, 4, 0).reshape(1, rows * columns, 768)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))[None]
    with torch.no_grad():
        theirs = reference.forward_intermediates(
            torch.cat([patches, torch.zeros(1, blank, 768)], 1),
            patch_coord=torch.cat([places, torch.zeros(1, blank, 2, dtype=places.dtype)], 1),
            patch_valid=torch.arange(rows * columns + blank)[None] < rows * columns,
            indices=1,
            output_fmt="NLC",
            intermediates_only=True,
        )[-1]
    grid = theirs[0, : rows * columns].T.reshape(-1, rows, columns)
    torch.testing.assert_close(ours[0], grid, rtol=0, atol=1e-5 * float(grid.abs().max()))


def ready(number: int, height: int, width: int) -> batching.Ready:
    frame = Frame.of((width, height))
    return batching.Ready(
        Item(f"{number}", f"{number}"), Stat(0, 0), torch.zeros(height, width, 3, dtype=torch.uint8), frame, ""
    )


def test_photos_are_gathered_by_size_and_none_waits_for_ever():
    values = [ready(number, 8, 8 if number % 3 else 16) for number in range(10)]
    groups = [[int(each.item.key) for each in group] for group in batching.by_size(values, 3, lambda: False)]
    assert groups == [[1, 2, 4], [0, 3, 6], [5, 7, 8], [9]]
    alone = [ready(0, 5, 5), *(ready(number, 8, number) for number in range(1, 100))]
    taken = iter(alone)
    first = next(batching.by_size(taken, 2, lambda: False))
    assert [each.item.key for each in first] == ["0"]
    assert len(list(taken)) == 99 - batching.AHEAD * 2
    failure = Outcome(Item("x", "x"), stage="decode", error="broken")
    assert next(batching.by_size([ready(0, 8, 8), failure], 2, lambda: False)) == [failure]


def test_batches_take_turns_in_a_room():
    def needs(height, width):
        return Need(height, width)

    space = Room(needs, 100)
    assert space.refusal(60, 40) == ""
    first = space.take(60, 30)
    entered, waiting = threading.Event(), threading.Event()

    def second():
        waiting.set()
        space.take(20, 0)
        entered.set()

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    waiting.wait()
    assert not entered.is_set()
    space.give_back(first.passing)
    thread.join()
    assert entered.is_set()
    blocked = threading.Thread(target=space.take, args=(90, 0), daemon=True)
    blocked.start()
    space.close()
    blocked.join()


def test_a_dry_run_and_the_help_in_words(featx_command, mixed):
    done = featx_command(
        "extract", mixed, "--model", "test_resnet", "--fit", "native", "--dry-run", "--weights", "random"
    )
    assert "the photo's own size, in multiples of 32" in done.stdout
    assert re.search("the largest seen (96 x 72|72 x 96)", done.stdout)
    shown = featx_command("info", "resnet18", "--fit", "native", "--json")
    described = json.loads(shown.stdout)
    assert described["native"] == {"multiple": 32, "least": None}
    assert described["bytes_per_image"] is None
    assert "not native" in featx_command("info", "beit_base_patch16_224").stdout

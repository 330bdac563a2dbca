# A graphics card, where there is one: what it computes, photos of any size, boxes, and memory that runs out.
from __future__ import annotations

import gc
import random

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import featx
from featx.errors import StoppedError
from featx.explore.verify import verify
from featx.process import full_precision
from featx.values import Note, Outcome
from tests.helpers import lines, natural_image, outputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SIZES = [(640, 480), (480, 640), (640, 427), (500, 375), (612, 612)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A hundred photos of five sizes."""
    folder = tmp_path_factory.mktemp("mixed")
    chance = random.Random(1)
    for number in range(100):
        natural_image(number, *chance.choice(SIZES)).save(folder / f"{number}.jpg")
    return folder


def extract(inputs, output, **options):
    options = {"weights": "random", "device": "cuda", **options}
    return featx.extract(inputs, options.pop("model", "resnet18"), output, **options)


def difference(run, other):
    """The largest difference of two runs, relative to the largest number of its array."""
    worst = 0.0
    for key in run:
        for name, values in run[key].items():
            theirs = np.asarray(other[key][name], np.float64)
            worst = max(worst, float(abs(values - theirs).max() / abs(theirs).max()))
    return worst


def test_maps_equal_timm_to_the_bit(mixed, tmp_path):
    paths = sorted(mixed.iterdir())[:8]
    extract(paths, tmp_path / "out", batch_size=4)
    torch.manual_seed(0)
    reference = timm.create_model("resnet18", features_only=True).eval().to("cuda", memory_format=torch.channels_last)
    pyramid = featx.load_pyramid("resnet18", weights="random", device="cpu")
    placed = [pyramid.preprocessor.place(Image.open(path))[0] for path in paths]
    pixels = pyramid.normalise(torch.from_numpy(np.stack(placed)).to("cuda"))  # a card divides in its own way
    with torch.no_grad(), full_precision(torch.device("cuda")):
        maps = [reference(batch.contiguous(memory_format=torch.channels_last)) for batch in pixels.split(4)]
    run = featx.open_run(tmp_path / "out")
    for number, key in enumerate(run):
        for index in range(5):
            np.testing.assert_array_equal(
                run[key][f"level_{index}"], maps[number // 4][index][number % 4].cpu().numpy()
            )


def test_it_agrees_with_the_processor(mixed, tmp_path):
    paths = sorted(mixed.iterdir())[:12]
    for fit in ("crop", "native"):
        extract(paths, tmp_path / f"gpu-{fit}", fit=fit)
        extract(paths, tmp_path / f"cpu-{fit}", fit=fit, device="cpu")
        runs = (featx.open_run(tmp_path / f"{device}-{fit}") for device in ("gpu", "cpu"))
        assert difference(*runs) < 1e-4


@pytest.mark.parametrize("batch_size", [1, 8])
def test_photos_of_any_size_give_the_same_bytes_in_any_order_and_after_an_interruption(mixed, tmp_path, batch_size):
    paths = sorted(mixed.iterdir())
    options = {"fit": "native", "batch_size": batch_size, "out_indices": (3, 4)}
    extract(paths, tmp_path / "whole", **options)

    def interrupt(event):
        seen.append(event) if isinstance(event, Outcome) else None
        if len(seen) == 30:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(StoppedError):
        extract(random.Random(2).sample(paths, 100), tmp_path / "out", listener=interrupt, **options)
    assert len(lines(tmp_path / "out")) < 100
    extract(paths[::-1], tmp_path / "out", **options)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")
    verified = verify(tmp_path / "out", recompute=10)
    assert verified.sound
    assert verified.recomputed.deviation == 0


def test_by_itself_it_gathers_photos_of_one_size(mixed, tmp_path):
    summary = extract(mixed, tmp_path / "out", fit="native", out_indices=(4,)).summary
    assert summary["recipe"]["batch_size"] == 8
    assert summary["counts"] == {"done": 100, "failed": 0, "total": 100}


def test_boxes_agree_with_those_of_the_maps(mixed, tmp_path):
    paths = sorted(mixed.iterdir())[:20]
    rows = [f"{path.name},{20 + n},{30},{200 + 10 * n},{300}" for path in paths for n in range(5)]
    (tmp_path / "boxes.csv").write_text("\n".join(["key,x1,y1,x2,y2", *rows]))
    for fit in ("crop", "native"):
        extract(paths, tmp_path / f"maps-{fit}", fit=fit)
        extract(paths, tmp_path / f"boxes-{fit}", fit=fit, boxes=tmp_path / "boxes.csv", maps=False)
        maps, boxes = (featx.open_run(tmp_path / f"{kind}-{fit}") for kind in ("maps", "boxes"))
        for key in boxes:
            expected = maps.regions(key, boxes[key]["boxes"])
            for name, values in expected.items():
                np.testing.assert_allclose(boxes[key][f"{name}_boxes"], values, atol=1e-5 * np.nanmax(abs(values)))


def test_attention_agrees_with_the_processor_s_and_leaves_the_maps_as_they_are(mixed, tmp_path):
    paths = sorted(mixed.iterdir())[:9]
    for name, more in {"gpu": {}, "cpu": {"device": "cpu"}, "alone": {"attention": False}}.items():
        extract(paths, tmp_path / name, model="test_vit", batch_size=4, **{"attention": True, **more})
    gpu, cpu, alone = (featx.open_run(tmp_path / name) for name in ("gpu", "cpu", "alone"))
    assert difference(gpu, cpu) < 1e-4
    for key in gpu:
        for name, values in alone[key].items():
            np.testing.assert_array_equal(gpu[key][name], values)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bfloat16_is_what_torch_rounds_to_and_nothing_is_lost_of_bf16(mixed, tmp_path, precision):
    paths = sorted(mixed.iterdir())[:8]
    for dtype in ("float32", "bfloat16"):
        extract(paths, tmp_path / dtype, batch_size=4, precision=precision, dtype=dtype, format="safetensors")
    full, half = (featx.open_run(tmp_path / name) for name in ("float32", "bfloat16"))
    for key in full:
        for name, values in full[key].items():
            rounded = torch.from_numpy(np.array(values)).bfloat16().float().numpy()
            np.testing.assert_array_equal(half[key][name], rounded)
            assert precision == "fp32" or np.array_equal(rounded, values)


@pytest.mark.parametrize("fit", ["crop", "native"])
def test_smaller_maps_and_modules_agree_with_the_processor_s_and_are_the_same_after_an_interruption(
    mixed, tmp_path, fit
):
    paths = sorted(mixed.iterdir())[:30]
    options = {"grid": "4", "components": 8, "fit_on": 12, "batch_size": 4, "fit": fit, "modules": "layer2.0.conv1"}
    extract(paths, tmp_path / "gpu", **options)
    extract(paths, tmp_path / "cpu", device="cpu", **options)
    gpu, cpu = (featx.open_run(tmp_path / name) for name in ("gpu", "cpu"))
    for key in gpu:
        for level in gpu.maps:  # components may differ in sign, and in order where they explain the same
            one, two = (run.unproject(level.key, run[key][level.key]) for run in (gpu, cpu))
            np.testing.assert_allclose(one, two, atol=0.02 * abs(two).max())
    options |= {"dtype": "int8", "basis": tmp_path / "gpu", "fit_on": None}
    extract(paths, tmp_path / "whole", **options)

    def interrupt(event):
        seen.append(event) if isinstance(event, Outcome) else None
        if len(seen) == 9:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(StoppedError):
        extract(random.Random(3).sample(paths, 30), tmp_path / "out", listener=interrupt, **options)
    extract(paths, tmp_path / "out", **options)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_s_workers_share_a_card_and_give_the_same_bytes(mixed, tmp_path):
    ray = pytest.importorskip("ray", reason="featx[ray] is not installed", exc_type=ImportError)
    options = {"batch_size": 8, "fit": "native", "embedding": True}
    extract(mixed, tmp_path / "local", **options)
    heard = []
    shared = {"engine": "ray", "ray_workers": 2, "gpus_per_worker": 0.5}
    extract(mixed, tmp_path / "ray", listener=heard.append, **options, **shared)
    assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")
    assert [note.text for note in heard if isinstance(note, Note) and "worker" in note.text] == []
    ray.init(log_to_driver=False, include_dashboard=False)
    try:
        rows = ray.data.from_items([{"path": str(path)} for path in sorted(mixed.iterdir())[:20]]).map_batches(
            featx.ray.FeaturePyramid,
            fn_constructor_args=("resnet18",),
            fn_constructor_kwargs={"weights": "random", "batch_size": 8},
            concurrency=1,
            num_gpus=1,
            batch_size=10,
        )
        mapped = {row["path"]: row for row in rows.take_all()}
    finally:
        ray.shutdown()
    extract(sorted(mixed.iterdir())[:20], tmp_path / "few", batch_size=8)
    run = featx.open_run(tmp_path / "few")
    for line in lines(tmp_path / "few"):
        for name, values in run[line["key"]].items():
            np.testing.assert_allclose(mapped[line["path"]][name], values, atol=1e-5 * abs(values).max())


def test_tiles_agree_with_the_whole_picture(tmp_path):
    natural_image(0, 1500, 1100).save(tmp_path / "large.png")
    extract(tmp_path / "large.png", tmp_path / "tiled", fit="native", tile=512)
    extract(tmp_path / "large.png", tmp_path / "whole", fit="native")
    tiled, whole = (featx.open_run(tmp_path / name) for name in ("tiled", "whole"))
    assert tiled.summary["tiling"]["exact"]
    assert difference(tiled, whole) < 1e-5


def test_memory_that_runs_out(mixed, tmp_path):
    """With little memory passes are halved; a photo that does not fit even alone fails by itself."""
    for number in range(8):
        natural_image(number, 400, 300).save(tmp_path / f"{number}.jpg")
    natural_image(9, 6000, 4500).save(tmp_path / "large.jpg")
    total = torch.cuda.get_device_properties(0).total_memory
    gc.collect()
    torch.cuda.empty_cache()
    there = torch.cuda.memory_reserved()  # what earlier tests left
    torch.cuda.set_per_process_memory_fraction(min(1.0, (there + 1.5e9) / total))
    heard = []
    try:
        report = extract(tmp_path, tmp_path / "out", fit="native", batch_size=8, listener=heard.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert report.computed == 8, (there, report.failures)
    assert [(failure.item.key[-9:], failure.stage) for failure in report.failures] == [("large.jpg", "forward")]
    assert "does not have enough memory for one image; a smaller --max-side may help" in report.failures[0].error
    assert any("ran out of memory" in note.text for note in heard if isinstance(note, Note))

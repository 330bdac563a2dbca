# Forecasts: what is said of a run before it begins, held against what it then makes and takes.
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import featx
from featx import errors
from featx.engine import forecast, hardware, resources
from featx.engine.events import Foreseen
from featx.errors import ModelError, OutputError
from featx.models.pyramid import draw_up
from featx.requests import Job, ModelRequest
from featx.text import amount_of
from featx.values import Item
from tests.helpers import extract, lines, make_photos, natural_image, notes


def foreseen(inputs, output, **options):
    heard = []
    report = extract(inputs, output, listener=heard.append, **options)
    (event,) = [event for event in heard if isinstance(event, Foreseen)]
    assert event.forecast == report.forecast
    return event.forecast


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float16", "embedding": True, "final": True},
        {"model": "test_vit", "image_size": None, "prefix_tokens": True, "attention": True},
        {"maps": False, "embedding": True},
        {"embedding": True, "format": "npy"},
    ],
)
def test_the_bytes_are_those_that_are_written(photos, tmp_path, options):
    value = foreseen(photos, tmp_path / "out", **options)
    assert value.images == 3
    assert {line["bytes"] for line in lines(tmp_path / "out")} == {value.bytes_per_image}
    assert value.bytes == 3 * value.bytes_per_image


SMALLER = {
    "nothing": {},
    "grid": {"grid": "7x3"},
    "components": {"components": 6},
    "dtype": {"dtype": "int8"},
    "all": {"grid": 4, "components": 6, "dtype": "int8", "out_indices": (1, -1)},
}
FITS = {
    "crop": {},
    "native": {"image_size": None, "fit": "native"},
    "tile": {"image_size": None, "fit": "native", "tile": 64, "halo": 32},
}
BESIDE = {"crop": {"embedding": True, "final": True}, "native": {"embedding": True}, "tile": {"modules": ["layer2"]}}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("smaller", SMALLER)
@pytest.mark.parametrize("form", ["npz", "safetensors", "webdataset", "zarr"])
def test_the_bytes_of_every_combination_are_foreseen(tmp_path, form, smaller, fit, request):
    """To two per cent, by the sizes of the files: photos have sizes of their own, some of fewer cells than the grid."""
    if form == "zarr" and fit != "crop":
        pytest.skip("arrays of one shape")
    if form != "npz" and smaller != "all" and not request.config.getoption("large"):
        pytest.skip("all combinations")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(300, 200), (64, 64), (90, 70), (33, 150), (500, 64), (64, 90), (160, 160)]):
        natural_image(number, *size).save(folder / f"{number}.png")
    options = {"format": form, **FITS[fit], **BESIDE[fit], **SMALLER[smaller]}
    value = foreseen(folder, tmp_path / "out", **options)
    summary = featx.open_run(tmp_path / "out").summary
    assert value.bytes == pytest.approx(summary["bytes"], rel=0.02)
    ends = {".npz": 0, ".safetensors": 0, ".tar": 1024}  # a tar ends in blocks of zeros
    files = [path for path in (tmp_path / "out").rglob("*") if path.suffix in ends and path.name != "basis.npz"]
    written = sum(path.stat().st_size - ends[path.suffix] for path in files)
    assert form == "zarr" or written == pytest.approx(value.bytes, rel=0.02)  # a store fills up its last chunks


def test_a_resumed_run_foresees_what_is_left(photos, tmp_path):
    extract(photos / "0.jpg", tmp_path / "out")
    value = foreseen([photos / "0.jpg", photos / "1.jpg"], tmp_path / "out")
    assert value.images == 1


def test_a_dry_run_writes_nothing_and_loads_no_weights(photos, tmp_path):
    heard = []
    report = extract(photos, tmp_path / "out", listener=heard.append, dry_run=True, weights="pretrained")
    assert report.forecast.images == 3
    assert not (tmp_path / "out").exists()
    extract(photos, tmp_path / "out")
    before = (tmp_path / "out" / "summary.json").read_bytes()
    again = extract([photos, *make_photos(tmp_path / "more", 2).iterdir()], tmp_path / "out", dry_run=True)
    assert again.forecast.images == 2
    assert (tmp_path / "out" / "summary.json").read_bytes() == before


def test_what_cannot_fit_into_memory_is_refused_with_the_size_that_fits(photos, tmp_path, monkeypatch):
    used = resources.memory().used
    monkeypatch.setattr(resources, "memory", lambda: resources.Memory(used, 400_000_000))
    monkeypatch.setattr("featx.models.timm.library.Timm.build", lambda *_: pytest.fail("loaded the weights"))
    with pytest.raises(ModelError) as refused:
        extract(photos, tmp_path / "out", image_size=1024, batch_size=32, out_indices=-1)
    said = re.search(
        r"test_resnet at 1024 x 1024 takes about (.+?) of memory, and (.+?) are available", refused.value.message
    )
    assert said[2] == amount_of(used + 400_000_000)
    assert "--batch-size 1 --workers 1 takes" in refused.value.hint
    fits = int(re.search(r"--image-size (\d+);", refused.value.hint)[1])
    assert 32 <= fits < 1024
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert foreseen(photos, tmp_path / "out", image_size=fits, batch_size=32, out_indices=-1).memory <= (
        resources.memory().used + 500_000_000
    )


def test_what_may_not_fit_into_memory_is_said(photos, tmp_path, monkeypatch):
    needed = foreseen(photos, tmp_path / "first", dry_run=True).memory
    used = resources.memory().used
    monkeypatch.setattr(resources, "memory", lambda: resources.Memory(used, int(needed / 1.1) - used))
    heard = []
    assert extract(photos, tmp_path / "out", listener=heard.append).computed == 3
    assert any(text.startswith("The run may not fit into memory: ") for text in notes(heard))


def test_force_tries_what_seems_too_large(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "memory", lambda: resources.Memory(0, 1))
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    assert extract(photos, tmp_path / "out", force=True).computed == 3


def test_output_that_exceeds_the_free_space_is_refused_with_what_would_save_it(photos, tmp_path, monkeypatch):
    value = foreseen(photos, tmp_path / "first")
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: SimpleNamespace(free=value.bytes - 1))
    with pytest.raises(OutputError) as refused:
        extract(photos, tmp_path / "out")
    assert re.match(r"The features of 3 images take .+ MB, and .+ MB are free for ", refused.value.message)
    for option in ("--dtype float16 writes", "--strides 8,16,32 writes", "--no-maps --embedding writes", "--force"):
        assert option in refused.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "times"), [("float32", 1), ("int8", 4)])
def test_maps_that_wait_on_the_disk_need_space_as_well(photos, tmp_path, monkeypatch, dtype, times):
    """Those of the largest photo; they are made whole numbers only in the end."""
    monkeypatch.setattr("featx.engine.measures.IN_MEMORY", 0)
    options = {"fit": "native", "image_size": None, "tile": 32, "halo": 0, "dtype": dtype}
    value = foreseen(photos, tmp_path / "first", **options)
    whole = largest(tmp_path / "first")
    assert value.waiting == pytest.approx(times * whole, rel=0.02)  # scales are beside them
    space = SimpleNamespace(free=value.bytes + value.waiting // 2)
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: space)
    with pytest.raises(OutputError, match=r"take .+B, maps of tiles another .+B until they are written, and .+ free"):
        extract(photos, tmp_path / "out", **options)
    assert extract(photos, tmp_path / "out", force=True, **options).computed == 3


def largest(folder):
    """Return the most bytes that the arrays of a photo take, as they are stored."""
    run = featx.open_run(folder, raw=True)
    return max(sum(values.nbytes for values in run[key].values()) for key in run)


def test_memory_grows_with_batches_and_passes_and_shrinks_with_precision():
    blueprint = draw_up(ModelRequest("test_resnet", weights="random"))
    job = Job(model="test_resnet", weights="random", device="cpu")
    peaks = [
        forecast.foresee(blueprint, job, [Item("a", "/a")], Path(), resources.Workers(size, forwards, 1, 2, 2)).memory
        for size, forwards in ((1, 1), (64, 1), (64, 2))
    ]
    assert peaks == sorted(peaks)
    halved = draw_up(replace(blueprint.request, precision="bf16"))
    assert halved.footprint(4, (160, 160)).memory == pytest.approx(
        blueprint.footprint(4, (160, 160)).memory / 2, rel=0.2
    )


def test_a_network_that_looks_at_values_is_not_guessed_at(monkeypatch):
    blueprint = draw_up(ModelRequest("test_resnet", weights="random"))

    def fail(*_):
        raise NotImplementedError("Cannot copy out of meta tensor")

    monkeypatch.setattr("timm.models.resnet.BasicBlock.forward", fail)
    monkeypatch.setattr("timm.models.resnet.Bottleneck.forward", fail)
    assert blueprint.footprint(1, (160, 160)) is None


AVX2 = {"avx2": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("precision", "capabilities", "has"),
    [
        ("bf16", AVX2, False),
        ("fp16", AVX2, False),
        ("bf16", {**AVX2, "amx_bf16": True}, True),
        ("fp16", {**AVX2, "avx512_fp16": True}, False),
        ("bf16", {"neon": True, "bf16": True}, True),
        ("bf16", {}, True),  # nothing is known
    ],
)
def test_processors_without_units_for_a_precision_are_known(precision, capabilities, has):
    import torch

    assert hardware.has_units(precision, torch.device("cpu"), capabilities) is has


def test_a_slow_precision_is_said_with_what_is_faster(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: AVX2, raising=False)
    heard = []
    extract(photos, tmp_path / "out", precision="bf16", listener=heard.append, dry_run=True)
    assert any(
        "bf16 is slower than fp32 on this processor" in getattr(event, "text", "") and "--precision fp32" in event.text
        for event in heard
        if hasattr(event, "text")
    )
    heard.clear()
    extract(photos, tmp_path / "out", listener=heard.append, dry_run=True)
    assert not any("slower" in getattr(event, "text", "") for event in heard)


def test_the_memory_that_is_left_is_the_least_that_anything_allows(tmp_path, monkeypatch):
    def lay(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    monkeypatch.setattr("sys.platform", "linux")
    lay("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\nHugePages_Total: 0\n")
    lay("proc/self/status", "Name: python\nVmSize: 700 kB\nVmRSS: 500 kB\n")
    assert resources.memory(tmp_path) == resources.Memory(500 * 1024, 8000 * 1024)
    lay("proc/self/cgroup", "0::/box\n")
    lay("proc/self/mountinfo", "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    lay("sys/fs/cgroup/box/memory.max", "3000000\n")
    lay("sys/fs/cgroup/box/memory.current", "2000000\n")
    lay("sys/fs/cgroup/box/memory.stat", "anon 5\ninactive_file 400000\n")
    assert resources.memory(tmp_path).left == 1_400_000
    lay("sys/fs/cgroup/box/memory.max", "max\n")
    assert resources.memory(tmp_path).left == 8000 * 1024
    monkeypatch.setattr(resources.resource, "getrlimit", lambda _: (1_000_000, 1_000_000))
    assert resources.memory(tmp_path).left == 1_000_000 - 700 * 1024


def test_memory_is_unknown_where_the_system_does_not_say(tmp_path):
    assert resources.memory(tmp_path) == resources.Memory(0, None)


def test_errors_are_one_sentence(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(errors.FeatxError) as refused:
        extract(photos, tmp_path / "out")
    assert "\n" not in str(refused.value)

# Forward passes: the same numbers as timm's transform and network, in parts when memory is short, on any thread.
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config

import featx
from featx.engine import computing, resources
from featx.engine.computing import Computer, largest_worthwhile
from featx.engine.projecting import Components
from featx.engine.reducing import StoredType
from featx.errors import ModelError
from featx.models.pyramid import Pyramid
from featx.requests import Job
from featx.values import Note
from tests.helpers import natural_image

MODEL = "test_resnet"


@pytest.fixture
def pyramid():
    return featx.load_pyramid(MODEL, weights="random", device="cpu")


@pytest.fixture
def batch():
    images = [np.array(natural_image(seed, 160, 160)) for seed in range(5)]
    return torch.from_numpy(np.stack(images))


@pytest.mark.parametrize("model", [MODEL, "test_vit", "tf_efficientnet_lite0", "vit_base_patch16_224"])
def test_a_batch_is_normalised_to_the_bit_as_timm_does_each_image(model):
    config = resolve_model_data_config(timm.create_model(model))
    transform = create_transform(**config, is_training=False)
    preprocessor = featx.images.fitting.make(config)
    every = np.arange(256, dtype=np.uint8)
    image = natural_image(0, 400, 300)
    placed, _ = preprocessor.place(image)
    pixels = torch.from_numpy(np.array(placed))
    assert torch.equal(preprocessor.normalise(pixels[None])[0], transform(image))
    values = torch.from_numpy(np.stack([every] * 3, axis=-1))[None, None]
    expected = [transform.transforms[-1](transform.transforms[-2](np.stack([every] * 3, axis=-1)[None]))]
    assert torch.equal(preprocessor.normalise(values)[0], expected[0])


def test_maps_are_those_of_the_network(pyramid, batch):
    maps = Computer(pyramid, [StoredType("float32")], 8)(batch)
    pixels = pyramid.normalise(batch)
    reference = timm.create_model(MODEL, features_only=True).eval().to(memory_format=torch.channels_last)
    reference.load_state_dict(pyramid.module.state_dict())
    with torch.no_grad():
        for ours, theirs in zip(maps.values, reference(pixels), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.is_contiguous()
    assert all(flags.all() for flags in maps.finite)


def test_a_batch_is_filled_up_with_blanks(pyramid, batch):
    stacked = Computer(pyramid, [StoredType("float32")], 8).stack(list(batch[:2]), 4)
    assert torch.equal(stacked[:2], batch[:2])
    assert stacked.shape == (4, 160, 160, 3)
    assert not stacked[2:].any()


def test_numbers_that_are_none_are_found_in_their_image(pyramid, batch, monkeypatch):
    honest = Pyramid.run

    def poisoned(self, pixels):
        maps = honest(self, pixels)
        maps[1][3, 0, 2, 2] = torch.inf
        maps[4][0, 5, 0, 0] = torch.nan
        return maps

    monkeypatch.setattr(Pyramid, "run", poisoned)
    finite = Computer(pyramid, [StoredType("float32")], 8)(batch).finite
    wrong = {(level, int(image)) for level, flags in enumerate(finite) for image in (~flags).nonzero()}
    assert wrong == {(1, 3), (4, 0)}


@pytest.fixture
def short_of_memory(monkeypatch):
    """A device on which more than two images do not fit."""
    sizes = []
    honest = Pyramid.run

    def run(self, pixels):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, pixels)

    monkeypatch.setattr(Pyramid, "run", run)
    return sizes


def test_what_does_not_fit_is_done_in_parts(pyramid, batch, short_of_memory):
    told = []
    computer = Computer(pyramid, [StoredType("float32")], 8, told.append)
    maps = computer(batch)
    assert short_of_memory == [5, 4, 2, 2, 1]
    assert computer.smallest == 2
    assert [text.partition(": ")[2] for text in told] == [
        "passes of 4 images, not 8",
        "passes of 2 images, not 4",
    ]
    for level, expected in zip(maps.values, pyramid(pyramid.normalise(batch[:2])), strict=True):
        assert level.shape[0] == 5
        torch.testing.assert_close(level[:2], expected)
    short_of_memory.clear()
    computer(batch)
    assert short_of_memory == [2, 2, 1], "what was learnt once is kept"


def test_one_image_that_does_not_fit_ends_it(pyramid, batch, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Pyramid, "run", exhausted)
    with pytest.raises(ModelError, match=r"not have enough memory for one image.*--image-size"):
        Computer(pyramid, [StoredType("float32")], 4)(batch)


OF_PROCESSORS = {
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes."),
    "Python": MemoryError(),
    "OpenVINO": RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:223:\nstd::bad_alloc"),
}


@pytest.mark.parametrize("error", OF_PROCESSORS)
def test_a_processor_that_is_short_of_memory_is_no_riddle_and_halves_nothing(pyramid, batch, monkeypatch, error):
    sizes = []

    def exhausted(_, pixels):
        sizes.append(len(pixels))
        raise OF_PROCESSORS[error]

    monkeypatch.setattr(Pyramid, "run", exhausted)
    with pytest.raises(ModelError, match=r"cpu does not have enough memory for a batch of 8.*--image-size.*--workers"):
        Computer(pyramid, [StoredType("float32")], 8)(batch)
    assert sizes == [5]
    with pytest.raises(ModelError, match=r"cpu ran out of memory on a batch of 5.*a smaller batch"):
        pyramid(pyramid.normalise(batch))


def test_a_run_on_a_processor_that_is_short_of_memory_ends_in_one_line(tmp_path, monkeypatch):
    natural_image(0).save(tmp_path / "0.png")
    honest = Pyramid.run
    monkeypatch.setattr(Pyramid, "run", lambda *_: (_ for _ in ()).throw(OF_PROCESSORS["torch"]))
    options = {"weights": "random", "device": "cpu", "batch_size": 2}
    with pytest.raises(ModelError, match="not have enough memory for a batch of 2 images"):
        featx.extract(tmp_path / "0.png", MODEL, tmp_path / "out", **options)
    monkeypatch.setattr(Pyramid, "run", honest)
    assert featx.extract(tmp_path / "0.png", MODEL, tmp_path / "out", **options).computed == 1


def test_other_errors_are_not_taken_for_too_little_memory(pyramid, batch, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Pyramid, "run", broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        Computer(pyramid, [StoredType("float32")], 8)(batch)


def test_a_network_that_memory_is_too_short_for(monkeypatch):
    def exhausted(*_, **__):
        raise OF_PROCESSORS["torch"]

    monkeypatch.setattr("featx.models.timm.loading.create", exhausted)
    with pytest.raises(ModelError, match=r"not enough memory on cpu for test_resnet\. Use a smaller model"):
        featx.load_pyramid(MODEL, weights="random", device="cpu")


def test_a_run_that_is_short_of_memory_says_so_and_goes_on(tmp_path, short_of_memory):
    for number in range(9):
        natural_image(number).save(tmp_path / f"{number}.png")
    heard = []
    report = featx.extract(
        tmp_path, MODEL, tmp_path / "out", weights="random", device="cpu", batch_size=8, listener=heard.append
    )
    assert report.computed == 9
    assert report.summary["largest_pass"] == 2
    assert [note.text for note in heard if isinstance(note, Note)][-1].endswith("passes of 2 images, not 4")


def test_several_threads_may_compute_at_once(pyramid, batch, threads):
    threads(1)
    computer = Computer(pyramid, [StoredType("float32")], 8)
    expected = computer(batch)
    with ThreadPoolExecutor(4) as pool:
        for maps in pool.map(computer, [batch] * 8):
            assert all(torch.equal(a, b) for a, b in zip(maps.values, expected.values, strict=True))


def test_batches_grow_while_that_pays_and_fits():
    assert largest_worthwhile(lambda size: size * 0.01) == 8
    assert largest_worthwhile(lambda size: 1 + size * 0.001) == 256
    assert largest_worthwhile(lambda size: max(size, 64) * 0.01) == 64

    def fits_32(size):
        if size > 32:
            raise torch.OutOfMemoryError
        return 1.0

    assert largest_worthwhile(fits_32) == 32
    with pytest.raises(ModelError, match="not enough memory for batches of 8"):
        largest_worthwhile(lambda _: fits_32(64))


def test_a_device_s_own_batch_size_is_measured(pyramid, monkeypatch):
    monkeypatch.setattr(computing, "BATCHES", (1, 2))
    assert Computer(pyramid, [StoredType("float32")], 8).best_batch_size() in (1, 2)
    unfitted = [Components(2, {0: pyramid.fields[0].key}), StoredType("float32")]
    assert Computer(pyramid, unfitted, 8).best_batch_size() in (1, 2)


def test_a_batch_size_that_is_given_is_not_looked_for(pyramid, monkeypatch):
    monkeypatch.setattr(pyramid, "device", torch.device("mps"))  # as on any GPU
    monkeypatch.setattr(Computer, "best_batch_size", lambda _: 64)
    assert resources.spread([pyramid], Job(model=MODEL), 1000, {})[1].batch_size == 64
    monkeypatch.setattr(Computer, "best_batch_size", lambda _: pytest.fail("looked for"))
    assert resources.spread([pyramid], Job(model=MODEL, batch_size=4), 1000, {})[1].batch_size == 4
    assert resources.spread([pyramid], Job(model=MODEL), 1000, {"batch_size": 16})[1].batch_size == 16


def test_several_devices_take_turns(tmp_path, monkeypatch):
    """Two pyramids on the processor stand for two graphics cards."""
    devices = [torch.device("cpu"), torch.device("cpu")]
    monkeypatch.setattr("featx.engine.loading.choose_devices", lambda _: devices)
    calls = []
    honest = Computer.__call__
    monkeypatch.setattr(Computer, "__call__", lambda self, *batch: calls.append(id(self)) or honest(self, *batch))
    for number in range(8):
        natural_image(number).save(tmp_path / f"{number}.png")
    report = featx.extract(tmp_path, MODEL, tmp_path / "two", weights="random", batch_size=2)
    assert report.computed == 8
    assert sorted(calls.count(one) for one in set(calls)) == [2, 2]
    monkeypatch.undo()
    featx.extract(tmp_path, MODEL, tmp_path / "one", weights="random", batch_size=2, device="cpu")
    one, two = featx.open_run(tmp_path / "one"), featx.open_run(tmp_path / "two")
    for key in two:
        assert all(np.array_equal(one[key][name], two[key][name]) for name in two[key])


def test_cores_are_shared_out_on_purpose(pyramid, monkeypatch):
    def spread(images, cores, **asked):
        monkeypatch.setattr("featx.engine.resources.cores", lambda: cores)
        job = Job(model=MODEL, **asked)
        workers = resources.spread([pyramid], job, images, {})[1]
        return workers.batch_size, workers.forwards, workers.threads

    assert spread(1000, 2) == (8, 2, 1)
    assert spread(1000, 16) == (8, 16, 1)
    assert spread(1, 16) == (1, 1, 16)
    assert spread(16, 8) == (8, 2, 4)
    assert spread(1000, 16, workers=4) == (8, 4, 4)
    assert spread(1000, 2, workers=4) == (8, 4, 1)
    assert spread(1000, 4, batch_size=32) == (32, 4, 1)

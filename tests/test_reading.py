# open_run: what was written is what is read, lazily, and as a torch Dataset.
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import featx
from featx.errors import FeatxError, UsageError
from tests.conftest import natural_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    photos = tmp_path_factory.mktemp("input") / "cats"
    photos.mkdir()
    for number in range(5):
        natural_image(number).save(photos / f"{number}.jpg")
    (photos / "5.jpg").write_bytes(b"broken")
    output = tmp_path_factory.mktemp("output") / "run"
    featx.extract(photos, "test_resnet", output, weights="random", out_indices=(1, 2), device="cpu")
    return output


def test_arrays_are_those_that_numpy_loads(folder):
    run = featx.open_run(folder)
    with np.load(folder / "cats" / "1.jpg.npz") as arrays:
        np.testing.assert_array_equal(run["cats/1.jpg"]["level_2"], arrays["level_2"])
    assert isinstance(run["cats/1.jpg"]["level_2"], np.memmap)


def test_a_run_is_a_mapping_of_what_was_done(folder):
    run = featx.open_run(str(folder))
    assert list(run) == list(run.keys()) == [f"cats/{number}.jpg" for number in range(5)]
    assert len(run) == 5
    assert "cats/5.jpg" not in run
    assert [level.index for level in run.levels] == [1, 2]
    assert run.summary["counts"]["failed"] == 1
    with pytest.raises(KeyError):
        run["cats/5.jpg"]
    for arrays in run.values():
        assert {name: values.shape for name, values in arrays.items()} == {
            level.key: level.shape for level in run.levels
        }


def test_frames_come_back(folder):
    frame = featx.open_run(folder).frame("cats/0.jpg")
    assert (frame.original, frame.input) == ((96, 72), (160, 160))
    # The centre of the photo is the centre of the input.
    assert frame.to_input(47.5, 35.5) == pytest.approx((79.5, 79.5), abs=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_as_a_torch_dataset(folder, workers):
    run = featx.open_run(folder)
    loader = DataLoader(run.dataset([2]), batch_size=2, num_workers=workers)
    batches = list(loader)
    assert [len(batch["key"]) for batch in batches] == [2, 2, 1]
    together = torch.cat([batch["level_2"] for batch in batches])
    expected = np.stack([run[key]["level_2"] for key in run])
    np.testing.assert_array_equal(together.numpy(), expected)
    assert set(batches[0]) == {"key", "level_2"}


def test_tensors_of_a_dataset_can_be_changed_without_harm(folder):
    run = featx.open_run(folder)
    before = np.array(run["cats/0.jpg"]["level_1"])
    run.dataset()[0]["level_1"].zero_()
    np.testing.assert_array_equal(run["cats/0.jpg"]["level_1"], before)


def test_a_level_that_is_not_there_is_said(folder):
    with pytest.raises(UsageError, match=r"no level_4.*level_1, level_2"):
        featx.open_run(folder).dataset([4])


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(FeatxError, match=r"summary\.json"):
        featx.open_run(tmp_path)

# open_run: what was written is what is read, lazily, and as a torch Dataset.
from __future__ import annotations

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import featx
from featx.errors import FeatxError, UsageError
from tests.helpers import extract, make_photos, natural_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    photos = make_photos(tmp_path_factory.mktemp("input") / "cats", 5)
    (photos / "5.jpg").write_bytes(b"broken")
    output = tmp_path_factory.mktemp("output") / "run"
    extract(photos, output, out_indices=(1, 2))
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
    assert (frame.original, frame.input) == ((80, 70), (64, 64))
    # The centre of the photo is the centre of the input.
    assert frame.to_input(39.5, 34.5) == pytest.approx((31.5, 31.5), abs=1)


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


@pytest.fixture(scope="module", params=["npz", "npy", "parquet", "safetensors", "webdataset", "zarr"])
def vectors(request, folder, tmp_path_factory):
    """A run of vectors in every format."""
    output = tmp_path_factory.mktemp("vectors") / "run"
    photos = make_photos(tmp_path_factory.mktemp("photos") / "cats", 5)
    extract(photos, output, embedding=True, maps=False, format=request.param)
    return output


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_no_forks_read_the_same(vectors, method):
    run = featx.open_run(vectors)
    dataset = run.dataset()
    expected = [dataset[number] for number in range(len(dataset))]  # by which everything has been opened here
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["featx.runs.dataset", "featx.runs.reading"])
    batches = list(DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=context))
    assert [key for batch in batches for key in batch["key"]] == [item["key"] for item in expected] == list(run)
    together = torch.cat([batch["embedding"] for batch in batches])
    torch.testing.assert_close(together, torch.stack([item["embedding"] for item in expected]), rtol=0, atol=0)


@pytest.mark.parametrize("again", [lambda run: pickle.loads(pickle.dumps(run)), copy.copy, copy.deepcopy])
def test_a_run_that_was_packed_is_the_run(vectors, again):
    run = featx.open_run(vectors)
    expected = {key: np.array(arrays["embedding"]) for key, arrays in run.items()}
    copied = again(run)
    assert list(copied) == list(run)
    assert (copied.levels, copied.fields, copied.summary) == (run.levels, run.fields, run.summary)
    assert all(copied.line(key) == run.line(key) for key in run)
    for key, values in expected.items():
        np.testing.assert_array_equal(copied[key]["embedding"], values)
    assert copied.reader is not run.reader


def test_no_numbers_are_packed_with_a_run(vectors):
    run = featx.open_run(vectors)
    before = len(pickle.dumps(run))
    values = [np.array(arrays["embedding"]) for arrays in run.values()]
    assert len(pickle.dumps(run)) == len(pickle.dumps(featx.open_run(vectors)))
    assert before == len(pickle.dumps(run))
    assert not any(value.tobytes() in pickle.dumps(run.dataset()) for value in values)


def test_a_run_that_was_packed_tells_rows_of_one_key_apart(tmp_path):
    """A killed run may leave two rows of an image, of which the manifest vouches for one."""
    photo = tmp_path / "1.jpg"
    natural_image(1).save(photo)
    extract(photo, tmp_path / "run", embedding=True, format="npy")
    rows = np.load(tmp_path / "run" / "embeddings.npy")
    np.save(tmp_path / "run" / "embeddings.npy", np.concatenate([rows, rows + 1]))
    (tmp_path / "run" / "keys.txt").write_text("1.jpg\n1.jpg\n")
    run = featx.open_run(tmp_path / "run")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(run))["1.jpg"]["embedding"], rows[0])
    np.testing.assert_array_equal(run["1.jpg"]["embedding"], rows[0])


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

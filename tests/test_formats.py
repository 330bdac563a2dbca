# The .npz: what numpy reads, aligned, the same bytes every time, and never half there.
from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.files import write_atomically
from featx.formats import ALIGNMENT, read_npz, write_npz

ARRAYS = {
    "level_0": np.arange(3 * 5 * 7, dtype=np.float32).reshape(3, 5, 7),
    "level_12": np.linspace(-1, 1, 64 * 9).astype(np.float16).reshape(64, 3, 3),
    "embedding": np.zeros((0,), np.float32),
}


def test_numpy_reads_it(tmp_path):
    path = tmp_path / "a.npz"
    write_atomically(path, lambda file: write_npz(file, ARRAYS))
    with np.load(path) as loaded:
        assert loaded.files == list(ARRAYS)
        for name, values in ARRAYS.items():
            np.testing.assert_array_equal(loaded[name], values)
            assert loaded[name].dtype == values.dtype


def test_memory_maps_hold_the_same_values(tmp_path):
    path = tmp_path / "a.npz"
    write_atomically(path, lambda file: write_npz(file, ARRAYS))
    mapped = read_npz(path)
    assert list(mapped) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert isinstance(mapped[name], np.memmap)
        assert not mapped[name].flags.writeable
        np.testing.assert_array_equal(mapped[name], values)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9)), max_size=6))
def test_every_array_starts_at_a_cache_line(tmp_path_factory, shapes):
    arrays = {f"level_{number}": np.full(shape, number, np.float32) for number, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("aligned") / "a.npz"
    write_atomically(path, lambda file: write_npz(file, arrays))
    for name, values in read_npz(path).items():
        assert values.offset % ALIGNMENT == 0
        np.testing.assert_array_equal(values, arrays[name])
    assert zipfile.ZipFile(path).testzip() is None


def test_same_arrays_give_the_same_bytes():
    first, second = io.BytesIO(), io.BytesIO()
    write_npz(first, ARRAYS)
    write_npz(second, {name: values.copy() for name, values in ARRAYS.items()})
    assert first.getvalue() == second.getvalue()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_compressed_files_of_others_are_refused_by_name(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", level_0=ARRAYS["level_0"])
    with pytest.raises(ValueError, match=r"numpy\.load"):
        read_npz(tmp_path / "a.npz")

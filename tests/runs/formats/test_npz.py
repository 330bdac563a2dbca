# The .npz: what numpy reads, aligned, the same bytes every time, and never half there.
from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.files import write_atomically
from featx.runs.formats import npz as formats
from featx.runs.formats.npz import ALIGNMENT, pack_npz, read_npz

ARRAYS = {
    "level_0": np.arange(3 * 5 * 7, dtype=np.float32).reshape(3, 5, 7),
    "level_12": np.linspace(-1, 1, 64 * 9).astype(np.float16).reshape(64, 3, 3),
    "embedding": np.zeros((0,), np.float32),
}


def test_numpy_reads_it(tmp_path):
    path = tmp_path / "a.npz"
    write_atomically(path, pack_npz(ARRAYS))
    with np.load(path) as loaded:
        assert loaded.files == list(ARRAYS)
        for name, values in ARRAYS.items():
            np.testing.assert_array_equal(loaded[name], values)
            assert loaded[name].dtype == values.dtype


def test_memory_maps_hold_the_same_values(tmp_path):
    path = tmp_path / "a.npz"
    write_atomically(path, pack_npz(ARRAYS))
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
    write_atomically(path, pack_npz(arrays))
    for name, values in read_npz(path).items():
        assert values.offset % ALIGNMENT == 0
        np.testing.assert_array_equal(values, arrays[name])
    assert zipfile.ZipFile(path).testzip() is None


def test_same_arrays_give_the_same_bytes():
    copies = {name: values.copy() for name, values in ARRAYS.items()}
    assert b"".join(pack_npz(ARRAYS)) == b"".join(pack_npz(copies))


def test_the_bytes_are_those_that_zipfile_writes(tmp_path):
    """Laid out by hand, so that checksum and hash are taken in passing; to the bit what the library would have done."""
    expected = io.BytesIO()
    with zipfile.ZipFile(expected, "w", zipfile.ZIP_STORED) as archive:
        for name, values in ARRAYS.items():
            array = io.BytesIO()
            np.lib.format.write_array(array, values, version=(1, 0))
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.extra = formats._padding(expected.tell() + formats.LOCAL_HEADER + len(member.filename))
            archive.writestr(member, array.getvalue())
    assert b"".join(pack_npz(ARRAYS)) == expected.getvalue()


def test_arrays_are_not_copied():
    values = np.arange(6, dtype=np.float32)
    assert any(np.shares_memory(values, np.frombuffer(piece, np.uint8)) for piece in pack_npz({"a": values}) if piece)


def test_what_zip_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(formats, "LARGEST", 1000)
    with pytest.raises(ValueError, match="more than an npz file can hold"):
        pack_npz(ARRAYS)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")

    def pieces():
        yield b"half of the new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, pieces())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_compressed_files_of_others_are_refused_by_name(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", level_0=ARRAYS["level_0"])
    with pytest.raises(ValueError, match=r"numpy\.load"):
        read_npz(tmp_path / "a.npz")


def test_arrays_of_objects_are_refused(tmp_path):
    """Mapped into memory, their bytes would be taken for addresses."""
    np.savez(tmp_path / "a.npz", level_0=np.array([None, None], dtype=object))
    with pytest.raises(ValueError, match="neither numbers nor text"):
        read_npz(tmp_path / "a.npz")

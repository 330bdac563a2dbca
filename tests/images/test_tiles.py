# Tiles: whatever a picture's size, each cell of a map comes from one tile, or from several whose weights add up to 1.
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featx.engine.bands import Mosaic, in_memory
from featx.images.tiles import Tiling
from featx.runs.formats.large import OnDisk
from featx.values import Field

tilings = st.builds(
    lambda tile, halo, reach: Tiling(32 * tile, 32 * halo, reach),
    st.integers(1, 8),
    st.integers(0, 6),
    st.sampled_from([0, 40, 90, 300, None]),
)
sides = st.integers(1, 60).map(lambda count: 32 * count)


@given(tilings, sides, st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_every_cell_is_given_once(tiling, side, stride):
    spans, cells = tiling.spans(side), side // stride
    assert len({span.last - span.first for span in spans}) == 1
    for span in spans:
        assert 0 <= span.first <= max(0, span.start - tiling.halo) or len(spans) > 1
        assert span.first <= max(0, span.start - tiling.halo)
        assert span.last >= min(side, span.stop + tiling.halo)
        assert span.start % 32 == span.first % 32 == 0
        assert span.last <= side
    total = np.zeros(cells)
    for span, share in zip(spans, tiling.shares(side, cells), strict=True):
        weights = np.ones(share.stop - share.start) if share.weights is None else share.weights
        assert len(weights) == share.stop - share.start
        total[share.start : share.stop] += weights
        # What is taken lies in the tile's own map.
        assert share.start - share.skipped == span.first // stride
        assert share.skipped + len(weights) <= (span.last - span.first) // stride
    if tiling.blends:
        np.testing.assert_allclose(total, 1, atol=1e-6)
    else:
        np.testing.assert_array_equal(total, 1)


@given(tilings, sides, sides)
def test_a_mosaic_of_cuts_is_the_map(tiling, height, width):
    """Whether cut or blended, tiles that agree give the map that they were cut from."""
    whole = np.random.default_rng(0).standard_normal((2, height // 8, width // 16), np.float32)
    down, across = tiling.spans(height), tiling.spans(width)
    shares = tiling.shares(height, height // 8), tiling.shares(width, width // 16)
    mosaic = _in_memory(whole.shape, shares)
    for row, tall in enumerate(down):
        for column, wide in enumerate(across):
            part = whole[:, tall.first // 8 : tall.last // 8, wide.first // 16 : wide.last // 16]
            mosaic.add(row, column, part)
        mosaic.finish(row)
    ((made, finite),) = mosaic.made()
    assert finite
    np.testing.assert_allclose(made, whole, atol=0 if not tiling.blends else 2e-6)


def _in_memory(shape, shares):
    chains = in_memory([Field("level_0", shape, "float32")])
    return Mosaic(chains[0], *shares, np.dtype(np.float32))


def test_blending_is_a_raised_cosine():
    """From a tile of zeros to one of ones, across the border between them, as far as each sees beyond it."""
    tiling = Tiling(64, 32, None)
    shares = tiling.shares(64, 1), tiling.shares(128, 32)
    mosaic = _in_memory((1, 1, 32), shares)
    for column, value in enumerate((0, 1)):
        mosaic.add(0, column, np.full((1, 1, 24), value, np.float32))
    mosaic.finish(0)
    distance = np.clip((4 * np.arange(32) + 2 - 64) / 32, -1, 1)
    ((made, _),) = mosaic.made()
    np.testing.assert_allclose(made[0, 0], np.cos(np.pi / 4 * (1 - distance)) ** 2, atol=1e-6)


@given(tilings, sides, sides)
def test_the_part_to_measure_has_several_tiles(tiling, height, width):
    if not tiling.cuts((height, width)):
        return
    starts, size = tiling.part((height, width))
    assert tiling.cuts(size)
    assert all(start % tiling.tile == 0 for start in starts)
    assert all(start + side <= whole for start, side, whole in zip(starts, size, (height, width), strict=True))


def test_an_array_on_the_disk_is_that_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("featx.runs.formats.large.BLOCK", 100)
    whole = np.random.default_rng(0).standard_normal((3, 20, 7), np.float32)
    stored = OnDisk(tmp_path, whole.shape, whole.dtype)
    for start in (0, 8, 16):
        stored.put(start, whole[:, start : start + 8])
    assert b"".join(stored.blocks()) == whole.tobytes()
    np.testing.assert_array_equal(np.asarray(stored), whole)
    assert list(tmp_path.iterdir()) == []

# Cells and pixels: there and back for every way of fitting, what lies on the photo, and the half pixel of edges.
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from featx.errors import FeatxError
from featx.images import cells
from featx.images.frame import Frame
from featx.values import Level

sides = st.integers(1, 3000)
sizes = st.tuples(sides, sides)


def fitted(fit, original, target, orientation):
    """Place a photo as each fit does; the sizes in between are rounded as they are there."""
    frame = Frame.of(original, orientation)
    ratios = (target[0] / original[0], target[1] / original[1])
    if fit == "native":  # bars on the right and bottom, up to a multiple of 32
        return replace(frame, input=(-(-original[0] // 32) * 32, -(-original[1] // 32) * 32))
    if fit == "squash":
        return frame.resized(target)
    ratio = max(ratios) / 0.875 if fit == "crop" else min(ratios)  # pad and letterbox
    size = (max(1, round(original[0] * ratio)), max(1, round(original[1] * ratio)))
    return frame.resized(size).centred(target)


frames = st.builds(
    fitted,
    st.sampled_from(["crop", "squash", "pad", "letterbox", "native"]),
    sizes,
    st.tuples(st.integers(16, 1024), st.integers(16, 1024)),
    st.integers(1, 8),
)
strides = st.floats(1, 64)
offsets = st.floats(-16, 64)
levels = st.builds(
    lambda stride, offset: Level(2, "m", 8, stride, offset, 7, 9),
    strides | st.tuples(strides, strides),
    offsets | st.tuples(offsets, offsets),
)
places = st.floats(-1, 1024)


@given(frames, levels, st.floats(-0.5, 3000), st.floats(-0.5, 3000))
def test_from_a_pixel_to_its_cell_and_back(frame, level, x, y):
    row, column = cells.to_cell(frame, level, x, y)
    assert cells.to_pixel(frame, level, row, column) == pytest.approx((x, y), abs=1e-6)


@given(frames, levels, places, places)
def test_a_cell_is_centred_at_its_offset_and_as_many_strides(frame, level, row, column):
    across, down = frame.to_input(*cells.to_pixel(frame, level, row, column))
    pairs = [value if isinstance(value, tuple) else (value, value) for value in (level.offset, level.stride)]
    (top, left), (high, wide) = pairs
    assert (down, across) == pytest.approx((top + row * high, left + column * wide), abs=1e-6)


def test_the_centre_of_a_cell_by_hand():
    # A 500 x 400 photo, halved and centred in 160 x 160; cell (row 2, column 3) of a level of 16 x 16 patches.
    frame = Frame.of((500, 400)).resized((250, 200)).centred((160, 160))
    level = Level(0, "blocks.0", 8, 16, 7.5, 10, 10)
    x, y = (7.5 + 48 + 45 + 0.5) * 2 - 0.5, (7.5 + 32 + 20 + 0.5) * 2 - 0.5
    assert cells.to_pixel(frame, level, 2, 3) == (x, y)
    # The cell has 32 x 32 of its pixels, whose edges lie half a pixel further than its points.
    assert cells.box_of(frame, level, 2, 3) == (x + 0.5 - 16, y + 0.5 - 16, x + 0.5 + 16, y + 0.5 + 16)
    anisotropic = Level(0, "m", 8, (8, 4), (3.5, 1.5), 10, 10)
    assert cells.to_pixel(Frame.of((80, 80)), anisotropic, 1, 2) == (9.5, 11.5)


def test_patches_are_boxes_of_whole_pixels():
    """The half pixel: a patch of 16 pixels, which has them from 0 to 15, spans the edges 0 and 16."""
    frame, level = Frame.of((48, 32)), Level(0, "blocks.0", 8, 16, 7.5, 2, 3)
    assert cells.box_of(frame, level, 0, 0) == (0, 0, 16, 16)
    assert cells.box_of(frame, level, 1, 2) == (32, 16, 48, 32)
    np.testing.assert_array_equal(
        cells.boxes_in_cells(frame, level, [[0, 0, 48, 32], [16, 8, 32, 16]])[0], [0, 0, 3, 2]
    )
    np.testing.assert_array_equal(cells.boxes_in_cells(frame, level, [[16, 8, 32, 16]]), [[1, 0.5, 2, 1]])
    assert cells.seen(frame) == (0, 0, 48, 32)


@given(frames, levels, places, places)
def test_the_box_of_a_cell_is_one_cell(frame, level, row, column):
    box = cells.box_of(frame, level, row, column)
    found = cells.boxes_in_cells(frame, level, box)
    np.testing.assert_allclose(found, [[column, row, column + 1, row + 1]], rtol=0, atol=1e-6)


def test_arrays_are_broadcast():
    frame, level = Frame.of((640, 480)).resized((320, 320)), Level(2, "m", 8, (8, 4), 3.5, 40, 80)
    rows, columns = np.arange(40)[:, None], np.arange(80)
    x, y = cells.to_pixel(frame, level, rows, columns)
    assert (x.shape, y.shape) == ((80,), (40, 1))
    for found, single in zip(
        (*np.broadcast_arrays(x, y), *cells.box_of(frame, level, rows, columns)),
        (*cells.to_pixel(frame, level, 31, 57), *cells.box_of(frame, level, 31, 57)),
        strict=True,
    ):
        assert found.shape == (40, 80)
        assert found[31, 57] == single


@given(frames, levels, st.integers(1, 40), st.integers(1, 40))
def test_valid_is_brute_force(frame, level, height, width):
    inside = np.zeros((height, width), bool)
    for row, column in np.ndindex(height, width):
        x, y = cells.to_pixel(frame, level, row, column)
        inside[row, column] = all(
            -0.5 - 1e-6 <= place <= side - 0.5 + 1e-6 for place, side in zip((x, y), frame.original, strict=True)
        )
    found = np.zeros((height, width), bool)
    found[cells.valid(frame, level, height, width)] = True
    np.testing.assert_array_equal(found, inside)


def test_valid_leaves_bars_out():
    # 40 x 30 in 64 x 64: bars of 12 and 17 pixels; patches of 4.
    frame, level = Frame.of((40, 30)).centred((64, 64)), Level(0, "m", 8, 4, 1.5, 16, 16)
    assert cells.valid(frame, level, 16, 16) == (slice(4, 12), slice(3, 13))


@given(frames)
def test_what_is_seen_is_brute_force(frame):
    """Edges of the photo that lie in the input, and edges of the input that lie in the photo, as they were."""
    x1, y1, x2, y2 = cells.seen(frame)
    assert 0 <= x1 < x2 <= frame.original[0]
    assert 0 <= y1 < y2 <= frame.original[1]
    for edge, side in ((x1, 0), (y1, 1), (x2, 0), (y2, 1)):
        there = (edge - 0.5) * frame.scale[side] + frame.offset[side] + 0.5
        assert -1e-6 <= there <= frame.input[side] + 1e-6
        at_edges = [edge, edge - frame.original[side], there, there - frame.input[side]]
        assert min(map(abs, at_edges)) < 1e-6


def test_boxes_are_cut_to_what_was_seen():
    frame = Frame.of((100, 50)).centred((50, 50))  # which has the columns from 25 to 75
    boxes = [
        [0, 10, 40, 20],
        [30, -5, 90, 500],
        [0, 0, 25, 50],
        [40, 10, 40, 20],
        [40, 20, 60, 10],
        [40, 10, np.inf, 20],
        [40, np.nan, 60, 20],
    ]
    found = cells.cut(frame, boxes)
    np.testing.assert_array_equal(found[:2], [[25, 10, 40, 20], [30, 0, 75, 50]])
    assert np.isnan(found[2:]).all()
    assert cells.cut(frame, []).shape == (0, 4)


@pytest.mark.parametrize("missing", ["offset", "stride"])
def test_what_is_unknown_is_said(missing):
    level = replace(Level(3, "m", 8, 4, 1.5, 16, 16), **{missing: None})
    frame = Frame.of((64, 64))
    for call in (
        lambda: cells.to_pixel(frame, level, 0, 0),
        lambda: cells.to_cell(frame, level, 0, 0),
        lambda: cells.box_of(frame, level, 0, 0),
        lambda: cells.valid(frame, level, 16, 16),
        lambda: cells.boxes_in_cells(frame, level, [[0, 0, 1, 1]]),
    ):
        with pytest.raises(FeatxError, match=rf"The {missing} of level_3 is unknown.*\. Choose a level"):
            call()

# Frame: where pixels go, against pixels that really went there.
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert
from PIL import Image
from torchvision.transforms import functional

from featx.images.frame import Frame
from featx.values import plain

sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
points = st.tuples(st.floats(-0.5, 3000), st.floats(-0.5, 3000))


def test_untouched_frame_is_the_identity():
    assert Frame.of((30, 20)).to_input(7, 5) == (7, 5)


def test_resizing_keeps_the_outer_edges_together():
    frame = Frame.of((100, 50)).resized((200, 25))
    assert frame.to_input(-0.5, -0.5) == (-0.5, -0.5)
    assert frame.to_input(99.5, 49.5) == (199.5, 24.5)


def test_a_pixel_of_twice_the_size_is_centred_between_its_two():
    assert Frame.of((10, 10)).resized((20, 20)).to_input(0, 0) == (0.5, 0.5)


@given(sizes, sizes, sizes, points)
def test_there_and_back(original, resized, cropped, point):
    frame = Frame.of(original).resized(resized).centred(cropped)
    assert frame.to_original(*frame.to_input(*point)) == pytest.approx(point, abs=1e-6, rel=1e-6)


@given(sizes, sizes, st.integers(1, 8))
def test_json_keeps_everything(original, resized, orientation):
    frame = Frame.of(original, orientation).resized(resized)
    assert convert(plain(frame), Frame) == frame


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_centring_moves_pixels_as_torchvision_does(original, cropped):
    width, height = original
    # Every pixel says where it is, counted from 1, so that 0 is padding.
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.arange(1, width + 1)
    ramp[..., 1] = np.arange(1, height + 1)[:, None]
    moved = np.asarray(functional.center_crop(Image.fromarray(ramp), [cropped[1], cropped[0]]))
    frame = Frame.of(original).centred(cropped)
    rows, columns = np.nonzero(moved[..., 0])
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        x, y = frame.to_original(column, row)
        assert (x + 1, y + 1) == tuple(moved[row, column, :2])

# Boxes and points of a map: torchvision's roi_align, bilinear by hand, and nothing but the cells that are needed.
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchvision.ops import roi_align

from featx.images.regions import regions, sample

maps = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-1e3, 1e3, width=32))
)
shares = st.tuples(*[st.floats(0, 1)] * 4)


def inside(values, drawn):
    """Boxes with area that lie on a map, from shares of its sides."""
    _, height, width = values.shape
    x1, x2 = sorted((drawn[0] * width, drawn[1] * width))
    y1, y2 = sorted((drawn[2] * height, drawn[3] * height))
    return [x1, y1, max(x2, x1 + 1e-3), max(y2, y1 + 1e-3)]


@given(maps, st.lists(shares, min_size=1, max_size=5), st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_regions_are_roi_align(values, drawn, size):
    boxes = [inside(values, each) for each in drawn]
    image = torch.from_numpy(values)
    rois = torch.tensor([[0, *box] for box in boxes], dtype=torch.float32)
    expected = roi_align(image[None], rois, size, 1.0, -1, aligned=True)
    found = regions(image, boxes, size)
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)


@given(maps, st.lists(shares, min_size=2, max_size=5))
def test_a_box_does_not_depend_on_the_others(values, drawn):
    beyond = [[-3.0, -2.0, 20.0, 15.0], [np.nan] * 4, [-9.0, 0.0, 1.0, 1.0]]
    boxes = [*[inside(values, each) for each in drawn], *beyond]
    together = regions(torch.from_numpy(values), boxes, (2, 3)).numpy()
    for box, found in zip(boxes, together, strict=True):
        np.testing.assert_array_equal(regions(torch.from_numpy(values), [box], (2, 3))[0].numpy(), found)


def test_one_cell_is_its_own_value():
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert regions(values, [[2, 1, 3, 2]]).flatten().tolist() == values[:, 1, 2].tolist()
    assert torch.equal(regions(values, [[0, 0, 4, 3]], (3, 4))[0], values)


def test_the_border_is_continued_and_no_zeros_are_averaged():
    values = torch.full((3, 4, 5), 7.0)
    found = regions(values, [[-2.5, -3, 0, 0], [4, 3, 9, 9], [-4, -4, 9, 8], [1, 1, 2, 2]], (2, 2))
    torch.testing.assert_close(found, torch.full_like(found, 7.0))


def test_half_precision_is_computed_in_single():
    values = torch.randn(8, 6, 6).half()
    boxes = [[0.3, 0.7, 4.2, 5.1]]
    assert torch.equal(regions(values, boxes), regions(values.float(), boxes))


def test_a_box_that_is_not_a_number_gives_none():
    found = regions(torch.ones(2, 3, 3), [[0, 0, 1, 1], [np.nan] * 4])
    assert found[0].isfinite().all()
    assert found[1].isnan().all()
    assert regions(torch.ones(2, 3, 3), np.empty((0, 4)), (7, 7)).shape == (0, 2, 7, 7)


@given(maps)
def test_samples_at_centres_are_the_cells_bit_for_bit(values):
    values.reshape(-1)[::3] *= -0.0  # zeros have signs
    rows, columns = (each.reshape(-1) for each in np.indices(values.shape[1:]))
    noise = np.random.default_rng(0).uniform(-9e-7, 9e-7, (2, len(rows)))
    for row, column in ((rows, columns), (rows + noise[0], columns + noise[1])):
        found = sample(values, row, column)
        assert found.dtype == np.float32
        assert found.tobytes() == values.reshape(len(values), -1).T.tobytes()


@given(maps, st.lists(st.tuples(st.floats(-2, 11), st.floats(-2, 11)), min_size=1, max_size=6))
def test_samples_are_bilinear(values, points):
    found = sample(values, *zip(*points, strict=True))
    _, height, width = values.shape
    for (row, column), vector in zip(points, found, strict=True):
        y, x = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
        weights = np.outer(np.maximum(1 - abs(np.arange(height) - y), 0), np.maximum(1 - abs(np.arange(width) - x), 0))
        expected = (values.astype(np.float64) * weights).sum(axis=(1, 2))
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=5e-6 * abs(values).max())
        np.testing.assert_array_equal(sample(values, [row], [column])[0], vector)


def test_samples_are_roi_align_s():
    """One sample of roi_align lies in the middle of its box, half a cell beside the box's edges in cells."""
    values = torch.randn(4, 5, 6)
    box = torch.tensor([[0, 2.2, 1.4, 3.2, 2.4]])
    expected = roi_align(values[None], box, 1, sampling_ratio=1, aligned=True)[0, :, 0, 0]
    found = sample(values.numpy(), [1.4], [2.2])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_samples_that_are_not_numbers():
    found = sample(np.ones((2, 3, 3), np.float32), [0, np.nan, 1], [0, 1, np.nan])
    np.testing.assert_array_equal(np.isnan(found), [[False, False], [True, True], [True, True]])
    assert sample(np.ones((2, 3, 3), np.float32), [], []).shape == (0, 2)


def test_only_the_cells_that_are_needed_are_read(tmp_path):
    """A map of a terabyte, most of which is a hole in its file."""
    path, shape = tmp_path / "map.f4", (2, 1 << 18, 1 << 19)
    with path.open("wb") as file:
        file.truncate(4 * shape[0] * shape[1] * shape[2])
    values = np.memmap(path, np.float32, "r+", 0, shape)
    values[:, 200_000, 300_000] = (1, 2)
    np.testing.assert_array_equal(sample(values, [200_000, 200_000.5], [300_000, 300_000]), [[1, 2], [0.5, 1]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
def test_regions_on_a_graphics_card():
    values = torch.randn(16, 20, 30)
    boxes = [[0.3, 0.7, 14.2, 15.1], [-3, -3, 3, 3]]
    found = regions(values.cuda(), boxes, (7, 7))
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), regions(values, boxes, (7, 7)), rtol=1e-5, atol=1e-5)

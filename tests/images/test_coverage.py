# Coverage: the share of a photo that a model sees, against the frame that fitting the photo gives; sizes from headers.
from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featx.images import coverage, fitting, headers
from featx.images.frame import Frame
from featx.values import Input, Item
from tests.images import tiffs

MODES = {"crop": "center", "squash": "squash", "pad": "border"}


def feed_of(height, width, fit, crop_pct):
    return Input(height, width, (0.5,) * 3, (0.5,) * 3, "bilinear", crop_pct, fit, "own")


def seen_by_frame(frame: Frame) -> float:
    """Clip the input's rectangle to the photo's, in the photo's pixels."""
    share = 1.0
    for axis in range(2):
        low = (-0.5 - frame.offset[axis]) / frame.scale[axis] + 0.5
        high = (frame.input[axis] - 0.5 - frame.offset[axis]) / frame.scale[axis] + 0.5
        length = frame.original[axis]
        share *= (min(high, length) - max(low, 0)) / length
    return share


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MODES)),
    st.tuples(st.integers(32, 96), st.integers(32, 96)),
    st.sampled_from([1.0, 0.95, 0.875, 0.7]),
    st.tuples(st.integers(40, 400), st.integers(40, 400)),
)
def test_the_share_is_that_of_the_frame(fit, size, crop_pct, photo):
    config = {"input_size": (3, *size), "crop_pct": crop_pct, "crop_mode": MODES[fit], "interpolation": "bilinear"}
    config |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    _, frame = fitting.make(config).place(Image.new("RGB", photo))
    assert coverage.seen(feed_of(*size, fit, crop_pct), photo) == pytest.approx(seen_by_frame(frame), abs=1e-6)


def test_a_photo_of_the_web_loses_43_percent():
    assert round(coverage.seen(feed_of(224, 224, "crop", 0.875), (500, 375)), 2) == 0.57
    assert coverage.described(feed_of(224, 224, "crop", 0.875)) == "57% of a 4:3 photo, 77% of a square one"
    assert coverage.described(feed_of(224, 224, "pad", 1.0)) == "all of every photo"
    assert coverage.seen(feed_of(640, 640, "letterbox", 1.0), (500, 20)) == 1


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(
    "more", [{}, {"progressive": True, "exif": b"Exif\0\0" + bytes(60_000)}, {"comment": b"x" * 999}]
)
def test_sizes_are_read_from_the_first_bytes(tmp_path, suffix, more):
    path = tmp_path / f"photo.{suffix}"
    Image.new("RGB", (301, 47)).save(path, **(more if suffix == "jpg" else {}))
    assert headers.size_of(str(path)) == (301, 47)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_sizes_of_tiffs(tmp_path, order, big):
    data = tiffs.write(tiffs.made_up(tiffs.RGB, 8, size=(47, 301)), tiffs.RGB, 8, order=order, big=big)
    for length in (*range(0, len(data), 997), len(data)):
        (tmp_path / "a.tif").write_bytes(data[:length])
        assert headers.size_of(str(tmp_path / "a.tif")) in ((301, 47), None if length < len(data) else (301, 47))


def test_any_start_of_a_file_is_a_size_or_none(tmp_path, photo):
    whole = io.BytesIO()
    Image.new("RGB", (33, 22)).save(whole, "jpeg")
    for data in (whole.getvalue(), photo.read_bytes()[:3000]):
        for length in range(0, len(data), 7):
            (tmp_path / "a.jpg").write_bytes(data[:length])
            assert headers.size_of(str(tmp_path / "a.jpg")) in (None, (33, 22), (512, 512))
    assert headers.size_of(str(tmp_path)) is None
    assert headers.size_of(str(tmp_path / "none.jpg")) is None
    assert headers.size_of("/dev/zero") is None


def test_a_typical_photo_is_of_median_shape(tmp_path):
    items = []
    for number, size in enumerate([(100, 100), (40, 30), (30, 40), (90, 10), (40, 30)]):
        path = tmp_path / f"{number}.png"
        Image.new("L", size).save(path)
        items.append(Item(path.name, str(path)))
    (tmp_path / "text.png").write_text("no")
    items.append(Item("text", str(tmp_path / "text.png")))
    assert headers.typical(headers.sizes_of(items)) in ((40, 30), (30, 40))
    assert headers.typical(headers.sizes_of(items[-1:])) is None
    assert headers.typical(headers.sizes_of([])) is None

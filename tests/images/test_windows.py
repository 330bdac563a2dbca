# Windows: parts of pictures are those of the whole, and no more of a file is decoded than they touch.
from __future__ import annotations

import io
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from featx.errors import DecodeError
from featx.images import tiff_blocks, windows
from featx.images.decoding import decode
from featx.images.tiff_blocks import TiffBlocks
from featx.options import Limits
from tests.helpers import natural_image
from tests.images import tiffs
from tests.images.test_tiff import SUPPORTED, layouts
from tests.images.tiffs import YCBCR

ANY = Limits()

BOXES = [(0, 0, 21, 17), (3, 5, 21, 6), (15, 15, 17, 17), (0, 16, 1, 17)]


def parts(data, boxes, name="a.tif", limits=ANY, mpp=None):
    with windows.opened(io.BytesIO(data), name, limits, nullcontext, mpp) as source:
        return source, [source.read(box) for box in boxes]


@pytest.mark.parametrize(("photometric", "bits", "extra"), sorted(SUPPORTED))
def test_blocks_of_a_tiff_show_what_the_whole_shows(photometric, bits, extra, monkeypatch):
    samples = tiffs.made_up(photometric, bits, extra)
    more = {530: (tiffs.SHORT, [1, 1])} if photometric == YCBCR else None
    kinds = set()
    monkeypatch.setattr(tiff_blocks, "STRIP", 100)
    for layout in layouts(photometric, bits, extra):
        data = tiffs.write(samples, photometric, bits, **layout, more=more)
        try:
            whole = np.asarray(decode(io.BytesIO(data))[0])
        except DecodeError:
            continue
        source, found = parts(data, BOXES)
        kinds.add(type(source))
        for (left, top, right, bottom), pixels in zip(BOXES, found, strict=True):
            np.testing.assert_array_equal(pixels, whole[top:bottom, left:right])
    assert TiffBlocks in kinds


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate", "raw"])
def test_only_the_blocks_that_are_touched_are_decoded(compression, monkeypatch):
    file = io.BytesIO()
    natural_image(0, 300, 200).save(file, "TIFF", compression=compression, strip_size=300 * 3 * 16)
    monkeypatch.setattr(tiff_blocks, "STRIP", 300 * 3 * 16)  # of one that is not compressed, which Pillow does not cut
    decoded = []
    honest = TiffBlocks.decoded
    monkeypatch.setattr(TiffBlocks, "decoded", lambda self, number: decoded.append(number) or honest(self, number))
    source, (pixels,) = parts(file.getvalue(), [(250, 30, 300, 50)])
    assert (decoded, source.as_a_whole, source.size) == ([1, 2, 3], 0, (300, 200))
    whole = decode(io.BytesIO(file.getvalue()))[0]
    np.testing.assert_array_equal(pixels, np.asarray(whole)[30:50, 250:300])


def test_the_limit_on_pixels_is_for_what_is_decoded_at_once():
    file = io.BytesIO()
    natural_image(0, 300, 200).save(file, "TIFF", compression="tiff_lzw", strip_size=300 * 3 * 16)
    limits = Limits(max_pixels=300 * 16)
    assert parts(file.getvalue(), [(0, 0, 300, 200)], limits=limits)[1][0].shape == (200, 300, 3)
    png = io.BytesIO()
    natural_image(0, 300, 200).save(png, "PNG")
    with pytest.raises(DecodeError, match="--max-pixels"):
        parts(png.getvalue(), [], "a.png", limits)


def test_turned_and_undivided_pictures_are_decoded_as_a_whole():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    natural_image(0, 60, 40).save(file, "JPEG", exif=exif)
    source, (pixels,) = parts(file.getvalue(), [(5, 10, 40, 60)], "a.jpg")
    assert (source.orientation, source.size, source.as_a_whole) == (6, (40, 60), 4 * 60 * 40)
    np.testing.assert_array_equal(pixels, np.asarray(decode(io.BytesIO(file.getvalue()))[0])[10:60, 5:40])


def test_a_slide_is_read_at_a_resolution(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("openslide")
    whole = natural_image(0, 512, 384)
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        for number in range(3):
            pixels = np.asarray(whole.reduce(2**number))
            resolution = (2**-number * 1e4 / 0.25, 2**-number * 1e4 / 0.25)
            options = {"tile": (128, 128), "photometric": "rgb", "resolution": resolution, "resolutionunit": 3}
            file.write(pixels, subfiletype=bool(number), **options)
    source, (pixels,) = parts(path.read_bytes(), [(10, 20, 200, 150)], str(path), mpp=0.5)
    assert (source.original, source.size) == ((512, 384), (256, 192))
    np.testing.assert_array_equal(pixels, np.asarray(whole.reduce(2))[20:150, 10:200])
    with pytest.raises(DecodeError, match=r"no level of 3 microns.* but of 0\.25, 0\.5, 1"):
        parts(path.read_bytes(), [], str(path), mpp=3)
    png = tmp_path / "photo.png"
    whole.save(png)
    with pytest.raises(DecodeError, match="leave out --level-mpp"):
        parts(png.read_bytes(), [], str(png), mpp=0.5)
    Image.open(path).close()

# PNG: every colour, depth and transparency is as its twin worked out by hand; metadata costs no picture.
from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from featx.errors import DecodeError
from featx.images.decoding import decode, upright_rgb
from featx.images.fitting import make
from featx.images.placing import place
from featx.options import Limits
from tests.images import pngs
from tests.images.pngs import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, chunk

KINDS = [
    *((GREY, bits) for bits in (1, 2, 4, 8, 16)),
    *((PALETTE, bits) for bits in (1, 2, 4, 8)),
    *((colour, bits) for colour in (RGB, GREY_ALPHA, RGB_ALPHA) for bits in (8, 16)),
]


def made_up(colour, bits):
    """Samples, and a colour that some of them have."""
    samples = np.random.default_rng(bits).integers(0, 1 << bits, (13, 21, pngs.CHANNELS[colour]))
    samples[2:5, 3:9] = samples[0, 0]
    # In 16 bits, one that only the lower byte tells from the transparent colour.
    samples[6, :5] = samples[0, 0] ^ 1
    return samples, samples[0, 0]


def transparencies(colour, marked, bits):
    """What the tRNS chunk may hold: nothing, a colour of the picture, black, white, and one beyond the depth."""
    if colour == PALETTE:
        return [None, [0], [255, 0], [255, 128, 0, 7][: 1 << bits], [200] * (1 << bits)]
    if colour in (GREY, RGB):
        ends = [np.zeros_like(marked), np.full_like(marked, (1 << bits) - 1)]
        return [None, marked, *ends, *([marked + (1 << bits)] if 1 < bits < 16 else [])]
    return [None]


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize(("colour", "bits"), KINDS)
def test_every_kind_is_its_twin(colour, bits, interlaced):
    samples, marked = made_up(colour, bits)
    palette = np.random.default_rng(3).integers(0, 256, (1 << bits, 3)) if colour == PALETTE else None
    for transparent in transparencies(colour, marked, bits):
        data = pngs.write(samples, colour, bits, transparent=transparent, palette=palette, interlaced=interlaced)
        expected = pngs.shown(samples, colour, bits, transparent=transparent, palette=palette)
        pixels = np.asarray(decode(io.BytesIO(data))[0]).astype(float)
        assert np.abs(pixels - expected).max() <= (2 if colour in (GREY_ALPHA, RGB_ALPHA) else 1), transparent
        with Image.open(io.BytesIO(data)) as opened:  # as somebody hands it to `Pyramid.preprocess`
            assert np.array_equal(np.asarray(upright_rgb(opened)), pixels), transparent


def test_a_transparent_colour_of_sixteen_bits_that_has_been_loaded_is_refused():
    samples, marked = made_up(RGB, 16)
    with Image.open(io.BytesIO(pngs.write(samples, RGB, 16, transparent=marked))) as opened:
        opened.load()
        with pytest.raises(DecodeError, match="give featx the file"):
            upright_rgb(opened)


def photo():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3))


def read(tmp_path, data):
    """A picture as a run reads it: its pixels, its orientation and what was said of it."""
    (tmp_path / "a.png").write_bytes(data)
    placed = place(make({"fit": "letterbox", "input_size": (3, 30, 30)}), str(tmp_path / "a.png"), Limits())
    return placed.pixels[5:25], placed.frame.orientation, placed.messages


TEXT = zlib.compress(bytes(3_000_000))
LARGE = {
    "zTXt": [chunk(b"zTXt", b"Comment\0\0" + TEXT)],
    "iTXt": [chunk(b"iTXt", b"Comment\0\1\0\0\0" + TEXT)],
    "iCCP": [chunk(b"iCCP", b"profile\0\0" + TEXT)],
}
DAMAGED = {
    "iCCP": [chunk(b"iCCP", b"profile\0\7")],
    "zTXt": [chunk(b"zTXt", b"Comment\0\7\7")],
    "tEXt": [chunk(b"tEXt", b"Comment\0of a wrong checksum", checksum=1)],
    "eXIf": [chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0", checksum=1)],
}
SHORT = [chunk(kind, b"\1") for kind in (b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"sBIT")]


@pytest.mark.parametrize("place_", ["before", "after"])
@pytest.mark.parametrize("kind", LARGE)
def test_large_metadata_is_left_out_with_a_note(tmp_path, kind, place_):
    data = pngs.write(photo(), RGB, 8, **{place_: LARGE[kind]})
    pixels, orientation, said = read(tmp_path, data)
    assert (pixels == photo()).all()
    assert (orientation, said) == (1, f"its {kind} chunk is damaged or too large and was ignored")


@pytest.mark.parametrize("place_", ["before", "after"])
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_metadata_is_left_out_with_a_note(tmp_path, kind, place_):
    data = pngs.write(photo(), RGB, 8, **{place_: DAMAGED[kind]})
    pixels, _, said = read(tmp_path, data)
    assert (pixels == photo()).all()
    assert said == f"its {kind} chunk is damaged or too large and was ignored"


@pytest.mark.parametrize("place_", ["before", "after"])
def test_chunks_that_say_nothing_of_use_are_not_read(tmp_path, place_):
    pixels, _, said = read(tmp_path, pngs.write(photo(), RGB, 8, **{place_: SHORT}))
    assert (pixels == photo()).all()
    assert said == ""


@pytest.mark.parametrize("exif", [b"", b"garbage", b"II*\0\x08\0\0\0", bytes(40)], ids=repr)
def test_a_broken_exif_is_left_out_with_a_note(tmp_path, exif):
    pixels, orientation, said = read(tmp_path, pngs.write(photo(), RGB, 8, after=[chunk(b"eXIf", exif)]))
    assert (pixels == photo()).all()
    assert (orientation, said) == (1, "its EXIF is damaged and was ignored")


def test_the_many_chunks_of_a_bomb_are_not_unpacked(tmp_path):
    bombs = [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))] * 20
    data = pngs.write(photo(), RGB, 8, before=bombs)
    tracemalloc.start()
    pixels, _, said = read(tmp_path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (pixels == photo()).all()
    assert said.count("zTXt") == 1
    assert peak < 20_000_000


ORIENTED = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0)
WRITTEN = {
    "eXIf": chunk(b"eXIf", ORIENTED),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='6'/>".replace(b"'", b'"')),
    "ImageMagick": chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n26\n" + ORIENTED.hex().encode())
    ),
}


@pytest.mark.parametrize("place_", ["before", "after"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_an_orientation_is_found_wherever_it_is_written(kind, place_):
    data = pngs.write(photo(), RGB, 8, **{place_: [WRITTEN[kind]]})
    image, orientation = decode(io.BytesIO(data))
    assert orientation == 6
    assert (np.asarray(image) == np.rot90(photo(), -1)).all()


def test_a_damaged_picture_is_not_taken_for_damaged_metadata(tmp_path):
    data = pngs.write(np.repeat(photo(), 40, 0), RGB, 8)
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="truncated"):
        decode(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(OSError, match="truncated"):
        upright_rgb(opened)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_transparent_pictures_are_turned_too(tmp_path, mode, orientation):
    """The picture is what the frame says: the stored pixels, turned."""
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    stored = grey.convert("RGB").quantize(64) if mode == "P" else grey.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif, transparency=(5, 5, 5) if mode == "RGB" else 5)
    upright = np.asarray(ImageOps.exif_transpose(stored_with(stored, exif)).convert("RGB")).copy()
    shade = np.asarray(ImageOps.exif_transpose(stored_with(stored, exif)))
    upright[shade == 5 if mode != "RGB" else (shade == 5).all(-1)] = 255
    image, applied = decode(tmp_path / "a.png")
    assert applied == orientation
    np.testing.assert_array_equal(np.asarray(image), upright)


def stored_with(image, exif):
    """The same pixels, for Pillow to turn."""
    copy = image.copy()
    copy.info["exif"] = exif.tobytes()
    return copy

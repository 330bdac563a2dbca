# TIFF: every layout is decoded as it is written down by hand, or refused by its name; none comes out as something else.
from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from featx.errors import DecodeError, UnreadableError
from featx.images.containers import UPRIGHT
from featx.images.decoding import decode, upright_rgb
from featx.images.fitting import make
from featx.images.placing import place
from featx.options import Limits
from tests.images import tiffs
from tests.images.tiffs import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    CMYK,
    PALETTE,
    RGB,
    UNASSOCIATED,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    YCBCR,
)

DEPTHS = (1, 2, 4, 8, 10, 12, 14, 16, 32)
EXTRA = ((), (UNSPECIFIED,), (ASSOCIATED,), (UNASSOCIATED,), (UNSPECIFIED,) * 2, (UNASSOCIATED, UNSPECIFIED))
NAMES = {0: "grey (white is zero)", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}

# Those that must give pixels, with any compression, byte order, predictor, and in strips and tiles: the colours, the
# depth, and what more samples there may be.
SUPPORTED = {
    *((colour, bits, ()) for colour in (WHITE_IS_ZERO, BLACK_IS_ZERO) for bits in (1, 2, 4, 8)),
    *((PALETTE, bits, ()) for bits in (1, 2, 4, 8)),
    *((BLACK_IS_ZERO, 8, extra) for extra in EXTRA[1:4]),
    *((RGB, bits, extra) for bits in (8, 16) for extra in EXTRA[:4]),
    *((CMYK, bits, ()) for bits in (8, 16)),
    *((colour, 16, ()) for colour in (WHITE_IS_ZERO, BLACK_IS_ZERO)),
    (YCBCR, 8, ()),
}


def colour_map(bits):
    return np.random.default_rng(1).integers(0, 65536, (1 << bits, 3))


def decoded(data):
    return np.asarray(decode(io.BytesIO(data))[0]).astype(float)


PACKING = ((tiffs.NONE, 1), (tiffs.LZW, 1), (tiffs.LZW, 2), (tiffs.DEFLATE, 1), (tiffs.DEFLATE, 2), (tiffs.PACKBITS, 1))
ORDERS = (("<", False, 1), (">", False, 1), ("<", True, 1), ("<", False, 2))


def layouts(photometric, bits, extra):
    """Everything that one picture may be stored as."""
    colours = colour_map(bits) if photometric == PALETTE else None
    several = len(extra) + tiffs.COLOURS[photometric] > 1
    for planar, (compression, predictor), (order, big, fill_order), tile in itertools.product(
        (1, 2) if several else (1,), PACKING, ORDERS, (0, 16)
    ):
        if predictor == 1 or bits in (8, 16, 32):
            yield {
                "planar": planar,
                "order": order,
                "big": big,
                "compression": compression,
                "predictor": predictor,
                "fill_order": fill_order,
                "tile": tile,
                "extra": extra,
                "colour_map": colours,
            }


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("photometric", NAMES, ids=NAMES.get)
def test_every_layout_is_right_or_refused(photometric, bits):
    if photometric == PALETTE and bits > 8:
        pytest.skip("no palette is so large")
    more = {530: (tiffs.SHORT, [1, 1])} if photometric == YCBCR else None
    shown = set()
    for extra in EXTRA if bits in (8, 16) else EXTRA[:3]:
        samples = tiffs.made_up(photometric, bits, extra)
        for layout in layouts(photometric, bits, extra):
            colours = layout["colour_map"]
            data = tiffs.write(samples, photometric, bits, **layout, more=more)
            try:
                pixels = decoded(data)
            except DecodeError as error:
                said = str(error)
                assert f"{bits}-bit" in said, layout
                assert NAMES[photometric] in said or "no agreed range" in said, layout
                usual = layout["fill_order"] == 1 and layout["planar"] == 1
                assert (photometric, bits, extra) not in SUPPORTED or not usual, (said, layout)
            else:
                shown.add((photometric, bits, extra))
                expected = tiffs.shown(samples, photometric, bits, extra=extra, colour_map=colours)
                # A level or two are lost where Pillow cuts 16 bits to 8 before it mixes them.
                assert np.abs(pixels - expected).max() <= (2.6 if bits == 16 or any(extra) else 1.01), layout
    assert shown >= {each for each in SUPPORTED if each[:2] == (photometric, bits)}


@pytest.mark.parametrize("compression", [tiffs.NONE, tiffs.DEFLATE])
@pytest.mark.parametrize(
    ("bits", "sample_format", "named"),
    [
        *((8, 2, "8-bit signed grey"), (16, 2, "no agreed range"), (32, 2, "no agreed range")),
        *((32, 3, "no agreed range"), (64, 3, "64-bit floating-point grey"), (16, 3, "16-bit floating-point grey")),
    ],
)
def test_signed_and_floating_point_samples_are_refused(bits, sample_format, named, compression):
    kind = {2: np.int64, 3: np.float64}[sample_format]
    samples = np.linspace(-1, 100, 400).reshape(20, 20, 1).astype(kind)
    data = tiffs.write(samples, BLACK_IS_ZERO, bits, sample_format=sample_format, compression=compression)
    with pytest.raises(DecodeError, match=named):
        decode(io.BytesIO(data))


def test_floating_point_predictor_is_refused_as_floats_are():
    data = tiffs.write(np.ones((9, 9, 1)), BLACK_IS_ZERO, 32, sample_format=3, compression=tiffs.DEFLATE, predictor=3)
    with pytest.raises(DecodeError, match="floating-point pixels have no agreed range"):
        decode(io.BytesIO(data))


@pytest.mark.parametrize(
    ("bits", "photometric", "more", "named"),
    [
        (10, RGB, {}, "10-bit RGB TIFF is not supported .*; convert it to 8 or 16 bits"),
        (14, RGB, {}, "14-bit RGB TIFF is not supported .*; convert it to 8 or 16 bits"),
        (8, CMYK, {332: (tiffs.SHORT, [2])}, "8-bit inks other than CMYK TIFF is not supported"),
        (8, RGB, {262: (tiffs.SHORT, [32803])}, "8-bit colour filter array TIFF is not supported"),
        (8, RGB, {262: (tiffs.SHORT, [777])}, "8-bit photometric 777 TIFF is not supported"),
        (8, RGB, {259: (tiffs.SHORT, [4242])}, r"8-bit RGB TIFF is not supported \(compression 4242"),
    ],
)
def test_what_is_not_supported_is_named(bits, photometric, more, named):
    data = tiffs.write(tiffs.made_up(photometric, bits), photometric, bits, more=more)
    with pytest.raises(DecodeError, match=named):
        decode(io.BytesIO(data))


def test_big_endian_bigtiff_is_named():
    data = tiffs.write(tiffs.made_up(RGB, 8), RGB, 8, big=True, order=">")
    with pytest.raises(DecodeError, match="big-endian BigTIFF is not supported"):
        decode(io.BytesIO(data))


def to_lab(colours):
    """CIELab, as TIFF has it in 8 bits, of sRGB colours for D50 (IEC 61966-2-1, adapted as Bradford does)."""
    linear = colours / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
    x, y, z = np.moveaxis(np.cbrt(linear @ np.transpose(to_xyz) / (0.96422, 1, 0.82521)), -1, 0)
    return np.stack([(116 * y - 16) * 2.55, 500 * (x - y), 200 * (y - z)], -1).round().astype(int) & 255


@pytest.mark.parametrize("layout", [{}, {"compression": tiffs.LZW}, {"tile": 16}, {"order": ">"}], ids=str)
def test_lab_is_converted(layout):
    colours = np.random.default_rng(0).integers(90, 220, (24, 24, 3))
    pixels = decoded(tiffs.write(to_lab(colours), tiffs.LAB, 8, **layout))
    assert np.abs(pixels - colours).mean() < 1
    assert np.abs(pixels - colours).max() < 6  # what a step of a or b comes to


@pytest.mark.parametrize("compression", [tiffs.NONE, tiffs.LZW])
def test_lab_in_separate_planes_is_refused(compression):
    data = tiffs.write(tiffs.made_up(tiffs.LAB, 8), tiffs.LAB, 8, planar=2, compression=compression)
    with pytest.raises(DecodeError, match="8-bit CIELab TIFF in separate planes is not supported"):
        decode(io.BytesIO(data))


@pytest.mark.parametrize("named", [False, True], ids=["by default", "by the tag"])
def test_uncompressed_subsampled_colours(named):
    """Blocks of 2 x 2 pixels share their colours: four values of light, and one of blue and red each."""
    light = np.arange(64).reshape(8, 8) * 3 + 20
    blue, red = np.full((4, 4), 90), np.linspace(100, 200, 16).reshape(4, 4).astype(int)
    shares = light.reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(4, 4, 4)
    blocks = np.concatenate([shares, blue[..., None], red[..., None]], -1)
    more = {
        257: (tiffs.LONG, [8]),
        256: (tiffs.LONG, [8]),
        277: (tiffs.SHORT, [3]),
        258: (tiffs.SHORT, [8, 8, 8]),
        278: (tiffs.LONG, [8]),
        **({530: (tiffs.SHORT, [2, 2])} if named else {}),
    }
    data = tiffs.write(blocks.reshape(1, 96, 1), YCBCR, 8, rows_per_strip=8, more=more)
    whole = [np.repeat(np.repeat(plane, 2, 0), 2, 1) for plane in (blue, red)]
    expected = tiffs.shown(np.stack([light, *whole], -1), YCBCR, 8)
    assert np.abs(decoded(data) - expected).max() <= 1.5


def test_a_palette_of_eight_bits_is_taken_for_what_it_is():
    colours = np.random.default_rng(2).integers(0, 256, (256, 3))
    samples = tiffs.made_up(PALETTE, 8)
    data = tiffs.write(samples, PALETTE, 8, colour_map=colours)
    assert (decoded(data) == colours[samples[..., 0]]).all()


def test_a_tile_may_not_be_larger_than_an_image():
    data = tiffs.write(
        tiffs.made_up(RGB, 8), RGB, 8, tile=16, more={322: (tiffs.LONG, [1 << 15]), 323: (tiffs.LONG, [1 << 15])}
    )
    with pytest.raises(DecodeError, match=r"1074 megapixels are more than the 179 allowed \(--max-pixels\)"):
        decode(io.BytesIO(data))


TURNED = {
    "L": (BLACK_IS_ZERO, 8, ()),
    "P": (PALETTE, 8, ()),
    "RGB": (RGB, 8, ()),
    "RGBA": (RGB, 8, (UNASSOCIATED,)),
    "CMYK": (CMYK, 8, ()),
    "I;16": (BLACK_IS_ZERO, 16, ()),
}


def turned(mode, orientation, compression):
    """A file, and what it shows."""
    photometric, bits, extra = TURNED[mode]
    colours = colour_map(bits) if photometric == PALETTE else None
    samples = tiffs.made_up(photometric, bits, extra)
    data = tiffs.write(
        *(samples, photometric, bits),
        extra=extra,
        colour_map=colours,
        orientation=orientation,
        compression=compression,
        rows_per_strip=len(samples),
    )
    shown = tiffs.shown(samples, photometric, bits, extra=extra, colour_map=colours)
    upright = Image.fromarray(np.round(shown).astype(np.uint8))
    return data, np.asarray(upright.transpose(UPRIGHT[orientation]) if orientation > 1 else upright).astype(int)


@pytest.mark.parametrize("compression", [tiffs.NONE, tiffs.DEFLATE], ids=["uncompressed", "deflate"])
@pytest.mark.parametrize("mode", TURNED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_files_are_the_same_on_every_way_in(tmp_path, mode, orientation, compression):
    """By name, as bytes, as Pillow has opened it, and through a run's reading with and without hashes."""
    data, expected = turned(mode, orientation, compression)
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    by_name, applied = decode(path)
    assert (applied, by_name.size) == (orientation, (expected.shape[1], expected.shape[0]))
    assert np.abs(np.asarray(by_name) - expected).max() <= 1
    with Image.open(path) as opened:
        ways = [decode(io.BytesIO(data))[0], upright_rgb(opened)]
    for image in ways:
        assert np.array_equal(np.asarray(image), np.asarray(by_name))
    letterbox = make({"fit": "letterbox", "input_size": (3, 32, 32)})
    plain, hashed = (place(letterbox, str(path), Limits(), hashed=hashed) for hashed in (False, True))
    assert np.array_equal(plain.pixels, hashed.pixels)
    assert plain.frame == hashed.frame
    assert plain.frame.original == by_name.size


def test_what_pillow_has_loaded_is_taken_as_it_is(tmp_path):
    samples = tiffs.made_up(WHITE_IS_ZERO, 16)
    (tmp_path / "a.tif").write_bytes(tiffs.write(samples, WHITE_IS_ZERO, 16))
    with Image.open(tmp_path / "a.tif") as opened:
        opened.load()
        assert np.abs(np.asarray(upright_rgb(opened)) - tiffs.shown(samples, WHITE_IS_ZERO, 16)).max() <= 1


def test_the_page_that_somebody_chose_is_the_one(tmp_path):
    pages = [Image.new("L", (9, 7), shade) for shade in (10, 200)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with Image.open(tmp_path / "a.tif") as opened:
        opened.seek(1)
        assert np.asarray(upright_rgb(opened))[0, 0].tolist() == [200] * 3


@pytest.mark.parametrize("tag", [282, 283, 296, 34675, 700, 34665, 34853])
@pytest.mark.parametrize(
    "kind", [(2, "B"), (6, "b"), (9, "i"), (10, "ii"), (12, "d"), (7, "B")], ids=lambda kind: kind[0]
)
def test_metadata_of_a_wrong_type_loses_no_picture(tag, kind):
    samples = tiffs.made_up(RGB, 8)
    values = [1, 0] if kind[1] == "ii" else [0] if kind[1] in "Bb" else [-5]
    for unit in ({}, {296: (tiffs.SHORT, [3])}):
        data = tiffs.write(samples, RGB, 8, more={**unit, tag: (kind, values)})
        assert (decoded(data) == samples).all()


def test_failures_name_no_innards(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiffs.write(tiffs.made_up(RGB, 10), RGB, 10))
    with pytest.raises(UnreadableError, match=r"^10-bit RGB TIFF is not supported"):
        place(make({"fit": "letterbox", "input_size": (3, 32, 32)}), str(tmp_path / "a.tif"), Limits())

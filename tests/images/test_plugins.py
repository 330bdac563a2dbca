# HEIC and JPEG XL: upright, on white, within the limits; without their plugins, by name and with what to install.
from __future__ import annotations

import io
import struct
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from featx.engine import children
from featx.errors import DecodeError, UnreadableError, UsageError
from featx.images import decoding, jpegxl
from featx.images.containers import UPRIGHT
from featx.images.decoding import decode
from featx.images.fitting import make
from featx.images.placing import place
from featx.images.sources import find
from featx.options import Limits
from tests.helpers import MODEL, extract, lines, make_photos, natural_image, notes, outputs

SMALL = {"fit": "letterbox", "input_size": (3, 72, 96)}

# The entry of an orientation in EXIF, up to its number.
ENTRIES = (b"\x12\x01\x03\x00\x01\x00\x00\x00", b"\x01\x12\x00\x03\x00\x00\x00\x01\x00")


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def heic(image=None, **options):
    file = io.BytesIO()
    pillow_heif.from_pillow(image or natural_image(1)).save(file, quality=-1, chroma=444, **options)
    return file.getvalue()


def encoder(mode="RGB", **options):
    from pillow_jxl import Encoder

    standard = {"quality": 90, "decoding_speed": 0, "effort": 3, "use_container": False, "use_original_profile": False}
    return Encoder(mode=mode, num_threads=0, **{"lossless": False, **standard, **options})


def jpeg_xl(image=None, exif=None, **options):
    image = image or natural_image(1)
    metadata = {"exif": exif, "jumb": None, "xmp": None, "compress": False}
    return encoder(image.mode, **options)(image.tobytes(), *image.size, jpeg_encode=False, **metadata)


def bits(*fields):
    """Write (number, bits) as JPEG XL does: the lowest first."""
    place = value = 0
    for number, width in fields:
        value |= number << place
        place += width
    return value.to_bytes(-(-place // 8), "little")


SIZE = ((0, 1), (0, 2), (71, 9), (0, 3), (0, 2), (95, 9))  # 96 x 72
MANY = ((0, 1), (3, 2), (39_999, 30), (1, 3))  # 40,000 x 40,000
DEPTH_8 = ((0, 1), (0, 2))


def metadata(orientation=1, *, preview=0, animation=0, depth=DEPTH_8):
    """An ImageMetadata that is not the usual one, and what stands behind it."""
    return (
        *((0, 1), (1, 1), (orientation - 1, 3), (0, 1), (preview, 1), (animation, 1), *depth),
        *((1, 1), (0, 2), (1, 1), (1, 1), (1, 1), (0, 2), (1, 1)),
    )


def turned(orientation):
    """A JPEG XL whose codestream has an orientation."""
    whole = jpeg_xl()
    usual = b"\xff\x0a" + bits((1, 1), (8, 5), (3, 3), (1, 1), (1, 1))  # 72 high, 4 to 3; all else as usual
    assert whole.startswith(usual)
    return b"\xff\x0a" + bits(*SIZE, *metadata(orientation)) + whole.removeprefix(usual)


def decoded(data):
    image, orientation = decode(io.BytesIO(data))
    return np.asarray(image), orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_once(orientation):
    """By properties of its own; what its EXIF says besides, as phones write it, does not count."""
    stored = heic(exif=exif_of(orientation))
    upright = natural_image(1).transpose(UPRIGHT[orientation]) if orientation > 1 else natural_image(1)
    pixels, applied = decoded(stored)
    assert applied == 1
    assert pixels.shape[:2] == upright.size[::-1]
    assert np.abs(pixels.astype(int) - np.asarray(upright)).mean() < 2
    for other in (1, 6, 200):
        entry = next(entry for entry in ENTRIES if entry in stored)
        place_ = stored.index(entry) + len(entry)
        again = bytearray(stored)
        again[place_] = other
        assert np.array_equal(decoded(bytes(again))[0], pixels)


def test_a_heic_of_tiles_as_phones_write_it_is_one_picture():
    image = natural_image(1, 600, 520)
    pixels = decoded(heic(image, tile_size=256, exif=exif_of(6)))[0]
    assert np.abs(pixels.astype(int) - np.asarray(image.transpose(UPRIGHT[6]))).mean() < 2


def test_a_damaged_beginning_is_not_called_another_file():
    with pytest.raises(OSError, match="cannot identify image file"):
        decode(io.BytesIO(b"\0\0\0\x0cJXL \r\n\0\n" + bytes(60)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_xl_is_turned_once(orientation):
    """By its codestream; EXIF counts only in a JPEG that was made into one, and is decoded as that JPEG."""
    plain = decoded(jpeg_xl())[0]
    pixels, applied = decoded(turned(orientation))
    assert applied == 1
    picture = Image.fromarray(plain)
    expected = picture.transpose(UPRIGHT[orientation]) if orientation > 1 else picture
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1  # libjxl dithers, by the place of a pixel
    with_exif = jpeg_xl(exif=exif_of(orientation), use_container=True)
    assert np.array_equal(decoded(with_exif)[0], plain)

    jpeg = io.BytesIO()
    natural_image(1).save(jpeg, "JPEG", exif=exif_of(orientation))
    remade = encoder(lossless=True, quality=100)(jpeg.getvalue(), 96, 72, jpeg_encode=True)
    pixels, applied = decoded(remade)
    assert applied == orientation
    assert np.array_equal(pixels, decoded(jpeg.getvalue())[0])


@pytest.mark.parametrize("twelve", [False, True])
def test_full_scale_is_white_in_heic_of_any_depth(monkeypatch, twelve):
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", twelve)
    ramp = np.tile(np.linspace(0, 65535, 256).astype("<u2")[None, :, None], (64, 1, 3))
    for mode, samples in (("RGB;16", ramp), ("I;16", ramp[:, :, :1])):
        file = io.BytesIO()
        pillow_heif.from_bytes(mode, (256, 64), samples.tobytes()).save(file, quality=-1, chroma=444)
        pixels = decoded(file.getvalue())[0]
        assert np.abs(pixels[0].astype(int) - np.arange(256)[:, None]).max() <= 1


def test_full_scale_is_white_in_jpeg_xl_of_16_bits():
    ramp = np.tile(np.linspace(0, 65535, 256).astype("<u2"), (64, 1))
    pixels = decoded(jpeg_xl(Image.fromarray(ramp), lossless=True, quality=100))[0]
    assert np.array_equal(pixels[0], np.tile(np.arange(256)[:, None], 3))


@pytest.mark.parametrize("write", [heic, lambda image: jpeg_xl(image, lossless=True, quality=100)])
def test_alpha_shows_white(write):
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 32, 64))
    pixels = decoded(write(image))[0].astype(int)
    assert np.abs(pixels[10, 10] - (0, 0, 200)).max() <= 2
    assert np.abs(pixels[10, 60] - 255).max() <= 2


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (metadata(depth=((0, 1), (1, 2))), "10-bit JPEG XL is not supported; convert it to 8 or 16 bits"),
        (metadata(depth=((0, 1), (3, 2), (3, 6))), "4-bit JPEG XL is not supported"),
        (metadata(depth=((1, 1), (0, 2))), "floating-point pixels have no agreed range"),
        (metadata(animation=1), "animated JPEG XL is not supported; save its first picture"),
        (metadata(preview=1), "JPEG XL with a preview is not supported"),
    ],
)
def test_what_the_decoder_of_jpeg_xl_reads_wrongly_is_refused(header, reason):
    with pytest.raises(DecodeError, match=reason):
        decode(io.BytesIO(b"\xff\x0a" + bits(*SIZE, *header) + bytes(100)))


def bomb_heic():
    data = bytearray(heic())
    start = data.index(b"ispe") + 8
    data[start : start + 8] = struct.pack(">II", 30_000, 30_000)
    return bytes(data)


BOMBS = {
    "HEIC": bomb_heic,
    "JPEG XL": lambda: b"\xff\x0a" + bits(*MANY, (1, 1), (1, 1)) + bytes(100),
    "boxes": lambda: (
        b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x0cfreefree"
        + struct.pack(">I4sIQI", 1, b"jxlp", 0, 0, 0)[:8]
        + struct.pack(">Q", 16 + 4 + 3)
        + b"\0\0\0\0\xff\x0a"
        + bits(*MANY, (1, 1), (1, 1))[:1]
        + struct.pack(">I4sI", 0, b"jxlp", 1)
        + bits(*MANY, (1, 1), (1, 1))[1:]
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_the_size_is_known_before_a_pixel_is_decoded(name):
    with pytest.raises(DecodeError, match=r"(900|1600) megapixels are more than the 179 allowed"):
        decode(io.BytesIO(BOMBS[name]()))


@pytest.mark.parametrize(
    ("write", "owner", "name"),
    [(heic, pillow_heif.HeifImage, "load"), (jpeg_xl, jpegxl, "decoded")],
    ids=["HEIC", "JPEG XL"],
)
def test_large_ones_are_decoded_alone(tmp_path, monkeypatch, write, owner, name):
    (tmp_path / "a").write_bytes(write())
    monkeypatch.setattr(decoding, "LARGE", 2000)
    inside = []

    @contextmanager
    def alone():
        inside.append("entered")
        yield
        inside.append("left")

    honest = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda given: (inside.append("decoded"), honest(given))[1])
    place(make(SMALL), str(tmp_path / "a"), Limits(), alone=alone)
    assert list(dict.fromkeys(inside)) == ["entered", "decoded", "left"]


@pytest.mark.parametrize("write", [heic, jpeg_xl, lambda: jpeg_xl(use_container=True, exif=exif_of(6))])
def test_what_is_cut_short_fails_in_plain_words(tmp_path, write):
    whole = write()
    for length in (*range(12, 200, 9), len(whole) // 2, len(whole) - 40):
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(UnreadableError) as failure:
            place(make(SMALL), str(tmp_path / "a"), Limits())
        assert failure.value.reason == "the file is damaged", length


REGISTERED_NOWHERE = """
import sys
from PIL import Image
from featx.images.decoding import decode

def read(path):
    with open(path, "rb") as file:
        decode(file)

png, *others = sys.argv[1:]
read(png)
assert not {"pillow_heif", "pillow_jxl"} & set(sys.modules)
Image.init()
before = dict(Image.OPEN), dict(Image.EXTENSION)
for path in others:
    read(path)
assert before == (Image.OPEN, Image.EXTENSION)
import pillow_jxl
assert "JXL" in Image.OPEN and Image.open(others[-1]).size == (96, 72)
"""


def test_the_plugins_are_imported_late_and_pillow_is_not_told(phone):
    paths = [phone / name for name in ("0.png", "3.HEIC", "5.jxl")]
    subprocess.run([sys.executable, "-c", REGISTERED_NOWHERE, *paths], check=True)


@pytest.fixture
def phone(tmp_path):
    """A folder of two photos in PNG, two in HEIC, one in JPEG XL."""
    folder = make_photos(tmp_path / "phone", 2, "{}.png")
    for name, data in (("3.HEIC", heic()), ("4.hif", heic(natural_image(2))), ("5.jxl", jpeg_xl())):
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def without_plugins(phone, monkeypatch):
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)


def test_a_run_of_a_phone_s_photos(featx_command, phone):
    assert featx_command("extract", phone, *MODEL, "--output", "here").returncode == 0
    done = featx_command("extract", phone, *MODEL, "--output", "apart", "--isolate")
    assert (done.returncode, len(outputs(phone.parent / "here"))) == (0, 5), done.stderr
    assert outputs(phone.parent / "here") == outputs(phone.parent / "apart")


def test_a_child_s_limit_of_memory_holds_for_them(tmp_path):
    (tmp_path / "a.jxl").write_bytes(jpeg_xl(Image.new("RGB", (6000, 4000))))
    child = children.Child(make(SMALL).config, Limits(memory_limit=50_000_000), hashed=False)
    with pytest.raises(UnreadableError, match=r"memory-limit|crashed"):
        child.read(str(tmp_path / "a.jxl"))
    child.close()


@pytest.mark.usefixtures("without_plugins")
def test_without_plugins_photos_in_folders_are_counted_by_name(phone):
    heard = []
    report = extract(phone, phone.parent / "run", listener=heard.append)
    assert (report.summary["counts"]["done"], report.failures) == (2, [])
    skipped = "Skipped 2 HEIC files and 1 JPEG XL file; pip install 'featx[heif,jxl]' reads them"
    assert skipped in notes(heard)
    with pytest.raises(UsageError) as failure:
        find([str(phone / "*.jxl")])
    assert failure.value.message == f"There are no images in {phone}/*.jxl except 1 JPEG XL file"
    assert failure.value.hint == "pip install 'featx[jxl]' reads it"


@pytest.mark.usefixtures("without_plugins")
def test_without_plugins_photos_that_are_named_fail_with_what_to_install(phone):
    report = extract([phone / "3.HEIC", phone / "5.jxl", phone / "0.png"], phone.parent / "run")
    assert [outcome.error for outcome in report.failures] == [
        "HEIC needs an extra: pip install 'featx[heif]'",
        "JPEG XL needs an extra: pip install 'featx[jxl]'",
    ]
    assert sum(line["status"] == "done" for line in lines(phone.parent / "run")) == 1

# Image files: what is beside the pixels costs no picture, and what is wrong with one is said in plain words.
from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, WebPImagePlugin
from timm.data import resolve_data_config

from featx.engine import children
from featx.errors import DecodeError, UnreadableError
from featx.images import decoding, fitting
from featx.images.containers import canvas_of
from featx.images.decoding import decode
from featx.images.fitting import make
from featx.images.frame import Frame
from featx.images.pictures import reason_of
from featx.images.placing import place
from featx.options import Limits
from featx.values import plain
from tests.helpers import natural_image

SMALL = {"fit": "letterbox", "input_size": (3, 72, 96)}


def saved(kind, image=None, **options):
    file = io.BytesIO()
    (image or natural_image(1)).save(file, kind, **options)
    return file.getvalue()


def exif_of(type_, data, count=1):
    """EXIF whose only entry is an orientation of a type; what does not fit into the entry follows."""
    inline, behind = (data.ljust(4, b"\0"), b"") if len(data) <= 4 else (struct.pack("<I", 26), data)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHI", 1, 0x0112, type_, count) + inline + bytes(4) + behind


# Types of EXIF: 1 byte, 2 text, 3 short, 4 long, 5 rational, 7 undefined, 9 signed long, 10 signed rational, 11 float,
# 12 double.
SIX = [
    *(
        (3, struct.pack("<H", 6)),
        (4, struct.pack("<I", 6)),
        (5, struct.pack("<II", 6, 1)),
        (5, struct.pack("<II", 12, 2)),
    ),
    *(
        (9, struct.pack("<i", 6)),
        (10, struct.pack("<ii", 6, 1)),
        (11, struct.pack("<f", 6)),
        (12, struct.pack("<d", 6)),
    ),
]
SENSELESS = [
    *(
        (1, b"\6"),
        (2, b"6\0"),
        (2, b"\0"),
        (7, b"\6"),
        (3, b"\0\0"),
        (3, b"\x09\0"),
        (4, b"\xff" * 4),
        (9, b"\xff" * 4),
    ),
    *((5, struct.pack("<II", 6, 0)), (5, struct.pack("<II", 0, 0)), (5, struct.pack("<II", 13, 2))),
    *((11, struct.pack("<f", float("nan"))), (12, struct.pack("<d", float("inf"))), (12, struct.pack("<d", 5.5))),
]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("type_", "data"), [*SIX, *SENSELESS])
def test_an_orientation_of_any_type_comes_out_as_a_plain_number(tmp_path, kind, type_, data):
    count = len(data) if type_ in (1, 2, 7) else 1
    (tmp_path / "a").write_bytes(saved(kind, exif=exif_of(type_, data, count)))
    placed = place(make(SMALL), str(tmp_path / "a"), Limits())
    assert placed.frame.orientation == (6 if (type_, data) in SIX else 1)
    assert type(placed.frame.orientation) is int
    assert placed.frame.original == ((72, 96) if (type_, data) in SIX else (96, 72))
    json.dumps([plain(placed.frame), placed.messages])


BROKEN = [
    b"garbage",
    b"II*\0\x08\0\0\0",
    bytes(40),
    b"",
    b"II*\0",
    b"II*\0\xff\xff\xff\xff",
    b"MM\0*\0\0\0\x08\xff\xff",
]


@pytest.mark.parametrize("exif", BROKEN, ids=repr)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "MPO"])
def test_a_broken_exif_costs_no_picture(tmp_path, kind, exif):
    """A JPEG with and without a density of its own, without which Pillow looks into EXIF for one."""
    whole = saved(kind, **({"save_all": True, "append_images": [natural_image(2)]} if kind == "MPO" else {}))
    expected = np.asarray(decode(io.BytesIO(whole))[0])
    for options in ({}, {"dpi": (72, 72)}) if kind == "JPEG" else ({},):
        more = {"save_all": True, "append_images": [natural_image(2)]} if kind == "MPO" else options
        (tmp_path / "a").write_bytes(saved(kind, exif=b"Exif\0\0" + exif, **more))
        placed = place(make(SMALL), str(tmp_path / "a"), Limits())
        assert np.array_equal(placed.pixels, expected)
        assert placed.frame.orientation == 1
        assert placed.messages in ("", "its EXIF is damaged and was ignored")
        assert placed.messages or kind == "WEBP" or not exif


def segment(marker, data):
    return struct.pack(">HH", marker, len(data) + 2) + data


RESOLUTION = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHI", 2, 0x011A, 2, 1) + bytes(4)
SEGMENTS = {
    "JFIF without a density": segment(0xFFE0, b"JFIF\0"),
    "Adobe, cut short": segment(0xFFEE, b"Adobe"),
    "Photoshop, cut short": segment(0xFFED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "multi-picture, senseless": segment(0xFFE2, b"MPF\0" + b"II*\0\x08\0\0\0" + bytes(20)),
    "multi-picture, of none": segment(0xFFE2, b"MPF\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0xB001, 4, 1, 5)),
    "profile, of one part": segment(0xFFE2, b"ICC_PROFILE\0"),
    "empty": segment(0xFFE1, b""),
    "resolution of no length": segment(0xFFE1, RESOLUTION + struct.pack("<HHII", 0x0128, 3, 1, 2)),
    "comment": segment(0xFFFE, bytes(1000)),
    "filling": b"\xff\xff\xff",
    "junk": b"\0\1\2",
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_application_segments_cost_no_jpeg(name):
    whole = saved("JPEG")
    for start in (20,) if name == "junk" else (2, 20):  # before the picture's own first segment, and behind it
        data = whole[:start] + SEGMENTS[name] + whole[start:]
        image, orientation = decode(io.BytesIO(data))
        assert orientation == 1
        assert image.tobytes() == decode(io.BytesIO(whole))[0].tobytes()


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}], ids=str)
def test_a_jpeg_without_its_metadata_is_the_same_picture(kind, options):
    if options == {"keep_rgb": True} and kind != "RGB":
        pytest.skip("for RGB alone")
    exif = Image.Exif()
    exif[0x010E] = "a description"
    profile = bytes(range(256)) * 400
    image = natural_image(4, 300, 200).convert(kind)
    data = saved("JPEG", image, exif=exif, icc_profile=profile, comment=b"hello", **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert decode(io.BytesIO(data))[0].tobytes() == opened.convert("RGB").tobytes()


def test_avif_and_jpeg_2000_lose_no_picture_to_their_metadata():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = saved("AVIF", exif=exif)
    broken = data.replace(exif.tobytes()[6:14], b"garbage!")
    assert broken != data
    assert decode(io.BytesIO(broken))[0].tobytes() == decode(io.BytesIO(data))[0].tobytes()
    plain = saved("JPEG2000")
    resolution = struct.pack(">I4sI4s", 26, b"res ", 3, b"resc") + bytes(10)
    place_ = plain.index(b"jp2h") - 4
    (length,) = struct.unpack(">I", plain[place_ : place_ + 4])
    header = struct.pack(">I", length + len(resolution)) + plain[place_ + 4 : place_ + length] + resolution
    broken = plain[:place_] + header + plain[place_ + length :]
    assert decode(io.BytesIO(broken))[0].tobytes() == decode(io.BytesIO(plain))[0].tobytes()


def jpeg_2000_of(depth, samples, kind):
    """A file whose header names another depth; what is added to the samples then becomes another number, too."""
    shift = 128 - (1 << depth - 1) if depth < 8 else 0
    data = saved("JPEG2000", Image.fromarray((samples + shift).astype(np.uint8)), no_jp2=kind == "j2k")
    sizes = data.index(b"\xff\x4f\xff\x51") + 42
    changed = bytearray(data)
    for component in range(samples[0, 0].size):
        changed[sizes + 3 * component] = depth - 1
    return bytes(changed)


@pytest.mark.parametrize("kind", ["jp2", "j2k"])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "RGB"])
@pytest.mark.parametrize("depth", [1, 2, 4, 7, 8])
def test_full_scale_is_white_in_jpeg_2000_of_any_depth(kind, colour, depth):
    samples = np.random.default_rng(0).integers(0, 1 << depth, (32, 32, 3) if colour else (32, 32))
    pixels = np.asarray(decode(io.BytesIO(jpeg_2000_of(depth, samples, kind)))[0])
    expected = samples if colour else samples[..., None]
    assert np.abs(pixels - expected / ((1 << depth) - 1) * 255).max() <= 0.51


@pytest.mark.parametrize("kind", ["jp2", "j2k"])
@pytest.mark.parametrize("depth", [9, 10, 12, 16])
def test_deep_colours_in_jpeg_2000_are_refused(kind, depth):
    """Pillow takes what is nearly white for black."""
    samples = np.zeros((32, 32, 3), int)
    with pytest.raises(DecodeError, match=f"{depth}-bit JPEG 2000 in the colours RGB is not supported"):
        decode(io.BytesIO(jpeg_2000_of(depth, samples, kind)))


def transparent_picture(mode):
    """Opaque black, opaque white, half transparent red, transparent black: and what they are on white."""
    rgba = Image.new("RGBA", (40, 10))
    for place_, colour in enumerate([(0, 0, 0, 255), (255, 255, 255, 255), (255, 0, 0, 128), (0, 0, 0, 0)]):
        rgba.paste(colour, (10 * place_, 0, 10 * place_ + 10, 10))
    return rgba.convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        *(("WEBP", "RGBA", {"lossless": True, "exact": True}), ("WEBP", "RGBA", {"quality": 100})),
        *(("AVIF", "RGBA", {"quality": 100}), ("AVIF", "RGBA", {"quality": 100, "alpha_premultiplied": True})),
        *(("JPEG2000", "RGBA", {}), ("JPEG2000", "LA", {}), ("TIFF", "RGBA", {}), ("TIFF", "LA", {})),
        *(("PNG", "RGBA", {}), ("PNG", "LA", {})),
    ],
)
def test_alpha_shows_white(kind, mode, options):
    image = transparent_picture(mode)
    pixels = np.asarray(decode(io.BytesIO(saved(kind, image, **options)))[0]).astype(int)
    layers = np.asarray(image.convert("RGBA")).astype(float)
    expected = (layers[..., :3] - 255) * layers[..., 3:] / 255 + 255
    centres = [5, 15, 25, 35]
    assert np.abs(pixels[5, centres] - expected[5, centres]).max() <= (12 if "quality" in options else 1)


def test_a_gif_s_transparency_shows_white():
    for mode in ("P", "L"):
        image = Image.new("L", (20, 10), 3)
        image.paste(9, (10, 0, 20, 10))
        pixels = np.asarray(decode(io.BytesIO(saved("GIF", image.convert(mode), transparency=9)))[0])
        assert pixels[:, :10].max() == 3
        assert pixels[:, 10:].min() == 255


@pytest.mark.parametrize(("mode", "colour", "shown"), [("La", (50, 100), 205), ("RGBa", (50, 50, 50, 100), 205)])
def test_premultiplied_alpha_shows_white(mode, colour, shown):
    straight = {"La": "LA", "RGBa": "RGBA"}[mode]
    image = Image.new(straight, (4, 4), tuple(255 * value // 100 if value == 50 else value for value in colour))
    assert np.abs(np.asarray(decoding.upright_rgb(image.convert(mode))).astype(int) - shown).max() <= 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_pictures_in_bands_are_as_they_are_whole(monkeypatch, orientation):
    image = natural_image(3, 300, 200)
    image.putalpha(natural_image(4, 300, 200).convert("L"))
    values = np.random.default_rng(0).integers(0, 65536, (200, 300)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    files = [saved("PNG", each, exif=exif) for each in (image, image.quantize(), Image.fromarray(values))]
    files.append(saved("PNG", image.convert("RGB"), transparency=image.convert("RGB").getpixel((7, 7)), exif=exif))
    whole = [decode(io.BytesIO(data))[0].tobytes() for data in files]
    monkeypatch.setattr("featx.images.colours.BAND", 1000)
    assert [decode(io.BytesIO(data))[0].tobytes() for data in files] == whole


def config(mode, size):
    return resolve_data_config({"input_size": (3, *size), "crop_mode": mode}, pretrained_cfg={"crop_pct": 0.9})


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("input_size", [(32, 32), (32, 48), (48, 32)])
def test_the_size_in_between_is_foreseen(mode, input_size):
    preprocessor = make(config(mode, input_size))
    for size in [(1, 1), (7, 5), (100, 3), (3, 100), (31, 997), (640, 480), (999, 1000)]:
        image = Image.new("RGB", size)
        resized = preprocessor._places[0](image) if min(size) > 1 or mode != "border" else image
        if resized is not image:
            assert preprocessor.largest(size) == resized.width * resized.height


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (65_535, 1), (2, 65_500)])
def test_a_thin_picture_is_refused_by_what_would_be_made_of_it(tmp_path, size):
    """And at once: it would take gigabytes."""
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(
        UnreadableError, match=r"resized, before it is cropped, it would have \S+ megapixels, more than"
    ):
        place(make(config("center", (224, 224))), str(tmp_path / "a.png"), Limits())


def test_a_picture_too_thin_for_a_border_is_refused(tmp_path):
    Image.new("RGB", (3000, 1)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableError, match="after resizing, nothing would be left of it"):
        place(make(config("border", (224, 224))), str(tmp_path / "a.png"), Limits())


def test_the_limit_in_between_can_be_raised(tmp_path):
    Image.new("RGB", (1, 300)).save(tmp_path / "a.png")
    preprocessor = make(config("center", (64, 64)))
    with pytest.raises(UnreadableError, match="megapixels, more than the 1 allowed"):
        place(preprocessor, str(tmp_path / "a.png"), Limits(max_pixels=1_000_000))
    assert place(preprocessor, str(tmp_path / "a.png"), Limits(max_pixels=2_000_000)).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_large_pictures_are_decoded_and_resized_alone(tmp_path, monkeypatch, kind):
    """From the first pixel on: opening a WebP reserves its memory, and EXIF may be behind a PNG's pixels."""
    (tmp_path / "a").write_bytes(saved(kind, natural_image(1, 60, 40)))
    monkeypatch.setattr(decoding, "LARGE", 2000)
    inside = []

    @contextmanager
    def alone():
        inside.append(True)
        yield
        inside.append(False)

    def watched(name, honest):
        def watch(*given, **options):
            assert inside == [True], name
            return honest(*given, **options)

        return watch

    preprocessor = make(config("center", (32, 32)))
    decoder = WebPImagePlugin._webp
    for owner, name in ((Image.Image, "resize"), (decoding, "loaded"), (decoder, "WebPAnimDecoder")):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    place(preprocessor, str(tmp_path / "a"), Limits(), alone=alone)
    assert inside == [True, False]


def test_what_becomes_large_is_resized_alone(tmp_path):
    Image.new("RGB", (1, 1000)).save(tmp_path / "a.png")
    entered = []

    @contextmanager
    def alone():
        entered.append(True)
        yield

    place(make(config("center", (224, 224))), str(tmp_path / "a.png"), Limits(), alone=alone)
    assert entered == [True]


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"icc_profile": b"profile"}], ids=str)
def test_the_canvas_of_a_webp_is_known_before_it_is_opened(options):
    data = saved("WEBP", natural_image(1, 70, 50), **options)
    assert canvas_of(io.BytesIO(data)) == (70, 50)
    with pytest.raises(DecodeError, match=r"0\.0035 megapixels are more than"):
        decode(io.BytesIO(data), max_pixels=3499)


def peak_of(tmp_path, data):
    """Megabytes that reading a picture takes, over those of reading none."""
    (tmp_path / "a").write_bytes(data)
    script = (
        "import sys, resource\n"
        "from featx.images.placing import place\nfrom featx.images.fitting import make\n"
        "from featx.options import Limits\n"
        f"made = make({config('center', (224, 224))!r})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "place(made, sys.argv[1], Limits())\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a"], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.parametrize(
    ("mode", "bytes_a_pixel"), [("RGBA", 10), ("I;16", 9), ("L", 7), ("P", 7)], ids=["RGBA", "I16", "L", "P"]
)
def test_memory_is_bounded_by_the_pixels(tmp_path, mode, bytes_a_pixel):
    width, height = 6000, 4000
    image = (
        Image.fromarray(np.zeros((height, width), np.uint16)) if mode == "I;16" else Image.new(mode, (width, height))
    )
    assert peak_of(tmp_path, saved("PNG", image, compress_level=1)) < bytes_a_pixel * width * height / 1e6


def words(error):
    return reason_of(error, "photos/a.jpg")


def test_reasons_are_plain_words():
    assert words(struct.error("unpack requires a buffer of 4 bytes")) == "the file is damaged"
    assert words(KeyError(270)) == "the file is damaged"
    assert words(OSError("decoder error -2")) == "the file is damaged"
    assert words(OSError(22, "Invalid argument")) == "the file is damaged"
    assert words(ValueError(b"Token too long in file header: 8")) == "the file is damaged"
    assert words(MemoryError()) == "not enough memory"
    assert words(ValueError("unknown raw mode")) == "unknown raw mode"
    caused = SyntaxError("index out of range")
    caused.__cause__ = IndexError("index out of range")
    assert words(caused) == "the file is damaged"


def test_a_run_with_orientations_of_every_type(featx_command, tmp_path):
    (tmp_path / "photos").mkdir()
    for number, (type_, data) in enumerate([*SIX, *SENSELESS]):
        count = len(data) if type_ in (1, 2, 7) else 1
        (tmp_path / "photos" / f"{number:02}.jpg").write_bytes(saved("JPEG", exif=exif_of(type_, data, count)))
    (tmp_path / "photos" / "broken.jpg").write_bytes(saved("JPEG", exif=b"Exif\0\0garbage", dpi=(72, 72)))
    model = ("--model", "test_resnet", "--weights", "random", "--image-size", 64)
    for options, output in ((), "here"), (("--isolate",), "apart"):
        done = featx_command("extract", "photos", *model, "--output", output, *options)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (tmp_path / output / "manifest.jsonl").read_text().splitlines()]
        found = {line["key"]: line for line in lines}
        numbers = [found[f"photos/{number:02}.jpg"]["frame"]["orientation"] for number in range(len(SIX + SENSELESS))]
        assert numbers == [6] * len(SIX) + [1] * len(SENSELESS)
        assert found["photos/broken.jpg"]["messages"] == "its EXIF is damaged and was ignored"


class Odd(fitting.Preprocessor):
    """Places images in a way that no answer can be written of."""

    def __init__(self, orientation):
        self.orientation = orientation

    def place(self, image, orientation=1, max_pixels=0):
        if isinstance(self.orientation, Exception):
            raise self.orientation
        return image, Frame.of(image.size, self.orientation)

    def largest(self, size):
        return 1


@pytest.mark.parametrize("odd", [1j, len, RecursionError("too deep"), KeyError("x"), MemoryError()], ids=repr)
def test_no_answer_ends_the_process_that_reads(tmp_path, odd):
    (tmp_path / "a.png").write_bytes(saved("PNG"))
    sent = []

    class Pipe:
        recv = staticmethod(lambda: (str(tmp_path / "a.png"), None))
        send_bytes = staticmethod(sent.append)

    children._answer(Pipe(), Odd(odd), Limits(), False, io.BytesIO())
    answer = json.loads(sent[0])
    assert answer["stage"] == "decode"
    assert answer["reason"]
    assert len(sent) == 1

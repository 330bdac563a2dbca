# Pixels: the same as timm's transform, whatever a photo is stored as; and the frame tells where they went.
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

from featx import load_pyramid
from featx.errors import DecodeError
from featx.images import coverage
from featx.images.containers import UPRIGHT
from featx.images.decoding import decode, upright_rgb
from featx.images.fitting import make
from featx.options import Limits
from tests.helpers import natural_image

SIZES = [(512, 512), (500, 375), (375, 500), (1000, 200), (40, 30), (224, 224), (1, 7)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("input_size", [(3, 224, 224), (3, 96, 160)], ids=["square", "wide"])
def test_pixels_are_timms_to_the_bit(size, crop_mode, input_size):
    config = resolve_data_config({"input_size": input_size, "crop_mode": crop_mode}, pretrained_cfg={"crop_pct": 0.95})
    image = natural_image(0, *size)
    pixels, _ = make(config)(image)
    assert torch.equal(pixels, create_transform(**config, is_training=False)(image))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("input_size", [(3, 64, 64), (3, 96, 160)], ids=["square", "wide"])
def test_the_frame_says_where_every_pixel_came_from(size, crop_mode, input_size):
    """A photo whose colours are coordinates is preprocessed; what comes out must agree with the frame."""
    width, height = size
    ramp = np.zeros((height, width, 3), np.float64)
    ramp[..., 0] = (np.arange(width) + 0.5) / width
    ramp[..., 1] = ((np.arange(height) + 0.5) / height)[:, None]
    ramp[..., 2] = 1
    image = Image.fromarray(np.round(ramp * 255).astype(np.uint8))
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bilinear", "crop_pct": 0.9}
    pixels, frame = make({**plain, "crop_mode": crop_mode, "input_size": input_size})(image)
    assert frame.original == size
    assert frame.input == (input_size[2], input_size[1])
    inside = 0
    for row in range(0, input_size[1], 5):
        for column in range(0, input_size[2], 5):
            x, y = frame.to_original(column, row)
            margin = 1 + 1 / min(frame.scale)  # edges are blurred by the filter
            if margin <= x < width - margin and margin <= y < height - margin:
                inside += 1
                seen = pixels[:2, row, column].numpy() * (width, height) - 0.5
                step = np.array([width, height]) / 255  # of the colours
                np.testing.assert_allclose(seen, (x, y), atol=float(max(step.max(), 1 / min(frame.scale))) + 0.6)
    assert inside or min(size) < 40


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("max_side", [None, 300])
def test_a_photo_at_its_own_size_is_not_resampled_and_lies_at_the_top_left(size, max_side):
    config = {"interpolation": "bicubic", "mean": (0.5, 0.4, 0.3), "std": (1, 1, 1), "multiple": 32, "least": 64}
    image = natural_image(0, *size)
    placed, frame = make({**config, "fit": "native", "max_side": max_side}).place(image)
    width, height = size
    if max_side and max(size) > max_side:
        width, height = (max(1, round(side * max_side / max(size))) for side in size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    assert frame.original == size
    assert placed.size == frame.input == tuple(max(64, -(-side // 32) * 32) for side in (width, height))
    pixels = np.asarray(placed)
    np.testing.assert_array_equal(pixels[:height, :width], np.asarray(image))
    assert (pixels[height:] == (128, 102, 76)).all()
    assert (pixels[:, width:] == (128, 102, 76)).all()
    assert frame.to_input(-0.5, -0.5) == (-0.5, -0.5)
    assert frame.to_input(size[0] - 0.5, size[1] - 0.5) == pytest.approx((width - 0.5, height - 0.5))


@pytest.mark.parametrize(
    ("options", "crop_mode", "crop_pct"),
    [
        ({}, "center", 0.95),
        ({"fit": "crop", "crop_pct": 0.8}, "center", 0.8),
        ({"crop_pct": 1}, "center", 1.0),
        ({"fit": "squash"}, "squash", 1.0),
        ({"fit": "pad", "image_size": (96, 160)}, "border", 1.0),
    ],
)
def test_fits_are_timms_modes(options, crop_mode, crop_pct):
    pyramid = load_pyramid("test_resnet", weights="random", device="cpu", **options)
    config = resolve_data_config({}, pretrained_cfg=get_pretrained_cfg("test_resnet").to_dict())
    size = {"input_size": (3, *options["image_size"])} if "image_size" in options else {}
    transform = create_transform(**{**config, **size, "crop_mode": crop_mode, "crop_pct": crop_pct}, is_training=False)
    for image in (natural_image(0, 300, 200), natural_image(1, 200, 300)):
        pixels, frame = pyramid.preprocess(image)
        assert torch.equal(pixels, transform(image))
        seen = coverage.seen(pyramid.input, image.size)
        assert (seen > 0.999) == (options.get("fit") in ("squash", "pad"))
        assert frame.original == image.size


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, suffix, orientation):
    upright = Image.new("RGB", (60, 40))
    upright.paste((255, 0, 0), (0, 0, 20, 12))
    opposite = {**{number: number for number in range(1, 9)}, 6: 8, 8: 6}[orientation]
    stored = upright.transpose(UPRIGHT[opposite]) if opposite in UPRIGHT else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif)
    image, applied = decode(tmp_path / f"a.{suffix}")
    assert applied == orientation
    assert image.size == (60, 40)
    values = np.asarray(image).astype(int)
    assert values[2:10, 3:17, 0].min() > 200
    assert values[20:, 30:, 0].max() < 60


def test_a_senseless_orientation_is_no_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 77
    natural_image(0).save(tmp_path / "a.jpg", exif=exif)
    image, applied = decode(tmp_path / "a.jpg")
    assert (image.size, applied) == ((96, 72), 1)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path, suffix):
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image, _ = decode(tmp_path / f"a.{suffix}")
    assert np.abs(np.asarray(image)[..., 0] - values / 257).max() <= 0.5
    assert len(np.unique(np.asarray(image.convert("RGB")))) > 250  # `convert` on the file itself leaves 2


def test_twelve_bits_in_a_tiff_are_scaled_by_twelve():
    """Pillow reads 12-bit TIFF but does not write it: the file is made here, two samples in three bytes."""
    import io
    import struct

    samples = np.linspace(0, 4095, 8 * 4).astype(int)
    packed = bytearray()
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    tags = {256: 8, 257: 4, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: len(packed)}
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()
    )
    file = io.BytesIO(b"II*\0" + struct.pack("<I", 8 + len(packed)) + bytes(packed) + directory + bytes(4))
    with Image.open(file, formats=("TIFF",)) as image:
        image.load()
        grey = np.asarray(upright_rgb(image))[..., 0]
    assert np.abs(grey.reshape(-1) - samples / 4095 * 255).max() <= 0.51


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_transparency_shows_white(tmp_path, mode):
    """Left half opaque black, right half transparent black; every mode that can say so."""
    path = tmp_path / "a.png"
    rgba = Image.new("RGBA", (20, 10), (0, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (10, 0, 20, 10))
    if mode in ("RGBA", "LA"):
        rgba.convert(mode).save(path)
    elif mode == "PA":
        path = tmp_path / "a.tif"
        rgba.convert("LA").save(path)
    else:  # one colour of the palette, or one plain colour, is declared transparent
        marked = Image.new("L", (20, 10), 0)
        marked.paste(7, (10, 0, 20, 10))
        {"P": lambda: marked.convert("P"), "L": lambda: marked, "RGB": lambda: marked.convert("RGB")}[mode]().save(
            path, transparency=(7, 7, 7) if mode == "RGB" else 7
        )
    values = np.asarray(decode(path)[0])
    assert values[:, :10].max() <= 7
    assert values[:, 10:].min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_plain_mode_comes_out_as_pillow_converts_it(tmp_path, mode):
    image = natural_image(3).convert(mode)
    image.save(tmp_path / "a.tif")
    decoded, _ = decode(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as stored:
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_an_agreed_range_are_refused(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(DecodeError, match="no agreed range"):
        decode(tmp_path / "a.tif")


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(decode(tmp_path / name)[0])[8, 8].tolist() == [255, 0, 0]


def test_a_stereo_jpeg_is_its_first_picture(tmp_path):
    natural_image(1).save(tmp_path / "a.mpo", save_all=True, append_images=[natural_image(2)])
    assert decode(tmp_path / "a.mpo")[0].size == (96, 72)


def test_other_formats_are_not_opened(tmp_path):
    natural_image(0).save(tmp_path / "a.jpg", format="TGA")
    with pytest.raises(OSError, match="cannot identify"):
        decode(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif", "bmp", "jp2", "avif", "ppm"])
def test_a_truncated_file_gives_no_image(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    natural_image(0, 256, 192).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(Exception, match=r".+"):
        decode(path)


def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path):
    import resource
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width, height = 14_000, 13_000
    assert width * height > Limits().max_pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pieces = chunk(b"IHDR", header), chunk(b"IDAT", b""), chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pieces))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Exception, match=r"pixels|megapixels"):
        decode(tmp_path / "a.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes

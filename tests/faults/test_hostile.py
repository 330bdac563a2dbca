# Hostile images: whatever is in a file, its image is one line, and the others have their features.
from __future__ import annotations

import io
import os
import random
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

import featx
from featx.engine import isolation
from featx.errors import UnreadableError
from featx.images import decoding
from featx.options import Limits
from featx.runs.layout import UNFINISHED
from featx.runs.suspects import Marks, mark_of, marks_of, read_suspects
from featx.values import Item
from tests.faults.conftest import make_photos
from tests.helpers import HANGS, lines, natural_image, outputs, wait_until

# Megabytes that a run of `test_resnet` may take at most, torch and all: 500, and 10 bytes for each of the pixels that
# an image may have (progressive JPEGs take most), of which only one that is so large is decoded at a time. In isolation
# the images' memory is another process's.
BUDGET, BUDGET_ISOLATED = 500 + 1790 + 200, 700

SAVED = [
    ("jpg", "JPEG", {}),
    ("jpg", "JPEG", {"progressive": True}),
    ("png", "PNG", {}),
    ("webp", "WEBP", {}),
    ("webp", "WEBP", {"lossless": True}),
    ("bmp", "BMP", {}),
    ("gif", "GIF", {}),
    ("ppm", "PPM", {}),
    ("jp2", "JPEG2000", {}),
    ("avif", "AVIF", {}),
    *(("tif", "TIFF", {"compression": name}) for name in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
]


def valid_images():
    """One small image of every allowed format, as (suffix, bytes)."""
    image = natural_image(1, 64, 48)
    for suffix, kind, options in SAVED:
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield suffix, file.getvalue()
    file = io.BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[image])
    yield "mpo", file.getvalue()


def flipped(data, generator):
    """A few bits, most often near the beginning, where the structure is."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 2, 8))):
        last = len(data) if generator.random() < 0.5 else min(len(data), 200)
        changed[generator.randrange(last)] ^= 1 << generator.randrange(8)
    return bytes(changed)


def cut(data, generator):
    return data[: generator.randrange(len(data))]


def spliced(data, generator, others):
    """One file's beginning and another one's end."""
    other = generator.choice(others)
    return data[: generator.randrange(1, 100)] + other[generator.randrange(len(other)) :]


def enlarged(data, generator):
    """A size, wherever one may stand, becomes huge."""
    huge = generator.choice((0x7FFF, 0xFFFF, 20_000, 13_000, 0x7FFFFFFF))
    changed = data
    for size in (64, 48):
        for code in ("<H", ">H", "<I", ">I"):
            if huge < 1 << (8 * struct.calcsize(code)):
                changed = changed.replace(struct.pack(code, size), struct.pack(code, huge), 1)
    return changed.replace(b"64 48", b"20000 9000")


def with_png_checksums(data):
    """A damaged PNG whose chunks' checksums are right again, so that decoders read on."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    pieces, position = [data[:8]], 8
    while position + 12 <= len(data):
        length = struct.unpack_from(">I", data, position)[0]
        body = data[position + 4 : position + 8 + length]
        pieces.append(data[position : position + 4] + body + struct.pack(">I", zlib.crc32(body)))
        position += 12 + length
    return b"".join(pieces)


def corpus(folder, count):
    folder.mkdir()
    generator = random.Random(11)
    damages = [flipped] * 5 + [cut] * 2 + [lambda *given: spliced(*given, others)] * 2 + [enlarged]
    images = list(valid_images())
    others = [data for _, data in images]
    for number in range(count):
        suffix, data = images[number % len(images)]
        damaged = with_png_checksums(generator.choice(damages)(data, generator))
        (folder / f"{number:05}.{suffix}").write_bytes(damaged)
    return folder


def test_a_corpus_of_damaged_images(forge, tmp_path, request):
    count = 20_000 if request.config.getoption("--large") else 600
    images = corpus(tmp_path / "images", count)
    done = forge.extract(tmp_path, images, "out", isolation=True)
    assert done["status"] == 3, done["stderr"][-500:]
    entries = lines(tmp_path / "out")
    assert len(entries) == count
    failed = [line for line in entries if line["status"] == "failed"]
    assert count * 0.3 < len(failed) < count * 0.95
    assert len(outputs(tmp_path / "out")) == count - len(failed)
    assert all(line["error"] and "\n" not in line["error"] for line in failed)
    said = [line for line in done["stderr"].splitlines() if line.startswith("failed: ")]
    assert len(said) == len(failed)
    assert any("messages" in line for line in failed)  # libtiff's own words
    assert not any(line.startswith(("ZIPDecode", "TIFF", "JPEGLib")) for line in done["stderr"].splitlines())
    assert done["megabytes"] < BUDGET


@pytest.fixture
def among_good_ones(tmp_path):
    """Fifty photos, and room for others among them."""
    folder = make_photos(tmp_path / "photos", 50)

    def add(*names):
        for name in names:
            Image.new("RGB", (80, 60), "red").save(folder / f"{name}.png")
        return folder

    return add


def failures(folder):
    return {line["key"]: line["error"] for line in lines(folder) if line["status"] == "failed"}


def test_crash_hang_and_hog_among_good_photos(hostile, among_good_ones, tmp_path):
    folder = among_good_ones("crash", "hang", "spin", "hog", "killed")
    options = ("--isolate", "--time-limit", 3, "--memory-limit", "300M")
    done = hostile.extract(tmp_path, folder, "out", *options, isolation=True)
    assert done["status"] == 3, done["stderr"]
    assert failures(tmp_path / "out") == {
        "photos/crash.png": "the decoder crashed (SIGSEGV)",
        "photos/hang.png": "took more than 3 s (--time-limit)",
        "photos/spin.png": "took more than 3 s (--time-limit)",
        "photos/hog.png": "takes more than 300.0 MB of memory (--memory-limit)",
        "photos/killed.png": "the decoder was killed (SIGKILL), perhaps for its memory",
    }
    assert len(outputs(tmp_path / "out")) == 50
    again = hostile.extract(tmp_path, folder, "out", *options, isolation=True)
    assert again["status"] == 3
    assert "nothing to compute; 50 done before, 5 failed before" in again["stderr"]


def test_a_crash_without_isolation_is_not_met_twice(hostile, among_good_ones, tmp_path):
    """The run dies, as its process does; the next one knows the suspect, and no run after that loops on it."""
    folder = among_good_ones("crash")
    assert hostile.extract(tmp_path, folder, "out")["status"] == -11
    again = hostile.extract(tmp_path, folder, "out", isolation=True)
    assert again["status"] == 3, again["stderr"]
    assert "An earlier call ended while reading" in again["stderr"]
    assert failures(tmp_path / "out") == {"photos/crash.png": "the decoder crashed (SIGSEGV)"}
    assert len(outputs(tmp_path / "out")) == 50
    for options in (("--hash-inputs",), ("--retry-failed",)):
        after = hostile.extract(tmp_path, folder, "out", *options, isolation=True)
        assert after["status"] == 3, after["stderr"]
    assert not (tmp_path / "out" / ".unfinished").exists()


def test_a_hang_without_isolation_costs_its_time_limit(hostile, among_good_ones, tmp_path):
    folder = among_good_ones("hang")
    done = hostile.extract(tmp_path, folder, "out", "--time-limit", 5)
    assert done["status"] == 3, done["stderr"]
    assert "An image hung" in done["stderr"]
    assert failures(tmp_path / "out") == {"photos/hang.png": "took longer than allowed (--time-limit)"}
    assert len(outputs(tmp_path / "out")) == 50


def test_isolation_changes_no_bit(forge, photos, tmp_path):
    some = [photos / f"{number:04}.jpg" for number in range(40)]
    assert forge.extract(tmp_path, some[0], "here", *some[1:])["status"] == 0
    assert forge.extract(tmp_path, some[0], "apart", *some[1:], "--isolate", isolation=True)["status"] == 0
    assert outputs(tmp_path / "here") == outputs(tmp_path / "apart")


def test_caps_on_pixels_and_bytes(forge, tmp_path):
    folder = make_photos(tmp_path / "photos", 3)
    natural_image(5, 400, 300).save(folder / "large.png")
    Image.new("RGB", (2000, 2000)).save(folder / "many.png")
    options = ("--max-pixels", "1M", "--max-bytes", "100k")
    assert forge.extract(tmp_path, folder, "out", *options)["status"] == 3
    found = failures(tmp_path / "out")
    assert found["photos/many.png"] == "4 megapixels are more than the 1 allowed (--max-pixels)"
    assert found["photos/large.png"].endswith("MB is more than the 0.10 MB allowed (--max-bytes)")
    assert len(found) == 2
    assert forge.extract(tmp_path, folder, "out", "--retry-failed")["status"] == 0
    assert len(outputs(tmp_path / "out")) == 5


def test_pillow_s_own_limit_gives_way_to_a_higher_one(forge, tmp_path):
    Image.new("L", (15_000, 12_500)).save(tmp_path / "huge.png")
    assert forge.extract(tmp_path, "huge.png", "out")["status"] == 3
    assert "187.5 megapixels" in failures(tmp_path / "out")["huge.png"]
    assert forge.extract(tmp_path, "huge.png", "out", "--retry-failed", "--max-pixels", "200M")["status"] == 0


def test_a_pipe_among_the_images_is_not_waited_for(forge, tmp_path):
    folder = make_photos(tmp_path / "photos", 2)
    os.mkfifo(folder / "pipe.jpg")
    assert forge.extract(tmp_path, folder, "out")["status"] == 3
    assert failures(tmp_path / "out") == {"photos/pipe.jpg": "not a file"}


def test_an_image_is_read_apart_when_libraries_speak_meanwhile(tmp_path):
    """So that what they say is about no other; the words of a damaged TIFF are its own then."""
    pyramid = featx.load_pyramid("test_resnet", weights="random", image_size=64, device="cpu")
    said = iter((0, 0, 0, 7, 7, 8))
    reader = isolation.Reader(pyramid.preprocessor, Limits(), tmp_path, captured=lambda: next(said))
    natural_image(1).save(tmp_path / "good.png")
    good = Item("good.png", str(tmp_path / "good.png"))
    try:
        quiet, noisy = reader(good), reader(good)
        assert np.array_equal(quiet.pixels, noisy.pixels)
        assert (quiet.frame, quiet.messages, noisy.messages) == (noisy.frame, "", "")
        file = io.BytesIO()
        natural_image(2).save(file, "TIFF", compression="tiff_deflate")
        data = bytearray(file.getvalue())
        data[len(data) // 2] ^= 255
        (tmp_path / "bad.tif").write_bytes(data)
        with pytest.raises(UnreadableError) as caught:
            reader(Item("bad.tif", str(tmp_path / "bad.tif")))
        assert caught.value.stage == "decode"
        assert "ZIPDecode" in caught.value.messages
    finally:
        reader.close()


def test_damaged_images_in_isolation(forge, tmp_path):
    images = corpus(tmp_path / "images", 300)
    here = forge.extract(tmp_path, images, "here", isolation=True)
    apart = forge.extract(tmp_path, images, "apart", "--isolate", "--memory-limit", "2G", isolation=True)
    assert here["status"] == apart["status"] == 3
    assert set(failures(tmp_path / "here")) == set(failures(tmp_path / "apart"))
    assert outputs(tmp_path / "here") == outputs(tmp_path / "apart")
    assert apart["megabytes"] < BUDGET_ISOLATED


def test_names_are_marked_while_they_are_read(tmp_path):
    marks = Marks(tmp_path)
    items = [Item("a" * 5000, "a"), Item("grüß\\x20.jpg", "/photos/b"), Item("c", "c")]
    slots = [marks.enter(item) for item in items]
    assert read_suspects(tmp_path).keys() == marks_of(items)
    assert read_suspects(tmp_path)[mark_of(items[1])] == b"/photos/b"
    marks.leave(slots[1])
    assert read_suspects(tmp_path).keys() == marks_of([items[0], items[2]])
    for slot in (slots[0], slots[2]):
        marks.leave(slot)
    assert read_suspects(tmp_path) == {}
    assert read_suspects(tmp_path / UNFINISHED) == {}


def test_suspects_are_kept_in_mind_until_they_are_read(forge, tmp_path):
    """Over a repair, and over a run that is about other images."""
    photos = make_photos(tmp_path / "photos", 4)
    assert forge.extract(tmp_path, photos / "0000.jpg", "out")["status"] == 0
    unfinished = tmp_path / "out" / UNFINISHED
    unfinished.mkdir()
    Marks(unfinished).enter(Item("0003.jpg", str(photos / "0003.jpg")))
    assert forge(tmp_path, "verify", "out", "--repair")["status"] == 0
    assert read_suspects(unfinished) == {b"0003.jpg": str(photos / "0003.jpg").encode()}
    done = forge.extract(tmp_path, photos / "0001.jpg", "out", isolation=True)
    assert (done["status"], "An earlier call" in done["stderr"]) == (0, False)
    assert [path.name for path in unfinished.iterdir()] == ["suspects"]
    done = forge.extract(tmp_path, photos / "0003.jpg", "out", isolation=True)
    assert "An earlier call ended while reading 0003.jpg" in done["stderr"]
    assert not unfinished.exists()


def test_only_time_that_somebody_waits_counts(tmp_path, monkeypatch):
    """A machine that sleeps does not make an image late, nor does waiting for another one that is large."""
    pyramid = featx.load_pyramid("test_resnet", weights="random", image_size=64, device="cpu")
    reader = isolation.Reader(pyramid.preprocessor, Limits(time_limit=3), tmp_path)
    monkeypatch.setattr("featx.images.decoding.LARGE", 100)
    begun, go_on = threading.Event(), threading.Event()
    honest = decoding.upright_rgb

    def slowly(*arguments):
        begun.set()
        assert go_on.wait(HANGS)
        return honest(*arguments)

    monkeypatch.setattr("featx.images.decoding.upright_rgb", slowly)
    natural_image(1).save(tmp_path / "a.png")
    items = [Item(f"{number}.png", str(tmp_path / "a.png")) for number in range(2)]
    threads = isolation.ReadingThreads(2)
    futures = [threads.submit(reader, items[0])]
    assert begun.wait(HANGS)
    futures.append(threads.submit(reader, items[1]))
    assert reader.stuck() is None
    reader.waited(2)
    reader.waited(2)
    assert reader.stuck() is items[0]
    go_on.set()
    assert [future.result(HANGS).pixels.shape for future in futures] == [(64, 64, 3)] * 2
    assert reader.stuck() is None
    threads.shutdown()


def test_reading_threads_do_what_executors_do():
    threads = isolation.ReadingThreads(2)
    assert threads.submit(divmod, 7, 2).result(HANGS) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 7, 0).result(HANGS)
    hold = threading.Event()
    busy = [threads.submit(hold.wait, HANGS) for _ in range(2)]
    wait_until(lambda: all(future.running() for future in busy))
    waiting = threads.submit(divmod, 1, 1)
    threads.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    hold.set()
    assert all(future.result(HANGS) for future in busy)

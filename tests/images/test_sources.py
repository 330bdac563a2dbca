# Finding images: what is taken, in which order, and under which key.
from __future__ import annotations

import errno
import glob
import os
import re
import subprocess
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.errors import DecodeError, FeatxError, UsageError
from featx.images import walking
from featx.images.decoding import decode
from featx.images.sources import find
from featx.images.walking import natural
from featx.paths import path_text


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """cats/1.jpg 2.JPG 10.jpg notes.txt .hidden.jpg deep/3.png, dogs/1.jpg; standing beside them."""
    for name in (
        "cats/10.jpg",
        "cats/2.JPG",
        "cats/1.jpg",
        "cats/notes.txt",
        "cats/.hidden.jpg",
        "cats/deep/3.png",
        "dogs/1.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(*inputs, listed=()):
    return [item.key for item in find(inputs, listed).items]


def test_a_file_is_called_by_its_name(tree):
    assert keys("cats/1.jpg") == keys(str(tree / "cats" / "1.jpg")) == ["1.jpg"]


def test_a_folder_is_walked_in_natural_order_and_keeps_its_name(tree):
    expected = ["cats/1.jpg", "cats/2.JPG", "cats/10.jpg", "cats/deep/3.png"]
    assert keys("cats") == keys("cats/") == keys(str(tree / "cats")) == keys("./cats") == expected


def test_here_adds_no_name(tree):
    assert keys(".") == ["cats/1.jpg", "cats/2.JPG", "cats/10.jpg", "cats/deep/3.png", "dogs/1.jpg"]
    os.chdir("cats")
    assert keys("..")[-1] == "dogs/1.jpg"


def test_patterns_keep_the_folders_from_the_first_fixed_one(tree):
    assert keys("cats/*.jpg") == keys(str(tree / "cats" / "*.jpg")) == ["cats/1.jpg", "cats/10.jpg"]
    assert keys("*/1.jpg") == ["cats/1.jpg", "dogs/1.jpg"]
    assert keys("cats/**") == ["cats/1.jpg", "cats/2.JPG", "cats/10.jpg", "cats/deep/3.png"]
    assert keys("c*") == keys("cats")


def test_lists_keep_the_folders_as_written(tree):
    listed = ["cats/1.jpg", "./dogs/1.jpg", str(tree / "cats" / "10.jpg"), "/elsewhere/4.jpg", "../up/5.jpg"]
    up = str(tree.parent / "up" / "5.jpg").lstrip("/")
    assert keys(listed=listed) == ["cats/1.jpg", "dogs/1.jpg", "cats/10.jpg", "elsewhere/4.jpg", up]


def test_what_is_left_out_is_counted(tree):
    (tree / "cats" / "link").symlink_to(tree / "dogs", target_is_directory=True)
    found = find(["cats", "cats"])
    assert (found.others, found.unfollowed) == (2, 2)
    assert (found.repeated, found.example) == (4, ())
    assert len(found.items) == 4


def test_two_images_of_one_key_are_refused_with_both_paths(tree):
    with pytest.raises(UsageError, match=r"cats/1\.jpg and dogs/1\.jpg would both be stored as 1\.jpg"):
        find(["cats/1.jpg", "dogs/1.jpg"])


@pytest.mark.parametrize("wrong", ["nothing.jpg", "nowhere/", "cats/*.webp"])
def test_an_input_that_is_not_there_is_named(tree, wrong):
    with pytest.raises(UsageError) as caught:
        find([wrong])
    assert wrong in caught.value.message


def test_an_empty_request_says_so():
    with pytest.raises(UsageError, match="no images"):
        find([])


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_natural_order_is_the_order_of_numbers(numbers):
    names = [f"image {number}.jpg" for number in numbers]
    assert sorted(names, key=natural) == [f"image {number}.jpg" for number in sorted(numbers)]


@given(st.lists(st.text(max_size=8), max_size=8))
def test_natural_order_takes_any_text(names):
    assert sorted(sorted(names, key=natural)) == sorted(names)


def test_links_to_nothing_do_not_end_a_pattern(tmp_path):
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "a.jpg").write_bytes(b"")
    assert [item.key for item in find([f"{tmp_path}/*"]).items] == [f"{tmp_path.name}/a.jpg"]


NAMES = st.text(st.characters(exclude_characters="\0"), max_size=8)


def by_numbers(text):
    """Natural order as one would define it, with Python's own numbers."""
    pieces = re.split(r"(\d+)", text)
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece], text


@given(st.lists(st.one_of(NAMES, st.from_regex(r"[a-c]?\d{1,3}[a-c]?\d{0,3}", fullmatch=True)), max_size=12))
def test_natural_order_is_that_of_texts_and_numbers(names):
    assert sorted(names, key=natural) == sorted(names, key=by_numbers)


def test_numbers_may_be_of_any_length_and_script():
    long, longer = "1" + "0" * 5000, "1" + "0" * 5001
    names = [f"{longer}.jpg", f"{long}.jpg", "٣.jpg", "10.jpg", "2.jpg", "02.jpg", "².jpg"]
    ordered = ["02.jpg", "2.jpg", "٣.jpg", "10.jpg", f"{long}.jpg", f"{longer}.jpg", "².jpg"]
    assert sorted(names, key=natural) == ordered


@pytest.mark.parametrize(
    ("inputs", "expected", "repeated", "example"),
    [
        (
            ["cats", "cats/1.jpg"],
            ["cats/1.jpg", "cats/2.JPG", "cats/10.jpg", "cats/deep/3.png"],
            1,
            ("cats/1.jpg",) * 2,
        ),
        (["cats/1.jpg", "./cats/*.jpg"], ["1.jpg", "cats/10.jpg"], 1, ("cats/1.jpg", "1.jpg")),
        (
            ["cats/deep", "cats"],
            ["deep/3.png", "cats/1.jpg", "cats/2.JPG", "cats/10.jpg"],
            1,
            ("cats/deep/3.png", "deep/3.png"),
        ),
        (["cats/*/*.png", "cats/deep/*"], ["cats/deep/3.png"], 1, ("cats/deep/3.png",) * 2),
        (["cats/1.jpg", "dogs/1.jpg", "."], None, 0, ()),
        (["dogs/1.jpg", "dogs/../dogs/1.jpg"], ["1.jpg"], 1, ()),
    ],
)
def test_a_file_named_in_several_ways_is_taken_once(tree, inputs, expected, repeated, example):
    if expected is None:  # two files of one name stay an error, whatever else is named
        with pytest.raises(UsageError, match=r"both be stored as 1\.jpg"):
            find(inputs)
        return
    found = find(inputs)
    assert [item.key for item in found.items] == expected
    assert (found.repeated, found.example) == (repeated, example)


def test_a_folder_named_by_several_paths_is_taken_once(tree):
    found = find([".", str(tree), f"../{tree.name}/dogs"])
    assert [item.key for item in found.items] == keys(".")
    assert (found.repeated, found.example) == (6, (str(tree / "cats" / "1.jpg"), "cats/1.jpg"))


def test_lists_and_folders_give_a_file_one_key(tree):
    found = find(["cats/deep"], ["cats/deep/3.png", "dogs/1.jpg", f"{tree}/dogs/1.jpg", f"../{tree.name}/dogs/1.jpg"])
    assert [item.key for item in found.items] == ["deep/3.png", "dogs/1.jpg"]
    assert (found.repeated, found.example) == (3, ("cats/deep/3.png", "deep/3.png"))


def test_a_list_gives_a_file_one_key_however_it_is_written(tree):
    ways = ["dogs/1.jpg", f"../{tree.name}/dogs/1.jpg", f"/{tree}/dogs/1.jpg", "./dogs//1.jpg"]
    found = find((), ways)
    assert [(item.key, item.path) for item in found.items] == [("dogs/1.jpg", "dogs/1.jpg")]
    assert found.repeated == 3


def test_links_and_what_they_point_to_are_two_images(tree):
    (tree / "cats" / "link.jpg").symlink_to("1.jpg")
    os.link(tree / "cats" / "1.jpg", tree / "cats" / "hard.jpg")
    assert keys("cats", "cats/link.jpg") == [
        *("cats/1.jpg", "cats/2.JPG", "cats/10.jpg", "cats/hard.jpg", "cats/link.jpg", "cats/deep/3.png")
    ]


def test_a_set_of_all_paths_is_made_only_where_inputs_overlap(tree, monkeypatch):
    """It would take a hundred megabytes for a million images."""
    whole = []
    monkeypatch.setattr("featx.images.sources.absolute", lambda path: whole.append(path) or os.path.abspath(path))
    keys("cats", "dogs", "cats/*.JPG")
    assert "cats/10.jpg" not in whole
    keys("cats", "cats/1.jpg")
    assert "cats/10.jpg" in whole


PATTERNS = [
    *("*", "*/*", "**", "**/*", "a/**", "a/**/*.jpg", "a/**/train", "a/*/train", "**/train", "**/train/*.png"),
    *("**/b/**/*.jpg", "**/train/**/train", "**/**/1.jpg", "a/**/b/**", "*/", "a/*/", "a/**/", "**/t*/"),
    *("a/?.jpg", "a/[0-9].*", "a/[!0-9]*", "*/1.jpg", "*/*/1.jpg", "a/./*.jpg", "./*/1.jpg", "a/b/../*/1.jpg"),
    *(".hidden/*", "a/.*", "**/.hidden/*", "x.jpg/*", "*.jpg", "**/*.jpg", "a/*/../1.jpg", "a/b/*/../../1.jpg"),
]


@pytest.fixture
def thicket(tmp_path, monkeypatch):
    """Folders in folders, some of them called alike, hidden, or like images."""
    for name in (
        *("1.jpg", "a/1.jpg", "a/2.jpg", "a/x.txt", "a/b/1.jpg", "a/train/1.jpg", "a/b/train/2.png", "a/b/c/1.jpg"),
        *("a/train/train/3.png", "a/train/b/4.jpg", ".hidden/1.jpg", "a/.hidden/5.jpg", "a/.6.jpg", "x.jpg/1.png"),
        *("b/train/b/1.jpg", "b/train/b/train/b/7.jpg"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def matched(pattern):
    """All images that Python's own patterns match, and those in the folders that they match."""
    images = set()
    for match in glob.glob(pattern, recursive=True):
        for folder, inner, names in os.walk(match):
            inner[:] = [name for name in inner if not name.startswith(".")]
            images |= {os.path.join(folder, name) for name in names if not name.startswith(".")}
        if os.path.isfile(match):
            images.add(match)
    return sorted({os.path.normpath(image) for image in images if walking.has_image_suffix(image)})


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolutely", [False, True])
def test_patterns_match_what_pythons_own_do(thicket, pattern, absolutely):
    pattern = f"{thicket}/{pattern}" if absolutely else pattern
    expected = matched(pattern)
    assert expected
    found = find([pattern])
    assert sorted(os.path.normpath(item.path) for item in found.items) == expected  # each of them once
    assert found.repeated == 0


@pytest.mark.parametrize(
    ("pattern", "expected", "unfollowed"),
    [
        ("a/**/*.jpg", ["a/1.jpg", "a/b/1.jpg"], 2),
        ("a/**", ["a/1.jpg", "a/b/1.jpg"], 2),
        ("a/*", ["a/1.jpg", "a/b/1.jpg"], 2),
        ("*/b", ["a/b/1.jpg"], 1),
        ("a/*/1.jpg", ["a/b/1.jpg"], 1),
        ("a/b/up/*.jpg", ["up/1.jpg"], 0),
        ("a", ["a/1.jpg", "a/b/1.jpg"], 2),
    ],
)
def test_patterns_do_not_follow_links_that_they_come_upon(tmp_path, monkeypatch, pattern, expected, unfollowed):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "1.jpg").write_bytes(b"")
    (tmp_path / "a" / "b" / "1.jpg").write_bytes(b"")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "a" / "here").symlink_to(".")
    monkeypatch.chdir(tmp_path)
    found = find([pattern])
    assert [item.key for item in found.items] == expected
    assert found.unfollowed == unfollowed


def test_what_is_there_is_taken_as_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("~old.jpg", "~/1.jpg", "photo[1].jpg", "[2020] trip/1.jpg", "x/[a]/*/1.jpg", "home/2.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for written, key in {
        "~old.jpg": "~old.jpg",
        "~old*": "~old.jpg",
        "~": "~/1.jpg",
        "photo[1].jpg": "photo[1].jpg",
        "[2020] trip/*.jpg": "[2020] trip/1.jpg",
        f"{tmp_path}/[2020] trip/*.jpg": "[2020] trip/1.jpg",
        "*/[[]a]/**/*.jpg": "x/[a]/*/1.jpg",
        "*/[a]/*/1.jpg": "x/[a]/*/1.jpg",
        "~/2.jpg": "2.jpg",
        "~/?.jpg": "home/2.jpg",
    }.items():
        assert keys(written) == [key], written


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "An input is empty"),
        ("~nobody-at-all.jpg", "There is no file or folder ~nobody-at-all.jpg"),
        ("cats/1.jpg/x", "There is no file or folder cats/1.jpg/x"),
        ("loop", "loop cannot be read: Too many levels of symbolic links"),
        ("x" * 300, "x cannot be read: File name too long"),
        ("x/" * 3000, "cannot be read: File name too long"),
        ("a\0b", "cannot be read: embedded null byte"),
        ("loop/*.jpg", r"no images in loop/\*.jpg: loop cannot be read: Too many levels"),
        ("nowhere/*.jpg", r"no images in nowhere/\*.jpg: nowhere cannot be read: No such file"),
        ("[12] cats/*.jpg", r"a bracket write \[\[\], as in \[\[\]12\] cats/\*.jpg"),
        ("only-links/*", "Linked folders are not followed; give them as inputs"),
        ("only-links", "Linked folders are not followed; give them as inputs"),
        ("cats/**/../*.jpg", r"no images in cats/\*\*/\.\./\*.jpg"),
        ("[0-9]" * 60, "There are no images in"),
        ("*/" * 3000, "There are no images in"),
    ],
)
def test_inputs_that_cannot_be_used_are_named_with_the_reason(tree, wrong, message):
    (tree / "loop").symlink_to("loop")
    (tree / "only-links").mkdir()
    (tree / "only-links" / "cats").symlink_to(tree / "cats")
    with pytest.raises(UsageError, match=message):
        find([wrong])


def test_no_link_in_a_folder_ends_the_walk(tree):
    """Links to themselves, through files, to nothing and to names that are too long: images fail when they are read."""
    for target, name in (
        ("loop", "loop"),
        ("loop.jpg", "loop.jpg"),
        ("1.jpg/x", "through"),
        ("1.jpg/x", "through.jpg"),
    ):
        (tree / "dogs" / name).symlink_to(target)
    (tree / "dogs" / "long").symlink_to("x" * 300)
    (tree / "dogs" / "long.jpg").symlink_to("x" * 300)
    found = find(["dogs", "dogs/*", "dogs/**/*"])
    assert [item.key for item in found.items] == [f"dogs/{name}.jpg" for name in ("1", "long", "loop", "through")]
    assert (found.closed, found.unfollowed) == (0, 0)


class Broken:
    """An entry of a folder on a disk that does not say what it is."""

    def __init__(self, entry, number):
        self.name, self.path, self._number = entry.name, entry.path, number

    def is_dir(self, **_):
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("name", ["ELOOP", "ENAMETOOLONG", "EACCES", "EIO", "ENOENT", "ESTALE"])
@pytest.mark.parametrize("what", ["cats", "*/*", "**", "cats/**/*"])
def test_one_broken_entry_costs_nothing_but_itself(tree, monkeypatch, name, what):
    number, honest = getattr(errno, name), os.scandir

    @contextmanager
    def scandir(folder):
        if os.path.basename(folder) == "deep":
            raise OSError(number, os.strerror(number))
        with honest(folder) as entries:
            yield (Broken(one, number) if one.name in ("10.jpg", "notes.txt") else one for one in entries)

    monkeypatch.setattr("os.scandir", scandir)
    found = find([what])
    cats = [item.key for item in found.items if item.key.startswith("cats")]
    assert cats == ["cats/1.jpg", "cats/2.JPG", "cats/10.jpg"]
    assert found.closed == 2  # the folder, and what could have been one


def test_a_folder_that_breaks_off_keeps_what_was_read(tree, monkeypatch):
    honest = os.scandir

    def until_it_breaks(entries):
        yield from [entry for entry in entries if entry.name == "1.jpg"]
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    @contextmanager
    def scandir(folder):
        with honest(folder) as entries:
            yield until_it_breaks(entries)

    monkeypatch.setattr("os.scandir", scandir)
    found = find(["cats"])
    assert ([item.key for item in found.items], found.closed) == (["cats/1.jpg"], 1)


@pytest.mark.parametrize("name", ["EACCES", "EIO", "ESTALE"])
def test_a_named_folder_that_cannot_be_read_is_an_error_with_the_reason(tree, monkeypatch, name):
    def scandir(_):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(
        UsageError, match=f"no images in cats: cats cannot be read: {os.strerror(getattr(errno, name))}"
    ):
        find(["cats"])


def test_folders_may_lie_deeper_than_python_recurses_and_than_paths_reach(tree):
    place = os.open("dogs", os.O_RDONLY)
    for depth in range(3000):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
        if depth == 1500:
            os.close(os.open("deep.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(place)
    try:
        for found in (find(["dogs"]), find(["dogs/**/*.jpg"])):
            assert [item.key for item in found.items] == ["dogs/1.jpg", f"dogs/{'d/' * 1501}deep.jpg"]
            assert found.closed == 1  # where the path is longer than the system takes
    finally:
        subprocess.run(["rm", "-rf", "dogs"], check=True)  # which Python's own removal is not up to


def test_without_a_current_folder_whole_paths_are_enough(tree, monkeypatch):
    (tree / "gone").mkdir()
    monkeypatch.chdir(tree / "gone")
    (tree / "gone").rmdir()
    assert keys(f"{tree}/cats", f"{tree}/dogs/1.jpg", f"{tree}/dogs")[-1] == "1.jpg"
    for inputs, listed in ((["1.jpg"], ()), (["."], ()), (["*"], ()), ((), ["1.jpg"])):
        with pytest.raises(FeatxError, match="The current folder no longer exists"):
            find(inputs, listed)


ZIP, GZIP, TAR = b"PK\x03\x04", b"\x1f\x8b\x08", bytes(257) + b"ustar"
UNPACK = "featx reads .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz and .zip; unpack others, and give their folder"
AS_A_LIST = "If it is a list of images, give it with --from-file a.txt"
FRAMES = "Extract frames from it, with ffmpeg for example, and give their folder"


@pytest.mark.parametrize(
    ("name", "data", "what", "hint"),
    [
        ("photos.cbz", ZIP, "a zip archive", UNPACK),
        ("photos.gz", GZIP, "a gzip archive", UNPACK),
        ("photos.cbt", TAR, "a tar archive", UNPACK),
        ("photos.xz", b"\xfd7zXZ\0", "an xz archive", UNPACK),
        ("a.mp4", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "an MP4 video", FRAMES),
        ("a.MOV", b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "a QuickTime video", FRAMES),
        ("a.webm", b"\x1aE\xdf\xa3", "a Matroska or WebM video", FRAMES),
        (
            "a.txt",
            "ä.jpg\nb.jpg\n".encode(),
            "a text file",
            "If it is a list of images, give it with --from-file a.txt",
        ),
    ],
)
def test_what_is_no_image_is_named_by_its_first_bytes(tree, name, data, what, hint):
    (tree / name).write_bytes(data)
    with pytest.raises(UsageError) as failure:
        find(["cats", name])
    assert (failure.value.message, failure.value.hint) == (f"{name} is {what}, not an image", hint)


@pytest.mark.parametrize(
    "data",
    [
        *(b"\0\0\0\x1cftyp%b\0\0\0\0mif1miaf" % brand for brand in (b"avif", b"heic", b"heix", b"mif1", b"msf1")),
        b"\0\0\0\x1cftypMiHE\0\0\0\0mif1heic",
        *(b"\xff\x0a\xcb", b"\0\0\0\x0cJXL \r\n\x87\n", b"\0\0\0\x0cjP  \r\n\x87\n"),
        *(b"P3\n1 1\n255\n0 0 0\n", b"", b"\x80\x81\x82"),
    ],
)
def test_what_may_be_an_image_is_taken_whatever_it_is_called(tree, data):
    (tree / "a.txt").write_bytes(data)
    assert keys("a.txt") == ["a.txt"]


def test_a_list_that_is_given_as_an_image_says_so_when_it_is_read(tree):
    """Named like an image it is not looked into before."""
    (tree / "cats" / "1.jpg").write_bytes(b"<!doctype html>")
    with pytest.raises(DecodeError, match="it is a text file, not an image"):
        decode(tree / "cats" / "1.jpg")


def test_names_that_look_like_urls_are_names(tree):
    (tree / "a:").mkdir()
    (tree / "a:" / "1.jpg").write_bytes(b"")
    assert keys("a://1.jpg") == ["1.jpg"]
    assert keys(listed=["a:/1.jpg"]) == ["a:/1.jpg"]


@pytest.mark.parametrize(
    ("url", "text", "key"),
    [
        ("s3://bucket/a//b/../1.jpg", "s3://bucket/a//b/../1.jpg", "bucket/a/1.jpg"),
        ("s3://bucket/../../what?.jpg", "s3://bucket/../../what?.jpg", "what?.jpg"),
        (
            "https://host:80/a%20b/%2e%2e%2f1.jpg?sig=1#x",
            "https://host:80/a%20b/%2e%2e%2f1.jpg",
            "host:80/a b/%2e%2e%2f1.jpg",
        ),
        ("HTTPS://host/p.tar?sig=1::c/2?.jpg", "HTTPS://host/p.tar::c/2?.jpg", "host/p/c/2?.jpg"),
        ("https://host/p::q/1.jpg?sig=1::2", "https://host/p::q/1.jpg", "host/p::q/1.jpg"),
    ],
)
def test_urls_of_a_list_have_keys_that_lead_nowhere_else_and_no_queries(url, text, key):
    assert [item.key for item in find((), (url,)).items] == [key]
    assert path_text(url) == text

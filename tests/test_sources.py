# Finding images: what is taken, in which order, and under which key.
from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.errors import UsageError
from featx.sources import find, natural, read_list


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
    found = find(["cats", "cats/1.jpg", "cats"])
    assert (found.others, found.unfollowed) == (2, 2)
    assert found.repeated == 4
    assert [item.key for item in found.items][-1] == "1.jpg"  # by its own name it is another key


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


def test_lists_may_be_split_by_lines_or_by_nul():
    assert read_list(b"a.jpg\n\nb c.jpg\r\n") == ("a.jpg", "b c.jpg")
    assert read_list(b"a\nb.jpg\0c.jpg\0") == ("a\nb.jpg", "c.jpg")
    assert read_list(b"caf\xe9.jpg\n")[0].encode("utf-8", "surrogateescape") == b"caf\xe9.jpg"


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_natural_order_is_the_order_of_numbers(numbers):
    names = [f"image {number}.jpg" for number in numbers]
    assert sorted(names, key=natural) == [f"image {number}.jpg" for number in sorted(numbers)]


@given(st.lists(st.text(max_size=8), max_size=8))
def test_natural_order_takes_any_text(names):
    assert sorted(sorted(names, key=natural)) == sorted(names)


def test_lines_end_where_lines_end():
    assert read_list("a\u2028b.jpg\r\nc\x0bd.jpg\n\n".encode()) == ("a\u2028b.jpg", "c\x0bd.jpg")


def test_links_to_nothing_do_not_end_a_pattern(tmp_path):
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "a.jpg").write_bytes(b"")
    assert [item.key for item in find([f"{tmp_path}/*"]).items] == [f"{tmp_path.name}/a.jpg"]

# Names: every path has one text and the way back; every key has an output that no other key has.
from __future__ import annotations

import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.paths import fold, to_path, to_text
from featx.runs.layout import LONGEST, is_inside, output_of

names = st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name)
paths = st.lists(names, min_size=1, max_size=4).map(lambda pieces: os.fsdecode(b"/".join(pieces)))
keys = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=300),
        st.from_regex(r"(summary\.json|manifest\.jsonl|\.unfinished|a\.jpg\.npz)~{0,3}", fullmatch=True),
        st.sampled_from(["a.jpg", "a.jpg.npz", "a.jpg.npz~", "A.jpg"]),
    ).filter(lambda name: name not in (".", "..")),
    min_size=1,
    max_size=3,
).map("/".join)


@given(paths)
def test_paths_and_their_texts(path):
    text = to_text(path)
    assert to_path(text) == path
    json.dumps(text, ensure_ascii=False).encode()


@given(paths, paths)
def test_two_paths_have_two_texts(one, other):
    assert (to_text(one) == to_text(other)) == (one == other)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"a b.jpg", "a b.jpg"),
        (b"gr\xc3\xbc\xc3\x9f.jpg", "grüß.jpg"),
        (b"\xe9.jpg", r"\xe9.jpg"),
        (rb"\xe9.jpg", r"\x5cxe9.jpg"),
        (rb"a\b.jpg", r"a\b.jpg"),
        (b"100%25.jpg", "100%25.jpg"),
    ],
)
def test_what_texts_look_like(path, text):
    assert to_text(os.fsdecode(path)) == text


@given(keys)
def test_outputs_fit_and_stay_inside(key):
    for apart in (False, True):
        output = output_of(key, apart=apart)
        assert is_inside(output)
        assert output.endswith(".npz")
        assert all(0 < len(piece.encode()) <= LONGEST for piece in output.split("/"))
        assert output.split("/")[0] not in ("summary.json", "manifest.jsonl", ".unfinished")
        assert not any(piece.endswith(".npz") for piece in output.split("/")[:-1])


@given(keys, keys)
def test_two_keys_have_two_outputs(one, other):
    assert (output_of(one) == output_of(other)) == (one == other)
    assert (output_of(one, apart=True) == output_of(other, apart=True)) == (one == other)


@pytest.mark.parametrize(
    ("key", "output"),
    [
        ("cats/1.jpg", "cats/1.jpg.npz"),
        ("a.jpg.npz/1.jpg", "a.jpg.npz~/1.jpg.npz"),
        ("summary.json/1.jpg", "summary.json~/1.jpg.npz"),
        ("x/summary.json", "x/summary.json.npz"),
        (f"{'ü' * 140}/1.jpg", f"{'ü' * 119}~{hashlib.sha256(('ü' * 140).encode()).hexdigest()[:16]}/1.jpg.npz"),
    ],
)
def test_what_outputs_are_called(key, output):
    assert output_of(key) == output


def test_what_some_file_system_takes_for_the_same():
    assert fold("CAFÉ.jpg") == fold("cafe\u0301.JPG")
    assert fold("straße") == fold("STRASSE")
    assert fold("a") != fold("b")
    assert output_of("A.jpg", apart=True).startswith("A.jpg~")


@pytest.mark.parametrize("output", ["/etc/passwd", "../up.npz", "a/../../up.npz", ".."])
def test_what_leads_outside(output):
    assert not is_inside(output)

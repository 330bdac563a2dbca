# Names: whatever an image is called, its output lies under the run's folder, and the way back is in the manifest.
from __future__ import annotations

import json
import os
import unicodedata

import pytest

from featx import naming
from tests.faults.conftest import lines, outputs

NASTY = [
    b"plain.jpg",
    b"-leading.jpg",
    b"--model.jpg",
    b"new\nline.jpg",
    b"tab\tand\x1b[31mred.jpg",
    b"not-utf-8-\xff\xfe.jpg",
    b"like-an-escape-\\xff.jpg",
    b"caf\xc3\xa9.jpg",
    unicodedata.normalize("NFD", "café.jpg").encode(),
    b"case.jpg",
    b"CASE.jpg",
    b"Case.JPG",
    b"dots....jpg",
    b"percent%20%FF.jpg",
    b"quote\"'`$(touch pwned).jpg",
    b" space .jpg",
    b"a" * 251 + b".jpg",
    "ü".encode() * 125 + b".jpg",
    b"x.jpg",
    b"x.jpg.npz/inner.jpg",
    b"x.jpg.npz~/inner.jpg",
    b"summary.json/1.jpg",
    b"manifest.jsonl/1.jpg",
    b"ends-with-dot./1.jpg",
    b"\xf0\x28/deep/\xff.jpg",
]


@pytest.fixture
def nasty(tmp_path, photos):
    """A folder of such names, with a link to an image outside of it and one to a folder outside of it."""
    root = os.fsencode(tmp_path / "in")
    picture = (photos / "0000.jpg").read_bytes()
    for name in NASTY:
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(picture)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.jpg").write_bytes(picture)
    os.symlink(tmp_path / "outside" / "secret.jpg", os.path.join(root, b"link.jpg"))
    os.symlink(tmp_path / "outside", os.path.join(root, b"linked"))
    return tmp_path / "in"


def require_sound(out, root, count):
    raw = (out / "manifest.jsonl").read_bytes()
    raw.decode("ascii")
    entries = [json.loads(text) for text in raw.splitlines()]
    assert len(entries) == count
    assert {line["status"] for line in entries} == {"done"}
    for line in entries:
        json.dumps(line, ensure_ascii=False).encode()  # no half of a character
        path = naming.to_path(line["path"])
        assert os.path.exists(path)
        output = (out / line["output"]).resolve()
        assert output.is_file()
        assert output.is_relative_to(out.resolve())
        assert all(len(part.encode()) <= 255 for part in line["output"].split("/"))
    for name in ("key", "path", "output"):
        assert len({line[name] for line in entries}) == count
    # On a file system that knows no case and one form of Unicode there are as many.
    assert len({naming.fold(line["output"]) for line in entries}) == count
    assert {line["output"] for line in entries} == set(outputs(out))
    return entries


def test_a_folder_of_nasty_names(forge, nasty, tmp_path):
    done = forge.extract(tmp_path, "in", "out", "--out-indices", 4)
    assert done["status"] == 0, done["stderr"]
    entries = require_sound(tmp_path / "out", nasty, len(NASTY) + 1)
    found = {os.fsencode(naming.to_path(line["path"])) for line in entries}
    assert found == {os.fsencode(tmp_path) + b"/in/" + name for name in (*NASTY, b"link.jpg")}
    assert "linked folders: 1 not followed" in done["stderr"]
    assert not (tmp_path / "pwned").exists()

    again = forge.extract(tmp_path, "in", "out", "--out-indices", 4)
    assert "nothing to compute" in again["stderr"]
    assert forge(tmp_path, "verify", "out")["status"] == 0
    before = outputs(tmp_path / "out")
    for line in entries[::2]:
        (tmp_path / "out" / line["output"]).unlink()
    assert forge.extract(tmp_path, "in", "out", "--out-indices", 4)["status"] == 0
    assert outputs(tmp_path / "out") == before


def test_nasty_names_one_by_one_and_in_any_order(forge, nasty, tmp_path):
    """Images that come in later calls do not take the place of earlier ones."""
    names = sorted(NASTY, reverse=True)
    for start in range(0, len(names), 5):
        some = b"\0".join(b"in/" + name for name in names[start : start + 5])
        (tmp_path / "list").write_bytes(some + b"\0")
        done = forge.extract(tmp_path, "--from-file=list", "out", "--out-indices", 4)
        assert done["status"] == 0, done["stderr"]
    require_sound(tmp_path / "out", nasty, len(NASTY))


def test_failures_with_nasty_names_cannot_move_the_cursor(forge, tmp_path):
    os.mkdir(tmp_path / "in")
    for name in (b"red\x1b[31m\n.jpg", b"\xff.jpg"):
        with open(os.path.join(os.fsencode(tmp_path / "in"), name), "wb") as file:
            file.write(b"broken")
    done = forge.extract(tmp_path, "in", "out")
    assert done["status"] == 3
    assert "\x1b" not in done["stderr"]
    assert r"failed: in/red\x1b[31m\n.jpg: decode: cannot identify image file" in done["stderr"]
    assert r"failed: in/\xff.jpg: decode: cannot identify image file" in done["stderr"]


@pytest.mark.parametrize("text", ["../up.jpg", "../../up.jpg", "sub/../../up.jpg", "/abs.jpg"])
def test_no_list_leads_out_of_the_folder(forge, tmp_path, photos, text):
    base = tmp_path / "a" / "b" / "c"
    base.mkdir(parents=True)
    (base / "sub").mkdir()
    target = (base / text).resolve() if not text.startswith("/") else tmp_path / "abs.jpg"
    target.write_bytes((photos / "0000.jpg").read_bytes())
    (base / "list").write_text(f"{text if not text.startswith('/') else target}\n")
    assert forge.extract(base, "--from-file=list", "out")["status"] == 0
    (line,) = lines(base / "out")
    assert ".." not in line["key"]
    assert (base / "out" / line["output"]).resolve().is_relative_to((base / "out").resolve())


def test_a_pattern_with_dots_in_it_stays_inside(forge, tmp_path, photos):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "1.jpg").write_bytes((photos / "0000.jpg").read_bytes())
    assert forge.extract(tmp_path, "a/*/../1.jpg", "out")["status"] == 0
    (line,) = lines(tmp_path / "out")
    assert line["key"] == "a/1.jpg"

# Names: whatever an image is called, its output lies under the run's folder, and the way back is in the manifest.
from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata

import pytest

from featx import paths
from tests.helpers import HANGS, MODEL, ROOT, lines, outputs

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
        path = paths.to_path(line["path"])
        assert os.path.exists(path)
        output = (out / line["output"]).resolve()
        assert output.is_file()
        assert output.is_relative_to(out.resolve())
        assert all(len(part.encode()) <= 255 for part in line["output"].split("/"))
    for name in ("key", "path", "output"):
        assert len({line[name] for line in entries}) == count
    # On a file system that knows no case and one form of Unicode there are as many.
    assert len({paths.fold(line["output"]) for line in entries}) == count
    assert {line["output"] for line in entries} == set(outputs(out))
    return entries


def test_a_folder_of_nasty_names(forge, nasty, tmp_path):
    done = forge.extract(tmp_path, "in", "out", "--out-indices", 4)
    assert done["status"] == 0, done["stderr"]
    entries = require_sound(tmp_path / "out", nasty, len(NASTY) + 1)
    found = {os.fsencode(paths.to_path(line["path"])) for line in entries}
    assert found == {os.fsencode(tmp_path) + b"/in/" + name for name in (*NASTY, b"link.jpg")}
    assert "Skipped 1 linked folder" in done["stderr"]
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
    assert r"failed: in/red\x1b[31m\n.jpg: decode: it is a text file, not an image" in done["stderr"]
    assert r"failed: in/\xff.jpg: decode: it is a text file, not an image" in done["stderr"]


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


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["loop"], "loop cannot be read: Too many levels of symbolic links"),
        (["0.jpg/x"], "There is no file or folder 0.jpg/x"),
        (["through"], "There is no file or folder through"),
        (["long"], "long cannot be read: File name too long"),
        (["x" * 300], "x cannot be read: File name too long"),
        (["~nobody.jpg"], "There is no file or folder ~nobody.jpg"),
        ([""], "One of the arguments is empty"),
        (["0.jpg", ""], "One of the arguments is empty"),
        (["[2020] trips/*.jpg"], "[[]2020] trips/*.jpg"),
        (["--from-file", "nothing"], "The list nothing cannot be read: No such file or directory"),
        (["--from-file", "loop"], "The list loop cannot be read: Too many levels of symbolic links"),
        (["--from-file", "."], "The list . cannot be read: Is a directory"),
        (["--from-file", "0.jpg"], "The list 0.jpg is an image, not a list of paths"),
    ],
)
def test_inputs_that_cannot_be_used_are_wrong_usage(forge, tmp_path, photos, inputs, said):
    (tmp_path / "0.jpg").write_bytes((photos / "0000.jpg").read_bytes())
    for target, name in (("loop", "loop"), ("0.jpg/x", "through"), ("x" * 300, "long")):
        (tmp_path / name).symlink_to(target)
    done = forge(tmp_path, "extract", *inputs, *MODEL, "--output", "out")
    assert done["status"] == 2, done["stderr"]
    assert said in done["stderr"]
    assert "Unexpected" not in done["stderr"]
    assert not (tmp_path / "out").exists()


def test_links_and_names_that_lead_nowhere_are_failures_of_their_own(forge, tmp_path, photos):
    (tmp_path / "in").mkdir()
    picture = (photos / "0000.jpg").read_bytes()
    (tmp_path / "in" / "~old.jpg").write_bytes(picture)
    (tmp_path / "~old.jpg").write_bytes(picture)
    for target, name in (("loop.jpg", "loop.jpg"), ("~old.jpg/x", "through.jpg"), ("x" * 300, "long.jpg")):
        (tmp_path / "in" / name).symlink_to(target)
    for target, name in (("loop", "loop"), ("~old.jpg/x", "through"), ("x" * 300, "long"), (".", "here")):
        (tmp_path / "in" / name).symlink_to(target)
    for inputs in ("in", "in/*", "in/**/*.jpg"):
        done = forge(tmp_path, "extract", inputs, "~old.jpg", *MODEL, "--output", "out", "--overwrite")
        assert done["status"] == 3, done["stderr"]
        assert "Skipped 1 linked folder" in done["stderr"]
        told = {line["key"]: line.get("error") for line in lines(tmp_path / "out")}
        assert told == {
            "in/~old.jpg": None,
            "~old.jpg": None,
            "in/loop.jpg": "Too many levels of symbolic links",
            "in/through.jpg": "Not a directory",
            "in/long.jpg": "File name too long",
        }


def test_a_photo_that_is_named_twice_is_computed_once(forge, tmp_path, photos):
    (tmp_path / "nest" / "sub").mkdir(parents=True)
    for number, name in enumerate(("1.jpg", "sub/2.jpg")):
        (tmp_path / "nest" / name).write_bytes((photos / f"000{number}.jpg").read_bytes())
    done = forge(tmp_path, "extract", "nest", "nest/1.jpg", "nest/sub", *MODEL, "--output", "out")
    assert done["status"] == 0, done["stderr"]
    assert [line["key"] for line in lines(tmp_path / "out")] == ["nest/1.jpg", "nest/sub/2.jpg"]
    assert "2 images named more than once, processed once: nest/1.jpg is stored as nest/1.jpg" in done["stderr"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_list_out_of_an_editor_is_read(forge, tmp_path, photos, encoding):
    (tmp_path / "é.jpg").write_bytes((photos / "0000.jpg").read_bytes())
    (tmp_path / "list").write_bytes("é.jpg\r\n".encode(encoding))
    done = forge.extract(tmp_path, "--from-file=list", "out")
    assert done["status"] == 0, done["stderr"]
    assert [paths.to_path(line["key"]) for line in lines(tmp_path / "out")] == ["é.jpg"]


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        ("< photo.jpg", "The list on standard input is an image, not a list of paths"),
        ("0> closed", "The list on standard input cannot be read"),
        ("<&-", "There are no images to work on"),
        ("< /dev/null", "There are no images to work on"),
    ],
)
def test_standard_input_that_is_no_list_is_wrong_usage(tmp_path, photos, redirection, said):
    (tmp_path / "photo.jpg").write_bytes((photos / "0000.jpg").read_bytes())
    done = shell(f'exec "$0" -m featx extract - --model test_resnet {redirection}', tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("arguments", ["photo.jpg", ".", "'*'", "--from-file ../list"])
def test_a_current_folder_that_is_gone_is_said(tmp_path, arguments):
    (tmp_path / "list").write_text("photo.jpg\n")
    gone = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -c "from featx.cli.main import main; main()" extract'
    done = shell(f"{gone} {arguments} --model test_resnet --output /dev/null/out", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "featx: The current folder no longer exists." in done.stderr


def shell(script, folder):
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", script, sys.executable]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS, check=False
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--weights", "x" * 300), "There is no checkpoint x"),
        (("--weights", "~nobody/x.pt"), "There is no checkpoint "),
        (("--weights", "loop"), "There is no checkpoint loop"),
        (("--model", "local-dir:~nobody/x"), "There is no folder"),
        (("--model", "yolov8n", "--weights", "x" * 300), "There is no checkpoint x"),
        (("--model", "yolov8n", "--weights", "~nobody/x.pt"), "There is no checkpoint "),
    ],
)
def test_models_and_weights_that_lead_nowhere_are_plain_errors(forge, tmp_path, photos, options, said):
    (tmp_path / "loop").symlink_to("loop")
    done = forge(tmp_path, "extract", photos / "0000.jpg", *MODEL, *options, "--output", "out")
    assert done["status"] == 1, done["stderr"]
    assert said in done["stderr"]


def test_queries_that_lead_nowhere_are_plain_errors(forge, tmp_path, photos):
    assert forge.extract(tmp_path, photos / "0000.jpg", "out", "--embedding", "--no-maps")["status"] == 0
    for query in ("x" * 300, "0.jpg/x"):
        done = forge(tmp_path, "similar", "out", query)
        assert (done["status"], "There is no image" in done["stderr"]) == (2, True), done["stderr"]

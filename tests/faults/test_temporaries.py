# Machines on which no folder takes temporary files: runs go on without, and what cannot is one plain error.
from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import featx
from featx import files
from featx.engine import children
from featx.errors import FeatxError
from featx.options import Limits
from tests.faults.conftest import make_photos
from tests.helpers import MODEL, PHOTO, ROOT, lines, natural_image, outputs

HOMELESS = {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent / "homeless"), str(ROOT))), "TMPDIR": "/dev/null"}

NO_FOLDER = "No writable folder for temporary files: "


def failures(folder):
    return {line["key"]: (line["stage"], line["error"], line["messages"]) for line in lines(folder) if "error" in line}


@pytest.mark.parametrize("more", [(), ("--isolate",)])
def test_runs_need_no_temporary_files(featx_command, fresh_command, tmp_path, more):
    """Not even to read images in processes of their own, as those about which libraries speak."""
    folder = make_photos(tmp_path / "in", 3)
    file = io.BytesIO()
    natural_image(2).save(file, "TIFF", compression="tiff_deflate")
    data = bytearray(file.getvalue())
    data[len(data) // 2] ^= 255
    (folder / "bad.tif").write_bytes(data)
    for output, command, environment in (("with", featx_command, {}), ("without", fresh_command, HOMELESS)):
        done = command("extract", "in", *MODEL, *more, "--output", output, **environment)
        assert done.returncode == 3, done.stderr
    assert outputs(tmp_path / "without") == outputs(tmp_path / "with")
    assert len(outputs(tmp_path / "with")) == 3
    if sys.platform == "linux":  # which has files in memory
        assert failures(tmp_path / "without") == failures(tmp_path / "with")
        assert "ZIPDecode" in failures(tmp_path / "with")["in/bad.tif"][2]


def test_commands_that_need_a_temporary_folder_say_so(featx_command):
    homeless = "import runpy, tests.faults.homeless.sitecustomize; runpy.run_module('featx', run_name='__main__')"
    assert featx_command("extract", PHOTO, *MODEL, "--output", "run").returncode == 0
    for command in (("verify", "run", "--recompute", 1), ("bench", *MODEL[:2], "--count", 8, "--device", "cpu")):
        done = featx_command(*command, script=homeless, TMPDIR="/dev/null")
        assert done.returncode == 1, done.stderr
        assert f"featx: {NO_FOLDER}" in done.stderr
        assert "TMPDIR" in done.stderr
    assert featx_command("verify", "run", script=homeless, TMPDIR="/dev/null").returncode == 0


def test_detectors_say_so(monkeypatch):
    def no_folder(**_):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", no_folder)
    with pytest.raises(FeatxError, match=f"{NO_FOLDER}.*TMPDIR"):
        featx.load_pyramid("yolov8n", weights="random", device="cpu")


@pytest.mark.parametrize(
    ("memory", "expected", "shown"),
    [
        pytest.param(True, (5, ["said"]), "", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux's")),
        (False, (0, []), "said\n"),
    ],
)
def test_what_libraries_write_is_kept_in_memory_or_left_alone(memory, expected, shown):
    script = f"""
import os
from featx.cli import streams
if not {memory}:
    os.__dict__.pop("memfd_create", None)
with streams.captured_libraries() as captured:
    os.write(2, b"said\\n")
    print((captured.size(), captured.lines()))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env={**os.environ, **HOMELESS}, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{expected}\n", shown)


def test_processes_that_cannot_be_started_are_one_error(monkeypatch):
    def start(_):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", start)
    with pytest.raises(FeatxError, match=r"Could not start a process to read images: .*temporarily unavailable"):
        children.Child({}, Limits(), hashed=False).read("nothing.jpg")


def test_messages_are_empty_where_nothing_keeps_them():
    assert children._take(None) == ""


def test_a_temporary_folder_goes_with_its_use(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with files.temporary_folder() as place:
        (place / "file").write_text("text")
        assert place.parent == tmp_path
    assert list(tmp_path.iterdir()) == []

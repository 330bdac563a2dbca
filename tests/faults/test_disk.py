# A disk that is full, broken or read-only: one line, status 1 at the first failure, and the same bytes after resuming.
from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import lines, make_photos, outputs, require_complete, require_only_complete_files


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("three") / "photos", 3)


@pytest.fixture(scope="module")
def undisturbed(forge, three, tmp_path_factory):
    """What a run without faults writes, and the calls that it makes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    counting = {"name": "call", "number": 0, "kind": "EIO", "counter": str(folder / "calls")}
    assert forge.extract(folder, three, "out", fault=counting)["status"] == 0
    return outputs(folder / "out"), Path(counting["counter"]).read_text().split()


@pytest.mark.parametrize("kind", ["ENOSPC", "EIO", "kill"])
def test_every_call_fails_in_turn(forge, three, undisturbed, tmp_path, kind):
    expected, calls = undisturbed
    assert {"open", "writev", "fsync", "replace", "mkdir"} <= set(calls)
    for number in range(1, len(calls) + 1):
        fault = {"name": "call", "number": number, "kind": kind, "counter": str(tmp_path / "calls")}
        (tmp_path / "calls").unlink(missing_ok=True)
        failed = forge.extract(tmp_path, three, "out", fault=fault)
        made = (tmp_path / "calls").read_text().split()
        if len(made) < number:  # two threads that make one folder at once make one call more than one of them
            assert (failed["status"], len(calls) - len(made) <= 3) == (0, True)
            shutil.rmtree(tmp_path / "out")
            continue
        if kind == "kill":
            assert (failed["status"], failed["stderr"].count("featx:")) == (-9, 0)
        else:
            errors = [line for line in failed["stderr"].splitlines() if line.startswith("featx:")]
            assert (failed["status"], len(errors)) == (1, 1), (made, failed)
            assert "Unexpected" not in errors[0]
        require_only_complete_files(tmp_path / "out", expected)
        assert not list((tmp_path / "out").glob("*.tmp"))
        resumed = forge.extract(tmp_path, three, "out", isolation=kind == "kill")
        assert resumed["status"] == 0, (made, resumed)
        require_complete(tmp_path / "out", expected)
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("kind", ["EINVAL", "ENAMETOOLONG"])
def test_a_name_that_the_disk_refuses_fails_one_image(forge, three, undisturbed, tmp_path, kind):
    expected, _ = undisturbed
    fault = {"name": "call", "only": "replace", "number": 3, "kind": kind}  # the first is the summary's
    done = forge.extract(tmp_path, three, "out", fault=fault)
    # The group is tried one by one then, and the fault does not come back.
    assert done["status"] == 0
    require_complete(tmp_path / "out", expected)
    shutil.rmtree(tmp_path / "out")
    always = {"name": "call", "only": "replace", "number": -1, "kind": kind}
    done = forge.extract(tmp_path, three, "out", fault=always)
    assert done["status"] == 3
    errors = {line.get("error", "").partition(":")[0] for line in lines(tmp_path / "out")}
    assert errors == {"no name for this disk"}


def test_a_file_that_may_not_grow_so_large(forge, three, undisturbed, tmp_path):
    """EFBIG, from the kernel itself."""
    failed = forge.extract(tmp_path, three, "out", limits={"RLIMIT_FSIZE": 100_000})
    assert failed["status"] == 1
    assert "File too large" in failed["stderr"]
    assert forge.extract(tmp_path, three, "out")["status"] == 0
    require_complete(tmp_path / "out", undisturbed[0])


def test_a_folder_that_cannot_be_made(forge, three, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    failed = forge.extract(tmp_path, three, "file/out")
    assert failed["status"] == 1
    assert failed["stderr"].splitlines()[-1].startswith("featx: file/out cannot be written: Not a directory.")

# The hold on a folder: other programs' files are left alone, other runs kept out, whatever the file system can do.
from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from featx.engine.events import Planned
from featx.errors import BusyError, OutputError
from featx.explore.verify import verify
from featx.runs import lease as leases
from featx.runs import lock
from featx.runs.layout import LEASE, UNFINISHED
from featx.runs.lease import Lease, is_held
from tests.helpers import extract, lines, notes, tree, wait_until, write_lines


@pytest.fixture
def run(photos, tmp_path):
    extract(photos, tmp_path / "out", out_indices=(4,))
    return tmp_path / "out"


DATASET = b'{"file_name": "1.jpg", "text": "a cat"}\n{"file_name": "2.jpg", "text": "no newline at the end"}'


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "held",
    [
        {"manifest.jsonl": DATASET},
        {"manifest.jsonl": DATASET, "1.jpg": b"a photo"},
        {"manifest.jsonl": DATASET, "summary.json": b'{"rows": 2}'},
        {"manifest.jsonl": b"", "1.jpg": b"a photo"},
        {"manifest.jsonl": b"", "summary.json": b'{"rows": 2}'},
        {"manifest.jsonl": b"", "summary.json": b"[]"},
        {"manifest.jsonl": b"", "summary.json": b'{"featx_format": 1}'},
        {"summary.json": b'{"rows": 2}'},
    ],
    ids="+".join,
)
def test_another_program_s_files_are_left_alone(photos, tmp_path, held, overwrite):
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name, data in held.items():
        (folder / name).write_bytes(data)
    with pytest.raises(OutputError):
        extract(photos, folder, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == held


@pytest.mark.parametrize("known", ["manifest.jsonl", "summary.json"])
def test_a_run_that_writes_its_first_files_meanwhile_is_one(run, monkeypatch, known):
    """Between two looks at a folder: there was no summary yet, then there is all of a run."""
    if known == "summary.json":
        (run / "manifest.jsonl").write_bytes(b"")
    looks = iter([None])
    read = lock.read_summary
    monkeypatch.setattr(lock, "read_summary", lambda folder: next(looks, read(folder)))
    lock.require_usable(run)
    assert next(looks, "used") == "used"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_manifest_that_another_program_wrote_beside_a_summary_is_left_alone(photos, run, overwrite):
    (run / "manifest.jsonl").write_bytes(DATASET)
    before = tree(run)
    with pytest.raises(OutputError, match="written by another program"):
        extract(photos, run, out_indices=(4,), overwrite=overwrite)
    assert tree(run) == before


def test_a_run_that_lost_one_of_its_books_is_left_alone(photos, run):
    for name in ("manifest.jsonl", "summary.json"):
        data = (run / name).read_bytes()
        (run / name).unlink()
        before = tree(run)
        with pytest.raises(OutputError):
            extract(photos, run, out_indices=(4,), overwrite=True)
        assert tree(run) == before
        (run / name).write_bytes(data)
    assert extract(photos, run, out_indices=(4,)).tried == 0


def test_what_a_run_leaves_that_is_killed_at_its_start_is_a_run_s(photos, tmp_path):
    folder = tmp_path / "out"
    (folder / UNFINISHED).mkdir(parents=True)
    (folder / "manifest.jsonl").touch()
    (folder / UNFINISHED / "summary.json").write_text("{")
    assert extract(photos, folder).computed == 3


def test_a_link_in_the_place_of_what_is_unfinished_is_not_followed(photos, run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    for name in ("0", "reading", "summary.json", "suspects"):
        (tmp_path / "mine" / name).write_text("mine")
    before = tree(tmp_path / "mine")
    (run / UNFINISHED).symlink_to(tmp_path / "mine")
    (photos / "new.jpg").write_bytes((photos / "0.jpg").read_bytes())
    assert extract(photos, run, out_indices=(4,)).computed == 1
    assert tree(tmp_path / "mine") == before


def test_killed_between_removing_the_old_and_the_first_of_the_new(photos, run):
    """An empty manifest binds nobody to the recipe in the summary."""
    os.truncate(run / "manifest.jsonl", 0)
    report = extract(photos, run, out_indices=(3,))
    assert (report.computed, [level["index"] for level in report.summary["levels"]]) == (3, [3])


def test_the_error_that_ended_a_run_is_the_one_that_is_said(photos, run, monkeypatch):
    """On a disk that has gone read-only, clearing up fails, too."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def fail_on_a_disk_that_is_gone(held):
        held.begin()
        (held.unfinished / "1").touch()
        monkeypatch.setattr(os, "unlink", refuse)
        monkeypatch.setattr(os, "rmdir", refuse)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), lock.exclusive(run) as held:
        fail_on_a_disk_that_is_gone(held)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_synchronise_folders(photos, tmp_path, monkeypatch, number):
    honest = os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    heard = []
    assert extract(photos, tmp_path / "out", listener=heard.append).computed == 3
    assert [text for text in notes(heard) if "after a power cut" in text]
    monkeypatch.undo()
    assert extract(photos, tmp_path / "out").tried == 0


@pytest.fixture
def lockless(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_a_lease_keeps_other_runs_out(photos, tmp_path, lockless):
    heard, refused = [], []

    def listen(event):
        heard.append(event)
        if isinstance(event, Planned):
            assert (tmp_path / "out" / LEASE).exists()
            with pytest.raises(BusyError, match=rf"process {os.getpid()} on") as caught:
                extract(photos, tmp_path / "out")
            refused.append(caught.value)
            with pytest.raises(BusyError):
                verify(tmp_path / "out")

    assert extract(photos, tmp_path / "out", listener=listen).computed == 3
    assert refused[0].exit_status == 11
    assert [text for text in notes(heard) if "without locks" in text]
    assert not (tmp_path / "out" / LEASE).exists()
    assert extract(photos, tmp_path / "out").tried == 0


def test_a_lease_of_a_process_that_ended_is_taken_over(tmp_path):
    lease = f"Lease(Path({str(tmp_path / LEASE)!r}))"
    script = f"from featx.runs.lease import Lease; from pathlib import Path; import os; {lease}"
    subprocess.run([sys.executable, "-c", f"{script}; os._exit(0)"], check=True)
    assert (tmp_path / LEASE).exists()
    Lease(tmp_path / LEASE).end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("age", "held"), [(0, True), (leases.EXPIRY / 2, True), (leases.EXPIRY * 2, False)])
@pytest.mark.parametrize("content", ['{"host": "another-machine", "pid": 1, "token": "x"}', "", "[]"])
def test_a_lease_of_another_machine_ends_when_it_is_not_renewed(tmp_path, age, held, content):
    path = tmp_path / LEASE
    path.write_text(content)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    assert is_held(path) == held
    if held:
        with pytest.raises(BusyError, match="Another run"):
            Lease(path)
        assert path.read_text() == content
    else:
        taken = Lease(path)
        assert json.loads(path.read_text())["host"] == socket.gethostname()
        taken.end()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["boot", "namespace", "started"])
def test_a_lease_of_another_container_is_not_told_by_its_process_number(tmp_path, other):
    """The same host name and number: alive until it is not renewed, or, of an earlier process, gone."""
    path = tmp_path / LEASE
    taken = Lease(path)
    content = {**json.loads(path.read_text()), other: "another"}
    taken.end()
    path.write_text(json.dumps(content))
    assert is_held(path) == (other != "started")
    os.utime(path, (0, 0))
    assert not is_held(path)


def test_looking_for_a_lease_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "_now", lambda _: pytest.fail("something was written"))
    assert not is_held(tmp_path / LEASE)


def test_who_has_lost_the_lease_changes_nothing_more(photos, run, monkeypatch, lockless):
    monkeypatch.setattr(leases, "RENEW_EVERY", 1e9)
    with lock.exclusive(run) as held:
        held.begin()
        held._lease.lost = True
        (run / LEASE).write_text('{"host": "another-machine", "pid": 1, "token": "x"}')
        (held.unfinished / "1").write_text("the other run's")
        before = tree(run)
        for change in (
            lambda: held.append(b"{}"),
            lambda: held.save({}),
            lambda: held.drop([]),
            lambda: held.remove("a.npz"),
        ):
            with pytest.raises(BusyError, match="taken over"):
                change()
    assert tree(run) == before


def test_a_lease_is_renewed_and_its_loss_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_EVERY", 0.01)
    monkeypatch.setattr(leases, "AGAIN", 0.01)
    path = tmp_path / LEASE
    taken = Lease(path)
    os.utime(path, (0, 0))
    wait_until(lambda: path.stat().st_mtime, unless=lambda: not is_held(path))
    taken.require()
    path.write_text(json.dumps({"host": "another-machine", "pid": 1, "token": "x"}))
    wait_until(lambda: taken.lost)
    with pytest.raises(BusyError, match="taken over"):
        taken.require()
    taken.end()
    assert path.exists()  # somebody else's


def test_what_a_manifest_says_outside_of_the_folder_is_not_removed(photos, run, tmp_path):
    """By its name, by a link of a folder, and of a key that failed since."""
    (tmp_path / "elsewhere").mkdir()
    precious = tmp_path / "elsewhere" / "0.jpg.npz"
    precious.write_bytes(b"precious")
    shutil.rmtree(run / "photos")
    (run / "photos").symlink_to(tmp_path / "elsewhere")
    with lock.exclusive(run) as held:
        for name in ("../elsewhere/0.jpg.npz", "photos/0.jpg.npz", str(precious)):
            with pytest.raises(OutputError, match="points outside"):
                held.remove(name)
        held.begin(from_scratch=True)
    assert precious.read_bytes() == b"precious"
    assert lines(run) == []


def test_starting_anew_leaves_no_empty_folders(photos, run, tmp_path):
    (tmp_path / "elsewhere" / "photos").mkdir(parents=True)
    (run / "linked").symlink_to(tmp_path / "elsewhere")
    write_lines(run, [*lines(run), {**lines(run)[0], "key": "x", "output": "linked/photos/x.npz"}])
    assert (run / "photos").is_dir()
    with lock.exclusive(run) as held:
        held.begin(from_scratch=True)
    assert not (run / "photos").exists()
    assert (tmp_path / "elsewhere" / "photos").is_dir()


def test_nothing_is_written_through_a_link_that_leads_out_of_the_folder(photos, run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(run / "photos")
    (run / "photos").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="points outside"):
        extract(photos, run, out_indices=(4,))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_path_that_cannot_be_asked_about_is_one_error(photos, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for folder in (tmp_path / "loop", tmp_path / ("a" * 300), Path("/dev/null/x")):
        with pytest.raises(OutputError):
            extract(photos, folder)

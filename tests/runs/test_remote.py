# Runs behind URLs, in this process: leases, uploads that fail, the manifest's parts, and reading what was written.
from __future__ import annotations

import gc
import hashlib
import json
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import featx
from featx.errors import BusyError, FeatxError, OutputError, StoreError, UsageError
from featx.explore.verify import verify
from featx.explore.viewing import view
from featx.runs import remote, store_lease
from featx.runs.merging import merge
from featx.stores import Store
from featx.values import Outcome
from tests.helpers import extract, lines, make_photos, natural_image, notes, tree
from tests.servers import site_of

URL = "memory://bucket/run"
STORE = Store.of(URL)


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """Leave nothing in memory, and share no folder with other processes, whose memory is another."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def at_once(monkeypatch):
    """Upload lines as they come."""
    monkeypatch.setattr(remote, "SECONDS", -1.0)


def objects() -> dict[str, str]:
    return {name: hashlib.sha256(STORE.read(name)).hexdigest() for name in STORE.walk()}


def entries() -> list[dict]:
    names = ["manifest.jsonl", *sorted(name for name in STORE.walk() if name.startswith("manifest.parts/"))]
    return [json.loads(line) for name in names for line in STORE.read(name).splitlines()]


def require_as_in(folder: Path) -> None:
    here, there = tree(folder), objects()
    assert there.keys() == here.keys()
    assert {name for name in here if here[name] != there[name]} <= {"summary.json"}  # which has times


def on_first(function):
    """Return a listener that calls a function at the first outcome."""
    waiting = [function]

    def listen(event) -> None:
        if isinstance(event, Outcome) and waiting:
            waiting.pop()()

    return listen


@pytest.mark.parametrize("options", [{}, {"embedding": True, "format": "parquet"}], ids=["npz", "parquet"])
def test_changed_broken_and_new_photos_leave_what_a_folder_would_have(tmp_path, photos, options):
    for output in (tmp_path / "out", URL):
        extract(photos, output, **options)
    natural_image(77).save(photos / "1.jpg")
    (photos / "2.jpg").write_bytes(b"broken")
    natural_image(78).save(photos / "new.jpg")
    for output in (tmp_path / "out", URL):
        report = extract(photos, output, **options)
        assert (report.computed, len(report.failures)) == (2, 1)
    require_as_in(tmp_path / "out")
    checked = verify(URL)
    assert checked.sound
    assert (checked.checked, checked.failed, checked.uncommitted, checked.foreign) == (3, 1, [], [])
    for output in (tmp_path / "out", URL):
        extract(photos, output, overwrite=True, dtype="float32", **{**options, "format": "npz", "maps": True})
    require_as_in(tmp_path / "out")


def test_an_object_that_was_lost_is_made_again(photos):
    extract(photos, URL)
    before = objects()
    STORE.remove("photos/1.jpg.npz")
    assert verify(URL).missing == ["photos/1.jpg"]
    assert verify(URL, repair=True).repaired
    assert extract(photos, URL).computed == 1
    assert objects().keys() == before.keys()
    assert objects()["photos/1.jpg.npz"] == before["photos/1.jpg.npz"]


def test_an_upload_that_fails_stops_the_run_and_nothing_recorded_is_lost(tmp_path, monkeypatch, at_once):
    photos = make_photos(tmp_path / "photos", 60)
    extract(photos, tmp_path / "out")
    honest = MemoryFileSystem.put_file

    def failing(self, source, target, **more):
        if target.endswith("50.jpg.npz"):
            raise ConnectionResetError(104, "Connection reset by peer")
        return honest(self, source, target, **more)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    with pytest.raises(StoreError) as caught:
        extract(photos, URL)
    assert caught.value.message.startswith(f"{URL}/photos/50.jpg.npz cannot be written: Connection reset by peer (")
    assert caught.value.exit_status == 1
    there = objects()
    done = entries()
    assert 0 < len(done) < 60
    assert all(there[line["output"]] == line["sha256"] for line in done)
    assert json.loads(STORE.read("summary.json"))["state"] == "stopped"
    monkeypatch.undo()
    assert extract(photos, URL).computed == 60 - len(done)
    here = tree(tmp_path / "out")
    assert {name for name, digest in objects().items() if here[name] != digest} <= {"summary.json", "manifest.jsonl"}
    assert sorted(map(str, entries())) == sorted(map(str, lines(tmp_path / "out")))


def test_lines_that_cannot_be_uploaded_stop_the_run(photos, monkeypatch, at_once):
    honest = Store.create

    def failing(self, name, data):
        if name.startswith("manifest.parts/"):
            raise StoreError(f"{self.url}/{name} cannot be written: no access")
        return honest(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", failing)
        with pytest.raises(StoreError, match=r"manifest\.parts/000001\.jsonl cannot be written"):
            extract(photos, URL)
    assert entries() == []
    assert extract(photos, URL).computed == 3


def test_a_run_that_has_lost_its_lease_writes_no_more_lines(tmp_path, at_once):
    photos = make_photos(tmp_path / "photos", 40)
    seen = []

    def lose() -> None:
        seen.extend(entries())
        STORE.write(".lease", json.dumps({"host": "elsewhere", "pid": 1, "token": "another"}).encode())

    with pytest.raises(BusyError, match=r"memory://bucket/run/\.lease was removed, or another run has it now") as lost:
        extract(photos, URL, listener=on_first(lose))
    assert lost.value.exit_status == 11
    assert entries() == seen
    assert json.loads(STORE.read(".lease"))["token"] == "another"  # it is not taken away from whom it belongs to


def test_a_run_that_slept_uploads_nothing_that_another_may_have_by_now(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "SECONDS", 1e9)
    honest = store_lease.clock

    def sleep() -> None:
        STORE.write(".lease", json.dumps({"host": "elsewhere", "pid": 1, "token": "another"}).encode())
        monkeypatch.setattr(store_lease, "clock", lambda: honest() + 100)

    with pytest.raises(BusyError, match="was removed, or another run has it now"):
        extract(make_photos(tmp_path / "photos", 48), URL, listener=on_first(sleep), batch_size=2, workers=1)
    assert len(objects()) < 48
    assert entries() == []


def test_no_run_replaces_what_another_has_recorded(photos, monkeypatch):
    """Even one that slept while its lease ran out, and does not know."""
    monkeypatch.setattr("featx.runs.store_lease.StoreLease.require", lambda self: None)
    theirs = b'{"theirs":1}\n'
    with pytest.raises(BusyError, match="Another run has written to memory://bucket/run"):
        extract(photos, URL, listener=on_first(lambda: STORE.write("manifest.parts/000001.jsonl", theirs)))
    assert STORE.read("manifest.parts/000001.jsonl") == theirs


def test_who_holds_a_run(tmp_path, photos):
    def second() -> None:
        with pytest.raises(BusyError, match="Another run is using memory://bucket/run"):
            extract(photos, URL)
        with pytest.raises(BusyError, match="Another run is using memory://bucket/run"):
            verify(URL)

    extract(photos, URL, listener=on_first(second))
    lease = {"host": "elsewhere", "pid": 7, "token": "x", "time": "then"}
    STORE.write(".lease", json.dumps(lease).encode())
    with pytest.raises(BusyError, match=r"process 7 on elsewhere, last heard of at then"):
        extract(photos, URL, overwrite=True)
    [file] = [file for path, file in MemoryFileSystem.store.items() if path.endswith(".lease")]
    file.modified = datetime.now(UTC) - timedelta(seconds=121)
    assert extract(photos, URL, overwrite=True).computed == 3
    assert ".lease" not in objects()


def test_a_store_that_cannot_create_exclusively_is_noted(photos, monkeypatch):
    honest = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda self, path, value, mode="": honest(self, path, value))
    heard = []
    assert extract(photos, URL, listener=heard.append).computed == 3
    assert any("are not kept apart" in text for text in notes(heard))


def test_parts_are_read_as_one_and_merged(tmp_path, at_once):
    photos = make_photos(tmp_path / "photos", 40)
    extract(photos, tmp_path / "out")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(FeatxError, match="Stopped"):
        extract(photos, URL, listener=on_first(interrupt))
    stopped = [line["key"] for line in entries()]
    assert "manifest.parts/000001.jsonl" in objects()
    assert list(featx.open_run(URL)) == stopped
    part = STORE.read("manifest.parts/000001.jsonl")
    assert merge(URL).parts == 1
    assert (merge(URL).parts, merge(URL).done) == (0, len(stopped))
    assert not any(name.startswith("manifest.parts/") for name in objects())
    STORE.write("manifest.parts/000001.jsonl", part)  # as a kill before its removal leaves it
    assert list(featx.open_run(URL)) == stopped
    assert extract(photos, URL).computed == 40 - len(stopped)
    assert sorted(map(str, entries())) == sorted(map(str, lines(tmp_path / "out")))


def test_reading_is_as_from_a_folder(tmp_path, photos):
    for output in (tmp_path / "out", URL):
        extract(photos, output, embedding=True)
    here, there = featx.open_run(tmp_path / "out"), featx.open_run(URL)
    for run in (there, pickle.loads(pickle.dumps(there))):
        assert list(run) == list(here)
        for key in here:
            assert run[key].keys() == here[key].keys()
            assert all(np.array_equal(values, run[key][name]) for name, values in here[key].items())
    [(keys, vectors)], [(others, same)] = list(there.embeddings()), list(here.embeddings())
    assert keys == others
    assert np.array_equal(vectors, same)
    assert len(there.dataset([2])) == 3
    query = photos / "1.jpg"
    assert featx.similar(URL, query).found == featx.similar(tmp_path / "out", query).found
    for run in (URL, tmp_path / "out"):
        view(run, tmp_path / f"{len(str(run))}.png")
    first, second = (np.asarray(Image.open(path)) for path in tmp_path.glob("*.png"))
    assert np.array_equal(first, second)
    folder = there.folder
    del run, there
    gc.collect()
    assert not folder.exists()


def test_like_takes_the_recipe_behind_a_url(tmp_path, photos):
    extract(photos, URL, dtype="float16")
    report = featx.extract(photos, output=tmp_path / "out", like=URL, device="cpu")
    assert report.summary["recipe"]["dtype"] == "float16"


def test_the_folder_on_this_machine_stays_small_and_goes(tmp_path):
    counts = []

    def count(event) -> None:
        counts.append(sum(path.is_file() for path in (tmp_path / "temporary").rglob("*.npz")))

    extract(make_photos(tmp_path / "photos", 48), URL, listener=count, batch_size=4, workers=1)
    assert max(counts) < 40  # a group, and what is being written and uploaded meanwhile
    assert not list((tmp_path / "temporary").glob("featx-*/*"))


def test_a_place_that_holds_something_else_is_left_alone(photos):
    STORE.write("thesis.pdf", b"...")
    with pytest.raises(OutputError, match="holds objects that are not part of a featx run"):
        extract(photos, URL, overwrite=True)
    assert list(objects()) == ["thesis.pdf"]
    with pytest.raises(FeatxError, match="memory://bucket/run is not a featx run"):
        featx.open_run(URL)


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("sftp://host/run", {}, "sftp:// is no object store"),
        ("s3://", {}, "s3:// names no bucket"),
        ("nonsense://host/run", {}, "There is no protocol nonsense"),
        ("s3://key:secret@bucket/run", {}, "has credentials in it"),
        (Path("s3://bucket/run"), {}, "what pathlib makes of a URL"),
        (URL, {"format": "npy", "embedding": True}, "cannot be appended to"),
        (URL, {"shard": "1/2"}, "--shard divides a folder"),
        (URL, {"engine": "ray"}, "--engine ray writes to a folder"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(photos, output, options, message):
    with pytest.raises(UsageError, match=message) as refused:
        extract(photos, output, **options)
    assert "secret" not in str(refused.value)
    assert objects() == {}


def test_a_run_on_a_web_server_which_tells_no_versions_is_read(tmp_path, photos):
    """As `python -m http.server` shares a folder."""
    extract(photos, tmp_path / "run", grid=2)
    local = featx.open_run(tmp_path / "run")
    with site_of(tmp_path) as site:
        run = featx.open_run(f"{site.url}/run")
        for key in local:
            for name, values in local[key].items():
                np.testing.assert_array_equal(run[key][name], values)
        assert verify(f"{site.url}/run").sound


def test_a_web_server_which_lists_no_sizes_is_walked(tmp_path, photos):
    with site_of(photos) as site:
        found = sorted(Store.of(site.url).walk())
    assert found == sorted(path.name for path in photos.iterdir())

# Runs on archives: the same bytes as from the folder, resumed after kills, and nothing read again without need.
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tarfile
import zipfile

import pytest

import featx
from featx.images import archives, locators, tars
from tests.helpers import extract, lines, make_photos, notes, outputs

KINDS = ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip")


def pack(folder, kind, name="photos"):
    """Pack what is in a folder, beside it."""
    path = folder.with_name(f"{name}.{kind}")
    files = sorted(folder.iterdir(), key=lambda file: int(file.stem))
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
            for file in files:
                archive.add(file, file.name)
    return path


@pytest.fixture
def reads(monkeypatch):
    """Count how often archives are opened, to be listed or for a member."""
    opened = []
    read, source = archives._Index.read, archives.Archive.source
    monkeypatch.setattr(archives._Index, "read", lambda index: opened.append("listed") or read(index))
    monkeypatch.setattr(
        archives.Archive, "source", lambda archive, *values: opened.append(values[0]) or source(archive, *values)
    )
    return opened


def test_every_kind_of_container_gives_the_bytes_of_the_folder(tmp_path):
    photos = make_photos(tmp_path / "photos", 21)
    extract(photos, tmp_path / "folder")
    expected = outputs(tmp_path / "folder")
    assert len(expected) == 21
    for kind in KINDS:
        archive = pack(photos, kind)
        for more in ({}, {"isolate": True}) if kind in ("tar.gz", "zip") else ({},):
            report = extract(archive, tmp_path / "out", **more)
            assert (report.computed, report.failures) == (21, [])
            assert outputs(tmp_path / "out") == expected
            assert lines(tmp_path / "out")[3]["path"] == f"{archive}::3.jpg"
            assert lines(tmp_path / "out")[3]["input"]["bytes"] == archive.stat().st_size
            shutil.rmtree(tmp_path / "out")
    assert not any(path.name.endswith(".jpg") for path in tmp_path.glob("*"))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_unchanged_archive_is_not_read_again_and_a_changed_one_is(tmp_path, reads, kind):
    photos = make_photos(tmp_path / "photos", 5)
    (photos / "6.txt").write_text("no image")
    archive = pack(photos, kind)
    out = tmp_path / "out"
    extract(archive, out)
    reads.clear()
    archives._archive.cache_clear()
    heard = []
    assert extract(archive, out, listener=heard.append).tried == 0
    assert not reads
    assert notes(heard) == ["Skipped 1 file without an image suffix"]
    (out / "photos" / "2.jpg.npz").unlink()
    assert extract(archive, out).computed == 1
    assert reads.count("listed") == 1
    assert set(reads) <= {"listed", "2.jpg", "0.jpg", "1.jpg", "3.jpg", "4.jpg"}
    shutil.copy(photos / "4.jpg", photos / "5.jpg")
    (photos / "0.jpg").unlink()
    pack(photos, kind)
    heard = []
    assert extract(archive, out, listener=heard.append).computed == 5
    assert "1 image no longer exists; the features are kept" in notes(heard)
    reads.clear()
    archives._archive.cache_clear()
    assert extract(archive, out).tried == 0
    assert not reads
    more = pack(photos, kind, "more")
    assert extract([archive, more], out).computed == 5
    assert "listed" in reads
    reads.clear()
    archives._archive.cache_clear()
    assert extract([archive, more], out).tried == extract(archive, out).tried == extract(more, out).tried == 0
    assert not reads


def test_by_hashes_only_members_that_changed_are_computed(tmp_path):
    photos = make_photos(tmp_path / "photos", 4)
    for kind in ("tar", "tar.xz", "zip"):
        out = tmp_path / kind
        extract(pack(photos, kind), out, hash_inputs=True)
        shutil.copy(photos / "3.jpg", photos / "4.jpg")
        archive = pack(photos, kind)
        os.utime(archive, ns=(1, 1))
        assert extract(archive, out, hash_inputs=True).computed == 1
        (photos / "4.jpg").unlink()


def test_what_fails_is_one_line_and_stays_one(tmp_path, reads):
    photos = make_photos(tmp_path / "photos", 4)
    (photos / "2.jpg").write_bytes(b"not an image at all")
    archive = pack(photos, "tar")
    data, last = archive.read_bytes(), (photos / "3.jpg").read_bytes()
    archive.write_bytes(data[: data.index(last) + len(last) - 100])
    out = tmp_path / "out"
    report = extract(archive, out)
    assert report.computed == 2
    assert {failure.item.key: failure.stage for failure in report.failures} == {
        "photos/2.jpg": "decode",
        "photos.tar": "read",
    }
    assert report.failures[-1].error == "it ends in the middle of 3.jpg; what follows is missing"
    reads.clear()
    archives._archive.cache_clear()
    again = extract(archive, out)
    assert (again.tried, len(again.failures)) == (0, 2)
    assert not reads
    assert extract(archive, out, retry_failed=True).tried == 2
    whole = pack(photos, "tar")
    assert [failure.item.key for failure in extract(whole, out).failures] == ["photos/2.jpg"]


def test_nothing_is_written_outside(tmp_path):
    photos = make_photos(tmp_path / "a" / "b" / "photos", 1)
    data = (photos / "0.jpg").read_bytes()
    for name in ("../../x.jpg", "/tmp/featx-was-here.jpg", "0.jpg"):
        with zipfile.ZipFile(photos / "evil.zip", "a") as archive:
            archive.writestr(name, data)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "a" / "b" / "out"
    report = extract(photos / "evil.zip", out)
    assert report.computed == 1
    assert [failure.error for failure in report.failures] == ["2 names in it would lead elsewhere, such as ../../x.jpg"]
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.relative_to(out).as_posix() for path in made} == {
        *("summary.json", "manifest.jsonl", "evil/0.jpg.npz"),
    }
    assert not os.path.lexists("/tmp/featx-was-here.jpg.npz")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_killed_runs_resume_and_lose_nothing(forge, tmp_path, kind):
    archive = pack(make_photos(tmp_path / "photos", 150), kind)
    assert forge.extract(tmp_path, tmp_path / "photos", "folder")["status"] == 0
    expected = outputs(tmp_path / "folder")
    chance = random.Random(kind)
    kills = 0
    for _ in range(6):
        steps = [("lines", chance.randint(1, 30)), ("signal", signal.SIGKILL)]
        done = forge.extract(tmp_path, archive, "out", steps=steps, isolation=True)
        kills += done["status"] == -9
        for name, digest in outputs(tmp_path / "out").items():
            assert name.startswith(".unfinished/") or digest == expected[name]
    assert kills >= 2
    assert forge.extract(tmp_path, archive, "out", isolation=True)["status"] == 0
    assert outputs(tmp_path / "out") == expected
    assert sorted(line["key"] for line in lines(tmp_path / "out")) == sorted(name[:-4] for name in expected)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["archives"][0]["images"] == 150


def test_a_long_way_to_a_member_is_no_hang(tmp_path, monkeypatch):
    """Time counts again from every step that is taken towards a member."""
    from featx.engine.isolation import Reader

    photos = make_photos(tmp_path / "photos", 3)
    archive = pack(photos, "tar.gz")
    monkeypatch.setattr(tars, "BLOCK", 100)
    went_on = []
    goes_on = Reader._goes_on
    monkeypatch.setattr(Reader, "_goes_on", lambda reader, item: went_on.append(item.key) or goes_on(reader, item))
    assert extract(archive, tmp_path / "out").computed == 3
    assert went_on.count("photos/2.jpg") > 5


def test_what_reads_photos_of_a_run_reads_members_too(tmp_path, featx_command):
    photos = make_photos(tmp_path / "photos", 4)
    for kind in ("tar.gz", "zip"):
        archive, out = pack(photos, kind), tmp_path / f"run-{kind}"
        extract(archive, out, embedding=True)
        run = featx.open_run(out)
        assert [locators.exists(run.line(key).path) for key in run] == [True] * 4
        done = featx_command("similar", out, f"{archive}::2.jpg", "--count", 2, "--json")
        assert done.returncode == 0, done.stderr
        assert "photos/2.jpg" not in done.stdout
        done = featx_command("verify", out, "--recompute", 3, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["recomputed"]["images"] == 3
        done = featx_command("view", out, "-o", tmp_path / "levels.png")
        assert done.returncode == 0, done.stderr


def test_shards_resume_by_webdataset_s_keys(tmp_path, reads, monkeypatch):
    photos = make_photos(tmp_path / "photos", 6)
    for shard in range(3):
        with tarfile.open(tmp_path / f"shard-{shard:03}.tar", "w") as archive:
            for number in (2 * shard, 2 * shard + 1):
                archive.add(photos / f"{number}.jpg", f"{number:06}.jpg")
                archive.add(photos / f"{number}.jpg", f"{number:06}.cls")
    monkeypatch.chdir(tmp_path)
    assert extract("shard-{000..001}.tar", "out").computed == 4
    assert extract("shard-{000..002}.tar", "out").computed == 2
    assert sorted(outputs(tmp_path / "out")) == [f"{number:06}.npz" for number in range(6)]
    assert lines(tmp_path / "out")[-1]["path"] == f"{tmp_path}/shard-002.tar::000005.jpg"
    reads.clear()
    archives._archive.cache_clear()
    assert extract("shard-{000..002}.tar", "out").tried == 0
    assert not reads

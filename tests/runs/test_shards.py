# Shards of a run: disjoint and complete, in any order, at once, and one run for everything that reads it.
from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featx
from featx.engine.events import Planned
from featx.errors import BusyError, FeatxError, OutputError, UsageError
from featx.explore.similarity import similar
from featx.explore.verify import verify
from featx.runs import parts
from featx.runs.layout import LEASE
from featx.runs.merging import merge
from featx.runs.suspects import Marks
from featx.sharding import Shard, as_shard
from featx.values import Item
from tests.helpers import extract, lines, make_photos, notes, outputs, tree

COUNT = 16


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Forty photos in folders, and two that are none."""
    folder = make_photos(tmp_path_factory.mktemp("shards") / "photos", 30)
    make_photos(folder / "more", 10, "IMG {}.jpg")
    for name in ("7b.jpg", "more/broken.jpg"):
        (folder / name).write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def undivided(many, tmp_path_factory):
    """What a run in one go writes."""
    folder = tmp_path_factory.mktemp("undivided") / "out"
    extract(many, folder, out_indices=(4,), embedding=True)
    return folder


def shard(photos, folder, written, **options):
    return extract(photos, folder, **{"out_indices": (4,), "embedding": True, "shard": written, **options})


def require_same(folder, undivided):
    """The same features, and the same lines in the same order."""
    assert outputs(folder) == outputs(undivided)
    assert lines(folder) == lines(undivided)
    assert not (folder / "manifest.parts").exists()
    assert not (folder / ".unfinished").exists()


@given(st.lists(st.text(), max_size=50), st.integers(1, 40))
def test_shards_are_disjoint_and_complete(keys, count):
    for key in keys:
        assert [Shard(number, count).has(key) for number in range(1, count + 1)].count(True) == 1


def test_shards_are_the_same_on_every_machine_and_even():
    """Whoever changes this has shards of one run overlap that come from two versions of featx."""
    assert [key for key in map(str, range(30)) if Shard(3, 4).has(key)] == ["3", "5", "6", "8", "17", "19", "22", "26"]
    keys = [f"photos/{number}.jpg" for number in range(8000)]
    found = Counter(number for key in keys for number in range(1, 9) if Shard(number, 8).has(key))
    assert all(900 < count < 1100 for count in found.values())


@pytest.mark.parametrize(
    ("written", "expected"),
    [("3/16", Shard(3, 16)), ("0/16", Shard(16, 16)), ("16/16", Shard(16, 16)), ("1/1", Shard(1, 1))],
)
def test_how_shards_are_written(written, expected):
    """From 0 as from 1: n numbers in a row are all shards, whichever the first of them is."""
    assert as_shard("--shard", written) == expected


@pytest.mark.parametrize("written", ["17/16", "-1/16", "3", "3/0", "0/0", "a/b", "3/16/2", "", 3, "1/1000001"])
def test_what_is_no_shard(written):
    with pytest.raises(UsageError, match="such as 3/16"):
        as_shard("--shard", written)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("0 0 15 1 16", "1/16"),
        ("15 0 15 1 16", "16/16"),
        ("1 1 16 1 16", "1/16"),
        ("6 2 30 4 8", "2/8"),
        ("7 7 7 1 1", "1/1"),
        ("3 0 15 1 ", "4/16"),
        ("5 1 11 1 5", None),  # 1,5,9-11
        ("5 2 30 4 8", None),
        ("x 0 15 1 16", None),
        (" 0 15 1 16", None),
    ],
)
def test_the_task_of_a_job_array(monkeypatch, task, expected):
    for fact, value in zip(("ID", "MIN", "MAX", "STEP", "COUNT"), task.split(" "), strict=True):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{fact}", value)
    if expected:
        assert str(as_shard("--shard", "slurm")) == expected
    else:
        with pytest.raises(UsageError, match="--shard 3/16"):
            as_shard("--shard", "slurm")


def test_shards_in_any_order_some_twice_are_one_run(many, undivided, tmp_path):
    out, chance = tmp_path / "out", random.Random(1)
    numbers = [*range(COUNT), *chance.sample(range(COUNT), 4)]
    chance.shuffle(numbers)
    seen = set()
    for number in numbers:
        report = shard(many, out, f"{number}/{COUNT}")
        own = {key for key in featx.open_run(undivided).failed | set(featx.open_run(undivided)) if _has(number, key)}
        assert report.tried == (0 if number in seen else len(own))
        seen.add(number)
        run = featx.open_run(out)
        found = set(run) | run.failed
        assert found == {key for key in _keys(undivided) if any(_has(each, key) for each in seen)}
        summary = json.loads((out / "summary.json").read_text())
        assert summary["counts"] == {"done": len(run), "failed": len(run.failed), "total": 42}
        assert summary["state"] == ("done" if len(seen) == COUNT else "stopped")
        assert summary["bytes"] == sum(run.line(key).bytes for key in run)
        checked = verify(out)
        assert (checked.sound, checked.to_do, checked.foreign) == (True, 42 - len(found), [])
    assert outputs(out) == outputs(undivided)
    for key in (run := featx.open_run(out)):
        assert run.frame(key) == featx.open_run(undivided).frame(key)
    assert len(run.dataset()) == 40
    key = "photos/3.jpg"
    assert [each.key for each in similar(out, str(many / "3.jpg")).found] == [
        each.key for each in similar(undivided, str(many / "3.jpg")).found
    ], key
    assert merge(out).parts == COUNT
    require_same(out, undivided)
    assert merge(out).parts == 0
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (out, undivided)]
    for summary in summaries:
        del summary["seconds"], summary["call"]
    assert summaries[0] == summaries[1]
    assert shard(many, out, "3/16").tried == 0
    require_same(out, undivided)


def _has(number, key):
    return as_shard("", f"{number}/{COUNT}").has(key)


def _keys(folder):
    return {line["key"] for line in lines(folder)}


def test_a_merged_manifest_has_the_order_of_the_images(many, tmp_path):
    """Whatever that is: of a list, which is in no order."""
    paths = [str(path) for path in sorted(many.rglob("*.jpg"))]
    random.Random(2).shuffle(paths)
    (tmp_path / "list").write_text("\n".join(paths))
    for folder, shards in (("whole", [None]), ("out", ["2/3", "1/3", "3/3"])):
        for written in shards:
            extract((), tmp_path / folder, from_file=tmp_path / "list", out_indices=(4,), shard=written)
    merge(tmp_path / "out")
    assert [line["path"] for line in lines(tmp_path / "out")] == paths
    require_same(tmp_path / "out", tmp_path / "whole")


@pytest.fixture(params=["locks", "leases"])
def locking(request, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if request.param == "leases":
        monkeypatch.setattr(fcntl, "flock", flock)


def test_shards_at_once(many, undivided, tmp_path, locking):
    """Another shard may begin while one runs; the same one, all of it, another number of them and others may not."""
    out, refused = tmp_path / "out", []

    def listen(event):
        if not isinstance(event, Planned):
            return
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["state"], summary["counts"]["total"]) == ("running", 42)
        for busy in (
            lambda: shard(many, out, "2/2"),
            lambda: shard(many, out, None),
            lambda: shard(many, out, "2/3"),
            lambda: verify(out),
            lambda: verify(out, repair=True),
            lambda: merge(out),
        ):
            with pytest.raises(BusyError) as caught:
                busy()
            refused.append(caught.value)
        assert len(featx.open_run(out)) == 0
        shard(many, out, "1/2")
        assert json.loads((out / "summary.json").read_text())["state"] == "running"
        assert len(featx.open_run(out)) + len(featx.open_run(out).failed) == sum(
            Shard(1, 2).has(key) for key in _keys(undivided)
        )

    report = shard(many, out, "2/2", listener=listen)
    assert {error.exit_status for error in refused} == {11}
    assert refused[0].message == f"Shard 2/2 of {out} is running already"
    assert refused[2].message == f"Shard 2/2 of {out} is running, so it cannot be divided into 3"
    assert (report.summary["state"], report.summary["counts"]["done"]) == ("done", 40)
    assert not list(out.rglob(LEASE))
    merge(out)
    require_same(out, undivided)


def test_a_whole_run_keeps_shards_out(many, tmp_path, locking):
    out, refused = tmp_path / "out", []

    def listen(event):
        if isinstance(event, Planned):
            with pytest.raises(BusyError, match="Another run is using"):
                shard(many, out, "1/2")
            refused.append(event)

    assert shard(many, out, None, listener=listen).computed == 40
    assert refused
    assert shard(many, out, "1/2").tried == 0
    assert not (out / "manifest.parts").exists()


def test_two_recipes_in_one_folder_are_refused(many, tmp_path):
    """Even as long as there is no line."""
    out, refused = tmp_path / "out", []

    def listen(event):
        if isinstance(event, Planned):
            with pytest.raises(OutputError, match=r"different recipe \(dtype float32 -> float16\)") as caught:
                shard(many, out, "2/2", dtype="float16")
            refused.append(caught.value)

    shard(many, out, "1/2", listener=listen)
    assert refused
    with pytest.raises(OutputError, match="different recipe"):
        shard(many, out, "2/2", dtype="float16")
    assert shard(many, out, "2/2").summary["state"] == "done"


def test_a_first_shard_that_came_to_nothing_binds_nobody(many, tmp_path):
    def fail(event):
        if isinstance(event, Planned):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shard(many, tmp_path / "out", "1/2", listener=fail)
    assert featx.open_run(tmp_path / "out").summary["counts"] == {"done": 0, "failed": 0, "total": 42}
    assert shard(many, tmp_path / "out", "2/2", dtype="float16").computed
    with pytest.raises(OutputError, match="different recipe"):
        shard(many, tmp_path / "out", "1/2")


def test_shards_get_the_settings_of_the_first(many, undivided, tmp_path, monkeypatch):
    """Machines with other cores would have chosen others."""
    monkeypatch.setattr("featx.engine.resources.cores", lambda: 1)
    shard(many, tmp_path / "out", "1/2")
    monkeypatch.setattr("featx.engine.resources.cores", lambda: 64)
    report = shard(many, tmp_path / "out", "2/2")
    recipes = report.summary["recipe"], featx.open_run(undivided).summary["recipe"]
    assert recipes[0]["batch_size"] == recipes[1]["batch_size"] == 8
    assert report.summary["state"] == "done"


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_called_the_folder_stays_one_run(many, tmp_path, seed):
    """Calls of all kinds, in any order, while images change and outputs are lost; then a run in one go is the same."""
    chance, photos, out = random.Random(seed), tmp_path / "photos", tmp_path / "out"
    shutil.copytree(many, photos)
    for _ in range(12):
        what = chance.choice(["shard"] * 5 + ["whole", "some", "merge", "repair", "change", "lose", "add"])
        count = chance.choice([2, 2, 2, 3])
        if what == "shard":
            shard(photos, out, f"{chance.randint(1, count)}/{count}")
        elif what in ("whole", "some"):
            shard(photos if what == "whole" else photos / "more", out, None)
        elif what == "add":
            shutil.copy(chance.choice(list(many.glob("*.jpg"))), photos / f"new{chance.random()}.jpg")
        elif out.exists():
            _disturb(what, chance, photos, out)
        _require_counted(out)
    shard(photos, out, "1/2")
    shard(photos, out, "2/2")
    _require_counted(out)
    divided = merge(out).parts
    shard(photos, tmp_path / "whole", None)
    assert not divided or len(_by_path(out)) == len(lines(out))
    found, expected = _by_path(out), _by_path(tmp_path / "whole")
    assert {path: found[path] for path in expected} == expected
    for line in lines(out):
        if line["status"] == "done" and line["path"] in found:
            assert outputs(out)[line["output"]] == found[line["path"]]["sha256"]


def _by_path(folder):
    """The last line of each image, which may have been done under another key."""
    return {line["path"]: {**line, "key": "", "output": ""} for line in lines(folder)}


def _disturb(what, chance, photos, out):
    if what == "merge":
        merge(out)
        assert not (out / "manifest.parts").exists()
    elif what == "repair":
        verify(out, repair=True)
    elif what == "change":
        path = chance.choice(sorted(photos.rglob("*.jpg")))
        path.write_bytes(chance.choice(sorted(photos.rglob("*.jpg"))).read_bytes())
    elif there := sorted(out.rglob("*.npz")):
        chance.choice(there).unlink()


def _require_counted(out):
    if not (out / "summary.json").exists():
        return
    run = featx.open_run(out)
    counts = run.summary["counts"]
    assert (counts["done"], counts["failed"]) == (len(run), len(run.failed))
    assert run.summary["bytes"] == sum(run.line(key).bytes for key in run)


def test_a_line_of_a_part_replaces_an_earlier_one(photos, tmp_path):
    """Of the manifest, and of a part of another number of shards."""
    out, digests = tmp_path / "out", []
    for written in (None, "1/1", "2/2", "1/2", "1/1"):
        shutil.copy(photos / "1.jpg", photos / "2.jpg") if digests else None
        (photos / "0.jpg").write_bytes((photos / f"{1 + len(digests) % 2}.jpg").read_bytes() + bytes(len(digests)))
        shard(photos, out, written)
        digests.append(featx.open_run(out).line("photos/0.jpg").input.bytes if out.exists() else 0)
    assert all(before < after for before, after in pairwise(digests) if before != after)
    assert digests[-1] == (photos / "0.jpg").stat().st_size
    before = {key: featx.open_run(out).line(key) for key in featx.open_run(out)}
    merge(out)
    assert {key: featx.open_run(out).line(key) for key in featx.open_run(out)} == before
    assert len(lines(out)) == 3


def test_what_crashed_a_shard_is_a_suspect_for_whoever_comes_next(photos, tmp_path):
    shard(photos, tmp_path / "out", "1/2")
    written = next(each for each in ("1/2", "2/2") if as_shard("", each).has("photos/2.jpg"))
    (photos / "2.jpg").touch()
    os.utime(photos / "2.jpg", ns=(1, 1))
    for call in ("2/3", "3/3", "1/3", None):
        unfinished = parts.home_of(tmp_path / "out", as_shard("", written)) / ".unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        (unfinished.parent / "manifest.jsonl").touch()
        Marks(unfinished).enter(Item("photos/2.jpg", str(photos / "2.jpg")))
        shutil.copytree(tmp_path / "out", tmp_path / "copy")
        heard = []
        shard(photos, tmp_path / "copy", call, listener=heard.append)
        its = call is None or as_shard("", call).has("photos/2.jpg")
        assert any("ended while reading photos/2.jpg" in text for text in notes(heard)) == its
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize("format_", ["parquet", "webdataset", "zarr"])
def test_files_of_many_images_are_written_by_shards_at_once(many, tmp_path, format_):
    vectors = {"format": format_, "embedding": True, "out_indices": None}
    out, whole, photos = tmp_path / "out", tmp_path / "whole", tmp_path / "photos"
    shutil.copytree(many, photos)
    extract(photos, whole, **vectors)

    def listen(event):
        if isinstance(event, Planned):
            shard(photos, out, "1/2", **vectors)
            shard(photos, out, "1/2", **vectors)

    shard(photos, out, "2/2", listener=listen, **vectors)
    os.utime(photos / "0.jpg", ns=(1, 1))
    for written in ("2/3", "1/3", "3/3"):
        shard(photos, out, written, **vectors)
    assert verify(out).sound
    runs = [dict(_vectors(folder)) for folder in (out, whole)]
    assert runs[0].keys() == runs[1].keys()
    assert all(np.array_equal(runs[0][key], runs[1][key]) for key in runs[0])
    shard(photos, out, None, retry_failed=True, **vectors)  # which clears up rows of images that were done again
    checked = verify(out)
    assert (checked.sound, checked.uncommitted, checked.foreign) == (True, [], [])


def _vectors(folder):
    for keys, values in featx.open_run(folder).embeddings():
        yield from zip(keys, values, strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "npy", "embedding": True, "out_indices": None}, "one file for all images"),
        ({"overwrite": True}, "--overwrite removes what all shards made"),
    ],
)
def test_what_shards_cannot_do_is_refused(many, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        shard(many, tmp_path / "out", "1/2", **options)
    assert not (tmp_path / "out").exists()


def test_a_whole_run_starts_from_scratch_after_shards(many, undivided, tmp_path):
    shard(many, tmp_path / "out", "1/2", dtype="float16")
    shard(many, tmp_path / "out", None, overwrite=True)
    require_same(tmp_path / "out", undivided)


def test_a_reader_notices_that_parts_were_merged(many, tmp_path):
    out = tmp_path / "out"
    shard(many, out, "1/2")
    shard(many, out, "2/2")
    before = featx.open_run(out)
    texts = iter(parts.Texts(out))
    position, _ = next(texts)
    assert position == 0
    merge(out)
    with pytest.raises(OutputError, match="merged while they were read"):
        list(texts)
    with pytest.raises(FeatxError, match="Open it again"):
        before.line(next(iter(before)))
    assert len(featx.open_run(out)) == 40


def test_a_damaged_line_of_a_part_is_named_and_kept(many, tmp_path):
    out = tmp_path / "out"
    for written in ("1/2", "2/2"):
        shard(many, out, written)
    manifest = out / "manifest.parts" / "1-of-2" / "manifest.jsonl"
    texts = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([texts[0], '{"key": "x"}\n', *texts[2:], '{"key": "torn']))
    assert verify(out).unreadable[0].startswith("manifest.parts/1-of-2/manifest.jsonl line 2: ")
    merge(out)
    assert len(verify(out).unreadable) == 1
    verify(out, repair=True)
    assert shard(many, out, "1/2").tried == 1
    assert verify(out).sound


def test_nothing_is_written_through_links_in_the_place_of_parts(photos, tmp_path):
    (tmp_path / "mine" / "1-of-1").mkdir(parents=True)
    (tmp_path / "mine" / "1-of-1" / "manifest.jsonl").write_text('{"key": "mine"}\n')
    before = tree(tmp_path / "mine")
    extract(photos, tmp_path / "out", out_indices=(4,), embedding=True)
    (tmp_path / "out" / "manifest.parts").symlink_to(tmp_path / "mine")
    assert len(featx.open_run(tmp_path / "out")) == 3
    assert shard(photos, tmp_path / "out", "1/1", retry_failed=True).tried == 0
    assert tree(tmp_path / "mine") == before


def test_nothing_is_removed_through_a_link_in_the_place_of_what_is_unfinished(photos, tmp_path):
    extract(photos, tmp_path / "out", out_indices=(4,), embedding=True)
    (tmp_path / "mine").mkdir()
    for name in ("summary.json", "suspects", "notes.txt"):
        (tmp_path / "mine" / name).write_text("mine")
    before = tree(tmp_path / "mine")
    for work in (merge, lambda folder: verify(folder, repair=True), lambda folder: shard(photos, folder, "1/1")):
        (tmp_path / "out" / ".unfinished").symlink_to(tmp_path / "mine")
        work(tmp_path / "out")
        assert tree(tmp_path / "mine") == before
        (tmp_path / "out" / ".unfinished").unlink(missing_ok=True)

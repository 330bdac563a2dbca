# The manifest: a line an image whatever is in it, kept where there is room, and read only where it is sound.
from __future__ import annotations

import errno
import json
import os

import pytest

import featx
from featx import files
from featx.errors import FeatxError, OutputError
from featx.explore.verify import verify
from featx.runs import formats, lock, recorder
from featx.values import Item, Outcome, Stat
from tests.helpers import extract, lines, make_photos, tree, write_lines


@pytest.fixture
def run(tmp_path):
    extract(make_photos(tmp_path / "photos", 4), tmp_path / "out", out_indices=(4,))
    return tmp_path / "out"


@pytest.fixture
def recording(run):
    """A run that is being recorded, and outcomes of new images whose outputs are in place."""
    summary = json.loads((run / "summary.json").read_text())
    with lock.exclusive(run) as held:
        held.begin()
        yield recorder.Recorder(run, held, {"recipe": summary["recipe"]}, 4, 0, 0, 3, summary)


def outcomes(run, *numbers, frame=None):
    made = []
    for number in numbers:
        (run / f"{number}.jpg.npz").write_bytes(b"features")
        item = Item(f"{number}.jpg", f"/photos/{number}.jpg")
        made.append(
            Outcome(item, Stat(1, 2), size=(3, 4), frame=frame or {}, output=f"{number}.jpg.npz", bytes=8, sha256="0")
        )
    return made


def test_an_outcome_that_makes_no_line_is_a_failure_of_its_image(run, recording):
    good, bad = outcomes(run, 10), outcomes(run, 11, frame={"orientation": object()})
    entered = recording.enter([*good, *bad])
    assert [outcome.done for outcome in entered] == [True, False]
    assert [(line["key"], line["status"]) for line in lines(run)[4:]] == [("10.jpg", "done"), ("11.jpg", "failed")]
    assert "no line can be made" in lines(run)[5]["error"]
    assert (run / "10.jpg.npz").exists()
    assert not (run / "11.jpg.npz").exists()


def test_lines_that_find_no_room_take_that_of_the_last_outputs(run, recording, monkeypatch):
    """Of three images the third output is removed, and then there is room for two lines."""
    honest = files.write_all

    def full(handle, pieces):
        if (run / "12.jpg.npz").exists():
            os.write(handle, pieces[0][:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(handle, pieces)

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(OutputError, match="No space left on device"):
        recording.enter(outcomes(run, 10, 11, 12))
    assert [line["key"] for line in lines(run)[4:]] == ["10.jpg", "11.jpg"]
    assert [(run / f"{number}.jpg.npz").exists() for number in (10, 11, 12)] == [True, True, False]
    assert recording.progress == "6 of 7 done"


def test_outputs_whose_lines_cannot_be_written_are_removed(run, recording, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "write_all", broken)
    before = (run / "manifest.jsonl").read_bytes()
    with pytest.raises(OutputError, match="Input/output error"):
        recording.enter(outcomes(run, 10, 11))
    assert (run / "manifest.jsonl").read_bytes() == before
    assert not list(run.glob("1?.jpg.npz"))


def test_a_failure_does_not_remove_what_a_link_leads_to(run, recording, tmp_path):
    """The output that an image had is named by the manifest, which anybody could have written."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.npz").write_bytes(b"precious")
    (run / "linked").symlink_to(tmp_path / "elsewhere")
    for alias in ("linked/a.npz", "../elsewhere/a.npz"):
        recording.enter([Outcome(Item("a", "/a", alias), stage="decode", error="broken")])
    assert (tmp_path / "elsewhere" / "a.npz").read_bytes() == b"precious"


# A file of each format's outputs.
SECRETS = {
    "npz": "photos/0.jpg.npz",
    "safetensors": "photos/0.jpg.safetensors",
    "npy": "embeddings.npy",
    "parquet": "embeddings-00000.parquet",
    "webdataset": "features-00000.tar",
    "zarr": "features.zarr/zarr.json",
}


@pytest.mark.parametrize("format_", SECRETS)
@pytest.mark.parametrize(
    "output", ["../secret.npz", "/etc/passwd", "a\0b.npz", "\ud800.npz", "linked/secret.npz", "link.npz"]
)
def test_nothing_outside_of_the_folder_is_read(tmp_path, format_, output):
    photos, run = make_photos(tmp_path / "photos", 2), tmp_path / "out"
    extract(photos, run, embedding=True, format=format_)
    (run / SECRETS[format_]).replace(tmp_path / "secret.npz")
    (run / "linked").symlink_to(tmp_path)
    (run / "link.npz").symlink_to(tmp_path / "secret.npz")
    if format_ == "npy":
        (run / "embeddings.npy").symlink_to(tmp_path / "secret.npz")
    write_lines(run, [{**line, "output": output} for line in lines(run)])
    opened = featx.open_run(run)
    for key in ("photos/0.jpg", "photos/1.jpg"):
        with pytest.raises((KeyError, FeatxError)):
            opened[key]
    if list(opened):
        with pytest.raises(FeatxError):
            list(opened.embeddings())
    assert not verify(run).sound


def test_a_run_that_was_written_anew_is_not_read_with_old_positions(run, tmp_path):
    opened = featx.open_run(run)
    frames = {key: opened.frame(key) for key in opened}
    entries = lines(run)
    write_lines(run, list(reversed(entries)))
    moved = 0
    for key, frame in frames.items():
        try:
            assert opened.frame(key) == frame
        except FeatxError:
            moved += 1
    assert moved >= 3
    os.truncate(run / "manifest.jsonl", 0)
    with pytest.raises(FeatxError, match="Open it again"):
        opened.line("photos/1.jpg")


def test_more_than_a_file_can_hold_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos", 1)
    monkeypatch.setattr("featx.runs.formats.npz.Writer.largest", 100_000)
    with pytest.raises(featx.errors.UsageError, match=r"The arrays of one image take .* MB.*--format safetensors"):
        extract(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert extract(photos, tmp_path / "out", out_indices=(4,)).computed == 1


def test_the_size_of_arrays_is_counted_in_the_type_that_is_written(tmp_path):
    from featx.values import Field

    embedding = Field("embedding", (1000,), "float32")
    with pytest.raises(featx.errors.UsageError, match="4,295 MB"):
        formats.require("npz", (Field("level_0", (1024, 1024, 1024), "float32"), embedding))
    formats.require("npz", (Field("level_0", (1024, 1024, 1024), "float16"), embedding))


def test_another_process_s_lines_do_not_change(run):
    before = tree(run)
    featx.open_run(run).line("photos/1.jpg")
    assert tree(run) == before


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ((b'"status":"done"', b'"status":"gone"'), "Invalid value 'gone' - at `$.status`"),
        ((b'"orientation":1', b'"orientation":"1"'), "Expected `int`, got `str` - at `$.frame.orientation`"),
        ((b'"sha256"', b'"sha265"'), "Object missing required field `sha256`"),
        ((b'"size":', b'"extra":' + b"[" * 5000 + b"]" * 5000 + b',"size":'), "it is nested too deeply"),
        ((b'"key":"', b'"key":"\\u0000'), "a name contains a NUL character"),
    ],
    ids=["status", "frame", "missing", "nested", "NUL"],
)
def test_a_damaged_line_is_named_and_its_image_done_again(run, tmp_path, damage, fault):
    first, *rest = (run / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    assert damage[0] in first
    (run / "manifest.jsonl").write_bytes(b"".join([first.replace(*damage, 1), *rest]))
    assert verify(run).unreadable == [f"manifest.jsonl line 1: {fault}"]
    assert len(featx.open_run(run)) == 3
    assert extract(tmp_path / "photos", run, out_indices=(4,)).tried == 1

# similar: the same as brute force, and the command's table, JSON and picture.
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import featx
from featx.engine import again
from featx.errors import FeatxError, UsageError
from featx.explore import similarity
from tests.helpers import make_photos, natural_image


def brute_force(keys, rows, query, count):
    rows, query = rows.astype(np.float64), np.asarray(query, np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    cosines = rows @ query / np.linalg.norm(query) / np.where(lengths > 0, lengths, 1)
    order = np.argsort(-cosines, kind="stable")[:count]
    return [(keys[place], cosines[place]) for place in order]


def require_equal(found, expected):
    assert [key for key, _ in found] == [key for key, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=1e-12)


@pytest.mark.parametrize("count", [1, 10, 300, 9000])
def test_random_rows(count, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK", 256)
    generator = np.random.default_rng(count)
    rows = generator.standard_normal((5000, 96)).astype(np.float32)
    keys = [str(number) for number in range(len(rows))]
    query = generator.standard_normal(96).astype(np.float32)
    blocks = [(keys[start : start + 1300], rows[start : start + 1300]) for start in range(0, 5000, 1300)]
    require_equal(similarity.nearest(blocks, query, count), brute_force(keys, rows, query, count))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 30))
def test_rows_that_hardly_differ(seed, rows, count):
    """In single precision their cosines are the same."""
    generator = np.random.default_rng(seed)
    query = generator.standard_normal(24)
    near = (query + 1e-4 * generator.standard_normal((rows, 24))).astype(np.float32)
    near[generator.integers(rows)] = 0
    keys = [str(number) for number in range(rows)]
    require_equal(similarity.nearest([(keys, near)], query, count), brute_force(keys, near, query, count))


def test_equal_rows_come_in_their_order():
    rows = np.ones((6, 4), np.float32)
    found = similarity.nearest([(list("abc"), rows[:3]), (list("def"), rows[3:])], np.ones(4), 4)
    assert [key for key, _ in found] == list("abcd")


def test_a_query_without_direction_or_of_another_length():
    with pytest.raises(UsageError, match="zero"):
        similarity.nearest([], np.zeros(4), 1)
    with pytest.raises(UsageError, match="embeddings have 4 numbers, the query has 5"):
        similarity.nearest([(["a"], np.ones((1, 4), np.float32))], np.ones(5), 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("similar") / "photos", 9, "{}.png")


@pytest.mark.parametrize("format_", ["npz", "npy", "parquet"])
def test_an_image_is_most_similar_to_itself(photos, tmp_path, format_):
    featx.extract(
        photos,
        "test_vit",
        tmp_path / "run",
        weights="random",
        embedding=True,
        format=format_,
        batch_size=4,
        device="cpu",
    )
    run = featx.open_run(tmp_path / "run")
    found = similarity.similar(run, photos / "4.png", 3, with_self=True, device="cpu")
    assert (found.images, len(found.found), found.found[0].key) == (9, 3, "photos/4.png")
    assert found.found[0].score == pytest.approx(1, abs=1e-5)
    keys = list(run)
    rows = np.stack([run[key]["embedding"] for key in keys])
    by_vector = similarity.similar(tmp_path / "run", rows[2], 9)
    require_equal([(each.key, each.score) for each in by_vector.found], brute_force(keys, rows, rows[2], 9))


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_query_s_embedding_is_the_run_s_own_to_the_bit(photos, tmp_path, backend, monkeypatch):
    """The same batch, threads and backend: whatever the query is compared with came out so."""
    if backend == "openvino":
        pytest.importorskip("openvino")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = {"weights": "random", "embedding": True, "maps": False, "device": "cpu", "image_size": 64}
    featx.extract(photos, "test_resnet", tmp_path / "run", backend=backend, precision="bf16", **asked)
    run = featx.open_run(tmp_path / "run")
    vector = similarity.embedding_of(run, photos / "5.png", "cpu")
    np.testing.assert_array_equal(vector, run["photos/5.png"]["embedding"])


def test_the_query_is_left_out_by_its_file(photos, tmp_path):
    """However it is named, and however often it is in the run by links; a copy is another image."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    shutil.copy(folder / "4.png", folder / "copy.png")
    for number in range(3):
        (folder / f"link{number}.png").symlink_to("4.png")
    featx.extract(folder, "test_resnet", tmp_path / "run", weights="random", embedding=True, device="cpu")
    (tmp_path / "other name").symlink_to(folder / "4.png")
    found = similarity.similar(tmp_path / "run", tmp_path / "other name", 5, device="cpu").found
    keys = [each.key for each in found]
    assert (len(keys), keys[0]) == (5, "photos/copy.png")
    assert not {"photos/4.png", "photos/link0.png", "photos/link1.png", "photos/link2.png"} & set(keys)
    everything = similarity.similar(tmp_path / "run", folder / "4.png", 100, device="cpu")
    assert (everything.images, len(everything.found)) == (13, 9)
    with_self = similarity.similar(tmp_path / "run", folder / "4.png", 5, with_self=True, device="cpu").found
    assert "photos/4.png" in [each.key for each in with_self]


@pytest.mark.parametrize(
    ("query", "message", "hint"),
    [
        ("folder", "folder is a folder, not an image", "Give one image"),
        ("photos.zip", "photos.zip is a zip archive, not an image", "Give one image"),
        ("photos.mp4", "photos.mp4 is an MP4 video, not an image", "Give one image"),
        ("http://127.0.0.1:9/a.jpg?s=1", "There is no image http://127.0.0.1:9/a.jpg", "Check the path"),
    ],
)
def test_a_query_that_is_no_image_is_refused_before_the_model_is_loaded(
    photos, tmp_path, monkeypatch, query, message, hint
):
    featx.extract(photos, "test_resnet", tmp_path / "run", weights="random", embedding=True, device="cpu")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "photos.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0isomiso2")
    monkeypatch.setattr(again, "set_up_again", None)
    with pytest.raises(UsageError) as failure:
        similarity.similar("run", query)
    assert (failure.value.message, failure.value.hint) == (message, hint)


@pytest.mark.parametrize("command", [("similar", "{}", "a.png"), ("verify", "{}")])
def test_what_is_given_in_place_of_a_run_is_named(featx_command, tmp_path, command):
    natural_image(1).save(tmp_path / "a.png")
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b\x08")
    for name, message in (
        ("a.png", "a.png is an image, not a featx run. Give a folder that featx extract has written."),
        ("a.tar.gz", "a.tar.gz is a gzip archive, not a featx run. Give a folder that featx extract has written."),
        (
            "memory://a/run",
            "memory://a/run is not a featx run: it has no summary.json. Give a folder that featx extract has written.",
        ),
    ):
        done = featx_command(*(part.format(name) for part in command))
        assert (done.returncode != 0, done.stdout, done.stderr) == (True, "", f"featx: {message}\n")


def test_pipes_are_not_waited_for(photos, tmp_path):
    """Neither as the query nor where the manifest has an image."""
    featx.extract(photos, "test_resnet", tmp_path / "run", weights="random", embedding=True, device="cpu")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FeatxError, match="not a file"):
        similarity.similar(tmp_path / "run", tmp_path / "pipe.png", 3)
    found = similarity.Neighbours("", 1, [similarity.Neighbour("pipe.png", str(tmp_path / "pipe.png"), 1.0)])
    similarity.draw(found, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()


def test_the_command(featx_command, photos, tmp_path):
    model = ("--model", "test_resnet", "--weights", "random", "--device", "cpu")
    assert featx_command("extract", photos, *model, "--embedding", "--output", "run").returncode == 0
    (photos / "7.png").rename(photos / "moved.png")  # the sheet says so, and goes on
    done = featx_command("similar", "run", photos / "4.png", "-k", "9", "--output", "sheet.png", "--with-self")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split() == ["1", "1.0000", "photos/4.png"]
    assert done.stderr.splitlines() == [
        "random weights: shapes are right, but nothing was learned, so similarity means little",
        "9 of 9 images",
        "wrote sheet.png, 9 images",
    ]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (12 + 5 * (224 + 12), 12 + 2 * (224 + 34 + 12))
    alone = featx_command("similar", "run", photos / "4.png", "-k", "2", "--json", "--output", "sheet.png")
    value = json.loads(alone.stdout)
    assert (list(value), value["weights"], alone.stderr) == (["query", "images", "found", "weights"], "random", "")
    assert "photos/4.png" not in [each["key"] for each in value["found"]]
    assert value["found"][0]["path"] == str(photos / value["found"][0]["key"].removeprefix("photos/"))
    refused = featx_command("similar", "no run", "no query", "--output", "x.txt")
    assert refused.stderr.startswith("featx: x.txt is not the name of an image file. Use a name that ends in .png")

    gone = featx_command("similar", "run", "none.png")
    assert (gone.returncode, gone.stderr) == (2, "featx: There is no image none.png. Check the path.\n")
    (tmp_path / "broken.png").write_bytes(b"\x89broken")
    assert featx_command("similar", "run", "broken.png").returncode == 1
    assert featx_command("extract", photos, *model, "--output", "maps").returncode == 0
    without = featx_command("similar", "maps", photos / "4.png")
    assert (without.returncode, without.stdout) == (1, "")
    assert without.stderr == "featx: The run maps has no embeddings. Extract it with --embedding.\n"


def test_weights_that_are_others_by_now_are_refused(photos, tmp_path):
    featx.extract(photos, "test_vit", tmp_path / "run", weights="random", embedding=True, device="cpu")
    run = featx.open_run(tmp_path / "run")
    run.summary["weights"]["sha256"] = "0" * 64
    with pytest.raises(FeatxError, match="weights differ from those"):
        similarity.similar(run, photos / "1.png")


def test_a_sheet_is_refused_without_torch():
    script = "import sys, featx.explore.similarity; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)

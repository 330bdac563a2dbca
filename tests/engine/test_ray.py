# The Ray engine: two nodes share a run, workers and the process that started them are killed, and nothing differs.
from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx
from featx.engine import cluster
from featx.engine.cluster import Layout, layout_of
from featx.engine.ray_worker import ATTEMPTS, Assignment, Block, Worker, mark_of
from featx.errors import FeatxError, UsageError
from featx.requests import Job
from featx.values import Item
from tests.helpers import HANGS, MODEL, ROOT, extract, lines, make_photos, outputs, tree, wait_until

ray = pytest.importorskip("ray", reason="featx[ray] is not installed", exc_type=ImportError)

PHOTOS = 40

# What Ray itself warns of, or leaves open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def nodes():
    """Two nodes with one processor each; gives their address."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    arguments = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=arguments)
    running.add_node(num_cpus=1, object_store_memory=100_000_000)
    yield running.address
    running.shutdown()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Forty photos, of which one is damaged."""
    folder = make_photos(tmp_path_factory.mktemp("ray") / "photos", PHOTOS)
    (folder / "7.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def local(many, tmp_path_factory):
    """The same photos, processed by the local engine."""
    folder = tmp_path_factory.mktemp("ray") / "local"
    extract(many, folder)
    return folder


def require_same(run, local):
    """The same bytes under the same names, the same lines but for their order, and nothing else."""
    assert outputs(run) == outputs(local)
    assert sorted(lines(run), key=str) == sorted(lines(local), key=str)
    assert set(tree(run)) == set(tree(local))
    recipes = [json.loads((folder / "summary.json").read_text())["recipe"] for folder in (run, local)]
    assert recipes[0] == recipes[1]


def parents(process):
    """Yield the processes above one."""
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        yield process


def workers():
    """Return the processes of this cluster's workers that hold a model."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            process = int(path.parent.name)
            if path.read_bytes().startswith(b"ray::MapWorker") and os.getpid() in parents(process):
                found.append(process)
        except OSError:  # it has ended
            continue
    return found


def test_two_nodes_share_a_run_and_one_of_the_workers_is_killed(nodes, many, local, tmp_path):
    before, killed = signal.getsignal(signal.SIGTERM), []

    def listen(event):
        if hasattr(event, "item") and not killed:
            killed.extend(workers()[:1])
            assert len(workers()) == 2
            os.kill(killed[0], signal.SIGKILL)

    report = extract(many, tmp_path / "run", engine="ray", ray_address=nodes, listener=listen)
    require_same(tmp_path / "run", local)
    assert [outcome.item.key for outcome in report.failures] == ["photos/7.jpg"]
    assert (report.tried, report.computed) == (PHOTOS, PHOTOS - 1)
    assert killed
    assert signal.getsignal(signal.SIGTERM) is before
    assert not ray.is_initialized()


def command(*arguments, **more):
    words = [sys.executable, "-m", "featx", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, start_new_session=True, **pipes, **more)


def count(run):
    return len((run / "manifest.jsonl").read_bytes().splitlines()) if (run / "manifest.jsonl").exists() else 0


def start(many, run, *more, **environment):
    """Begin a run of many small blocks, and wait for its first lines."""
    slow = ("--image-size", "384", "--batch-size", "1")
    found = {**os.environ, **environment}
    process = command("extract", many, *MODEL, *slow, "--output", run, "--engine", "ray", *more, env=found)
    wait_until(lambda: count(run), unless=lambda: process.poll() is not None)
    return process


SLOW = {"image_size": 384, "batch_size": 1}


def test_what_a_killed_driver_has_recorded_is_kept_and_the_local_engine_goes_on(nodes, many, tmp_path):
    process = start(many, tmp_path / "run", "--ray-address", nodes)
    process.kill()
    process.communicate(timeout=HANGS)
    before = lines(tmp_path / "run")
    assert len(before) < PHOTOS
    extract(many, tmp_path / "run", **SLOW)
    extract(many, tmp_path / "local", **SLOW)
    assert lines(tmp_path / "run")[: len(before)] == before
    require_same(tmp_path / "run", tmp_path / "local")


@pytest.fixture
def large(request):
    if not request.config.getoption("--large"):
        pytest.skip("starts Ray of its own, for --large")


def ray_processes(group):
    """Return the processes of a group that are Ray's."""
    found = subprocess.run(["ps", "-o", "args=", "-g", str(group)], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if "ray" in line]


def test_ctrl_c_commits_what_is_finished_and_ends_ray(large, many, tmp_path):
    run = tmp_path / "run"
    process = start(many, run, "--ray-workers", 2)
    os.killpg(process.pid, signal.SIGINT)
    printed, said = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert printed == ""
    assert f"Stopped: {len(outputs(run))} of {PHOTOS} done" in said
    first_words = {line.split()[0].rstrip(":;") for line in said.splitlines()}
    assert first_words <= {
        *("input", "output", "memory", "test_resnet", "failed", "Finishing", "Stopping", "featx", "1")
    }
    assert not (run / ".unfinished").exists()
    wait_until(lambda: not ray_processes(process.pid))
    extract(many, run, **SLOW)
    extract(many, tmp_path / "local", **SLOW)
    require_same(run, tmp_path / "local")


def test_images_that_end_workers_fail_and_the_others_are_processed(large, many, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(many, folder)
    for name in ("crash", "killed"):
        Image.new("RGB", (64, 64)).save(folder / f"{name}.png")
    hostile = os.pathsep.join((str(ROOT / "tests" / "faults" / "hostile"), str(ROOT)))
    process = start(folder, tmp_path / "run", "--ray-workers", 2, "--json", PYTHONPATH=hostile)
    printed, said = process.communicate(timeout=HANGS)
    assert process.returncode == 3
    summary = json.loads(printed)
    assert summary["counts"] == {"done": PHOTOS - 1, "failed": 3, "total": PHOTOS + 2}
    failed = {line["key"] for line in lines(tmp_path / "run") if line["status"] == "failed"}
    assert failed == {"photos/7.jpg", "photos/crash.png", "photos/killed.png"}
    assert "ended without warning" not in printed
    assert min(said.splitlines()).startswith("failed: photos/7.jpg")


@pytest.fixture
def joined(nodes):
    """Ray, joined before featx is called, which leaves it as it is."""
    ray.init(nodes, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


KINDS = {
    "a tar": {},
    "photos at their own sizes": {"fit": "native", "image_size": None},
    "boxes": {"boxes": "boxes.csv", "maps": False, "dtype": "float16"},
    "separate processes": {"isolate": True, "embedding": True, "hash_inputs": True},
    "a shard": {"shard": "1/3"},
    "smaller maps": {"grid": 3, "components": 6, "fit_on": 20, "dtype": "int8"},
    "components by openvino": {"components": 6, "fit_on": 20, "backend": "openvino"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_is_the_same(large, joined, many, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    rows = [f"photos/{number}.jpg,1,2,30,40" for number in range(20)]
    Path("boxes.csv").write_text("\n".join(["key,x1,y1,x2,y2", *rows]))
    if kind == "a tar":
        shutil.make_archive("photos", "tar", many.parent, many.name)
    found = []
    for engine in ("local", "ray"):
        extract("photos.tar" if kind == "a tar" else many, engine, engine=engine, **KINDS[kind])
        manifests = sorted(Path(engine).rglob("manifest.jsonl"))
        written = sorted(line for path in manifests for line in path.read_text().splitlines())
        found.append((outputs(tmp_path / engine), written))
    assert found[0] == found[1]
    assert found[0][0]


def test_a_feature_pyramid_maps_pictures_paths_and_files(joined, many, local, tmp_path):
    paths = [str(path) for path in sorted(many.glob("*.jpg"))]
    photos = ray.data.from_items([{"path": path, "number": place} for place, path in enumerate(paths)])
    options = {"weights": "random", "image_size": 64, "device": "cpu"}
    rows = photos.map_batches(
        featx.ray.FeaturePyramid,
        fn_constructor_args=("test_resnet",),
        fn_constructor_kwargs=options,
        concurrency=1,
        batch_size=11,
        num_cpus=1,
    ).take_all()
    assert [row["number"] for row in sorted(rows, key=lambda row: row["number"])] == list(range(PHOTOS))
    run = featx.open_run(local)
    for row in rows:
        key = f"photos/{Path(row['path']).name}"
        if key == "photos/7.jpg":
            assert row["error"] == "it is a text file, not an image"
            assert np.isnan(row["level_0"]).all()
            continue
        assert row["error"] == ""
        for name, values in run[key].items():
            np.testing.assert_array_equal(row[name], values)


def test_a_feature_pyramid_takes_what_ray_reads(tmp_path, photos):
    pyramid = featx.ray.FeaturePyramid("test_resnet", weights="random", image_size=64, device="cpu", embedding=True)
    paths = sorted(photos.iterdir())
    by_path = pyramid({"path": np.array([str(path) for path in paths])})
    by_bytes = pyramid({"bytes": np.array([path.read_bytes() for path in paths], dtype=object), "path": paths})
    images = np.empty(len(paths), dtype=object)
    for place, path in enumerate(paths):
        with Image.open(path) as image:
            images[place] = np.array(image)
    by_image = pyramid({"image": images, "label": [1, 2, 3]})
    assert next(iter(by_image)) == "label"
    assert by_image["level_0"].shape == (3, 32, 32, 32)
    assert by_image["embedding"].shape == (3, 96)
    for name in ("level_0", "level_4", "embedding"):
        np.testing.assert_array_equal(by_path[name], by_bytes[name])
        np.testing.assert_array_equal(by_path[name], by_image[name])
    alone = pyramid({"bytes": [paths[2].read_bytes()]})
    np.testing.assert_array_equal(alone["level_3"][0], by_path["level_3"][2])
    with pytest.raises(UsageError, match="has no column image, bytes or path, only picture"):
        pyramid({"picture": []})
    buffer = BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "PNG")
    assert list(pyramid({"bytes": [buffer.getvalue()[:-20], b""]})["error"]) != ["", ""]


def answer(local, many, unfinished, **recipe):
    """Have a worker process a photo for a run with the recipe of another one, or nearly."""
    summary = json.loads((local / "summary.json").read_text())
    job = Job("test_resnet", weights="random", image_size=64, device="cpu", maps=True, engine="ray")
    facts = {**summary, "recipe": {**summary["recipe"], **recipe}}
    told = Assignment(job, facts, unfinished.parent, unfinished, 1, "cpu", Layout(1, 1, 1, 0.0, 1), None, frozenset())
    block = Block(0, [Item("0.jpg", str(many / "0.jpg"))])
    return pickle.loads(Worker(told)({"block": [pickle.dumps(block)]})["answer"][0])


def test_a_worker_that_would_give_other_numbers_computes_nothing(many, local, tmp_path):
    (tmp_path / ".unfinished").mkdir()
    found = answer(local, many, tmp_path / ".unfinished", versions={"torch": "2.10.0"})
    assert found.outcomes == []
    assert re.search(r"The worker on .+ has another recipe \(versions.torch 2.10.0 -> ", str(found.error))
    assert outputs(tmp_path) == {}


def test_a_worker_that_does_not_see_the_folder_says_so(many, local, tmp_path):
    found = answer(local, many, tmp_path / "elsewhere" / ".unfinished")
    assert found.outcomes == []
    assert f"does not see {tmp_path / 'elsewhere'}. Choose a folder" in str(found.error)


def test_a_block_that_ends_worker_after_worker_ends_the_run(many, local, tmp_path):
    unfinished = tmp_path / ".unfinished"
    unfinished.mkdir()
    mark_of(unfinished, 0).write_bytes(b"." * ATTEMPTS)
    found = answer(local, many, unfinished)
    assert "A worker ended without warning 4 times at the same 1 image, from 0.jpg" in str(found.error)
    mark_of(unfinished, 0).write_bytes(b".")
    found = answer(local, many, unfinished)
    assert [outcome.done for outcome in found.outcomes] == [True]
    assert found.notes == ("A worker ended without warning: images are now decoded in separate processes",)


LAYOUTS = {
    "a worker on each node, with all of it": ([4, 2], {}, Layout(2, 2, 2, 0.0, 2)),
    "a node": ([16], {}, Layout(1, 1, 16, 0.0, 1)),
    "as many as asked for": ([4, 2], {"ray_workers": 3}, Layout(3, 3, 2, 0.0, 2)),
    "one processor each": ([4, 2], {"ray_workers": 6}, Layout(6, 6, 1, 0.0, 4)),
    "more than there is room for": ([4, 2], {"ray_workers": 9}, Layout(9, 6, 1, 0.0, 4)),
    "a node without processors": ([4, 0], {}, Layout(1, 1, 4, 0.0, 1)),
}


@pytest.mark.parametrize(("cpus", "options", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_workers_are_as_large_as_there_is_room_for(cpus, options, expected):
    found = layout_of([{"CPU": each} for each in cpus], Job("test_resnet", engine="ray", **options), on_gpu=False)
    assert found == expected
    assert bool(cluster.shortage(found)) == (found.room < found.workers)


def test_workers_on_gpus():
    nodes = [{"CPU": 16, "GPU": 4}, {"CPU": 8, "GPU": 1}, {"CPU": 64}]
    job = Job("test_resnet", engine="ray")
    assert layout_of(nodes, job, on_gpu=True) == Layout(5, 5, 4, 1.0, 4)
    few = layout_of([{"CPU": 16, "GPU": 1}], Job("test_resnet", engine="ray", ray_workers=2), on_gpu=True)
    assert few == Layout(2, 1, 16, 1.0, 1)
    assert cluster.shortage(few)[0].endswith("--gpus-per-worker 0.5 lets two share a GPU")
    halves = Job("test_resnet", engine="ray", gpus_per_worker=0.5)
    assert layout_of(nodes, halves, on_gpu=True) == Layout(10, 10, 2, 0.5, 8)
    with pytest.raises(UsageError, match="has GPUs, and this machine, which plans the run, has none"):
        layout_of(nodes, job, on_gpu=False)
    with pytest.raises(UsageError, match="--gpus-per-worker is for GPUs"):
        layout_of(nodes, halves, on_gpu=False)
    with pytest.raises(UsageError, match="no node with 1 GPU and a processor"):
        layout_of(nodes[2:], job, on_gpu=True)


WRONG = [
    ({"ray_workers": 2}, "--ray-workers needs --engine ray"),
    ({"engine": "rai"}, "Did you mean ray?"),
    ({"engine": "ray", "format": "npy", "embedding": True}, "in --format npy images share files"),
    ({"engine": "ray", "ray_address": "127.0.0.1:1"}, "No Ray cluster answers at 127.0.0.1:1"),
    ({"engine": "ray", "ray_address": "ray://head"}, "expected auto or host:port, not 'ray://head'"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_wrong_options_are_refused_before_anything_is_written(photos, tmp_path, options, words):
    extract(photos, tmp_path / "run")
    before = tree(tmp_path / "run")
    with pytest.raises(FeatxError) as refused:
        extract(photos, tmp_path / "run", overwrite=True, **options)
    assert words in str(refused.value)
    assert tree(tmp_path / "run") == before

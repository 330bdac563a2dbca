# Settled runs: a finished run again is recognised without a model, and anything that may differ is looked into.
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from featx.errors import OutputError
from tests.helpers import HANGS, extract, make_photos

# Fails as soon as anything heavy is imported.
WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm", "torchvision", "huggingface_hub", "PIL"):
            raise AssertionError(f"imported {name}")
sys.meta_path.insert(0, Refuse())
import featx
heard = []
report = featx.extract(sys.argv[1], "test_resnet", sys.argv[2], weights="random", device="cpu", image_size=64,
                       listener=heard.append)
print(report.tried, report.summary["counts"]["done"], type(heard[-1]).__name__)
"""


def again_without_torch(photos, output):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, str(photos), str(output)],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


def test_a_finished_run_again_needs_neither_torch_nor_the_model(photos, tmp_path):
    extract(photos, tmp_path / "out")
    before = (tmp_path / "out" / "summary.json").read_bytes()
    done = again_without_torch(photos, tmp_path / "out")
    assert done.stdout.split() == ["0", "3", "Planned"], done.stderr
    assert (tmp_path / "out" / "summary.json").read_bytes() == before


@pytest.fixture
def built(monkeypatch):
    """Count the networks that are built."""
    from featx.models.timm.library import Timm

    count = []
    build = Timm.build
    monkeypatch.setattr(Timm, "build", lambda *values: count.append(1) or build(*values))
    return count


def test_options_that_change_nothing_are_settled(photos, tmp_path, built):
    extract(photos, tmp_path / "out", batch_size=2)
    built.clear()
    for more in ({}, {"batch_size": 2}, {"device": "auto"}, {"retry_failed": True}, {"isolate": True}):
        assert extract(photos, tmp_path / "out", **more).tried == 0
    assert not built


@pytest.mark.parametrize(
    "more", [{"seed": 1}, {"strides": 8}, {"dtype": "float16"}, {"batch_size": 1}, {"embedding": True}]
)
def test_another_recipe_is_refused_as_ever(photos, tmp_path, more):
    extract(photos, tmp_path / "out", batch_size=2)
    with pytest.raises(OutputError, match="recipe"):
        extract(photos, tmp_path / "out", **more)


def test_new_changed_and_missing_things_are_looked_into(photos, tmp_path, built):
    out = tmp_path / "out"
    extract(photos, out)
    built.clear()
    (out / "photos" / "0.jpg.npz").unlink()
    assert extract(photos, out).computed == 1
    os.utime(photos / "1.jpg", ns=(1, 1))
    assert extract(photos, out).computed == 1
    extract([photos, *make_photos(tmp_path / "more", 1).iterdir()], out)
    assert len(built) == 3
    summary = json.loads((out / "summary.json").read_text())
    (out / "summary.json").write_text(json.dumps({**summary, "state": "stopped"}))
    assert extract(photos, out).tried == 0  # and the books are put in order
    assert json.loads((out / "summary.json").read_text())["state"] == "done"
    assert len(built) == 4


def test_weights_that_changed_are_looked_into(photos, tmp_path, built):
    import timm
    import torch

    def save(seed):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")

    save(0)
    options = {"weights": str(tmp_path / "weights.pth")}
    extract(photos, tmp_path / "out", **options)
    built.clear()
    assert extract(photos, tmp_path / "out", **options).tried == 0
    assert not built
    save(1)
    with pytest.raises(OutputError, match="weights"):
        extract(photos, tmp_path / "out", **options)


def test_another_version_of_a_library_is_another_recipe(photos, tmp_path, monkeypatch):
    extract(photos, tmp_path / "out")
    monkeypatch.setattr("featx.version._version", lambda name: "0.0")
    with pytest.raises(OutputError, match=r"versions\.torch"):
        extract(photos, tmp_path / "out")


def test_a_revision_in_the_hub_s_cache_that_was_replaced_is_looked_into(tmp_path):
    from featx.engine.settled import _is_unchanged
    from featx.runs.recipe import file_facts

    repository = tmp_path / "models--timm--x"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    facts = file_facts(str(snapshot / "model.safetensors"))
    assert _is_unchanged(facts, "x")
    assert _is_unchanged(facts, "hf-hub:timm/x@abc")
    (repository / "refs" / "main").write_text("def")
    assert not _is_unchanged(facts, "x")
    assert not _is_unchanged(facts, "hf-hub:timm/x@main")
    assert not _is_unchanged({**facts, "bytes": 1}, "hf-hub:timm/x@abc")

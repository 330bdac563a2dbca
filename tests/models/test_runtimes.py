# Backends: the same maps as torch's own, converted once, and a plain word where one is not there.
from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch

import featx
from featx.errors import FeatxError, UsageError
from featx.models import runtimes
from featx.values import Note
from tests import helpers

MODEL = "test_resnet"

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs featx[openvino]")
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def compiler():
    """Have torch compile in this process: others would each load torch first."""
    from torch._inductor import config

    with config.patch(compile_threads=1):
        yield


def extract(photos, name, **options):
    output = photos.parent / name
    helpers.extract(photos, output, **{"batch_size": 2, **options})
    return featx.open_run(output)


def largest_error(run, reference):
    """Over all levels, the largest norm of a difference by the norm."""
    return max(
        np.linalg.norm(run[key][name].astype(np.float64) - values) / np.linalg.norm(values)
        for key in reference
        for name, values in reference[key].items()
    )


@needs_openvino
@pytest.mark.parametrize("model", [MODEL, "test_vit", "test_mambaout"])
def test_openvino_gives_the_same_maps(photos, model):
    asked = {"model": model, "image_size": 160, "attention": model == "test_vit"}
    reference = extract(photos, "torch", **asked)
    run = extract(photos, "openvino", **asked, backend="openvino")
    assert run.summary["recipe"]["backend"] == "openvino"
    assert run.levels == reference.levels
    assert largest_error(run, reference) < 1e-5


@needs_openvino
def test_openvino_converts_once_and_anew_for_other_weights(photos, monkeypatch):
    extract(photos, "first", backend="openvino")
    (converted,) = (photos.parent / "cache" / "featx" / "openvino").glob("*.xml")
    honest = runtimes._converted
    monkeypatch.setattr(runtimes, "_converted", lambda *_: pytest.fail("converted twice"))
    assert largest_error(extract(photos, "again", backend="openvino"), featx.open_run(photos.parent / "first")) == 0
    monkeypatch.setattr(runtimes, "_converted", honest)
    extract(photos, "other", backend="openvino", seed=1)
    assert len(list(converted.parent.glob("*.xml"))) == 2


def conversions(photos):
    return sorted((photos.parent / "cache" / "featx" / "openvino").glob("*.xml"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "xml cut off": cut,
    "xml empty": lambda xml: xml.write_bytes(b""),
    "xml garbage": lambda xml: xml.write_bytes(b"<net" + bytes(1000)),
    "bin cut off": lambda xml: cut(xml.with_suffix(".bin")),
    "bin gone": lambda xml: xml.with_suffix(".bin").unlink(),
    "bin blank": lambda xml: xml.with_suffix(".bin").write_bytes(bytes(xml.with_suffix(".bin").stat().st_size)),
    "index torn": lambda xml: [cut(path) for path in xml.parent.glob("*.json")],
    "index of something else": lambda xml: [
        path.write_text('{"stem": "../../../photos/0", "sha256": {}}') for path in xml.parent.glob("*.json")
    ],
}


@needs_openvino
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_conversion_is_made_anew(photos, damage):
    """As a kill or a power cut leaves it; a blank ``.bin`` would even run, and give other numbers."""
    reference = extract(photos, "first", backend="openvino")
    DAMAGES[damage](*conversions(photos))
    assert largest_error(extract(photos, "again", backend="openvino"), reference) == 0
    sound = conversions(photos)[-1:] if damage.startswith("index") else conversions(photos)
    assert len(sound) == 1, "what was torn is cleared away"
    assert (photos / "0.jpg").exists()
    assert largest_error(extract(photos, "third", backend="openvino"), reference) == 0


@needs_openvino
def test_two_that_convert_at_once_do_not_break_each_other(photos, monkeypatch):
    """The other process finishes its conversion while this one is at its own."""
    honest, made = runtimes._converted, []

    def converted(module, plan):
        if not made:
            made.append(True)
            extract(photos, "other", backend="openvino")
        return honest(module, plan)

    monkeypatch.setattr(runtimes, "_converted", converted)
    run = extract(photos, "this", backend="openvino")
    assert largest_error(run, featx.open_run(photos.parent / "other")) == 0
    assert len(conversions(photos)) == 1
    monkeypatch.setattr(runtimes, "_converted", lambda *_: pytest.fail("converted again"))
    extract(photos, "third", backend="openvino")


@needs_openvino
@pytest.mark.parametrize("trouble", ["a file in its place", "no home"])
def test_without_a_cache_it_runs_and_says_so(photos, monkeypatch, trouble):
    if trouble == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without a home
    else:
        (photos.parent / "cache").write_text("mine")
    heard = []
    run = extract(photos, "uncached", backend="openvino", listener=heard.append)
    assert any("cannot be cached" in note.text for note in heard if isinstance(note, Note))
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos.parent / "elsewhere"))
    assert largest_error(extract(photos, "cached", backend="openvino"), run) == 0


@needs_openvino
def test_a_disk_that_is_full_costs_the_cache_alone(photos, monkeypatch):
    import openvino

    def full(_, path, **__):
        path.write_bytes(b"<ne")
        raise RuntimeError("Can't write: No space left on device")

    monkeypatch.setattr(openvino, "save_model", full)
    heard = []
    extract(photos, "out", backend="openvino", listener=heard.append)
    assert any("No space left" in note.text for note in heard if isinstance(note, Note))
    assert conversions(photos) == []


@needs_openvino
def test_openvino_is_imported_without_what_reports_to_its_makers(tmp_path):
    script = (
        "import sys\n"
        "from featx.models import runtimes\n"
        "runtimes._openvino()\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    )
    home = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=home)
    assert list(tmp_path.iterdir()) == []


@needs_openvino
def test_another_container_of_a_checkpoint_is_converted_anew(photos):
    torch.manual_seed(0)
    first, second = (timm.create_model(MODEL).state_dict() for _ in range(2))
    path = photos.parent / "two.pth"
    torch.save({"student": first, "teacher": second}, path)
    runs = [extract(photos, part, backend="openvino", weights=f"{path}:{part}") for part in ("student", "teacher")]
    assert largest_error(*runs) > 0.1
    assert largest_error(runs[1], extract(photos, "plain", weights=f"{path}:teacher")) < 1e-5


@needs_openvino
def test_openvino_in_lower_precision_rounds_from_full_precision(photos):
    reference = extract(photos, "torch")
    assert largest_error(extract(photos, "bf16", backend="openvino", precision="bf16"), reference) < 2e-2


def test_openvino_is_for_processors():
    plan = runtimes.Plan((1, 3, 32, 32), torch.device("cuda"), "fp32", 1, 1, {})
    with pytest.raises(UsageError, match="--device cpu"):
        runtimes.make("openvino", torch.nn.Identity(), plan)


def test_without_openvino_the_way_to_it_is_said(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(FeatxError, match=r"OpenVINO is not installed. Run `pip install 'featx\[openvino\]'"):
        extract(photos, "out", backend="openvino")


@needs_a_compiler
@pytest.mark.usefixtures("compiler")
def test_the_compiled_network_gives_the_same_maps(photos):
    reference = extract(photos, "torch", out_indices=(0, 1))
    compiled = extract(photos, "compiled", out_indices=(0, 1), backend="compile")
    assert largest_error(compiled, reference) < 1e-5


@needs_a_compiler
@pytest.mark.usefixtures("compiler")
def test_the_compiled_network_s_attention_is_the_same(photos):
    asked = {"model": "test_vit", "image_size": 160, "out_indices": (0, 5), "attention": True}
    reference = extract(photos, "torch", **asked)
    assert largest_error(extract(photos, "compiled", **asked, backend="compile"), reference) < 1e-5


def test_without_a_compiler_it_is_said(photos, monkeypatch):
    def broken(_):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    with pytest.raises(FeatxError, match=r"cannot compile the network: no C\+\+ compiler\. Install"):
        extract(photos, "out", backend="compile")


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_openvino_computes_otherwise_is_refused(photos, tmp_path, precision):
    """It resamples a ViT's position embeddings in another way than torch: its features were wrong by a percent."""
    with pytest.raises(FeatxError, match=r"features differ by \d\.\d%.*--backend torch"):
        extract(photos, "openvino", model="test_vit", backend="openvino", image_size=64, precision=precision)
    assert not any(tmp_path.rglob("*.npz"))

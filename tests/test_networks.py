# Backends: the same maps as torch's own, converted once, and a plain word where one is not there.
from __future__ import annotations

import importlib.util
import shutil
import sys

import numpy as np
import pytest
import torch

import featx
from featx import networks
from featx.errors import FeatxError, UsageError
from tests.conftest import natural_image

MODEL = "test_resnet"

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs featx[openvino]")
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        natural_image(number).save(folder / f"{number}.png")
    return folder


def extract(photos, name, **options):
    output = photos.parent / name
    featx.extract(photos, options.pop("model", MODEL), output, weights="random", device="cpu", batch_size=2, **options)
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
    reference = extract(photos, "torch", model=model)
    run = extract(photos, "openvino", model=model, backend="openvino")
    assert run.summary["recipe"]["backend"] == "openvino"
    assert run.levels == reference.levels
    assert largest_error(run, reference) < 1e-5


@needs_openvino
def test_openvino_converts_once_and_anew_for_other_weights(photos, monkeypatch):
    extract(photos, "first", backend="openvino")
    (converted,) = (photos.parent / "cache" / "featx" / "openvino").glob("*.xml")
    honest = networks._convert
    monkeypatch.setattr(networks, "_convert", lambda *_: pytest.fail("converted twice"))
    assert largest_error(extract(photos, "again", backend="openvino"), featx.open_run(photos.parent / "first")) == 0
    monkeypatch.setattr(networks, "_convert", honest)
    extract(photos, "other", backend="openvino", seed=1)
    assert len(list(converted.parent.glob("*.xml"))) == 2


@needs_openvino
def test_openvino_in_lower_precision_rounds_from_full_precision(photos):
    reference = extract(photos, "torch")
    assert largest_error(extract(photos, "bf16", backend="openvino", precision="bf16"), reference) < 2e-2


def test_openvino_is_for_processors():
    plan = networks.Plan((1, 3, 32, 32), torch.device("cuda"), "fp32", 1, 1, {})
    with pytest.raises(UsageError, match="--device cpu"):
        networks.make("openvino", torch.nn.Identity(), plan)


def test_without_openvino_the_way_to_it_is_said(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(FeatxError, match=r"OpenVINO is not installed. pip install 'featx\[openvino\]'"):
        extract(photos, "out", backend="openvino")


@needs_a_compiler
def test_the_compiled_network_gives_the_same_maps(photos):
    reference = extract(photos, "torch")
    assert largest_error(extract(photos, "compiled", backend="compile"), reference) < 1e-5


def test_without_a_compiler_it_is_said(photos, monkeypatch):
    def broken(_):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    with pytest.raises(FeatxError, match=r"cannot compile the network: no C\+\+ compiler\. Install"):
        extract(photos, "out", backend="compile")

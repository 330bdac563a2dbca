# Runs with modules: resumed, verified, read back, sampled and compared as levels are; told by info and the summary.
from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch

import featx
from featx.errors import OutputError, UsageError
from featx.explore.verify import verify
from tests.helpers import extract, make_photos

MODULES = ("bn1", "layer3.0.conv2", "global_pool.flatten")
KEYS = ["module_bn1", "module_layer3.0.conv2", "module_global_pool.flatten"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("some") / "photos", 4)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """Half of the photos first, then all of them, with only modules kept."""
    output = tmp_path_factory.mktemp("run") / "out"
    paths = sorted(photos.iterdir())
    extract(paths[:2], output, modules=MODULES, maps=False)
    assert extract(paths, output, modules="layer3.0.conv2,bn1,global_pool.flatten", maps=False).computed == 2
    return featx.open_run(output)


def test_what_is_written_is_what_a_hook_sees(run, photos):
    torch.manual_seed(0)
    network, seen = timm.create_model("test_resnet").eval(), {}
    for name in MODULES:
        network.get_submodule(name).register_forward_hook(
            lambda *given, name=name: seen.update({name: given[2].clone()})
        )
    pyramid = featx.load_pyramid("test_resnet", weights="random", image_size=64, device="cpu")
    for key in run:
        path = next(path for path in photos.iterdir() if path.name == key.rpartition("/")[2])
        with torch.no_grad():
            network(pyramid.preprocess(path)[0][None])
        assert list(run[key]) == KEYS
        for name in MODULES:
            assert np.allclose(run[key][f"module_{name}"], seen[name][0], rtol=1e-5, atol=1e-6)


def test_it_says_where_cells_lie_and_is_made_again_bit_for_bit(run):
    assert [(level.key, level.shape, level.stride, level.offset) for level in run.maps] == [
        ("module_bn1", (32, 32, 32), 2, 0),
        ("module_layer3.0.conv2", (48, 4, 4), 16, 1),
    ]
    assert run.levels == ()
    assert run.maps == run.modules
    assert run.summary["recipe"]["modules"] == list(MODULES)
    assert run.summary["modules"][1] == {
        "index": -1,
        "name": "layer3.0.conv2",
        "channels": 48,
        "stride": 16,
        "offset": 1,
        "height": 4,
        "width": 4,
        "part": "module",
        "offset_spread": 0.125,
        "dtype": "float32",
    }
    recomputed = verify(run.folder, recompute=2).recomputed
    assert recomputed.same
    assert (recomputed.images, recomputed.deviation) == (2, 0)


def test_places_are_sampled_and_compared(run):
    key = next(iter(run))
    level = run.modules[1]
    x, y = run.cell_to_pixel(key, level, 1, 2)
    sampled = run.sample(key, [(float(x), float(y))], "module_layer3.0.conv2")["module_layer3.0.conv2"]
    assert np.allclose(sampled[0], run[key]["module_layer3.0.conv2"][:, 1, 2], atol=1e-6)
    found = featx.similar_patches(run, key, at=(float(x), float(y)), level="module_bn1", count=1)
    assert found.level == "module_bn1"


def test_other_modules_are_another_recipe(run, photos):
    with pytest.raises(OutputError, match=r"\(modules .*bn1"):
        extract(photos, run.folder, modules="bn1", maps=False)
    with pytest.raises(UsageError, match=r"--format npy holds only embeddings. Leave out --module"):
        extract(photos, run.folder / "other", modules="bn1", embedding=True, format="npy")


def test_the_commands(featx_command, photos, tmp_path):
    model = ("--model", "test_resnet", "--weights", "random", "--image-size", "64", "--device", "cpu")
    ran = featx_command(
        "extract", photos, *model, "--module", "layer3.*.conv2", "--module", "fc*", "-o", tmp_path / "out"
    )
    assert ran.returncode == 1
    assert "fc of test_resnet does not run" in ran.stderr
    listed = featx_command("info", "test_resnet", "--module", "layer3.*.conv2", "--module", "fc", "--json", *model[4:6])
    first, last = json.loads(listed.stdout)
    assert first == {
        "name": "layer3.0.conv2",
        "type": "Conv2d",
        "calls": 1,
        "output": [48, 4, 4],
        "layout": "NCHW",
        "shape": [48, 4, 4],
        "stride": 16,
        "offset": 1,
        "prefix_tokens": 0,
        "fault": None,
    }
    assert (last["name"], last["calls"], last["shape"]) == ("fc", 0, None)
    assert "classifier" in last["fault"]
    every = featx_command("info", "test_resnet", "--modules")
    assert len(every.stdout.splitlines()) == 1 + sum(
        1 for name, _ in timm.create_model("test_resnet").named_modules() if name
    )

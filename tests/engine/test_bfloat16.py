# bfloat16: the maps as torch rounds them, in the one format that has the type, and refused by all others.
from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import featx
from featx.engine.feature_pyramid import FeaturePyramid
from featx.errors import UsageError
from featx.explore.verify import verify
from featx.runs.manifest import digests
from tests.helpers import extract

HALF = {"dtype": "bfloat16", "format": "safetensors"}

# Reads a file with safetensors alone, and compares it with the full maps.
READ = """
import sys, numpy, torch
from safetensors.torch import load_file
half, full = load_file(sys.argv[1]), numpy.load(sys.argv[2])
assert half.keys() == set(full)
for name, values in half.items():
    assert values.dtype == torch.bfloat16 and torch.equal(values, torch.from_numpy(full[name]).bfloat16()), name
assert "featx" not in sys.modules
"""


def test_safetensors_reads_what_torch_rounds_to(photos, tmp_path):
    extract(photos, tmp_path / "full")
    extract(photos, tmp_path / "half", **HALF)
    files = (tmp_path / "half/photos/1.jpg.safetensors", tmp_path / "full/photos/1.jpg.npz")
    subprocess.run([sys.executable, "-I", "-c", READ, *map(str, files)], check=True)
    run, raw = (featx.open_run(tmp_path / "half", raw=given) for given in (False, True))
    full = featx.open_run(tmp_path / "full")
    for name, values in full["photos/1.jpg"].items():
        rounded = torch.from_numpy(np.array(values)).bfloat16()
        assert run["photos/1.jpg"][name].dtype == np.float32
        assert raw["photos/1.jpg"][name].dtype.name == "bfloat16"
        assert np.array_equal(run["photos/1.jpg"][name], rounded.float())
        assert torch.equal(raw.dataset()[1][name], rounded)
    assert run.regions("photos/1.jpg", [[0, 0, 9, 9]])["level_1"].dtype == np.float32
    assert run.summary["cost"]["levels"]["level_1"]["dtype"] == pytest.approx(2**-9, rel=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grid": "3x2", "components": 6, "fit_on": 3},
        {"fit": "native", "image_size": None, "tile": 64},
        {"model": "test_vit", "attention": True, "prefix_tokens": True, "embedding": True},
    ],
)
def test_runs_of_it_verify_and_resume(photos, tmp_path, options):
    options = {"batch_size": 2, **HALF, **options}
    extract(photos, tmp_path / "out", **options)
    made = digests(tmp_path / "out")
    found = verify(tmp_path / "out", recompute=3).recomputed
    assert (found.images, found.deviation) == (3, 0)
    (tmp_path / "out/photos/1.jpg.safetensors").unlink()
    assert extract(photos, tmp_path / "out", **options).computed == 1
    assert digests(tmp_path / "out") == made
    report = extract(photos, tmp_path / "out", **options)
    assert (report.tried, report.computed) == (0, 0)


@pytest.mark.parametrize("name", ["npz", "webdataset", "zarr"])
def test_formats_without_it_say_so(photos, tmp_path, name):
    with pytest.raises(UsageError, match=f"{name} has no bfloat16"):
        extract(photos, tmp_path / "out", **{**HALF, "format": name})
    extract(photos, tmp_path / "half", **HALF)
    with pytest.raises(UsageError, match=f"{name} has no bfloat16"):
        featx.convert(tmp_path / "half", tmp_path / "out", format=name)
    assert not (tmp_path / "out").exists()


def test_batches_of_columns_lack_it():
    with pytest.raises(UsageError, match="numpy, whose arrays come out, has no bfloat16"):
        FeaturePyramid("test_resnet", dtype="bfloat16")

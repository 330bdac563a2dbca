# bench: its figures hang together, and nothing is left behind.
from __future__ import annotations

import json

import pytest

from featx.engine import bench
from featx.errors import UsageError
from featx.requests import Job
from tests.helpers import natural_image


def test_the_figures_hang_together(featx_command, tmp_path):
    done = featx_command(
        *("bench", "--model", "test_resnet", "--count", 16, "--rounds", 2, "--json"), TMPDIR=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    rates = {stage: facts["images_per_second"] for stage, facts in value["stages"].items()}
    assert list(rates) == ["read", "forward", "write", "commit"]
    assert all(rate > 0 for rate in rates.values())
    together = 1 / sum(1 / rates[stage] for stage in ("read", "forward", "write"))
    assert value["limit"] == pytest.approx(min(together, rates["commit"]))
    assert value["share"] == pytest.approx(value["pipeline"] / value["limit"])
    assert (value["images"], value["rounds"], value["workers"]["batch_size"]) == (16, 2, 8)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("featx-bench")] == []


def test_the_table_and_own_photos(featx_command, tmp_path):
    for number in range(3):
        natural_image(number).save(tmp_path / f"{number}.jpg")
    done = featx_command("bench", "-m", "test_resnet", "--images", tmp_path, "--count", 8, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    for words in ("forward", "decode, resize, crop", "% of the limit", "test_resnet, cpu, fp32, torch, float32"):
        assert words in done.stdout


def test_images_that_cannot_be_read_are_no_benchmark(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"no image")
    job = Job(inputs=(str(tmp_path),), model="test_resnet", weights="random", device="cpu")
    with pytest.raises(UsageError, match="Too few readable images"):
        bench.bench(job, 8, 1)

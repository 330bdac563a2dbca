# The scripts behind the README's figures: they run, and what they print is right on a small case.
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HANGS, natural_image

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run(script, *arguments):
    command = [sys.executable, SCRIPTS / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_models_are_proved_once(tmp_path):
    output = tmp_path / "proof.jsonl"
    first = run("prove_models.py", "test_vit", "test_mambaout", "tresnet_m", "--output", output)
    assert first.splitlines()[0].split() == ["3", "equal"]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert {line["model"]: line["result"] for line in lines} == dict.fromkeys(
        ["test_vit", "test_mambaout", "tresnet_m"], "equal"
    )
    again = run("prove_models.py", "test_vit", "vit_7b_patch16_dinov3", "--output", output)
    assert [line.split()[:2] for line in again.splitlines()[:2]] == [["1", "equal"], ["1", "does"]]
    assert len(output.read_text().splitlines()) == 4


def test_planning_skips_what_is_done():
    printed = run("plan_a_million.py", "--count", 1500).splitlines()
    assert [line.partition("; ")[2] for line in printed] == [
        "1500 done, 0 to do",
        "1500 done, 0 to do",
        "1500 images, the last (500, 375)",
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_peers_are_compared(tmp_path, precision):
    for number in range(3):
        natural_image(number).save(tmp_path / f"{number}.jpg")
    printed = run("compare_peers.py", tmp_path, "--model", "test_resnet", "--rounds", 1, "--precision", precision)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows][:3] == ["| featx", "| one photo at a time", "| DataLoader"]
    assert all(float(row[1]) > 0 for row in rows)
    assert rows[0][2] == "1.00 |"

# The scripts behind the README's figures: they run, and what they print is right on a small case.
from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.helpers import HANGS, ROOT, natural_image

SCRIPTS = ROOT / "scripts"


@pytest.fixture
def run(forge):
    """Run a script in a process that has torch already."""

    def run(script, *arguments):
        start = f"import runpy\nrunpy.run_path({str(SCRIPTS / script)!r}, run_name='__main__')"
        done = forge(ROOT, *arguments, script=start, isolation=True)
        assert done["status"] == 0, done["stderr"]
        return done["stdout"]

    return run


def run_anew(script, *arguments, status=0):
    command = [sys.executable, SCRIPTS / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


def test_models_are_proved_once(run, tmp_path):
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


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_planning_skips_what_is_done(run, kind):
    printed = run("plan_a_million.py", "--count", 1500, "--kind", kind).splitlines()
    assert [line.partition("; ")[2] for line in printed] == [
        "0 done, 1500 to do",
        "750 done, 750 to do",
        "1500 done, 0 to do",
        *(["1500 done, 0 to do"] if kind == "folder" else []),
        "1500 images, the last (500, 375)",
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_peers_are_compared(run, tmp_path, precision, request):
    if precision != "fp32" and not request.config.getoption("large"):
        pytest.skip("the same in another precision, for --large")
    for number in range(3):
        natural_image(number).save(tmp_path / f"{number}.jpg")
    printed = run("compare_peers.py", tmp_path, "--model", "test_resnet", "--rounds", 1, "--precision", precision)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows][:3] == ["| featx", "| one photo at a time", "| DataLoader"]
    assert all(float(row[1]) > 0 for row in rows)
    assert rows[0][2] == "1.00 |"


def test_versions_are_compared_byte_for_byte(tmp_path):
    shutil.copytree(SCRIPTS.parent / "featx", tmp_path / "featx")
    start = tmp_path / "featx/__main__.py"
    start.write_text(f"import sys\nif '--pool' in sys.argv:\n    sys.argv += ['--seed', '1']\n{start.read_text()}")
    printed = run_anew("compare_versions.py", SCRIPTS.parent, tmp_path, "--only", "vit, [bp]*[6s]", status=1)
    different, same = printed.splitlines()
    assert same == "| vit, bf16 | same |"
    assert different.startswith("| vit, pool cls | extract: standard output: ")
    assert "<br>photos/photo.jpg.npz: " in different
    assert "<br>resume: exit status 3 -> 1: featx: vit-pool-cls holds features made with a" in different
    assert "verify: " not in different


def test_versions_are_timed():
    printed = run_anew("compare_speed.py", SCRIPTS.parent, "--rounds", 1, "--planned", 2000, "--only", "[sp]*")
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines()[2:]]
    assert [row[0] for row in rows if row[0].endswith(", s")] == [
        *("featx --help, s", "featx list-models, s", "featx list-models --json, s", "featx info, s"),
        *("find and plan a new run 2000, s", "find and plan the other half 2000, s"),
        *("find and plan a complete run 2000, s", "list and plan 2000, s", "open_run 2000, s"),
    ]


def test_centres_are_measured_once_and_tabled(run, tmp_path):
    output, table = tmp_path / "centres.jsonl", tmp_path / "centres.json"
    arguments = ("test_vit", "test_convnext*", "--distinct", "--output", output, "--table", table, "--seeds", "1")
    printed = run("measure_centres.py", *arguments)
    assert "2 measured, 0 failed" in printed
    found = json.loads(table.read_text())
    assert set(found) == {"test_vit", "test_convnext"}
    assert all(result["beyond"] < 0.25 for result in found.values())
    assert run("measure_centres.py", *arguments) == printed
    assert len(output.read_text().splitlines()) == 2


def test_a_search_for_patches_is_timed_and_right(run):
    """It compares what it finds with brute force itself."""
    printed = run("time_patches.py", "--photos", 20, "--model", "test_resnet", "--level", 2, "--rounds", 1)
    assert [line.split(":")[0] for line in printed.splitlines()[1:]] == ["featx", "one product", "product and lengths"]

# The README: its commands run, its Python runs, its help and its set-up lines are the real ones.
from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import featx
from tests.helpers import HANGS, natural_image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("   #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if re.search(r"(^|\| )featx ", line)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with photos, as the README supposes it."""
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg", "one.png", "cats/3.jpg"):
        natural_image(len(name)).save(tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands_to_run():
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", commands())
def test_commands_run(here, command):
    """As printed; where weights would come from the hub, which tests cannot reach, random ones are taken."""
    if " extract " in command and "--weights" not in command:
        command += " --weights random"
    if "yolo" in command or "ultralytics" in command:
        pytest.importorskip("cv2", exc_type=ImportError, reason="OpenCV misses libraries of the system")
    if " similar " in command:  # what the commands before it made
        folder = re.search(r"similar (\S+)", command)[1]
        featx.extract("photos/", "test_resnet", folder, weights="random", embedding=True, maps=False)
    if " verify " in command:
        featx.extract("photos/", "test_resnet", re.search(r"verify (\S+)", command)[1], weights="random")
    command = re.sub(r"(^|\| )featx ", rf"\1{shlex.quote(sys.executable)} -m featx ", command)
    for call in (1, 2):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=HANGS, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert " extract " not in command or ("(nothing to compute)" in done.stdout) == (call == 2), done.stdout


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(here, block):
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    assert "(512, 28, 28)" in done.stdout or "4 (4, 64)" in done.stdout


def test_the_first_block_is_what_the_command_prints(here):
    (block,) = re.findall(r"^```\n\$ featx (extract.*?)```$", README, re.MULTILINE | re.DOTALL)
    command, *expected = block.splitlines()
    (here / "tests" / "photos").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "photos" / "astronaut.jpg", here / "tests" / "photos")
    done = subprocess.run(
        [sys.executable, "-m", "featx", *shlex.split(command), "--weights", "random"],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=True,
    )
    printed = done.stdout.splitlines()
    assert [line for line in printed if "weights" not in line] == [line for line in expected if "weights" not in line]


@pytest.mark.parametrize(
    ("command", "text"), re.findall(r"<!-- help: featx (\S+) -->\n```\n(.*?)```", README, re.DOTALL)
)
def test_help_is_the_real_one(featx_command, command, text):
    """Frames and line breaks are the terminal's; the words are ours."""
    real = featx_command(command, "--help", COLUMNS="100").stdout

    def words(shown: str) -> list[str]:
        return re.sub(r"[│╭╮╰╯─]+", " ", shown).split()

    assert words(text) == words(real)


def test_ci_calls_the_test_command_of_the_readme():
    line = next(line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "pip install" in line)
    assert f"\n{line}\n" in README
    assert line.endswith("scripts/check")


def test_the_set_up_lines_name_files_that_are_there():
    for name in ("tests/photos/astronaut.jpg", "scripts/check"):
        assert name in README
        assert (ROOT / name).exists()

# The README and its pages: commands and code run as printed, options and links exist, the picture is the real one.
from __future__ import annotations

import html
import re
import shlex
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from featx.cli.commands import app
from tests.helpers import HANGS, natural_image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
GROUP = typer.main.get_command(app)

draw_screen = module_from_spec(spec_from_file_location("draw_screen", ROOT / "scripts" / "draw_screen.py"))
draw_screen.__spec__.loader.exec_module(draw_screen)


def blocks(page):
    """Return the language and the text of a page's blocks of code."""
    return re.findall(r"^```(\S*)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def steps(page):
    """Return what a page has its reader run, in its order: commands, one per line, and blocks of Python."""
    found = []
    for language, block in blocks(page):
        if language == "sh":
            found += [line.strip() for line in block.splitlines() if re.search(r"(^|\| )featx ", line)]
        elif language == "python":
            found.append(block)
    return found


def writes(step):
    """Tell whether a step leaves something behind; there is no point in doing the others twice."""
    return "featx.extract(" in step or re.search("featx (extract|similar|verify) ", step)


def run(step, featx_command):
    """As printed; where weights would come from the hub, which tests cannot reach, random ones are taken."""
    if not step.startswith(("featx ", "find ")):
        done = featx_command(script=step)
    else:
        listed, _, command = step.rpartition("| ")
        assert not re.search(r"[|*<>&;]", re.sub(r"'[^']*'", "", command)), f"{step} needs a shell"
        if " extract " in command and "--weights" not in command:
            command += " --weights random"
        listing = subprocess.run(["bash", "-c", listed], capture_output=True, timeout=HANGS, check=True).stdout
        done = featx_command(*shlex.split(command, comments=True)[1:], stdin=listing)
    assert done.returncode == 0, f"{step}\n{done.stderr}"
    assert done.stdout, step
    for shown in re.findall(r"^ *print\(.*\)  # ([(\d][^…\n]*)$", step, re.MULTILINE):
        assert shown in done.stdout, f"{step}\n{done.stdout}"


def manifests(folder):
    """Return the manifests of all runs: an image that is computed adds a line."""
    return {path: path.read_text() for path in folder.rglob("manifest.jsonl")}


def has_opencv():
    try:
        import cv2  # noqa: F401
    except ImportError:  # it misses libraries of the system
        return False
    return True


@pytest.mark.parametrize("page", [page for page in PAGES if steps(page)])
def test_what_a_page_shows_runs_and_computes_nothing_twice(tmp_path, monkeypatch, page, featx_command):
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for number, name in enumerate(("1.jpg", "2.jpg", "one.png", "cats/3.jpg")):
        natural_image(number, 640, 480).save(tmp_path / "photos" / name)
    (tmp_path / "boxes.csv").write_text("key,x1,y1,x2,y2\nphotos/1.jpg,300,200,400,320\n2.jpg,300,300,350,340\n")
    monkeypatch.chdir(tmp_path)
    left_out = [step for step in steps(page) if re.search("yolo|ultralytics", step) and not has_opencv()]
    for step in steps(page):
        if step not in left_out:
            before = manifests(tmp_path)
            run(step, featx_command)
            after = manifests(tmp_path)
            assert " extract " not in step or after != before, step
            if writes(step):
                run(step, featx_command)
                assert manifests(tmp_path) == after, step
    if left_out:
        pytest.skip("OpenCV misses libraries of the system")


def test_the_picture_is_what_its_command_draws(tmp_path, featx_command):
    (text,) = re.findall(r"`featx (view [^`]* -o docs/levels\.png)` drew it", PAGES["README.md"])
    name, photo, *arguments, _ = shlex.split(text)
    done = featx_command(name, ROOT / photo, *arguments, "levels.png", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "levels.png") as now, Image.open(ROOT / "docs" / "levels.png") as then:
        assert now.size == then.size
        # Processors round differently, which may change a colour a little.
        assert np.abs(np.asarray(now, float) - np.asarray(then, float)).mean() < 2


def test_there_is_much_to_run():
    assert len(steps("README.md")) >= 7
    assert sum(len(steps(page)) for page in PAGES) >= 25


def test_blocks_that_are_not_run_need_a_network():
    for page in PAGES:
        for language, block in blocks(page):
            assert language in ("sh", "python") or "featx fetch" in block or "://" in block, page


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_can_be_parsed(page):
    for text in re.findall(r"`(?:[^`|]*\\\| )?featx ([a-z-]+ [^`…]*)`", PAGES[page]):
        name, *arguments = shlex.split(text)
        if not any(argument.isupper() for argument in arguments):
            GROUP.commands[name].make_context(name, arguments)


def test_options_in_the_text_exist():
    parameters = [parameter for command in (GROUP, *GROUP.commands.values()) for parameter in command.params]
    options = {flag for each in parameters for flag in (*each.opts, *each.secondary_opts)} | {"--help"}
    for page, text in PAGES.items():
        mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
        assert mentioned <= options, page


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        folder = ROOT if page == "README.md" else ROOT / "docs"
        for target, anchor in re.findall(r"\]\((?!http)([\w./-]*)(?:#([\w-]+))?\)", text):
            linked = folder / target if target else folder / page
            assert linked.exists(), f"{page}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in anchors, f"{page}: {target}#{anchor}"


def test_files_in_the_text_exist():
    for page, text in PAGES.items():
        for name in re.findall(r"`((?:featx|tests|scripts|docs)/[\w./-]+)`", text):
            assert "NAME" in name or (ROOT / name).exists(), f"{page}: {name}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 245


def words(line):
    return " ".join(line.replace("\N{NO-BREAK SPACE}", " ").split())


def test_the_picture_is_what_the_commands_print(tmp_path, featx_command):
    picture = draw_screen.PICTURE.read_text()
    rows = {}
    for row, text in re.findall(r'<text class="[\w-]+-r\d+" x="[\d.]+" y="([\d.]+)"[^>]*>(.*?)</text>', picture):
        rows[row] = rows.get(row, "") + html.unescape(text)
    shown = [words(line) for line in rows.values()]
    draw_screen.make_photos(tmp_path)
    for command in draw_screen.COMMANDS:
        assert f"$ {command}" in shown
        done = featx_command(*shlex.split(command)[1:])
        assert done.returncode in (0, 3), done.stderr
        printed = [*done.stdout.splitlines(), *(line for line in done.stderr.splitlines() if "failed:" in line)]
        printed = [line for line in printed if "images/s" not in line and "; the first is" not in line]  # or wrapped
        missing = [line for line in printed if words(line) and words(line) not in shown]
        assert not missing, "run scripts/draw_screen.py"
    assert "href" not in picture
    assert "url(http" not in picture


def test_ci_calls_the_test_command_of_the_readme():
    line = next(line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "pip install" in line)
    assert f"\n{line}\n" in README
    assert line.endswith("scripts/check")


def test_the_set_up_lines_name_files_that_exist():
    for name in ("tests/photos/astronaut.jpg", "scripts/check"):
        assert name in README
        assert (ROOT / name).exists()

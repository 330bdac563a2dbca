# The width of terminals: what lists of models keep on narrow ones, and help that breaks no word.
from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

import featx
from featx.cli.commands import app
from tests.helpers import HANGS

COMMANDS = [[], *([each.name or each.callback.__name__] for each in app.registered_commands)]


def shown(width, *arguments):
    """Return the lines that a command shows in a terminal of some width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "featx", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(theirs)
    pieces = []
    with suppress(OSError), open(ours, "rb", closefd=False) as stream:
        while piece := stream.read1():
            pieces.append(piece)
    os.close(ours)
    assert process.wait(HANGS) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(pieces).decode())
    return [line.rstrip() for line in text.splitlines() if line.strip() and not re.match("[⠀-⣿]", line)]


CHOSEN = {
    "the licence": (["vit_l*", "--license", "apache"], {"license": "apache", "patterns": "vit_l*"}, "apache-2.0"),
    "the weights": (
        ["vit_l*", "--pretrained"],
        {"pretrained": True, "patterns": "vit_l*"},
        r"\S",
    ),
    "the levels": (["hrnet", "--stride", "32"], {"strides": [32], "patterns": "hrnet"}, r"32·\d+|…"),
    "the parameters": (["vit_l*", "--max-params", "400M"], {"max_parameters": 4e8, "patterns": "vit_l*"}, r"\d\.\d M"),
}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("case", CHOSEN)
def test_names_are_never_cut_and_what_was_asked_for_is_shown(case, width):
    arguments, wanted, column = CHOSEN[case]
    entries = featx.list_models(**wanted)
    heading, *lines = shown(width, "list-models", *arguments)
    assert heading.startswith("model ")
    for entry, line in zip(entries, lines, strict=False):
        name, _, rest = line.partition(" ")
        assert name == entry["name"]
        assert re.search(column, rest), line
        assert len(line) <= width
    assert lines[-1] == f"{len(entries)} models"


def test_the_whole_list_fits_and_says_what_it_leaves_out():
    names = [entry["name"] for entry in featx.list_models()]
    heading, *lines = shown(80, "list-models")
    assert [line.split(" ")[0] for line in lines[: len(names)]] == names
    assert max(map(len, lines[: len(names)])) <= 80
    assert heading.split() == ["model", "stride·channels"]
    explained, *left_out, count = lines[len(names) :]
    assert re.fullmatch(r"(\d+)·(\d+) \((\d+)\): \3 levels of stride \1 with \2 channels", explained)
    assert " ".join(left_out) == (
        "params, input, weights and licence left out: the terminal is 80 columns wide; --json has all"
    )
    assert count == f"{len(names)} models"


def test_a_pipe_gets_all_columns_and_one_count(featx_command):
    done = featx_command("list-models", "resnest", "--limit", "2", COLUMNS="40")
    assert done.stdout.splitlines()[0].split() == ["model", "stride·channels", "params", "input", "weights", "licence"]
    assert done.stderr == "2 of 8 models; --limit shows more\n"
    assert len(done.stdout.splitlines()) == 3


def words(text):
    return sorted(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "featx")
def test_help_breaks_no_word_and_names_no_type_of_python(featx_command, command):
    narrow, wide = (featx_command(*command, "--help", COLUMNS=width).stdout for width in ("80", "400"))
    assert max(map(len, narrow.splitlines())) <= 80
    assert words(narrow) == words(wide)
    assert not re.search(r"<\w+|\bDIR\b|list\[", narrow)
    panels = re.findall("╭─ (.+?) ─", narrow)
    assert panels[-1] == ("Messages" if command else "Commands")


def test_the_commands_are_seen_on_one_screen():
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "featx"], capture_output=True, text=True, env=environment, timeout=HANGS, check=False
    )
    lines = done.stdout.splitlines()
    assert not lines[0].strip()  # which may scroll away
    assert len(lines[1:]) < 24, "with the prompt"
    for command, *_ in COMMANDS[1:]:
        assert any(re.match(rf"│ {command.replace('_', '-')} ", line) for line in lines), command

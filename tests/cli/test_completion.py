# Completion: what real shells are offered after typer's own script was sourced, and that nothing else gets in its way.
from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
import timm

from tests.helpers import HANGS

# What was typed, the last word being incomplete, and what completes it; nothing where shells complete files.
OFFERED = {
    "featx ver": ["verify"],
    "featx info resnest2": ["resnest26d", "resnest200e", "resnest269e"],
    "featx bench resnest14": ["resnest14d"],
    "featx fetch resnest14": ["resnest14d"],
    "featx info --model resnest14": ["resnest14d"],
    "featx extract -m resnest14": ["resnest14d"],
    "featx list-models resnest14": ["resnest14d"],
    "featx info test_resnet.": ["test_resnet.r160_in1k"],
    "featx info resnet50.a1": ["resnet50.a1_in1k", "resnet50.a1h_in1k"],
    "featx info nothing.": [],
    "featx info local-dir:mod": [],
    "featx extract --precision ''": ["fp32", "bf16", "fp16"],
    "featx extract --backend o": ["openvino"],
    "featx extract --format np": ["npz", "npy"],
    "featx extract --dtype f": ["float32", "float16"],
    "featx extract --part n": ["neck"],
    "featx extract --pool a": ["avg"],
    "featx extract --device c": ["cpu", "cuda"],
    "featx extract --weights r": ["random"],
    "featx extract --weights mod": [],
    "featx extract --batch": ["--batch-size"],
    "featx list-models --sort ''": ["name", "params"],
    "featx list-models --source u": ["ultralytics"],
    "featx list-models --family resne": ["resnest", "resnet", "resnetv2"],
    "featx list-models --license app": ["apple-amlr", "apple-ascl"],
    "featx extract pho": [],
    "featx extract photos/ --output fea": [],
    "featx verify fea": [],
}


@pytest.fixture
def path(tmp_path):
    """A search path with the command in it."""
    command = tmp_path / "bin" / "featx"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m featx "$@"\n')
    command.chmod(0o755)
    return f"{command.parent}:{os.environ['PATH']}"


def run(script, path, **environment):
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_bash_is_offered_names_choices_and_files(path):
    script = 'eval "$(featx --show-completion)"\ncomplete -p featx\n'
    for typed in OFFERED:
        script += f"COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        script += "_featx_completion featx; echo =; printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    declared, *answers = run(script, path).split("=\n")
    assert "-o default" in declared, "without an offer, bash completes files"
    assert {typed: answer.split() for typed, answer in zip(OFFERED, answers, strict=True)} == OFFERED


def test_every_model_is_offered(path):
    words = {"COMP_WORDS": "featx info ", "COMP_CWORD": "2", "_FEATX_COMPLETE": "complete_bash"}
    assert run("featx", path, **words).split() == timm.list_models()


@pytest.mark.parametrize(
    ("shell", "typed", "answer"),
    [
        ("zsh", "featx info resnest14", """_arguments '*: :(("resnest14d"))'\n"""),
        ("zsh", "featx extract pho", "_files\n"),
        ("fish", "featx info resnest14", "resnest14d\n"),
        ("fish", "featx extract --backend c", "compile\n"),
    ],
)
def test_other_shells_are_offered_the_same(path, shell, typed, answer):
    words = {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert run("featx", path, _FEATX_COMPLETE=f"complete_{shell}", **words) == answer


def test_fish_completes_files_where_nothing_else_is_offered(path):
    asked = 'for typed in "featx info resn" "featx verify fea"; do _TYPER_COMPLETE_ARGS=$typed featx; echo $?; done'
    words = {"_FEATX_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert run(asked, path, **words).split() == ["0", "1"]


def test_it_can_be_installed(path, tmp_path):
    said = run("featx --install-completion; true", path, HOME=str(tmp_path))
    assert "bash completion installed" in said
    assert "_featx_completion" in (tmp_path / ".bash_completions" / "featx.sh").read_text()

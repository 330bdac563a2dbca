# Every option of every command with values that cannot be meant: each is refused in one line, or does no harm.
from __future__ import annotations

import re

import pytest
import typer

from featx.cli import main
from featx.cli.commands import app
from tests.helpers import MODEL, make_photos

COMMANDS = typer.main.get_command(app).commands

# A command line of every command that would succeed, or need the network.
BASES = {
    "list-models": ("test_resnet",),
    "info": ("test_resnet",),
    "extract": ("photos/0.jpg", *MODEL),
    "similar": ("run", "photos/0.jpg", "--device", "cpu"),
    "sample": ("run", "--points", "points.csv", "--output", "table.csv"),
    "view": ("run", "--output", "view.png"),
    "bench": ("--model", "test_resnet", "--device", "cpu", "--image-size", "32", "--count", "8", "--rounds", "1"),
    "fetch": ("--model", "test_resnet", "--output", "fetched"),
    "verify": ("run",),
    "merge": ("run",),
    "convert": ("run", "--format", "safetensors", "--output", "converted"),
}

EMPTY, HUGE, NEGATIVE, MISSPELT = "", "9" * 400, "-1", "nonsense"

# Each ends with the option that makes it wrong.
CONTRADICTIONS = [
    "extract photos/0.jpg --out-indices 1 --strides 8",
    "extract photos/0.jpg --image-size 64 --test-size",
    "extract photos/0.jpg --weights pretrained --seed 1",
    "extract photos/0.jpg --pool avg",
    "extract photos/0.jpg --no-maps",
    "extract photos/0.jpg --embedding --no-maps --strides 8",
    "extract photos/0.jpg --embedding --no-maps --norm",
    "extract photos/0.jpg --embedding --no-maps --prefix-tokens",
    "extract photos/0.jpg --embedding --no-maps --attention",
    "extract photos/0.jpg --embedding --no-maps --dtype float16",
    "extract photos/0.jpg --embedding --format npy --dtype float16",
    "extract photos/0.jpg --embedding --format npy --maps",
    "extract photos/0.jpg --embedding --format npy --final",
    "extract photos/0.jpg --format npy",
    "extract photos/0.jpg --part neck",
    "extract photos/0.jpg --fit native --image-size 64",
    "extract photos/0.jpg --fit native --test-size",
    "extract photos/0.jpg --fit native --backend compile",
    "extract photos/0.jpg --max-side 64",
    "extract photos/0.jpg --fit pad --crop-pct 0.9",
    "extract photos/0.jpg --fit pad --crop-pct 0",
    "extract photos/0.jpg --backend openvino --device cuda",
    "extract photos/0.jpg --device cpu,1",
    "extract photos/0.jpg --device cuda:0,0",
    "extract photos/0.jpg --device all",
    "extract photos/0.jpg --prefix-tokens",
    "extract photos/0.jpg --attention",
    "extract photos/0.jpg --output photos",
    "extract photos/0.jpg --from-file photos/0.jpg",
    "bench --model test_resnet --out-indices 1 --strides 8",
    "bench --model test_resnet --images run",
    "info test_resnet --model test_vit",
    "info test_resnet --image-size 64 --test-size",
    "info levit_128s --fit native",
    "info test_resnet --part neck",
    "list-models --sort params --names --json",
    "list-models --min-levels 5 --stride 3",
    "similar run photos/0.jpg --output photos/0.jpg",
    "similar run photos/0.jpg --output sheet.txt",
    "sample run --output table.csv",
    "sample run --output table.csv --boxes points.csv --points points.csv",
    "sample run --output table.csv --points points.csv --level 7",
    "sample run --output table.npz --points points.csv --box-size 7",
    "sample run --output table.csv --boxes boxes.csv --box-size 7",
    "sample run --output points.csv --points points.csv",
    "sample photos --output table.csv --points points.csv",
    "view run --model test_resnet",
    "view run --grid --at 1,2",
    "view run --activation --attention",
    "view run --key photos/0.jpg",
    "view run --grid --smooth",
    "view photos",
    "verify photos",
    "extract photos/0.jpg --overwrite --json=yes",
]


def options():
    return [
        (name, option.opts[0])
        for name, command in COMMANDS.items()
        for option in command.params
        if option.param_type_name == "option" and option.name != "help"
    ]


def takes_value(name, spelling):
    return not next(each for each in COMMANDS[name].params if spelling in each.opts).is_flag


def wrong_lines(name, spelling, *, large):
    """Return command lines with one option, wrong in every way.

    A misspelt name and a missing value are the parser's matter: without --large, one option of a command is enough.
    """
    base = (name, *BASES[name], *(("--output", f"out{spelling}") if name == "extract" else ()))
    values = (EMPTY, HUGE, NEGATIVE, MISSPELT) if takes_value(name, spelling) else (EMPTY, MISSPELT)
    lines = [(*base, f"{spelling}={value}") for value in values]
    if large or (name, spelling) == next(each for each in options() if each[0] == name):
        lines.append((*base, spelling[:4] + spelling[5:]))
        lines += [(*base, spelling)] * takes_value(name, spelling)
    return lines


@pytest.fixture(scope="module")
def wrongly(forge, tmp_path_factory):
    """Run a command in a folder with photos and a run; returns what is wrong with how it answers."""
    folder = tmp_path_factory.mktemp("wrong")
    photos = make_photos(folder / "photos", 2)
    (folder / "points.csv").write_text("key,x,y\n0.jpg,40,30\n")
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "XDG_CACHE_HOME": str(folder / "cache")}
    made = forge.extract(folder, photos, "run", "--embedding")
    assert made["status"] == 0, made["stderr"]

    def run(arguments, *, refused=False):
        done = forge(folder, *arguments, environment=environment, isolation="--isolate" in arguments)
        return faults(done["status"], done["stdout"], done["stderr"], refused=refused)

    return run


def faults(status, stdout, stderr, *, refused):
    """Say what is wrong with an answer: a refusal is one line of at most two sentences, and nothing else."""
    found = []
    if status not in ((1, 2) if refused else (0, 1, 2, 3)) or "Unexpected" in stderr or "Traceback" in stderr:
        found.append(f"status {status}: {stderr}")
    if status in (1, 2):
        if stdout:
            found.append(f"standard output: {stdout}")
        if not re.fullmatch(r"featx: [^\n]+\n", stderr):
            found.append(f"not one line: {stderr}")
        if len(re.findall(r"[.?!](?= [A-Z`]|\n)", stderr)) > 2:
            found.append(f"more than two sentences: {stderr}")
    return found


@pytest.mark.parametrize(("name", "spelling"), options(), ids=lambda text: text.lstrip("-"))
def test_an_option_given_wrongly(wrongly, name, spelling, request):
    lines = wrong_lines(name, spelling, large=request.config.getoption("large"))
    found = {line[-1][:60]: wrongly(line) for line in lines}
    assert not any(found.values()), {typed: wrong for typed, wrong in found.items() if wrong}


@pytest.mark.parametrize("name", BASES)
def test_arguments_given_wrongly(wrongly, name):
    lines = [(name, value, value) for value in (EMPTY, HUGE, NEGATIVE, MISSPELT)]
    found = {line[-1][:60]: wrongly(line, refused=True) for line in [*lines, *[(name,)][: name != "list-models"]]}
    assert not any(found.values()), {typed: wrong for typed, wrong in found.items() if wrong}


@pytest.mark.parametrize("line", CONTRADICTIONS)
def test_options_that_contradict_each_other(wrongly, line):
    name, *rest = line.split()
    model = MODEL[:4] if name == "extract" else ()
    assert wrongly((name, *model, *rest), refused=True) == []


def test_every_command_has_a_base():
    assert set(BASES) == set(COMMANDS)


@pytest.mark.parametrize("arguments", [["nonsense"], ["extrct"], ["--nonsense"], ["--version=1"], ["-x"]])
def test_what_is_no_command(wrongly, arguments):
    assert wrongly(arguments, refused=True) == []


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("extract", "photos/0.jpg", *MODEL), "Use a smaller --image-size, a smaller --batch-size or fewer --workers."),
        (("info", "test_resnet", "--image-size", "64"), "Use a smaller --image-size."),
        (("similar", "run", "photos/0.jpg"), "Close other programs, or use a machine with more memory."),
    ],
)
def test_a_hint_names_only_options_that_the_command_has(monkeypatch, capsys, command, hint):
    def exhausted(*_, **__):
        raise MemoryError

    for place in ("featx.engine.extract.run", "featx.models.search.describe_model", "featx.explore.similarity.similar"):
        monkeypatch.setattr(place, exhausted)
    monkeypatch.setattr("sys.argv", ["featx", *command])
    assert main._status() == 1
    assert capsys.readouterr().err == f"featx: There is not enough memory. {hint}\n"

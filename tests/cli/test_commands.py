# The real command, in a process of its own: what it prints where, and what it exits with.
from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import timm
from PIL import Image

import featx
from featx.cli import main
from tests.helpers import HANGS, natural_image, wait_until

MODEL = "test_resnet"


def mixed_folder(folder):
    """A hundred images in every allowed format, five of them broken."""
    suffixes = ["jpg", "png", "webp", "tif", "gif", "bmp", "jp2", "avif", "ppm", "mpo"]
    folder.mkdir()
    for number in range(100):
        path = folder / f"{number}.{suffixes[number % 10]}"
        natural_image(number, 60 + number, 90).save(path)
        if number % 20 == 7:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] if number % 40 == 7 else b"not an image")
    return folder


def test_a_hundred_mixed_images_five_of_them_broken(featx_command, tmp_path):
    folder = mixed_folder(tmp_path / "mixed")
    command = ("extract", folder, "--model", MODEL, "--weights", "random", "--output", tmp_path / "out")
    first = featx_command(*command)
    assert first.returncode == 3, first.stderr
    reasons = [line for line in first.stderr.splitlines() if line.startswith("failed: ")]
    assert len(reasons) == 5
    assert all(re.fullmatch(r"failed: mixed/\d+\.\w+: decode: .+", line) for line in reasons), reasons
    assert len(list((tmp_path / "out").rglob("*.npz"))) == 95
    assert re.search(
        r"^95 of 100 done, 5 failed \(95 computed now in \d+:\d\d, [\d.]+ images/s\)$", first.stdout, re.MULTILINE
    )
    assert re.search(r"^  \d images: decode: .+; the first is mixed/\d+\.\w+$", first.stdout, re.MULTILINE), (
        first.stdout
    )

    again = featx_command(*command)
    assert again.returncode == 3
    assert "nothing to compute; 95 done before, 5 failed before" in again.stderr
    assert "95 of 100 done, 5 failed (nothing to compute)" in again.stdout


def test_the_table_and_the_files_of_one_photo(fresh_command, photo, tmp_path):
    done = fresh_command("extract", photo, "--model", MODEL, "--weights", "random")
    assert done.returncode == 0, done.stderr
    output = tmp_path / "features" / MODEL
    assert sorted(path.name for path in output.iterdir()) == ["astronaut.jpg.npz", "manifest.jsonl", "summary.json"]
    assert re.search(r"^ +2 +layer2 +48 +8 +1 +0\.25 +20 x 20 +76\.8 kB$", done.stdout, re.MULTILINE), done.stdout
    assert "random weights: shapes are right, but nothing was learned (seed 0)" in done.stdout
    assert f"features/{MODEL}/" in done.stdout
    assert "1 image to compute" in done.stderr
    assert re.search(r"^input    160 x 160, crop 0\.95: sees 91% of a 512 x 512 photo$", done.stderr, re.MULTILINE)
    assert re.search(r"^output   1\.\d\d MB an image; .+ free$", done.stderr, re.MULTILINE), done.stderr
    assert re.search(r"^memory   .+ at most, 1 pass of 1 at a time; .+ available$", done.stderr, re.MULTILINE)


def test_json_is_all_there_is_on_standard_output(featx_command, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no")
    done = featx_command("extract", photos, "--model", MODEL, "--weights", "random", "--json", "--strides", "8,32")
    assert done.returncode == 3
    value = json.loads(done.stdout)
    assert value["output"] == f"features/{MODEL}"
    assert [failure["key"] for failure in value["failures"]] == ["photos/broken.jpg"]
    assert set(value["failures"][0]) == {"key", "stage", "error"}
    assert [level["stride"] for level in value["levels"]] == [8, 32]
    assert next(iter(value)) == "featx_format"
    expected = {"featx_format", "state", "model", "source", "weights", "levels", "input", "recipe", "versions"}
    expected |= {"counts", "seconds", "output", "failures"}
    assert expected <= set(value)
    assert set(value["levels"][0]) >= {"index", "name", "channels", "stride", "offset", "height", "width"}


def test_lists_on_standard_input_and_in_files(featx_command, photos, tmp_path):
    (tmp_path / "list.txt").write_text("photos/2.jpg\n")
    done = featx_command(
        "extract",
        "-",
        "--from-file",
        "list.txt",
        "--model",
        MODEL,
        "--weights",
        "random",
        "-q",
        "-o",
        "out",
        stdin=b"photos/0.jpg\nphotos/1.jpg\n",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(featx.open_run(tmp_path / "out")) == ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg"]


def test_a_quoted_pattern_and_an_image_size(featx_command, photos, tmp_path):
    done = featx_command(
        "extract",
        "photos/[01].jpg",
        "--model",
        MODEL,
        "--weights",
        "random",
        "--image-size",
        "64x96",
        "-o",
        "out",
        "--seed",
        3,
    )
    assert done.returncode == 0, done.stderr
    run = featx.open_run(tmp_path / "out")
    assert run["photos/1.jpg"]["level_2"].shape == (48, 8, 12)
    assert run.summary["weights"]["seed"] == 3


# Everything here ends before torch is loaded.
AT_ONCE = {
    "no such input": (["nothing.jpg"], 2, "There is no file or folder nothing.jpg"),
    "no input": ([], 2, "no images to work on"),
    "an empty folder": (["empty"], 2, "no images in empty"),
    "a bad size": (["photos", "--image-size", "huge"], 2, "height x width (256x320) in pixels, not 'huge'"),
    "no size at all": (["photos", "--image-size", "0"], 2, "in pixels, not '0'"),
    "bad indices": (["photos", "--out-indices", "1,x"], 2, "such as 0,2,-1, or all, not '1,x'"),
    "bad strides": (["photos", "--strides", "8;16"], 2, "such as 8,16,32, not '8;16'"),
    "no such list": (["--from-file", "none.txt"], 2, "list none.txt cannot be read"),
    "an output that is a file": (["photos", "-o", "photos/0.jpg"], 1, "photos/0.jpg is a file"),
    "an output with other things": (["photos", "-o", "photos"], 1, "not part of a featx run"),
    "two of a name": (["photos/0.jpg", "more/0.jpg"], 2, "both be stored as 0.jpg"),
}

# These need timm to know better.
AFTER_LOADING = {
    "a misspelt model": (["photos", "--model", "resnest26"], 1, "resnest26d"),
    "no such level": (["photos", "--out-indices", "9"], 1, "no level 9. It has 5: 0 to 4"),
    "no such weights": (["photos", "--weights", "none.safetensors"], 1, "no checkpoint none.safetensors"),
    "no such device": (["photos", "--device", "cuda:9"], 2, "no cuda:9"),
}


@pytest.mark.parametrize("case", [*AT_ONCE, *AFTER_LOADING])
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(featx_command, photos, tmp_path, case):
    arguments, status, words = {**AT_ONCE, **AFTER_LOADING}[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "0.jpg").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    model = [] if "--model" in arguments else ["--model", MODEL]
    weights = [] if "--weights" in arguments else ["--weights", "random"]
    done = featx_command("extract", *arguments, *model, *weights)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("featx: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback(featx_command):
    done = featx_command("extract", "nothing.jpg", "--model", MODEL, "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "UsageError" in done.stderr


def test_interrupting_says_how_far_it_got_and_what_to_do(featx_command, tmp_path):
    """SIGINT arrives from another thread when the first features are on the disk."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(300):
        natural_image(number % 7).save(folder / f"{number}.jpg")
    command = [sys.executable, "-m", "featx", "extract", "many", "-m", MODEL, "--weights", "random", "-o", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    manifest = tmp_path / "out" / "manifest.jsonl"
    wait_until(lambda: manifest.exists() and manifest.stat().st_size, unless=lambda: process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=HANGS)
    assert process.returncode == 130, stderr
    said = re.search(r"^featx: Stopped: (\d+) of 300 done\. Run the same command to resume\.$", stderr, re.MULTILINE)
    assert said, stderr
    assert len(manifest.read_text().splitlines()) == int(said.group(1)) < 300
    assert "Traceback" not in stderr


def test_info(featx_command):
    done = featx_command("info", "--model", "regnety_032")
    assert done.returncode == 0, done.stderr
    for words in ("17.9 M", "224 x 224", "crop 0.95", "apache-2.0", "ra_in1k", "8, 16, 32", "3.93 MB"):
        assert words in done.stdout
    assert re.search(r"^ +4 +s4 +1512 +32 +0 +7 x 7", done.stdout, re.MULTILINE)


def test_info_says_which_stride_to_use_where_two_could_be_meant(featx_command):
    unpadded = featx_command("info", "efficientnet_b1").stdout
    assert re.search(r"^ +4 +blocks\.6 +320 +32 +0 +8 x 8", unpadded, re.MULTILINE)
    assert "Strides are the measured spacing of cells" in unpadded
    assert "instead of input size divided by map size, which is 30 at level 4." in unpadded
    for model in ("resnet18", "crossvit_9_240"):
        assert "measured spacing" not in featx_command("info", model).stdout


def test_info_says_how_far_branches_lie_apart_where_they_do(featx_command):
    pooled = featx_command("info", "resnet50d").stdout
    assert re.search(r"^ *level +module +channels +stride +offset +spread +map +bytes", pooled, re.MULTILINE)
    assert re.search(r"^ +4 +layer4 +2048 +32 +7 +0\.438 +7 x 7", pooled, re.MULTILINE)
    assert "An offset with a spread is the mean of branches that lie so many cells apart." in pooled
    levels = json.loads(featx_command("info", "resnet50d", "--json").stdout)["levels"]
    assert [level.get("offset_spread") for level in levels] == [None, None, 0.25, 0.375, 0.438]
    assert "spread" not in featx_command("info", "resnet50").stdout


@pytest.mark.parametrize(
    ("model", "marks"),
    [("resnet18", {"default": "a1_in1k"}), ("resnet18.a2_in1k", {"default": "a1_in1k", "chosen": "a2_in1k"})],
)
def test_info_marks_the_weights_that_a_name_stands_for(featx_command, model, marks):
    rows = re.findall(r"^(\w+_in1k) .* (default|chosen) *$", featx_command("info", model).stdout, re.MULTILINE)
    assert {mark: tag for tag, mark in rows} == marks


@pytest.mark.parametrize("command", ["info", "bench", "fetch"])
def test_a_model_may_be_named_with_or_without_its_option(featx_command, tmp_path, command):
    missing = [featx_command(command, *named) for named in (["nonsense"], ["--model", "nonsense"])]
    assert [(done.returncode, done.stdout) for done in missing] == [(1, "")] * 2
    assert missing[0].stderr == missing[1].stderr
    assert "timm has no model 'nonsense'" in missing[0].stderr
    twice = featx_command(command, "resnet18", "--model", "resnet18")
    assert (twice.returncode, twice.stderr.count("\n")) == (2, 1)
    assert "Two models are named" in twice.stderr
    never = featx_command(command)
    assert (never.returncode, never.stdout) == (2, "")
    assert f"Write, for example, featx {command} resnet50" in never.stderr
    assert not list(tmp_path.iterdir())


WRONG_USAGE = {
    "an option of nearly that name": (["extract", "--batchsize", "3"], "no option --batchsize. Did you mean --batch-s"),
    "an option of another command": (["info", "x", "--weights", "y"], "no option --weights. See `featx info --help`"),
    "an option that is missing": (["extract", "photo.jpg"], "extract needs --model NAME. Example: featx extract "),
    "an argument that is missing": (["verify"], "verify needs RUN. Example: featx verify "),
    "an unknown command": (["extrct"], "No such command 'extrct'. Did you mean 'extract'?"),
    "no value": (["extract", "--seed"], "requires an argument"),
    "a number that cannot be": (["list-models", "--limit", "0"], "--limit: expected a whole number of at least 1"),
    "a value of nearly that name": (["list-models", "--source", "tim"], "not 'tim'. Did you mean timm?"),
}


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage_is_one_line_with_the_way_out(featx_command, case):
    arguments, said = WRONG_USAGE[case]
    done = featx_command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("featx: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_models_that_are_not_fetched_say_where_their_weights_go(featx_command):
    fetched = featx_command("fetch", "yolov8n")
    assert fetched.returncode == 1
    assert "--weights yolov8n.pt" in fetched.stderr


def test_info_as_json(featx_command):
    done = featx_command("info", "--model", "resnest26d", "--image-size", "256x320", "--out-indices", "-1", "--json")
    value = json.loads(done.stdout)
    expected = {"model", "source", "architecture", "parameters", "levels", "input", "pretrained", "output_strides"}
    assert set(value) >= expected | {"fixed_size", "bytes_per_image"}
    (level,) = value["levels"]
    assert (level["index"], level["channels"], level["height"], level["width"]) == (4, 2048, 8, 10)
    assert value["bytes_per_image"] == 2048 * 8 * 10 * 4
    reference = timm.create_model("resnest26d", features_only=True)
    assert value["parameters"] == sum(parameter.numel() for parameter in reference.parameters())
    assert value["pretrained"] == featx.list_models("resnest26d")[0]["pretrained"]


def test_bytes_per_image_is_what_a_file_takes(featx_command, photo, tmp_path):
    value = json.loads(featx_command("info", "--model", MODEL, "--json").stdout)
    featx.extract(photo, MODEL, tmp_path / "out", weights="random", device="cpu")
    taken = (tmp_path / "out" / "astronaut.jpg.npz").stat().st_size
    assert value["bytes_per_image"] == sum(
        values.nbytes for values in np.load(tmp_path / "out" / "astronaut.jpg.npz").values()
    )
    assert value["bytes_per_image"] < taken < value["bytes_per_image"] + 2000


def test_a_model_too_large_for_memory_is_described():
    """Its weights would take gigabytes; on the meta device they take none. The process reads its own peak: what the
    system counts for children includes the memory of the process that started them."""
    script = """
import featx.models.search, featx.options, re
request = featx.requests.ModelRequest("vit_giant_patch14_dinov2", image_size=(518, 252))
value = featx.models.search.describe_model(request)
print(value["parameters"], re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    parameters, peak = map(int, printed.split())
    assert parameters > 1.1e9
    assert peak < 2e6  # kilobytes


def test_list_models(featx_command):
    names = featx_command("list-models", "--names").stdout.split()
    assert names == timm.list_models()
    table = featx_command("list-models", "resnest*", "regnety_03").stdout
    assert re.search(
        r"^resnest26d +2·64  4·256  8·512  16·1024  32·2048 +15\.0 M +224x224 +gluon_in1k +apache-2\.0$",
        table,
        re.MULTILINE,
    )
    assert "regnety_032" in table
    pretrained = json.loads(featx_command("list-models", "--pretrained", "--json").stdout)
    assert {entry["model"] for entry in pretrained} == {name.partition(".")[0] for name in timm.list_pretrained()}
    nothing = featx_command("list-models", "resnett")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "Nearest: resnet" in nothing.stderr


@pytest.mark.parametrize("command", [[], ["list-models"], ["info"], ["extract"]])
def test_every_command_s_help_has_an_example(featx_command, command):
    done = featx_command(*command, "--help")
    assert done.returncode == 0
    assert f"Example: featx {' '.join(command)}" in " ".join(done.stdout.split())


def test_old_objects_are_not_looked_at_again_and_again_while_torch_is_imported(photo, tmp_path):
    """What Python's cycle collector does by default, which takes a second."""
    script = """
import gc, sys
from featx.cli import main, streams
streams.leave = lambda status: print(status, gc.get_stats()[2]["collections"], "timm" in sys.modules)
main.main()
"""
    command = (sys.executable, "-c", script, "extract", photo, "--model", MODEL, "--weights", "random", "-q")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS, check=True)
    assert done.stdout.splitlines()[-1] == "0 0 True"


def test_version(fresh_command):
    assert fresh_command("--version").stdout == f"featx {featx.__version__}\n"


def test_a_terminal_without_utf_8_and_without_colour_is_respected(fresh_command, photos):
    done = fresh_command(
        "extract", photos, "-m", MODEL, "--weights", "random", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C"
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extract", "", "--model", "test_resnet"], "One of the arguments is empty"),
        (["extract", "photo.jpg", "--model", ""], "One of the arguments is empty"),
        (["extract", "photo.jpg", "--model", "test_resnet", "--output="], "--output has an empty value"),
        (["verify", ""], "One of the arguments is empty"),
        (["list-models", "--license", ""], "One of the arguments is empty"),
    ],
)
def test_an_empty_argument_is_wrong_usage(featx_command, tmp_path, arguments, said):
    """It would be read as the current folder."""
    done = featx_command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"featx: {said}. Check the quotes, and variables that may not be set.\n"
    assert list(tmp_path.iterdir()) == []


HUGE = "9" * 400


@pytest.mark.parametrize(
    "options",
    [
        *(("--seed", value) for value in (HUGE, f"-{HUGE}", str(1 << 64))),
        *(("--batch-size", value) for value in (HUGE, "0", "-1", "8,16", "x")),
        *(("--workers", value) for value in ("0", "-3")),
        *(
            (name, value)
            for name in ("--max-pixels", "--max-bytes", "--memory-limit")
            for value in (HUGE, "0", "-1", "x", "1.2.3")
        ),
        *(("--image-size", value) for value in (HUGE, "0", "-1", "64x", "1x2x3")),
        *(("--out-indices", value) for value in ("x", "99", "1;2")),
        *(("--dtype", value) for value in ("int16", "float64")),
    ],
    ids=lambda options: " ".join(options)[:30],
)
def test_numbers_that_cannot_be_are_one_line(tmp_path, options, capsys, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    command = ["featx", "extract", "photo.png", "--model", "test_resnet", "--weights", "random", *options]
    monkeypatch.setattr("sys.argv", command)
    status = main._status()
    said = capsys.readouterr().err
    assert status in (1, 2)
    assert "Unexpected" not in said
    assert not (tmp_path / "features").exists()

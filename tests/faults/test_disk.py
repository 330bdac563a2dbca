# A disk that is full, broken or read-only: one line, status 1 at the first failure, and the same bytes after resuming.
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

import featx
from tests.faults.conftest import make_photos, require_complete, require_only_complete_files
from tests.helpers import MODEL, lines, outputs

SMALL = (*MODEL, "--embedding", "--output", "out")
ONE = ("--batch-size", "1")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("three") / "photos", 3)


@pytest.fixture(scope="module")
def undisturbed(forge, three, tmp_path_factory):
    """What a run without faults writes, and the calls that it makes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    counting = {"name": "call", "number": 0, "kind": "EIO", "counter": str(folder / "calls")}
    assert forge.extract(folder, three, "out", fault=counting)["status"] == 0
    return outputs(folder / "out"), Path(counting["counter"]).read_text().split()


@pytest.mark.parametrize("kind", ["ENOSPC", "EIO", "kill"])
def test_every_call_fails_in_turn(forge, three, undisturbed, tmp_path, kind, request):
    """With --large all of them; otherwise another third for each kind."""
    expected, calls = undisturbed
    assert {"open", "writev", "fsync", "replace", "mkdir"} <= set(calls)
    step, first = (1, 1) if request.config.getoption("large") else (3, 1 + ["ENOSPC", "EIO", "kill"].index(kind))
    for number in range(first, len(calls) + 1, step):
        fault = {"name": "call", "number": number, "kind": kind, "counter": str(tmp_path / "calls")}
        (tmp_path / "calls").unlink(missing_ok=True)
        failed = forge.extract(tmp_path, three, "out", fault=fault)
        made = (tmp_path / "calls").read_text().split()
        if len(made) < number:  # two threads that make one folder at once make one call more than one of them
            assert (failed["status"], len(calls) - len(made) <= 3) == (0, True)
            shutil.rmtree(tmp_path / "out")
            continue
        if kind == "kill":
            assert (failed["status"], failed["stderr"].count("featx:")) == (-9, 0)
        elif failed["status"] == 0:  # what is only cleared away at the end may be left to the next run
            assert made[number - 1] == "unlink", (number, made)
        else:
            errors = [line for line in failed["stderr"].splitlines() if line.startswith("featx:")]
            assert (failed["status"], len(errors)) == (1, 1), (made, failed)
            assert "Unexpected" not in errors[0]
        require_only_complete_files(tmp_path / "out", expected)
        assert not list((tmp_path / "out").glob("*.tmp"))
        resumed = forge.extract(tmp_path, three, "out", isolation=kind == "kill")
        assert resumed["status"] == 0, (made, resumed)
        require_complete(tmp_path / "out", expected)
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("kind", ["EINVAL", "ENAMETOOLONG"])
def test_a_name_that_the_disk_refuses_fails_one_image(forge, three, undisturbed, tmp_path, kind):
    expected, _ = undisturbed
    fault = {"name": "call", "only": "replace", "number": 3, "kind": kind}  # the first is the summary's
    done = forge.extract(tmp_path, three, "out", fault=fault)
    # The group is tried one by one then, and the fault does not come back.
    assert done["status"] == 0
    require_complete(tmp_path / "out", expected)
    shutil.rmtree(tmp_path / "out")
    always = {"name": "call", "only": "replace", "number": -1, "kind": kind}
    done = forge.extract(tmp_path, three, "out", fault=always)
    assert done["status"] == 3
    errors = {line.get("error", "").partition(":")[0] for line in lines(tmp_path / "out")}
    assert errors == {"no name for this disk"}


def test_a_file_that_may_not_grow_so_large(forge, three, undisturbed, tmp_path):
    """EFBIG, from the kernel itself."""
    failed = forge.extract(tmp_path, three, "out", limits={"RLIMIT_FSIZE": 100_000})
    assert failed["status"] == 1
    assert "File too large" in failed["stderr"]
    assert forge.extract(tmp_path, three, "out")["status"] == 0
    require_complete(tmp_path / "out", undisturbed[0])


def test_a_folder_that_cannot_be_made(forge, three, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    failed = forge.extract(tmp_path, three, "file/out")
    assert failed["status"] == 1
    assert failed["stderr"].splitlines()[-1].endswith("file is not a folder. Choose another one with --output.")


# Every command that reads or writes a run: what comes before it, and the statuses that are good.
COMMANDS = {
    "extract": ((), ("extract", "photos", *SMALL), (0,)),
    "resume": ((("extract", "photos/0000.jpg", *SMALL, *ONE),), ("extract", "photos", *SMALL, *ONE), (0,)),
    "overwrite": ((("extract", "photos", *SMALL),), ("extract", "photos", *SMALL, "--seed", "1", "--overwrite"), (0,)),
    "smaller": (
        (),
        ("extract", "photos", *SMALL, "--grid", "3", "--components", "4", "--dtype", "int8"),
        (0,),
    ),
    "npy": ((), ("extract", "photos", *SMALL, "--format", "npy"), (0,)),
    "parquet": ((), ("extract", "photos", *SMALL, "--format", "parquet"), (0,)),
    "shard": (
        (("extract", "photos", *SMALL, "--shard", "1/2"),),
        ("extract", "photos", *SMALL, "--shard", "2/2"),
        (0,),
    ),
    "merge": ((("extract", "photos", *SMALL, "--shard", "1/1"),), ("merge", "out"), (0,)),
    "verify": ((("extract", "photos", *SMALL),), ("verify", "out"), (0,)),
    "repair": ((("extract", "photos", *SMALL), "damage"), ("verify", "out", "--repair"), (1,)),
    "similar": ((("extract", "photos", *SMALL),), ("similar", "out", "photos/0000.jpg", "-o", "out.png"), (0,)),
    "fetch": (("model",), ("fetch", "--model", "local-dir:model", "--output", "out"), (0,)),
    "fetched": (("model",), ("extract", "photos", "--model", "local-dir:model", *SMALL[4:]), (0,)),
    "bench": ((), ("bench", "--images", "photos", "--count", "8", "--rounds", "1", *MODEL[:2], *MODEL[4:]), (0,)),
    "info": ((), ("info", "--model", "resnet50"), (0,)),
}


def make_model(folder):
    """A model in a folder, as `featx fetch` takes it from."""
    folder.mkdir()
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "pytorch_model.bin")
    configuration = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 160, 160]}}
    (folder / "config.json").write_text(json.dumps(configuration))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_call_of_every_command(forge, tmp_path, command, request):
    """Below pathlib, about photos and outputs alike: one line that is expected, and the next call makes it good."""
    steps, arguments, good = COMMANDS[command]
    make_photos(tmp_path / "photos", 2)
    for step in steps:
        if step == "damage":
            next((tmp_path / "out").rglob("*.npz")).write_bytes(b"damaged")
        elif step == "model":
            make_model(tmp_path / "model")
        else:
            assert forge(tmp_path, *step)["status"] == 0
    before, counter = tmp_path / "before", tmp_path / "calls"
    if (tmp_path / "out").exists():
        shutil.copytree(tmp_path / "out", before)
    below = [
        *(str(tmp_path / name) for name in ("out", "photos", "model")),
        str(Path(featx.__file__).parent / "models" / "data"),
    ]
    fault = {"name": "call", "number": 0, "kind": "EIO", "counter": str(counter), "below": below, "every": True}
    assert forge(tmp_path, *arguments, fault=fault, isolation=True)["status"] in good
    calls = len(counter.read_text().split())
    assert calls > (40 if arguments[0] == "extract" else 0)
    # Another part of the calls for every command; all of them where there is time.
    stride, start = (1, 1) if request.config.getoption("large") else (30, 1 + 2 * list(COMMANDS).index(command))
    for number in range(start, calls + 1, stride):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if before.exists():
            shutil.copytree(before, tmp_path / "out")
        counter.unlink()
        failed = forge(tmp_path, *arguments, fault={**fault, "number": number}, isolation=True)
        made = counter.read_text().split()
        assert "Unexpected" not in failed["stderr"], (made, failed)
        assert "Traceback" not in failed["stderr"], (made, failed)
        assert failed["status"] in {*good, 0, 1, 2, 3}, (made, failed)
        errors = [line for line in failed["stderr"].splitlines() if line.startswith("featx:")]
        assert len(errors) == (failed["status"] in (1, 2)) or arguments[0] == "verify", (made, failed)
        retry = ("--retry-failed",) if arguments[0] == "extract" else ()
        again = forge(tmp_path, *arguments, *retry, isolation=True)
        assert again["status"] in good, (made, failed, again)
        if arguments[0] == "extract":
            assert forge(tmp_path, "verify", "out")["status"] == 0, (made, failed)

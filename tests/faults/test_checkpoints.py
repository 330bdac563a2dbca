# Checkpoints that are hostile or damaged: each is refused in one line, no code in it runs, and nothing is written.
from __future__ import annotations

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from tests.helpers import errors, lines


class Calls:
    """Unpickles by a call."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", features_only=True).state_dict()


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def rezipped(data, change):
    """A torch archive with its records passed through `change(name, bytes)`."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new:
        for member in old.infolist():
            content = change(member.filename, old.read(member))
            if content is not None:
                new.writestr(member.filename, content)
    return file.getvalue()


def with_header(header, body=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def lying_offsets(state):
    """Two tensors that claim the same bytes, and one that claims bytes beyond the end."""
    header = {
        name: {"dtype": "F32", "shape": list(value.shape), "data_offsets": [0, value.numel() * 4]}
        for name, value in state.items()
    }
    return with_header(header, bytes(64))


def poisoned(state, value):
    changed = {name: tensor.clone() for name, tensor in state.items()}
    changed["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    return safetensors.torch.save(changed)


def reshaped(state):
    return safetensors.torch.save({**state, "conv1.0.weight": torch.zeros(3, 3)})


def bitten(data):
    """Its middle lost."""
    return data[: len(data) // 3] + data[2 * len(data) // 3 :]


# What the file is called, and what is in it, of a sound state dict and a command that leaves a canary behind.
CHECKPOINTS = {
    "runs a shell command": ("a.pth", lambda state, canary: saved(Calls(os.system, f"touch {canary}"))),
    "runs one beside sound weights": (
        "a.pth",
        lambda state, canary: saved({**state, "extra": Calls(os.system, f"touch {canary}")}),
    ),
    "evaluates an expression": ("a.bin", lambda state, canary: saved({"x": Calls(eval, f"open({canary!r}, 'w')")})),
    "executes a program": ("a.bin", lambda state, canary: pickle.dumps(Calls(exec, f"open({canary!r}, 'w')"))),
    "is of the old kind": (
        "a.pth.tar",
        lambda state, canary: saved({**state, "x": Calls(os.mkdir, canary)}, _use_new_zipfile_serialization=False),
    ),
    "is a pickle called safetensors": (
        "a.safetensors",
        lambda state, canary: pickle.dumps(Calls(os.system, f"touch {canary}")),
    ),
    "runs one in the place of arguments": (
        "a.pth",
        lambda state, canary: saved({"state_dict": state, "args": Calls(os.system, f"touch {canary}")}),
    ),
    "hides one in the state of arguments": (
        "a.pth",
        lambda state, canary: saved({"model": state, "args": argparse.Namespace(x=Calls(os.mkdir, canary))}),
    ),
    "hides one as a dictionary's factory": (
        "a.pth",
        lambda state, canary: saved(
            collections.defaultdict(list, {"model": state, "x": Calls(eval, f"open({canary!r}, 'w')")})
        ),
    ),
    "makes an array that maps a file": (
        "a.pth",
        lambda state, canary: saved({"model": state, "x": Calls(np.memmap, canary, "u1", "w+", 0, (1,))}),
    ),
    "reads another pickle by NumPy": (
        "a.pth",
        lambda state, canary: saved({"model": state, "x": Calls(np.load, canary, None, True)}),
    ),
    "writes by a path": (
        "a.pth",
        lambda state, canary: saved({"model": state, "x": Calls(pathlib.Path.touch, pathlib.Path(canary))}),
    ),
    "asks a path for more than it is": (
        "a.pth",
        lambda state, canary: saved({"model": state, "x": Calls(getattr, pathlib.Path(canary), "touch")}),
    ),
    "holds two networks": ("a.pth", lambda state, canary: saved({"student": state, "teacher": state})),
    "is a pointer": ("a.pth", lambda state, canary: b"version https://git-lfs.github.com/spec/v1\n"),
    "is a page": ("a.safetensors", lambda state, canary: b"<!DOCTYPE html>"),
    "has another pickle in its archive": (
        "a.pth",
        lambda state, canary: rezipped(
            saved(state),
            lambda name, data: pickle.dumps(Calls(os.mkdir, canary)) if name.endswith("data.pkl") else data,
        ),
    ),
    "lacks a record": (
        "a.pth",
        lambda state, canary: rezipped(saved(state), lambda name, data: None if name.endswith("data/3") else data),
    ),
    "is cut off": ("a.pth", lambda state, canary: saved(state)[:-1000]),
    "has lost its middle": ("a.pth", lambda state, canary: bitten(saved(state))),
    "has a header longer than itself": ("a.safetensors", lambda state, canary: struct.pack("<Q", 1 << 60) + b"{}"),
    "has offsets that lie": ("a.safetensors", lambda state, canary: lying_offsets(state)),
    "is safetensors cut off": ("a.safetensors", lambda state, canary: safetensors.torch.save(state)[:-7]),
    "holds NaN": ("a.safetensors", lambda state, canary: poisoned(state, float("nan"))),
    "holds infinity": ("a.safetensors", lambda state, canary: poisoned(state, float("-inf"))),
    "lacks a parameter": (
        "a.safetensors",
        lambda state, canary: safetensors.torch.save(dict(list(state.items())[:-8])),
    ),
    "has another shape": ("a.safetensors", lambda state, canary: reshaped(state)),
    "is another model's": (
        "a.safetensors",
        lambda state, canary: safetensors.torch.save(timm.create_model("test_efficientnet").state_dict()),
    ),
    "is empty": ("a.pth", lambda state, canary: b""),
    "is noise": ("a.bin", lambda state, canary: bytes(range(256)) * 40),
}


@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_it_is_refused(forge, photos, tmp_path, state, fault):
    name, make = CHECKPOINTS[fault]
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(make(state, str(canary)))
    done = forge(
        tmp_path,
        *("extract", photos / "0000.jpg", "--model", "test_resnet", "--weights", name, "--image-size", "64"),
        *("--output", "out", "--device", "cpu"),
    )
    assert done["status"] == 1, done
    (error,) = errors(done["stderr"])
    assert error.startswith("featx: ")
    assert "Unexpected" not in done["stderr"]
    assert "weights_only" not in done["stderr"]
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


def test_the_sound_one_is_taken(forge, photos, tmp_path, state):
    """What is refused above is not refused for something that all of them share."""
    for name, content in (("a.pth", saved(state)), ("b.safetensors", safetensors.torch.save(state))):
        (tmp_path / name).write_bytes(content)
        done = forge(
            tmp_path,
            *("extract", photos / "0000.jpg", "--model", "test_resnet", "--weights", name, "--image-size", "64"),
            *("--output", f"out-{name}", "--device", "cpu"),
        )
        assert done["status"] == 0, done
        assert lines(tmp_path / f"out-{name}")[0]["status"] == "done"

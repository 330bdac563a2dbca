# Checkpoints: which network in a file is meant, what else may lie beside it, and what a file is that is none.
from __future__ import annotations

import argparse
import bz2
import collections
import datetime
import gzip
import io
import json
import lzma
import pathlib
import pickle
import random
import tarfile
import types
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from featx.errors import WeightsError
from featx.models import checkpoints
from featx.models.checkpoints import read_checkpoint, split_part


def network(seed: int, count: int = 4):
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{number}.weight": torch.randn(3, generator=generator) for number in range(count)}


ONE, TWO = network(1), network(2)
OPTIMISER = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}


def saved(folder, content, **options):
    path = folder / "weights.pth"
    torch.save(content, path, **options)
    return path


def read(path, part=""):
    return read_checkpoint(path, "a file", part=part)


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


FOUND = {
    "plain": (ONE, ""),
    "plain with other things": ({**ONE, "epoch": 3, "center": {"mean": torch.zeros(1)}}, ""),
    "state_dict": ({"state_dict": ONE, "optimizer": OPTIMISER}, "state_dict"),
    "of two that timm knows the first": ({"model": TWO, "state_dict": ONE}, "state_dict"),
    "averaged first": ({"state_dict": TWO, "state_dict_ema": ONE}, "state_dict_ema"),
    "averaged, as BasicSR has it": ({"params": TWO, "params_ema": ONE}, "params_ema"),
    "averaged net": ({"net": TWO, "ema": ONE}, "ema"),
    "a known one before others": ({"model": ONE, "teacher": TWO}, "model"),
    "model": ({"model": ONE, "optimizer": OPTIMISER, "rng": torch.zeros(9)}, "model"),
    "empty container beside it": ({"state_dict": None, "model_ema": {}, "net": ONE}, "net"),
    "nested": ({"model": {"state_dict": ONE, "epoch": 3}}, "model.state_dict"),
    "nested deeper": ({"checkpoint": {"state_dict": {"encoder": ONE}}}, "checkpoint.state_dict.encoder"),
    "teacher alone": ({"teacher": ONE, "epoch": torch.tensor(3), "loss": {"center": torch.zeros(1)}}, "teacher"),
    "an unknown name": ({"my_network": ONE, "optimizer": OPTIMISER, "step": torch.tensor(3)}, "my_network"),
    "a dictionary that is none": (collections.defaultdict(dict, {"state_dict": ONE}), "state_dict"),
    **{
        name: ({name: ONE, "epoch": 3}, name)
        for name in ("net", "network", "params", "weights", "student", "ema", "generator", "model_ema", "backbone")
    },
}


@pytest.mark.parametrize("case", FOUND)
def test_the_network_that_is_meant_is_found_and_named(tmp_path, case):
    content, part = FOUND[case]
    path = saved(tmp_path, content)
    checkpoint = read(path)
    assert checkpoint.part == part
    assert_same(checkpoint.tensors, ONE)
    if part:
        again = read(path, part)
        assert again.part == part
        assert_same(again.tensors, ONE)


SEVERAL = {
    "DINO": ({"student": ONE, "teacher": TWO, "optimizer": OPTIMISER}, "student, teacher", "teacher", "teacher"),
    "in one container": (
        {"state_dict": {"student": ONE, "teacher": TWO}},
        "state_dict.student, state_dict.teacher",
        "state_dict.teacher",
        "state_dict.teacher",
    ),
    "nested": (
        {"student": {"state_dict": ONE}, "teacher": {"state_dict": TWO}},
        "student, teacher",
        "teacher",
        "teacher.state_dict",
    ),
    "unknown names": ({"left": ONE, "right": TWO}, "left, right", "right", "right"),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_of_several_networks_one_is_chosen_by_name(tmp_path, case):
    content, listed, part, found = SEVERAL[case]
    path = saved(tmp_path, content)
    with pytest.raises(WeightsError, match=f"holds several networks: {listed}\\. Choose one: --weights .*pth:"):
        read(path)
    checkpoint = read(path, part)
    assert checkpoint.part == found
    assert_same(checkpoint.tensors, TWO)
    with pytest.raises(WeightsError, match=r"holds no 'nobody'\. It holds"):
        read(path, "nobody")


@pytest.mark.parametrize("part", ["teacher", "state_dict.teacher"])
def test_a_network_may_be_chosen_by_what_its_names_begin_with(tmp_path, part):
    flat = {f"{who}.{name}": value for who, own in (("student", ONE), ("teacher", TWO)) for name, value in own.items()}
    checkpoint = read(saved(tmp_path, {"state_dict": flat}), part)
    assert checkpoint.part == "state_dict.teacher"
    assert_same(checkpoint.tensors, TWO)
    safetensors.torch.save_file(flat, tmp_path / "flat.safetensors")
    assert_same(read(tmp_path / "flat.safetensors", "teacher").tensors, TWO)


def test_a_part_is_told_from_a_file_that_is_called_so(tmp_path):
    plain, colon = tmp_path / "a.pth", tmp_path / "a.pth:teacher"
    plain.touch()
    assert split_part(str(plain)) == (plain, "")
    assert split_part(f"{plain}:teacher") == (plain, "teacher")
    assert split_part(f"{tmp_path}/none.pth:teacher") == (tmp_path / "none.pth:teacher", "")
    colon.touch()
    assert split_part(str(colon)) == (colon, "")
    assert split_part(f"{colon}:model") == (colon, "model")


def test_what_contains_itself_ends(tmp_path):
    endless: dict = {"epoch": 3}
    endless["model"] = endless
    for number in range(60):
        endless[f"model{number}"] = endless
    with pytest.raises(WeightsError, match="holds no tensors"):
        read(saved(tmp_path, endless))


# What lies beside the weights

BESIDE = {
    "arguments": argparse.Namespace(lr=0.1, output=pathlib.Path("/tmp/x"), best=np.float64(0.5)),
    "paths": [pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("b"), pathlib.Path("c")],
    "NumPy's scalars": [np.float32(1), np.float64(2), np.int64(3), np.bool_(True), np.str_("four")],
    "NumPy's arrays": [np.zeros(3), np.zeros((2, 2), order="F"), np.zeros(2, dtype=[("a", "f4"), ("b", "i8")])],
    "NumPy's types": [np.dtype("float32"), np.float32],
    "random states": [np.random.default_rng(0).bytes(3), random.getstate(), torch.get_rng_state()],
    "dictionaries": [collections.OrderedDict(a=1), collections.Counter("aab"), collections.defaultdict(list, a=[1])],
    "a queue": collections.deque([1, 2]),
    "times": [datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1), datetime.date(2024, 1, 1)],
    "sets": [{1, 2}, frozenset((1,)), range(3), slice(1, 2), 1j, b"bytes", bytearray(b"more")],
    "names": types.SimpleNamespace(a=1),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", BESIDE)
def test_harmless_things_may_lie_beside_the_weights(tmp_path, what, legacy):
    path = saved(tmp_path, {"state_dict": ONE, "more": BESIDE[what]}, _use_new_zipfile_serialization=not legacy)
    assert_same(read(path).tensors, ONE)


class Calls:
    """Unpickles by a call, and then by a state."""

    def __init__(self, function, *arguments, state=None):
        self._call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self._call


def test_none_of_what_is_allowed_is_ever_made(tmp_path, monkeypatch):
    """Every name stands for something that ignores what it is given: no class but torch's own is called or filled."""
    path = saved(tmp_path, {"state_dict": ONE, "args": Calls(argparse.Namespace, state={"lr": 0.1})})
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *_: pytest.fail("made"))
    assert_same(read(path).tensors, ONE)
    for stand_in, name in checkpoints.STAND_INS:
        assert stand_in in (checkpoints.StandIn, checkpoints.empty_dict, checkpoints.empty_list), name


@pytest.mark.parametrize(
    "forged",
    [
        Calls(np.dtype, "f8", state=(3, "|", None, ("x",), {"x": (np.dtype("O"), 0)}, 8, 1, 0)),
        Calls(np._core.multiarray.scalar, np.dtype("O"), b"\x01\x02\x03\x04\x05\x06\x07\x08"),
        Calls(np._core.multiarray._reconstruct, np.ndarray, (1 << 60,), b"f8"),
        Calls(pathlib.PosixPath, "/etc/passwd"),
    ],
)
def test_forged_states_of_what_is_allowed_reach_nobody(tmp_path, forged):
    """A type whose state lies about its flags makes NumPy take bytes for pointers; here no such type is made."""
    assert_same(read(saved(tmp_path, {"state_dict": ONE, "x": forged})).tensors, ONE)


def test_the_caller_s_own_list_of_safe_globals_is_left_alone(tmp_path):
    torch.serialization.add_safe_globals([argparse.Namespace])
    before = {*map(repr, torch.serialization.get_safe_globals())}
    try:
        read(saved(tmp_path, {"model": ONE, "args": argparse.Namespace(a=1)}))
        assert {*map(repr, torch.serialization.get_safe_globals())} == before
    finally:
        torch.serialization._weights_only_unpickler._remove_safe_globals([argparse.Namespace])


# What is no checkpoint


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("weights.pth")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def torch_saved(content=ONE, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def scripted():
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

IMPOSTORS = {
    "pointer": (lambda: POINTER, "a Git LFS pointer, not the weights themselves. Run `git lfs pull`"),
    "page": (lambda: b"\n<!DOCTYPE html>\n<html>", "an HTML page, not the weights themselves. Use the download link"),
    "page in capitals": (lambda: b"<HTML><HEAD>", "an HTML page"),
    "empty": (lambda: b"", "empty"),
    "text": ("Grüße\nan alle".encode, "a text file"),
    "json": (lambda: b'{"lr": 0.1}', "a JSON file"),
    "index": (
        lambda: json.dumps({"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode(),
        "the index of a checkpoint in 2 files. Join them into one: m-1",
    ),
    "gzip": (lambda: gzip.compress(torch_saved()), "a compressed archive. Unpack it"),
    "bzip2": (lambda: bz2.compress(torch_saved()), "a compressed archive"),
    "xz": (lambda: lzma.compress(torch_saved()), "a compressed archive"),
    "tar": (lambda: tarred(torch_saved()), "a tar archive. Unpack it"),
    "zip": (lambda: zipped(weights=torch_saved()), "a zip archive that torch did not save. Unpack it"),
    "script": (scripted, "a TorchScript archive. Save its parameters alone"),
    "onnx": (lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:", "an ONNX model"),
    "flax": (lambda: b"\x81\xa6params\x82\xa5Dense", "a MessagePack file, as Flax writes them"),
    "keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    "tensorflow": (lambda: b"\x08\x01\x12\xff\x01\x0a", "a TensorFlow model"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(50), "a TensorFlow model"),
    "array": (lambda: b"\x93NUMPY\x01\0", "a NumPy array"),
    "gguf": (lambda: b"GGUF\x03\0\0\0", "a GGUF file"),
    "image": (lambda: b"\x89PNG\r\n\x1a\n", "an image"),
    "bare pickle": (lambda: pickle.dumps({"a": 1}, protocol=4), "damaged, or not what torch saves"),
    "newer pickle": (lambda: torch_saved(pickle_protocol=4), "damaged, or not what torch saves"),
    "noise": (lambda: bytes(range(256)) * 40, "damaged, or not what torch saves"),
}


@pytest.mark.filterwarnings("ignore:.*jit.*")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", IMPOSTORS)
def test_a_file_that_is_none_is_called_what_it_is(tmp_path, kind, suffix):
    make, words = IMPOSTORS[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(make())
    if suffix == ".safetensors" and "torch saves" in words:
        words = "is not a readable safetensors file"
    with pytest.raises(WeightsError, match=words) as refused:
        read(path)
    assert str(refused.value).count("\n") == 0
    assert "weights_only" not in str(refused.value)


DAMAGED = {
    "cut off": lambda data: data[:-300],
    "half": lambda data: data[: len(data) // 2],
    "overwritten": lambda data: data[: len(data) // 3] + bytes(60) + data[len(data) // 3 + 60 :],
    "old and cut off": lambda _: torch_saved(_use_new_zipfile_serialization=False)[:-20],
    "a number": lambda _: torch_saved(3),
    "a whole module": lambda _: torch_saved(torch.nn.Linear(2, 2)),
    "a function": lambda _: torch_saved({**ONE, "x": Calls(getattr, "text", "upper")}),
    "a reader of files": lambda _: torch_saved({**ONE, "x": Calls(open, "/etc/passwd")}),
    "a reader of arrays": lambda _: torch_saved({**ONE, "x": Calls(np.fromfile, "/etc/passwd", "u1")}),
    "an importer": lambda _: torch_saved({**ONE, "x": Calls(__import__, "antigravity")}),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_torch_s_advice_to_load_unsafely_is_not_passed_on(tmp_path, damage):
    path = tmp_path / "weights.pth"
    path.write_bytes(DAMAGED[damage](torch_saved()))
    with pytest.raises(WeightsError) as refused:
        read(path)
    said = str(refused.value)
    for advice in ("weights_only", "weights only", "two options", "add_safe_globals", "trust", "torch.load"):
        assert advice not in said
    assert "\n" not in said


def test_a_safetensors_header_of_any_length_is_no_impostor(tmp_path):
    """Its first bytes are a length, which may read as the beginning of anything."""
    for length in (0xA581, 0x3C0A, 0x8B1F, 0x5A42):
        header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"x": ""}}
        header["__metadata__"]["x"] = "x" * (length - len(json.dumps(header)))
        path = tmp_path / "weights.bin"
        path.write_bytes(length.to_bytes(8, "little") + json.dumps(header).encode() + b"\0\0\x80?")
        assert read(path).tensors["a"].item() == 1

# Weights: the right file or a refusal. Checkpoints that lie, a hub on loopback, and no network at all.
from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.models import _builder

import featx
from featx.engine.again import load_again
from featx.errors import ModelError, OutputError, WeightsError
from featx.explore.verify import verify
from featx.models import weights
from featx.models.hub import _checked_against_name, url_file
from tests.helpers import errors
from tests.models.hub import serving

MODEL = "test_resnet"


@pytest.fixture(scope="module")
def state():
    """Return a classifier's state dict, head and all, of another seed than featx's default."""
    torch.manual_seed(7)
    return timm.create_model(MODEL).state_dict()


def load(file: Path, **options):
    return featx.load_pyramid(MODEL, weights=file, device="cpu", **options)


def saved(folder: Path, content: object, name: str = "weights.pth") -> Path:
    path = folder / name
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_holds(pyramid, state) -> None:
    own = pyramid.module.state_dict()
    assert own
    for name, value in own.items():
        assert torch.equal(value, state[name.removeprefix("model.")]), name


def halved(state):
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


PACKAGES = {
    "plain": lambda state: state,
    "container": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}},
    "compiled, parallel": lambda state: {"model": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
    "student's backbone": lambda state: {f"student.backbone.{name}": value for name, value in state.items()},
    "encoder": lambda state: {"encoder": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
    "other head": lambda state: {**state, "fc.weight": torch.zeros(3, 5), "neck.weight": torch.zeros(2)},
    "no head": lambda state: {name: value for name, value in state.items() if not name.startswith("fc.")},
    "no counters": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("package", PACKAGES)
def test_sound_checkpoints_fill_the_pyramid(tmp_path, state, package):
    pyramid = load(saved(tmp_path, PACKAGES[package](dict(state))))
    assert pyramid.weights.kind == "file"
    expected = dict(state)
    if package == "no counters":
        expected.update({name: torch.tensor(0) for name in state if "num_batches" in name})
    assert_holds(pyramid, expected)


def test_half_precision_is_read_as_it_is(tmp_path, state):
    pyramid = load(saved(tmp_path, halved(state)))
    assert_holds(
        pyramid, {name: value.float() if value.dtype == torch.half else value for name, value in halved(state).items()}
    )


def test_averaged_weights_come_first_and_are_named(tmp_path, state):
    averaged = {name: value + 1 for name, value in state.items()}
    pyramid = load(saved(tmp_path, {"state_dict": state, "state_dict_ema": averaged}))
    assert_holds(pyramid, averaged)
    assert pyramid.weights.part == "state_dict_ema"


def test_safetensors_and_its_hash(tmp_path, state):
    path = saved(tmp_path, dict(state), "weights.safetensors")
    pyramid = load(path)
    assert_holds(pyramid, state)
    assert pyramid.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_what_the_chosen_levels_need_has_to_be_there(tmp_path, state):
    shallow = {name: value for name, value in state.items() if not name.startswith(("layer3", "layer4", "fc"))}
    path = saved(tmp_path, shallow)
    assert_holds(load(path, out_indices=(1, 2)), state)
    with pytest.raises(WeightsError, match="missing"):
        load(path)


def test_old_checkpoints_are_converted_as_timm_does(tmp_path):
    """timm renames what other libraries saved; here a vision transformer of another patch grid is resampled."""
    torch.manual_seed(3)
    small = timm.create_model("test_vit", img_size=96)
    path = saved(tmp_path, small.state_dict())
    pyramid = featx.load_pyramid("test_vit", weights=path, device="cpu")
    reference = timm.create_model(
        "test_vit", features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
    ).eval()
    batch = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        for ours, theirs in zip(pyramid(batch), reference(batch), strict=True):
            assert torch.equal(ours, theirs)


def test_prefixes_that_timm_s_converter_looks_for_are_left_to_it(tmp_path):
    """The original Segment Anything checkpoint: an image encoder with other names for its layers, among other parts."""
    state = timm.create_model("samvit_base_patch16_224").state_dict()
    original = {f"image_encoder.{name.replace('mlp.fc', 'mlp.lin')}": value for name, value in state.items()}
    path = saved(tmp_path, {**original, "mask_decoder.iou_token.weight": torch.zeros(1, 256)})
    assert_holds(featx.load_pyramid("samvit_base_patch16_224", weights=path, device="cpu"), state)


@pytest.fixture
def two_networks(tmp_path, state):
    """A file with a student and a teacher, whose numbers differ."""
    torch.manual_seed(8)
    return saved(tmp_path, {"student": dict(state), "teacher": timm.create_model(MODEL).state_dict()}, "two.pth")


def test_a_run_keeps_to_the_network_that_was_chosen(two_networks, photo, tmp_path, state):
    """Resumed, verified and loaded again: the file's sha256 is the same whichever is taken."""
    out = tmp_path / "out"
    options = {"device": "cpu", "out_indices": (2,)}
    featx.extract(photo, MODEL, out, weights=f"{two_networks}:student", **options)
    summary = featx.open_run(out).summary
    assert summary["weights"] == {
        "kind": "file",
        "source": str(two_networks),
        "sha256": hashlib.sha256(two_networks.read_bytes()).hexdigest(),
        "part": "student",
        "path": str(two_networks),
    }
    assert featx.extract(photo, MODEL, out, weights=f"{two_networks}:student", **options).computed == 0
    with pytest.raises(OutputError):
        featx.extract(photo, MODEL, out, weights=f"{two_networks}:teacher", **options)
    recomputed = verify(out, recompute=1).recomputed
    assert (recomputed.images, recomputed.deviation) == (1, 0.0)
    assert_holds(load_again(summary, torch.device("cpu")), state)


def test_of_two_networks_one_has_to_be_chosen(two_networks, featx_command, photo):
    refused = featx_command("extract", photo, "--model", MODEL, "--weights", two_networks)
    assert (refused.returncode, len(errors(refused.stderr))) == (1, 1), refused.stderr
    assert "holds several networks: student, teacher. Choose one: --weights" in refused.stderr


def test_one_of_two_prefixes_may_be_chosen(tmp_path, state):
    flat = {f"{who}.backbone.{name}": value for who in ("student", "teacher") for name, value in state.items()}
    path = saved(tmp_path, {"state_dict": flat})
    with pytest.raises(
        WeightsError, match=r"student\.backbone\., teacher\.backbone\.\. Choose one: --weights FILE:stu"
    ):
        load(path)
    pyramid = load(f"{path}:teacher")
    assert_holds(pyramid, state)
    assert pyramid.weights.part == "state_dict.teacher"


@pytest.mark.parametrize("path", ["~nobody-of-that-name/a.pth", "~nobody-of-that-name/a.pth:teacher"])
def test_a_home_that_nobody_has_is_no_path(path):
    with pytest.raises(WeightsError, match="There is no checkpoint ~nobody"):
        load(path)


def test_too_little_memory_is_not_blamed_on_the_checkpoint(tmp_path, state, monkeypatch):
    path = saved(tmp_path, state)

    def exhausted(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 4 bytes")

    monkeypatch.setattr(torch, "load", exhausted)
    with pytest.raises(ModelError, match="not enough memory on cpu for test_resnet"):
        load(path)


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


FAULTS = {
    "no name matches": (
        lambda state: {f"x{name.replace('.', '_')}": value for name, value in state.items()},
        "missing",
    ),
    "one missing": (
        lambda state: without(state, "layer2.0.conv1.weight"),
        r"1 of \d+ parameters.*layer2\.0\.conv1\.weight",
    ),
    "running mean missing": (lambda state: without(state, "bn1.running_mean"), "bn1.running_mean"),
    "one misshapen": (lambda state: {**state, "conv1.0.weight": torch.zeros(1, 1)}, "has a different shape in"),
    "one NaN": (
        lambda state: {**state, "layer1.0.bn1.bias": torch.full_like(state["layer1.0.bn1.bias"], torch.nan)},
        "not finite",
    ),
    "one infinity": (
        lambda state: {**state, "layer1.0.bn1.bias": torch.full_like(state["layer1.0.bn1.bias"], torch.inf)},
        "not finite",
    ),
    "empty": (lambda _: {}, "no tensors"),
    "a list": (lambda state: list(state.values()), "not a state dict"),
    "another network": (lambda _: timm.create_model("test_vit").state_dict(), "missing"),
    "two networks": (
        lambda state: {f"{who}.{name}": value for who in ("student", "teacher") for name, value in state.items()},
        "several networks: student., teacher.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unsound_checkpoints_are_refused(tmp_path, state, fault):
    damage, reason = FAULTS[fault]
    with pytest.raises(WeightsError, match=reason):
        load(saved(tmp_path, damage(dict(state))))


def test_timm_alone_takes_a_checkpoint_in_which_nothing_matches(tmp_path, state):
    """The reason for all of the above; should timm ever refuse, this test says so."""
    path = saved(tmp_path, {f"x_{name}": value for name, value in state.items()})
    torch.manual_seed(0)
    random = timm.create_model(MODEL, features_only=True)
    torch.manual_seed(0)
    taken = timm.create_model(MODEL, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert all(
        torch.equal(a, b) for a, b in zip(random.state_dict().values(), taken.state_dict().values(), strict=True)
    )


def test_timm_is_left_as_it_was(tmp_path, state):
    before = _builder.load_pretrained
    load(saved(tmp_path, state))
    with pytest.raises(WeightsError):
        load(saved(tmp_path, {"nothing": torch.zeros(1)}))
    assert _builder.load_pretrained is before


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("unsafe_environment", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["alone", "beside", "inside"])
def test_pickles_with_code_are_refused_and_leave_no_trace(
    tmp_path, state, monkeypatch, where, legacy, unsafe_environment
):
    canary = tmp_path / "canary"
    evil = Malicious(canary)
    content = {
        "alone": evil,
        "beside": {"state_dict": dict(state), "args": evil},
        "inside": {**state, "bn1.bias": evil},
    }[where]
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    if unsafe_environment:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(WeightsError, match=r"(posix|os)\.system"):
        load(path)
    assert not canary.exists()


def test_a_bare_pickle_with_code_is_refused(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Malicious(canary)))
    with pytest.raises(WeightsError):
        load(tmp_path / "weights.pth")
    assert not canary.exists()


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"PK\3\4 half a zip", b"\x10\0\0\0\0\0\0\0{broken json}...."]
)
def test_files_that_are_no_checkpoints_are_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable"):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="There is no checkpoint"):
        load(tmp_path / "nothing.safetensors")


def test_random_weights_are_the_seed_s_and_nobody_else_s():
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, again, other = (featx.load_pyramid(MODEL, weights="random", seed=seed, device="cpu") for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.weights.sha256 == again.weights.sha256 != other.weights.sha256
    torch.manual_seed(5)
    assert_holds(first, timm.create_model(MODEL, features_only=True).state_dict())


def test_random_weights_are_the_same_on_any_number_of_threads(threads):
    hashes = set()
    for count in (1, 2):
        threads(count)
        hashes.add(featx.load_pyramid(MODEL, weights="random", device="cpu").weights.sha256)
    assert len(hashes) == 1


def test_tensors_sha256_sees_names_shapes_types_and_bytes():
    base = {"a": torch.zeros(4), "b": torch.ones(2, 2)}
    variants = [
        {"a": torch.zeros(4), "c": torch.ones(2, 2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2, 2)},
        {"a": torch.tensor([0.0, 0, 0, 1e-38]), "b": torch.ones(2, 2)},
    ]
    digests = {weights.tensors_sha256(value) for value in (base, *variants)}
    assert len(digests) == 5
    assert weights.tensors_sha256(dict(reversed(base.items()))) == weights.tensors_sha256(base)


def test_a_local_folder_is_a_model(tmp_path, state):
    model = timm.create_model(MODEL)
    model.load_state_dict(state)
    timm.models._hub.save_for_hf(model, tmp_path / "net", safe_serialization=True)
    pyramid = featx.load_pyramid(f"local-dir:{tmp_path / 'net'}", device="cpu")
    assert (pyramid.architecture, pyramid.weights.kind) == (MODEL, "pretrained")
    assert_holds(pyramid, state)


# The hub, through the real command.


@pytest.fixture
def hub():
    with serving() as server:
        yield server


@pytest.fixture
def served(hub, state, tmp_path):
    """The hub with test_resnet's own repository, and one that somebody else made."""
    model = timm.create_model(MODEL)
    model.load_state_dict(state)
    timm.models._hub.save_for_hf(model, tmp_path / "net", safe_serialization=True)
    for repository in (timm.models.get_pretrained_cfg(MODEL).hf_hub_id, "someone/net"):
        for name in ("config.json", "model.safetensors"):
            hub.files[f"{repository}/{name}"] = (tmp_path / "net" / name).read_bytes()
    return hub


def level_of(folder: Path, state, photo: Path, threads) -> None:
    """Hold level 2 on the disk against timm with these weights."""
    threads(json.loads((folder / "summary.json").read_text())["recipe"]["threads"])
    reference = timm.create_model(MODEL, features_only=True, out_indices=(2,)).eval()
    reference.load_state_dict(state, strict=False)
    reference.to(memory_format=torch.channels_last)
    config = timm.data.resolve_model_data_config(reference)
    pixels = timm.data.create_transform(**config, is_training=False)(Image.open(photo).convert("RGB"))
    with torch.no_grad():
        (expected,) = reference(pixels[None])
    with np.load(folder / f"{photo.name}.npz") as arrays:
        np.testing.assert_array_equal(arrays["level_2"], expected[0].numpy())


def test_download_then_cache_then_no_hub(served, featx_command, photo, tmp_path, state, threads):
    command = ("extract", photo, "--model", MODEL, "--out-indices", 2, "-o")
    first = featx_command(*command, tmp_path / "first", HF_ENDPOINT=served.endpoint)
    assert first.returncode == 0, first.stderr
    level_of(tmp_path / "first", state, photo, threads)
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert summary["weights"]["source"] == "hf-hub:timm/test_resnet.r160_in1k/model.safetensors"
    assert summary["weights"]["kind"] == "pretrained"

    asked = len(served.requests)
    cached = featx_command(*command, tmp_path / "second", HF_ENDPOINT=served.endpoint)
    assert (cached.returncode, len(served.requests)) == (0, asked), "a cached model needs no request"

    gone = featx_command(*command, tmp_path / "third", HF_ENDPOINT="http://127.0.0.1:9")
    assert gone.returncode == 0, gone.stderr
    level_of(tmp_path / "third", state, photo, threads)


def test_a_repository_of_somebody_s(served, featx_command, photo, tmp_path, state, threads):
    done = featx_command("extract", photo, "--model", "hf-hub:someone/net", HF_ENDPOINT=served.endpoint)
    assert done.returncode == 0, done.stderr
    level_of(tmp_path / "features" / "someone--net", state, photo, threads)


def cached(tmp_path: Path, name: str) -> Path:
    """Find the blob of the hub's cache that a name leads to."""
    (path,) = (tmp_path / "hub-cache").rglob(f"snapshots/*/{name}")
    return path.resolve()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_cached_file_that_is_not_what_its_name_says_is_not_used(served, featx_command, photo, tmp_path, name, state):
    """One bit of a sound file's numbers, or a cut; the file is kept, and named."""
    command = ("extract", photo, "--model", "hf-hub:someone/net", "--out-indices", 2, "-o", tmp_path / "out")
    assert featx_command(*command, HF_ENDPOINT=served.endpoint).returncode == 0
    blob = cached(tmp_path, name)
    sound = blob.read_bytes()
    blob.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    refused = featx_command(*command, HF_ENDPOINT=served.endpoint)
    assert (refused.returncode, len(errors(refused.stderr))) == (1, 1), refused.stderr
    assert f"{blob.name} in the cache is damaged" in refused.stderr
    assert f"Delete {blob}" in refused.stderr
    assert blob.exists()
    blob.unlink()
    again = featx_command(*command, HF_ENDPOINT=served.endpoint)
    assert again.returncode == 0, again.stderr


def test_small_files_of_the_cache_are_called_as_git_does(tmp_path):
    data = b'{"architecture": "test_resnet"}'
    named = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    (tmp_path / named).write_bytes(data)
    (tmp_path / "config.json").symlink_to(named)
    assert _checked_against_name(tmp_path / "config.json").path == tmp_path / "config.json"
    (tmp_path / named).write_bytes(data + b" ")
    with pytest.raises(WeightsError, match="damaged"):
        _checked_against_name(tmp_path / "config.json")


def test_a_file_is_hashed_once(served, tmp_path, monkeypatch):
    """A gigabyte takes seconds."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hashes = []
    honest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashes.append(file.name) or honest(file, kind))
    data = served.files["timm/test_resnet.r160_in1k/model.safetensors"]
    blob = tmp_path / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data)
    (tmp_path / "model.safetensors").symlink_to(blob)
    found = str(tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: found)
    featx.load_pyramid(MODEL, device="cpu")
    assert hashes == [found]


# Files that have an address alone


@pytest.fixture
def addressed(hub, tmp_path, monkeypatch):
    """Return a name that carries the beginning of its sha256, its address, and where torch's cache would have it."""
    data = b"parameters" * 100
    name = f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    hub.files[f"files/net/{name}"] = data
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return f"{hub.endpoint}/files/net/resolve/main/{name}", tmp_path / "cache" / "hub" / "checkpoints" / name, data


def test_a_file_of_torch_s_cache_is_held_against_its_name(addressed):
    url, kept, data = addressed
    found = url_file(url)
    assert (found.path, found.sha256) == (kept, hashlib.sha256(data).hexdigest())
    assert url_file(url) == found
    kept.write_bytes(data[:-1])
    with pytest.raises(WeightsError, match=f"in the cache is damaged.*Delete {kept}"):
        url_file(url)
    assert kept.read_bytes() == data[:-1]


@pytest.mark.parametrize("wrong", ["altered", "truncated"])
def test_what_arrives_damaged_never_gets_its_name(hub, addressed, monkeypatch, wrong):
    url, kept, data = addressed
    seen = []
    honest = torch.hub.download_url_to_file

    def download(*arguments, **options):
        honest(*arguments, **options)
        seen.append(kept.exists())  # where a kill would leave it

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    getattr(hub, wrong).add(f"files/net/{kept.name}")
    with pytest.raises(WeightsError, match=r"does not match the sha256|completely|could not be fetched"):
        url_file(url)
    assert not any(seen)
    assert list(kept.parent.iterdir()) == []
    getattr(hub, wrong).clear()
    assert url_file(url).path.read_bytes() == data


def test_what_arrives_incomplete_never_gets_a_name_without_a_hash(hub, tmp_path, monkeypatch):
    """Torch checks what has a hash in its name by itself; of other files only their size is known."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    hub.files["files/net/net.pth"] = b"parameters" * 100
    hub.truncated.add("files/net/net.pth")
    kept, honest, seen = tmp_path / "cache/hub/checkpoints/net.pth", torch.hub.download_url_to_file, []

    def download(*arguments, **options):
        honest(*arguments, **options)
        seen.append(kept.exists())  # where a kill would leave it

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    url = f"{hub.endpoint}/files/net/resolve/main/net.pth"
    with pytest.raises(WeightsError, match="not fetched completely"):
        url_file(url)
    assert (seen, list(kept.parent.iterdir())) == ([False], [])
    hub.truncated.clear()
    assert url_file(url).path.read_bytes() == b"parameters" * 100


def test_the_end_of_a_name_that_is_no_hash_is_not_taken_for_one(hub, tmp_path, monkeypatch):
    """As of I-JEPA's, which counts epochs: timm's vit_huge_patch14_gap_224.in1k_ijepa."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    hub.files["files/net/IN1K-vit.h.14-300e.pth.tar"] = b"parameters"
    url = f"{hub.endpoint}/files/net/resolve/main/IN1K-vit.h.14-300e.pth.tar"
    assert url_file(url).path.read_bytes() == b"parameters"


@pytest.mark.parametrize("trouble", ["a file in its place", "no home"])
def test_a_cache_that_cannot_be_written_is_reported(addressed, tmp_path, monkeypatch, trouble):
    url, _, _ = addressed
    if trouble == "no home":
        monkeypatch.setattr(torch.hub, "get_dir", lambda: "~/.cache/torch/hub")
        monkeypatch.chdir(tmp_path)
    else:
        (tmp_path / "cache").write_text("mine")
    with pytest.raises(WeightsError, match=r"There is no home folder.*TORCH_HOME|could not be fetched: .*cache"):
        url_file(url)
    assert not (tmp_path / "~").exists()


def test_without_a_home_the_hub_s_cache_is_not_made_here(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(WeightsError, match=r"There is no home folder to keep fetched weights in\. Set HF_HOME"):
        featx.load_pyramid(MODEL, device="cpu")
    assert not (tmp_path / "~").exists()


WRONG = {
    "no repository": (lambda hub: hub.files.clear(), "no public repository timm/test_resnet.r160_in1k"),
    "no weights in it": (lambda hub: hub.files.pop("timm/test_resnet.r160_in1k/model.safetensors"), "has none of"),
    "half the file": (
        lambda hub: hub.truncated.add("timm/test_resnet.r160_in1k/model.safetensors"),
        "could not be fetched",
    ),
    "another file": (
        lambda hub: hub.altered.add("timm/test_resnet.r160_in1k/model.safetensors"),
        "does not match the sha256",
    ),
    "a page": (
        lambda hub: hub.files.update({"timm/test_resnet.r160_in1k/model.safetensors": b"<html>sorry</html>"}),
        "an HTML page, not the weights themselves",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_hub_that_misbehaves_is_reported_in_one_line(served, featx_command, photo, tmp_path, wrong):
    misbehave, reason = WRONG[wrong]
    misbehave(served)
    done = featx_command("extract", photo, "--model", MODEL, "-o", tmp_path / "out", HF_ENDPOINT=served.endpoint)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(errors(done.stderr)) == 1, done.stderr
    assert reason in done.stderr
    assert not (tmp_path / "out").exists()
    # What came wrong must not be kept: the hub recovers, and so does the next call.
    if wrong == "another file":
        served.altered.clear()
        again = featx_command("extract", photo, "--model", MODEL, "-o", tmp_path / "out", HF_ENDPOINT=served.endpoint)
        assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("model", "network"),
    [
        (MODEL, "refused"),
        (MODEL, "silent"),
        (MODEL, "forbidden"),
        ("hf-hub:someone/net", "unresolved"),
        ("gcvit_xxtiny", "refused"),  # one of the few whose weights are not on the hub
    ],
)
def test_without_a_network_the_ways_on_are_said(featx_command, photo, tmp_path, model, network):
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        environment = {
            "refused": {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "unresolved": {"HF_ENDPOINT": "http://hub.invalid"},
            "silent": {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            "forbidden": {"HF_HUB_OFFLINE": "1"},
        }[network]
        environment |= {"https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
        done = featx_command("extract", photo, "--model", model, "-o", tmp_path / "out", **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(errors(done.stderr)) == 1, done.stderr
    repository = model.removeprefix("hf-hub:")
    cache = "TORCH_HOME" if network == "refused" and model == "gcvit_xxtiny" else "HF_HOME"
    assert f"Check the network, or set {cache} to a cache that has it" in done.stderr
    assert repository in done.stderr
    # A repository's configuration, which says what network it is, has no substitute.
    for words in ("--weights FILE", "--weights random"):
        assert (words in done.stderr) == (repository == model)
    assert not (tmp_path / "out").exists()


def test_a_hub_that_never_answers_is_asked_once_and_given_up(tmp_path, monkeypatch):
    """Though the client, left to itself, asks for minutes; and whatever it is that hangs."""
    asked, released = [], threading.Event()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: asked.append(1) or released.wait())
    monkeypatch.setattr("featx.models.hub.ANSWER_TIMEOUT", 0.01)
    with pytest.raises(WeightsError, match="--weights random"):
        featx.load_pyramid(MODEL, device="cpu")
    released.set()
    assert asked == [1]

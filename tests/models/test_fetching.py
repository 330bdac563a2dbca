# Fetching: a folder that needs no network, holds what was published, and is refused when it was changed.
from __future__ import annotations

import hashlib
import json

import pytest
import safetensors.torch
import timm
import torch

import featx
from featx.errors import ModelError, OutputError, WeightsError
from featx.models import fetching
from featx.models.timm import reference as references
from featx.models.weights import Found
from tests.models.hub import serving

MODEL = "test_resnet"
REPOSITORY = "timm/test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(7)
    return timm.create_model(MODEL).state_dict()


@pytest.fixture
def hub(state):
    with serving() as server:
        server.files[f"{REPOSITORY}/model.safetensors"] = safetensors.torch.save(state)
        yield server


def test_a_fetched_folder_needs_no_hub(hub, featx_command, photo, tmp_path, state):
    done = featx_command("fetch", "--model", MODEL, "-o", "net", HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert "--model local-dir:net" in done.stdout
    weights = tmp_path / "net" / "model.safetensors"
    assert weights.read_bytes() == hub.files[f"{REPOSITORY}/model.safetensors"]
    stated = json.loads((tmp_path / "net" / "config.json").read_text())["featx"]
    assert stated["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert stated["source"] == f"hf-hub:{REPOSITORY}/model.safetensors"

    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "no-cache")}
    read = featx_command("extract", photo, "--model", "local-dir:net", "-o", "out", **offline)
    assert read.returncode == 0, read.stderr
    assert featx.open_run(tmp_path / "out").summary["weights"]["sha256"] == stated["sha256"]

    # timm reads the folder too, to the same parameters.
    theirs = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in state.items())


def test_without_a_network_only_what_fetch_has_is_advised(featx_command, tmp_path):
    done = featx_command("fetch", MODEL, HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Check the network, or set HF_HOME to a cache that has it." in done.stderr
    assert "--weights" not in done.stderr
    assert not (tmp_path / "models").exists()


def test_the_folder_is_named_after_the_model(hub, featx_command, tmp_path):
    done = featx_command("fetch", MODEL, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert f"--model local-dir:models/{MODEL}" in done.stdout
    assert (tmp_path / "models" / MODEL / "model.safetensors").exists()


def test_what_was_fetched_is_said_as_json_and_can_be_fetched_again(hub, featx_command, tmp_path):
    command = ("fetch", "--model", MODEL, "-o", "net", "--json")
    first, again = (featx_command(*command, HF_ENDPOINT=hub.endpoint) for _ in range(2))
    assert first.returncode == again.returncode == 0, again.stderr
    value = json.loads(first.stdout)
    assert value == json.loads(again.stdout)
    assert {"model", "architecture", "source", "file", "bytes", "sha256", "output"} == set(value)
    assert value["bytes"] == (tmp_path / "net" / value["file"]).stat().st_size


def test_a_name_may_be_copied_from_the_hub_s_page(hub, featx_command):
    command = ("--model", "timm/test_resnet.r160_in1k", "-o", "net", "--json")
    done = featx_command("fetch", *command, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "test_resnet.r160_in1k"


def test_a_folder_that_was_changed_is_refused(hub, featx_command, tmp_path, state):
    assert featx_command("fetch", "--model", MODEL, "-o", "net", HF_ENDPOINT=hub.endpoint).returncode == 0
    name = next(iter(state))
    safetensors.torch.save_file({**state, name: state[name] + 1}, tmp_path / "net" / "model.safetensors")
    with pytest.raises(WeightsError, match="sha256 does not match"):
        featx.load_pyramid(f"local-dir:{tmp_path / 'net'}", device="cpu")
    with pytest.raises(WeightsError, match="sha256 does not match"):
        fetching.fetch(f"local-dir:{tmp_path / 'net'}", tmp_path / "copy")


def test_weights_that_have_an_address_alone(hub, tmp_path, state, monkeypatch):
    """19 tags of timm are not on the hub; here is one more, a pickle under a name that carries its hash."""
    torch.save(state, tmp_path / "net.pth")
    data = (tmp_path / "net.pth").read_bytes()
    name = f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    hub.files[f"files/net/{name}"] = data
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    honest = references.resolve
    url = f"{hub.endpoint}/files/net/resolve/main/{name}"

    def resolve(model):
        reference = honest(model)
        config = {**reference.config, "hf_hub_id": None, "url": url}
        return references.Reference(reference.name, reference.timm_name, reference.architecture, config)

    monkeypatch.setattr(fetching, "resolve", resolve)
    value = fetching.fetch(MODEL, tmp_path / "net")
    monkeypatch.undo()
    assert (value["source"], value["file"]) == (url, "pytorch_model.bin")
    pyramid = featx.load_pyramid(f"local-dir:{tmp_path / 'net'}", device="cpu")
    assert pyramid.weights.sha256 == hashlib.sha256(data).hexdigest()


def test_without_a_network_nothing_is_written(featx_command, tmp_path):
    done = featx_command("fetch", "--model", MODEL, "-o", "net", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("kind", ["a file", "other things", "another model", "a model of somebody's", "weights alone"])
def test_folders_that_hold_something_else_are_left_alone(hub, tmp_path, monkeypatch, kind):
    folder = tmp_path / "net"
    if kind == "a file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        fetched = {"featx": {"source": "hf-hub:timm/resnet18.a1_in1k/model.safetensors"}}
        content = {"architecture": MODEL, **(fetched if kind == "another model" else {})}
        if kind == "weights alone":
            (folder / "model.safetensors").write_text("mine")
        else:
            (folder / "config.json").write_text(json.dumps(content))
        if kind == "other things":
            (folder / "thesis.tex").write_text("mine")
    monkeypatch.setattr("featx.models.timm.loading.locate", lambda _: (Found(tmp_path / "none", ""), "hf-hub:other"))
    with pytest.raises(OutputError):
        fetching.fetch(MODEL, folder)
    weights = folder / "model.safetensors"
    assert weights.read_text() == "mine" if kind == "weights alone" else not weights.exists()


def test_an_interrupted_fetch_can_be_repeated(hub, featx_command, tmp_path):
    (tmp_path / "net").mkdir()
    begun = {"featx": {"source": "hf-hub:timm/test_resnet.r160_in1k/model.safetensors"}}
    (tmp_path / "net" / "config.json").write_text(json.dumps(begun))
    (tmp_path / "net" / ".123-model.safetensors.tmp").write_bytes(b"half of")
    done = featx_command("fetch", "--model", MODEL, "-o", "net", HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "net" / "model.safetensors").read_bytes() == hub.files[f"{REPOSITORY}/model.safetensors"]


def test_a_full_disk_leaves_no_half_folder(hub, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    source = tmp_path / "cache" / "model.safetensors"
    source.write_bytes(hub.files[f"{REPOSITORY}/model.safetensors"])
    found = Found(source, hashlib.sha256(source.read_bytes()).hexdigest())
    monkeypatch.setattr("featx.models.timm.loading.locate", lambda _: (found, "somewhere"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featx.files.os.writev", full)
    with pytest.raises(OutputError, match="No space left"):
        fetching.fetch(MODEL, tmp_path / "net")
    assert list((tmp_path / "net").iterdir()) == []


def test_a_model_that_is_none():
    with pytest.raises(ModelError, match="Nearest"):
        fetching.fetch("test_resnett", None)

# What belongs to the whole process: as it was afterwards, however threads overlap, and strict while it is held.
from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from contextlib import ExitStack

import pytest
import timm
import torch
from timm.models import _builder

import featx
from featx import process
from featx.models.timm import loading
from featx.models.timm.reference import resolve
from featx.process import FALLBACKS, OPERATIONS, full_precision
from tests.helpers import HANGS

CPU = torch.device("cpu")


def precisions():
    return {setting: torch._C._get_fp32_precision_getter(*setting) for setting in (*FALLBACKS, *OPERATIONS)}


def older():
    values = []
    for read in (torch.get_float32_matmul_precision, torch._C._get_cublas_allow_tf32, torch._C._get_cudnn_allow_tf32):
        try:
            values.append(read())
        except RuntimeError:
            values.append("torch will not say")
    return values


def everything():
    cudnn = torch.backends.cudnn
    return precisions(), older(), cudnn.enabled, cudnn.benchmark, cudnn.deterministic


@pytest.fixture(autouse=True)
def settings_put_back():
    before = precisions()
    matmul, cudnn = torch.get_float32_matmul_precision(), torch._C._get_cudnn_allow_tf32()
    yield
    for setting in (*FALLBACKS, *OPERATIONS):
        torch._C._set_fp32_precision_setter(*setting, "none")
    torch.set_float32_matmul_precision(matmul)
    torch._C._set_cudnn_allow_tf32(cudnn)
    torch.backends.cudnn.benchmark = False
    for setting, precision in before.items():
        torch._C._set_fp32_precision_setter(*setting, precision)


SETTINGS = {
    "as torch comes": lambda: None,
    "matmul high": lambda: torch.set_float32_matmul_precision("high"),
    "matmul medium": lambda: torch.set_float32_matmul_precision("medium"),
    "cublas tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cublas tf32, by its newer name": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "mkldnn bf16": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "mkldnn convolutions bf16": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "tf32 everywhere": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "cuda tf32": lambda: setattr(torch.backends.cudnn, "fp32_precision", "tf32"),
    "no cudnn tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "cudnn benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
}


@pytest.mark.parametrize("asked", SETTINGS)
def test_fp32_is_fp32_whatever_was_set_and_that_is_put_back(asked):
    SETTINGS[asked]()
    before = everything()
    with full_precision(CPU):
        assert {setting: precisions()[setting] for setting in OPERATIONS} == dict.fromkeys(OPERATIONS, "ieee")
        assert older() == ["highest", False, False]
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (False, True)
    assert everything() == before


def test_an_environment_variable_does_not_round_either():
    script = (
        "import torch\n"
        "from featx.process import full_precision\n"
        "assert torch.get_float32_matmul_precision() == 'high'\n"
        "with full_precision(torch.device('cpu')):\n"
        "    assert torch.get_float32_matmul_precision() == 'highest'\n"
        "    assert torch.backends.cuda.matmul.fp32_precision == 'ieee'\n"
        "assert torch.get_float32_matmul_precision() == 'high'\n"
    )
    rounding = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=rounding)


def test_those_that_overlap_put_back_what_was_before_the_first():
    torch.set_float32_matmul_precision("medium")
    before = everything()
    first, second = full_precision(CPU), full_precision(CPU)
    with ExitStack() as stack:
        first.__enter__()
        inner = threading.Thread(target=second.__enter__)
        inner.start()
        inner.join()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest", "the second still holds them"
        torch.set_float32_matmul_precision("high")  # somebody does, meanwhile
        stack.enter_context(full_precision(CPU))
        assert torch.get_float32_matmul_precision() == "highest"
        stack.callback(process.HOLDERS.leave)
    assert everything() == before


def test_autocast_does_not_reach_a_pyramid():
    pyramid = featx.load_pyramid("test_vit", weights="random", device="cpu")
    batch = torch.randn(1, 3, 160, 160)
    expected = pyramid(batch)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(pyramid(batch), expected, strict=True):
            assert torch.equal(ours, theirs)


def overlapping(first, second):
    """Have a second thread enter while the first is inside, if it can, and leave after the first has left."""
    entered, left = threading.Event(), threading.Event()

    def inner():
        with second:
            entered.set()
            left.wait(HANGS)

    thread = threading.Thread(target=inner)
    with first:
        thread.start()
        entered.wait(0.5)  # where it cannot enter, it has to wait for the first: that is what is wanted
    left.set()
    thread.join(HANGS)
    assert not thread.is_alive()


def test_timm_is_left_as_it_was_by_loads_that_overlap():
    honest = _builder.load_pretrained
    overlapping(*(loading._timm_loading_replaced_by(lambda *_: None) for _ in range(2)))
    assert _builder.load_pretrained is honest


def test_warnings_are_left_as_they_were():
    before = list(warnings.filters)
    overlapping(process.quiet(), process.quiet())
    assert warnings.filters == before


def test_what_a_checkpoint_may_hold_is_taken_while_another_is_read():
    known = [(dict, "somebody.Else")]
    inside = []

    def look():
        with process.safe_globals(known):
            entered.set()
            left.wait(HANGS)
            inside.append(known[0] in torch.serialization.get_safe_globals())

    entered, left = threading.Event(), threading.Event()
    thread = threading.Thread(target=look)
    with process.safe_globals(known):
        thread.start()
        entered.wait(0.5)
    left.set()
    thread.join(HANGS)
    assert inside == [True]
    assert known[0] not in torch.serialization.get_safe_globals()


def test_random_weights_of_two_threads_are_each_their_seed_s(monkeypatch):
    """The second begins while the first is being built; torch's generator is one for the whole process."""
    expected = {seed: featx.load_pyramid("test_resnet", weights="random", seed=seed).weights.sha256 for seed in (5, 6)}
    honest, began, found = loading.create, threading.Event(), {}

    def create(reference, device, arguments, **options):
        if threading.current_thread().name == "first":
            began.set()
            other.join(0.5)  # it waits for this one, or is done by now
        return honest(reference, device, arguments, **options)

    def load(seed):
        if threading.current_thread().name == "second":
            began.wait(HANGS)
        found[seed] = featx.load_pyramid("test_resnet", weights="random", seed=seed).weights.sha256

    monkeypatch.setattr(loading, "create", create)
    first = threading.Thread(target=load, args=(5,), name="first")
    other = threading.Thread(target=load, args=(6,), name="second")
    first.start()
    other.start()
    first.join(HANGS)
    other.join(HANGS)
    assert found == expected


def test_random_weights_touch_no_generator_of_a_graphics_card(monkeypatch):
    touched = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched.append)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    featx.load_pyramid("test_resnet", weights="random", device="cpu")
    assert touched == []


def test_building_on_the_meta_device_draws_no_random_numbers():
    """It may be done while another thread draws them."""
    before = torch.random.get_rng_state()
    for name in timm.list_models("test_*"):
        loading.create(resolve(name), "meta", {"features_only": True})
    assert torch.equal(torch.random.get_rng_state(), before)

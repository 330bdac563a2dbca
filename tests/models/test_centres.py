# Centres of cells, measured: what the gradients of real networks say of the traced offsets, in sixty families.
from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from timm.layers import use_fused_attn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from featx.models import catalogue

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "measure_centres.py"
spec = spec_from_file_location("measure_centres", SCRIPT)
measure_centres = sys.modules[spec.name] = module_from_spec(spec)  # where dataclasses look for it
spec.loader.exec_module(measure_centres)

CATALOGUE = catalogue.read()

# How far a measured centre may lie from the traced one, in cells, beyond half the spread of its branches.
TOLERANCE = 0.25

NETWORKS = [
    *("cait_xxs24_224", "convnext_atto", "cpubone_nano", "crossvit_tiny_240", "gcvit_xxtiny", "focalnet_tiny_srf"),
    *("cs3darknet_focus_s", "densenet121", "dla34", "edgenext_xx_small", "efficientformerv2_s0", "efficientnet_b0"),
    *("efficientvit_m0", "fasternet_t0", "fastvit_t8", "ghostnet_050", "halonet26t", "hgnetv2_b0", "hiera_tiny_224"),
    *("hrnet_w18_small", "inception_next_atto", "inception_v3", "levit_128s", "lowformer_b0", "maxvit_pico_rw_256"),
    *("mobilenetv4_conv_small", "mobilevit_xxs", "nest_tiny", "pit_ti_224", "poolformer_s12", "pvt_v2_b0"),
    *("regnetx_002", "repvgg_a0", "repvit_m1", "res2net50_14w_8s", "resnest14d", "resnet18", "resnet18d"),
    *("resnetv2_18", "rexnet_100", "selecsls42", "skresnet18", "swin_tiny_patch4_window7_224"),
    *("swinv2_tiny_window8_256", "test_byobnet", "test_coatnet", "test_mambaout", "test_nfnet", "test_vit"),
    *("tf_efficientnet_b0", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small"),
    *("vgg11", "visformer_tiny", "vit_tiny_r_s16_p8_224", "volo_d1_224", "legacy_xception", "xcit_nano_12_p8_224"),
]

# For another try: with few channels, kernels lean to one side by chance, and cells of few may all see a border.
LARGER, SEEDS = 384, 4


@pytest.fixture(autouse=True)
def attention_as_it_was():
    """Give back the attention that the script takes apart."""
    fused = use_fused_attn()
    yield
    measure_centres.set_fused_attn(enable=bool(fused))


def size_of(name: str, side: int) -> tuple[int, int] | None:
    sizes = CATALOGUE.entries[name]["sizes"]
    fits = sizes is not None and not sizes["rebuilt"] and side % sizes["multiple"] == 0
    return (side, side) if fits else None


@pytest.mark.parametrize("name", NETWORKS)
def test_cells_look_where_the_trace_says(name, request):
    if NETWORKS.index(name) % 2 and not request.config.getoption("large"):
        pytest.skip("every other network, but for --large")
    result = measure_centres.measured(name, size_of(name, 256), 1)
    if measure_centres.beyond(result) > TOLERANCE:
        result = measure_centres.measured(name, size_of(name, LARGER), SEEDS)
    assert measure_centres.beyond(result) <= TOLERANCE, measure_centres.line({**result, "seconds": 0})
    assert all(None not in level["deviation"] for level in result["levels"][:1])


def test_networks_are_of_many_families():
    assert len({CATALOGUE.entries[name]["family"] for name in NETWORKS[::2]}) >= 25
    assert len(NETWORKS) >= 60


def test_a_wrong_trace_is_noticed(monkeypatch):
    monkeypatch.setattr("featx.models.tracing.Axis.windowed", lambda axis, length, *_: axis.cut(length, 0, 2))
    assert measure_centres.beyond(measure_centres.measured("test_convnext", None, 1)) > TOLERANCE


def test_attention_is_taken_apart():
    queries = torch.rand(1, 6, 4, requires_grad=True)
    with measure_centres.Local():
        attended = (queries @ queries.transpose(1, 2)).softmax(-1) @ queries
        gated = queries * F.adaptive_avg_pool2d(queries[None], 1).sigmoid()[0]
    assert torch.equal(attended, queries)
    gradient = torch.autograd.grad(gated[0, 0].sum(), queries)[0]
    assert (gradient != 0).sum() == 4

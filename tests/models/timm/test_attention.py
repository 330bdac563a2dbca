# Attention: the network's own softmax, bit for bit; maps and embedding as without it; who has none is told so.
from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from timm.layers import config

import featx
from featx.errors import ModelError, UsageError
from featx.models import catalogue
from featx.models.pyramid import draw_up
from featx.models.timm import description, outputs
from featx.models.timm.library import Timm
from featx.requests import ModelRequest

# Name, image size, and how many tokens precede those of the cells.
CLASS_TOKENS = {
    "class token": ("test_vit", None, 1),
    "two tokens": ("deit_tiny_distilled_patch16_224", 64, 2),
    "relative position bias": ("beit_base_patch16_224", 48, 1),
    "rotary": ("eva02_tiny_patch14_224", 70, 1),
    "rotary and registers": ("vit_small_patch16_dinov3", 64, 5),
    "registers": ("vit_small_patch14_reg4_dinov2", 56, 5),
    "after the blocks": ("cait_xxs24_224", 64, 1),
    "stages": ("pit_ti_224", None, 1),
}


def pyramid_of(name, **options):
    return featx.load_pyramid(name, weights="random", device="cpu", **options)


def noise(pyramid, count=2):
    return torch.randn(count, 3, pyramid.input.height, pyramid.input.width, generator=torch.manual_seed(1))


def timms(name, pyramid, **options):
    """The same network, made by timm itself."""
    if pyramid.rebuilt:
        options["img_size"] = (pyramid.input.height, pyramid.input.width)
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def attention_of(network, block, batch):
    """What a hook sees in timm's network when the last attention of one of its modules is not fused."""
    modules = [module for module in network.get_submodule(block).modules() if hasattr(module, "attn_drop")]
    fused, seen = modules[-1].fused_attn, []
    modules[-1].fused_attn = False
    hook = modules[-1].attn_drop.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network.forward_features(batch)
    hook.remove()
    modules[-1].fused_attn = fused
    return seen[0][:, :, 0]


@pytest.mark.parametrize(("name", "size", "prefix"), CLASS_TOKENS.values(), ids=CLASS_TOKENS)
def test_attention_is_timms_own_and_changes_nothing_else(name, size, prefix):
    asked = {"image_size": size, "embedding": True}
    pyramid, plain = pyramid_of(name, attention=True, **asked), pyramid_of(name, **asked)
    batch, network = noise(pyramid), timms(name, pyramid)
    arrays, expected = pyramid.arrays(batch), plain.arrays(batch)
    found = {key: values for key, values in arrays.items() if key.endswith("_attention")}
    assert arrays.keys() - expected.keys() == found.keys()
    assert all(torch.equal(arrays[key], expected[key]) for key in expected)
    for level in pyramid.levels:
        if (values := found.pop(f"level_{level.index}_attention", None)) is not None:
            block = "blocks_token_only.1" if name.startswith("cait") else level.name
            row = attention_of(network, block, batch)
            assert torch.equal(values.flatten(2), row[..., prefix:])
            assert values.shape[2:] == (level.height, level.width)
            torch.testing.assert_close(values.sum((2, 3)) + row[..., :prefix].sum(-1), torch.ones(row.shape[:2]))
    assert not found


def test_a_timm_without_fused_attention_has_the_same(monkeypatch):
    """All levels at once: then the maps that enter the blocks are the same, too."""
    monkeypatch.setattr(config, "_USE_FUSED_ATTN", 0)
    pyramid = pyramid_of("test_vit", attention=True, out_indices="all")
    network, batch, seen = timms("test_vit", pyramid), noise(pyramid), []
    for block in network.blocks:
        block.attn.attn_drop.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network.forward_features(batch)
    arrays = pyramid.arrays(batch)
    for index, softmax in enumerate(seen):
        assert torch.equal(arrays[f"level_{index}_attention"].flatten(2), softmax[:, :, 0, 1:])
    assert len(seen) == len(pyramid.levels) == 6


@pytest.mark.parametrize(
    ("name", "size", "head"),
    [("test_vit3", None, "attn_pool"), ("vit_base_patch16_siglip_224", 48, "attn_pool"), ("resnet50_clip", 64, "head")],
)
def test_a_pooling_query_looks_at_the_last_level(name, size, head, monkeypatch):
    pyramid, plain = pyramid_of(name, attention=True, image_size=size), pyramid_of(name, image_size=size)
    batch, network = noise(pyramid), timms(name, pyramid)
    arrays, expected = pyramid.arrays(batch), plain.arrays(batch)
    assert all(torch.equal(arrays[key], expected[key]) for key in expected)
    (key,) = arrays.keys() - expected.keys()
    last = pyramid.levels[-1]
    assert key == f"{last.key}_attention"
    softmax, seen = torch.Tensor.softmax, []
    network.get_submodule(head).fused_attn = False
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda *given, **more: seen.append(softmax(*given, **more)) or seen[-1]
    )
    with torch.no_grad():
        network(batch)
    assert torch.equal(arrays[key].flatten(2), seen[-1][:, :, 0, -last.height * last.width :])


def test_heads_of_attentions_side_by_side_are_joined():
    pyramid = pyramid_of("vit_small_patch16_18x2_224", image_size=48, attention=True, out_indices=(0,))
    values = pyramid.arrays(noise(pyramid))["level_0_attention"]
    assert values.shape == (2, 2 * 6, 3, 3)
    assert not torch.equal(values[:, :6], values[:, 6:])


def test_photos_at_their_own_size():
    pyramid = pyramid_of("test_vit", attention=True, fit="native")
    assert {field.shape for field in pyramid.fields if field.key.endswith("_attention")} == {(2, None, None)}
    torch.manual_seed(0)
    network = timm.create_model("test_vit", dynamic_img_size=True).eval()
    for height, width in ((96, 64), (48, 112)):
        batch = torch.randn(1, 3, height, width)
        values = pyramid.arrays(batch)["level_5_attention"]
        assert values.shape == (1, 2, height // 16, width // 16)
        assert torch.equal(values.flatten(2), attention_of(network, "blocks.5", batch)[..., 1:])


def test_threads_do_not_take_each_others_attention():
    pyramid = pyramid_of("test_vit", attention=True)
    batches = [torch.randn(1, 3, 160, 160, generator=torch.manual_seed(seed)) for seed in range(9)]
    expected = [pyramid.arrays(batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        for ours, alone in zip(pool.map(pyramid.arrays, batches), expected, strict=True):
            assert all(torch.equal(ours[key], alone[key]) for key in alone)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"model": "test_resnet"},
            "test_resnet has no class token or pooling query whose attention .* Leave out --attention",
        ),
        ({"model": "swin_tiny_patch4_window7_224"}, "has no class token"),
        ({"model": "test_vit2"}, "has no class token"),  # but a register
        ({"model": "test_vit3", "out_indices": (0, 1)}, "has attention in level 8, and not in level 0, 1"),
    ],
)
def test_a_model_without_attention_says_so(asked, message):
    with pytest.raises(ModelError, match=message):
        Timm().describe(ModelRequest(**asked, attention=True))


def test_a_detector_has_none():
    pytest.importorskip("ultralytics")
    with pytest.raises(UsageError, match="yolov8n is an ultralytics model, which has no --attention"):
        draw_up(ModelRequest("yolov8n", attention=True))


def test_the_memory_of_all_pairs_is_foreseen():
    """Scores and softmax of 1 + 32 x 32 tokens, in two heads, of four images, beside what it takes anyway."""
    taken = [
        draw_up(ModelRequest("test_vit", image_size=512, attention=asked)).footprint(4, (512, 512)).memory
        for asked in (False, True)
    ]
    assert taken[1] - taken[0] > 4 * 2 * 1025**2 * 4


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit2", "test_vit3", "test_resnet", "cait_xxs24_224", "convit_tiny", "mvitv2_small_cls"]
)
def test_the_catalogue_says_what_is_found(name):
    every = description.describe(ModelRequest(name, out_indices="all"))
    assert catalogue.with_tag(catalogue.read(), name)["attention"] == outputs.attention_facts(every)


def test_the_command_writes_recomputes_and_resumes(featx_command, photo, tmp_path):
    asked = ("extract", photo, "--model", "test_vit", "--weights", "random", "--output", "out", "--attention", "--json")
    done = featx_command(*asked)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    shapes = {array["key"]: array["shape"] for array in summary["arrays"]}
    assert [shapes[f"level_{index}_attention"] for index in (3, 4, 5)] == [[2, 10, 10]] * 3
    assert summary["recipe"]["attention"] is True
    pyramid = pyramid_of("test_vit", attention=True)
    expected = pyramid.arrays(pyramid.preprocess(photo)[0][None])["level_4_attention"][0]
    with np.load(tmp_path / "out" / "astronaut.jpg.npz") as written:
        np.testing.assert_allclose(written["level_4_attention"], expected, rtol=1e-4, atol=1e-8)
    assert featx_command("verify", "out", "--recompute", "1").returncode == 0
    again = json.loads(featx_command(*asked).stdout)
    assert again["counts"] == summary["counts"]
    without = featx_command(*asked[:-2])
    assert without.returncode == 1
    assert "attention" in without.stderr


def test_info_says_whose_attention_there_is(featx_command):
    found = {
        name: json.loads(featx_command("info", name, "--json").stdout)["attention"]
        for name in ("test_vit", "test_vit3", "test_resnet")
    }
    assert found == {
        "test_vit": {"query": "class token", "levels": [0, 1, 2, 3, 4, 5]},
        "test_vit3": {"query": "pooling query", "levels": [8]},
        "test_resnet": None,
    }
    assert "attention of the pooling query in level 8 (--attention)" in featx_command("info", "test_vit3").stdout

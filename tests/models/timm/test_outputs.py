# More than levels: embedding, final map, prefix tokens, final norm; equal to timm, in one pass; refused where absent.
from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch

import featx
from featx.errors import ModelError, UsageError, WeightsError
from featx.models.timm import outputs
from featx.models.timm.library import Timm
from featx.requests import ModelRequest
from tests.models.families import EVERY_KIND, FAMILIES, SMALLER

LIBRARY = Timm()


def described(name, **asked):
    return LIBRARY.describe(ModelRequest(name, **asked))


def as_map(values, shape):
    """A (B, C, H, W) map of what `forward_features` gives: a map of either layout, or tokens."""
    channels, height, width = shape
    if values.ndim == 3:
        return values[:, -height * width :].transpose(1, 2).reshape(len(values), channels, height, width)
    return values if values.shape[1:] == shape else values.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", FAMILIES.values())
def test_embedding_final_map_and_levels_equal_timms_bit_for_bit(name, tmp_path, request):
    """Of one pass: the levels are those of ``features_only``, embedding and final map those of the whole network."""
    if name not in EVERY_KIND and not request.config.getoption("large"):
        pytest.skip("one of every kind is enough, but for --large")
    size = SMALLER.get(name)
    options = {"img_size": size} if size and described(name, image_size=size).rebuilt else {}
    torch.manual_seed(0)
    whole = timm.create_model(name, **options).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    plain = featx.load_pyramid(name, weights=tmp_path / "weights.pth", image_size=size, device="cpu")
    facts = outputs.facts(LIBRARY.describe(plain.request))
    both = featx.load_pyramid(
        name,
        weights=tmp_path / "weights.pth",
        image_size=size,
        embedding=True,
        final=facts["final"] is not None,
        device="cpu",
    )
    batch = torch.randn(1, 3, plain.input.height, plain.input.width)
    with torch.no_grad():
        final = whole.forward_features(batch)
        embedding = whole.forward_head(final, pre_logits=True)
    arrays = both.arrays(batch)
    assert torch.equal(arrays["embedding"], embedding)
    assert arrays["embedding"].shape == (1, facts["embedding"])
    for level, expected in zip(both.levels, plain(batch), strict=True):
        assert torch.equal(arrays[level.key], expected)
    assert both.levels == plain.levels
    if both.final:
        assert torch.equal(arrays["final"], as_map(final, both.final.shape))


def test_what_efficientnetv2_gives_at_its_own_size():
    description = described("tf_efficientnetv2_s", embedding=True, final=True, test_size=True)
    assert (description.input.height, description.input.width) == (384, 384)
    shapes = {field.key: field.shape for field in description.fields}
    assert shapes["final"] == (1280, 12, 12)
    assert shapes["embedding"] == (1280,)
    assert shapes["level_4"] == (256, 12, 12)
    assert (description.final.stride, description.final.part) == (32, "final")


def test_nothing_but_the_vector():
    pyramid = featx.load_pyramid("test_resnet", weights="random", embedding=True, maps=False, device="cpu")
    assert pyramid.levels == ()
    assert [field.key for field in pyramid.fields] == ["embedding"]
    assert pyramid(torch.zeros(1, 3, 160, 160)) == []


@pytest.fixture(scope="module")
def batch():
    return torch.randn(3, 3, 160, 160, generator=torch.manual_seed(3))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_pools_are_those_of_the_final_map(name, batch):
    final = featx.load_pyramid(name, weights="random", final=True, device="cpu").arrays(batch)["final"].numpy()
    for pool, reference in {
        "avg": final.mean((2, 3)),
        "max": final.max((2, 3)),
        "gem": (np.maximum(final.astype(np.float64), 1e-6) ** 3).mean((2, 3)) ** (1 / 3),
    }.items():
        pyramid = featx.load_pyramid(name, weights="random", embedding=True, pool=pool, maps=False, device="cpu")
        np.testing.assert_allclose(pyramid.arrays(batch)["embedding"].numpy(), reference, rtol=2e-5, atol=1e-6)


def test_the_class_token_is_the_first_one(batch):
    torch.manual_seed(0)
    tokens = timm.create_model("test_vit").eval().forward_features(batch)
    pyramid = featx.load_pyramid("test_vit", weights="random", embedding=True, pool="cls", maps=False, device="cpu")
    assert torch.equal(pyramid.arrays(batch)["embedding"], tokens[:, 0])


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_r_s16_p8_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("norm", [False, True])
def test_prefix_tokens_and_norm_are_timms_own(name, norm):
    asked = {"norm": norm, "prefix_tokens": True, "out_indices": "all"}
    pyramid = featx.load_pyramid(name, weights="random", device="cpu", **asked)
    batch = torch.randn(2, 3, pyramid.input.height, pyramid.input.width)
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    indices = [level.index for level in pyramid.levels]
    with torch.no_grad():
        expected = whole.forward_intermediates(
            batch, indices=indices, norm=norm, return_prefix_tokens=True, intermediates_only=True
        )
    arrays = pyramid.arrays(batch)
    for index, (level, prefix) in zip(indices, expected, strict=True):
        assert torch.equal(arrays[f"level_{index}"], level)
        assert torch.equal(arrays[f"level_{index}_prefix"], prefix)
    assert len(arrays) == 2 * len(indices)


def test_the_norm_of_the_deepest_level_makes_it_the_final_map(batch):
    pyramid = featx.load_pyramid("test_vit", weights="random", norm=True, final=True, device="cpu")
    arrays = pyramid.arrays(batch)
    assert torch.equal(arrays[pyramid.levels[-1].key], arrays["final"])


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("test_resnet", {"norm": True}, "no final norm for its levels"),
        ("test_resnet", {"prefix_tokens": True}, "no class or register tokens"),
        ("test_resnet", {"embedding": True, "pool": "cls"}, "no class token"),
        ("pit_ti_224", {"final": True}, "no final map"),
        ("pit_ti_224", {"embedding": True, "pool": "avg"}, "no final map to pool"),
    ],
)
def test_what_a_network_has_not_is_refused(name, asked, message):
    with pytest.raises(ModelError, match=message):
        described(name, **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pool": "avg"}, "--pool needs --embedding"),
        ({"embedding": True, "pool": "median"}, "expected avg, max, gem or cls, not 'median'"),
        ({"maps": False}, "--no-maps leaves nothing to keep"),
        ({"maps": False, "embedding": True, "norm": True}, "--norm needs levels"),
        ({"part": "neck"}, "has no neck"),
    ],
)
def test_requests_that_make_no_sense_are_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        described("test_vit", **asked)


def test_a_checkpoint_needs_no_classifier_and_everything_before_it(tmp_path):
    torch.manual_seed(1)
    state = timm.create_model("test_efficientnet").state_dict()
    without = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    torch.save(without, tmp_path / "weights.pth")
    options = {"weights": tmp_path / "weights.pth", "device": "cpu"}
    featx.load_pyramid("test_efficientnet", embedding=True, **options)
    torch.save({name: value for name, value in without.items() if "conv_head" not in name}, tmp_path / "weights.pth")
    featx.load_pyramid("test_efficientnet", **options)
    with pytest.raises(WeightsError, match=r"parameters of the network test_efficientnet is missing .* conv_head"):
        featx.load_pyramid("test_efficientnet", embedding=True, **options)


def test_info_says_what_there_is_besides_levels(featx_command):
    value = json.loads(featx_command("info", "--model", "test_vit", "--json").stdout)
    assert (value["embedding"], value["prefix_tokens"], value["norm"]) == (64, 1, True)
    assert (value["final"]["channels"], value["final"]["height"], value["final"]["stride"]) == (64, 10, 16)
    table = featx_command("info", "--model", "test_vit").stdout
    others = "1 prefix token, attention of the class token (--attention), final norm (--norm)"
    assert f"embedding 64, final map 64 x 10 x 10, {others}" in table


def test_the_command_writes_what_was_asked_for(featx_command, photo, tmp_path):
    done = featx_command(
        *("extract", photo, "--model", "test_efficientnet", "--weights", "random", "--output", "out"),
        *("--embedding", "--final", "--dtype", "float16", "--json"),
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    shapes = {array["key"]: (array["shape"], array["dtype"]) for array in summary["arrays"]}
    assert shapes["embedding"] == ([256], "float32")
    assert shapes["final"] == ([256, 5, 5], "float16")
    with np.load(tmp_path / "out" / "astronaut.jpg.npz") as written:
        assert {name: (list(values.shape), str(values.dtype)) for name, values in written.items()} == shapes
        pyramid = featx.load_pyramid("test_efficientnet", weights="random", embedding=True, device="cpu")
        pixels, _ = pyramid.preprocess(photo)
        expected = pyramid.arrays(pixels[None])["embedding"][0]
        np.testing.assert_allclose(written["embedding"], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["legacy_xception", "pit_ti_224"])
def test_threads_do_not_take_each_others_maps(name):
    """timm's own hooks hand a pass whatever was collected last on the device."""
    from concurrent.futures import ThreadPoolExecutor

    for options in ({}, {"embedding": True}):
        pyramid = featx.load_pyramid(name, weights="random", device="cpu", **options)
        size = (1, 3, pyramid.input.height, pyramid.input.width)
        batches = [torch.randn(size, generator=torch.manual_seed(seed)) for seed in range(6)]
        expected = [pyramid.arrays(batch) for batch in batches]
        with ThreadPoolExecutor(3) as pool:
            for ours, alone in zip(pool.map(pyramid.arrays, batches), expected, strict=True):
                assert all(torch.equal(ours[key], alone[key]) for key in alone)

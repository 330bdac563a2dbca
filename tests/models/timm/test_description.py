# Describing and building: levels are those asked for, in order, and every refusal says what there is.
from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

import featx
from featx.errors import FeatxError, ModelError, UsageError
from featx.models import levels
from featx.models.timm import description
from featx.models.timm.description import output_strides
from featx.models.timm.reference import resolve
from featx.requests import ModelRequest
from featx.values import Level
from tests.models.families import FAMILIES, HUGE, SMALLER


def describe(name, **asked):
    return description.describe(ModelRequest(name, **asked))


def shapes(description):
    return [level.shape for level in description.levels]


def test_resnest26d():
    description = describe("resnest26d")
    assert shapes(description) == [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert [level.stride for level in description.levels] == [2, 4, 8, 16, 32]


def test_regnety_032():
    assert [level.channels for level in describe("regnety_032").levels] == [32, 72, 216, 576, 1512]


def test_dilated_ecaresnet101d():
    description = describe("ecaresnet101d", output_stride=8, out_indices=(2, 4), image_size=(320, 320))
    assert shapes(description) == [(512, 40, 40), (2048, 40, 40)]
    assert [level.stride for level in description.levels] == [8, 8]


@pytest.mark.parametrize(
    ("asked", "indices"),
    [
        ((4, 1), [1, 4]),
        ((1, 1), [1]),
        ((-1,), [4]),
        ((-1, 4, 0), [0, 4]),
        ("all", [0, 1, 2, 3, 4]),
        (None, [0, 1, 2, 3, 4]),
    ],
)
def test_indices_give_the_right_labelled_levels(asked, indices):
    description = describe("resnet50", out_indices=asked)
    channels = {0: 64, 1: 256, 2: 512, 3: 1024, 4: 2048}
    assert [(level.index, level.channels) for level in description.levels] == [
        (index, channels[index]) for index in indices
    ]


def test_the_maps_of_reversed_indices_are_those_that_the_labels_say():
    pyramid = featx.load_pyramid("resnet18", weights="random", out_indices=(4, 1), image_size=64, device="cpu")
    maps = pyramid(torch.randn(1, 3, 64, 64))
    assert [level.channels for level in pyramid.levels] == [values.shape[1] for values in maps] == [64, 512]


def test_timm_alone_swaps_the_labels():
    """The reason for sorting; should timm ever agree with itself, this test says so."""
    swapped = timm.create_model("resnet18", features_only=True, out_indices=(4, 1)).eval()
    with torch.no_grad():
        maps = swapped(torch.randn(1, 3, 64, 64))
    assert (swapped.feature_info.channels(), [values.shape[1] for values in maps]) == ([512, 64], [64, 512])


def test_by_default_a_transformer_gives_what_timm_gives():
    description = describe("test_vit")
    reference = timm.create_model("test_vit", features_only=True)
    assert [level.index for level in description.levels] == list(reference.feature_info.out_indices)
    assert len(describe("test_vit", out_indices="all").levels) == description.depth


def test_a_level_that_timm_counts_and_does_not_have_is_none():
    description = describe("tresnet_m", out_indices="all")
    assert [level.index for level in description.levels] == [1, 2, 3, 4]
    assert [level.index for level in describe("tresnet_m", out_indices=(-1, -4)).levels] == [1, 4]
    for index in (0, -5):
        with pytest.raises(ModelError, match=f"no level {index}. It has 4: 1 to 4, or -1 to -4"):
            describe("tresnet_m", out_indices=(index,))


@pytest.mark.parametrize(
    "name", ["resnet18", "test_vit", "test_efficientnet", "mobilenetv3_small_050", "hardcorenas_b", "test_convnext"]
)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_only_what_the_chosen_levels_need_is_built_and_run(name, index):
    whole = featx.load_pyramid(name, weights="random", out_indices="all", device="cpu")
    part = featx.load_pyramid(name, weights="random", out_indices=(index,), device="cpu")
    assert part.parameters < 0.7 * whole.parameters
    part.module.load_state_dict(whole.module.state_dict(), strict=False)
    batch = torch.randn(2, 3, whole.input.height, whole.input.width)
    assert torch.equal(part(batch)[0], whole(batch)[index])


def levels_at(*strides):
    return [Level(index, f"m{index}", 8, stride, None, None, None) for index, stride in enumerate(strides)]


def test_of_several_levels_at_a_stride_the_deepest_is_taken():
    assert levels.choose("m", levels_at(2, 4, 8, 8, 8), None, (8, 2), ()) == (0, 4)


@given(st.lists(st.integers(-12, 11), min_size=1, max_size=9), st.integers(1, 12))
def test_choosing_is_sorted_unique_and_what_python_indexing_means(asked, depth):
    offered = levels_at(*range(1, depth + 1))
    if all(-depth <= index < depth for index in asked):
        chosen = levels.choose("m", offered, asked, None, ())
        assert list(chosen) == sorted({range(depth)[index] for index in asked})
    else:
        with pytest.raises(ModelError):
            levels.choose("m", offered, asked, None, ())


REFUSED = {
    "index too high": (("resnet50",), {"out_indices": (5,)}, r"no level 5.*5: 0 to 4"),
    "index too low": (("resnet50",), {"out_indices": (-6,)}, "no level -6"),
    "no level at the stride": (("resnet50",), {"strides": (8, 64)}, r"no level at stride 64.*2, 4, 8, 16, 32"),
    "output stride of hrnet": (("hrnet_w18_small",), {"output_stride": 8}, "cannot be built with output stride 8"),
    "output stride of vgg": (("vgg11",), {"output_stride": 8}, "cannot be built with output stride 8"),
    "output stride of a vit": (("test_vit",), {"output_stride": 8}, "only its own strides"),
    "output stride of swin": (("swin_tiny_patch4_window7_224",), {"output_stride": 16}, "only its own strides"),
    "output stride of densenet": (("densenet121",), {"output_stride": 8}, "cannot be built with output stride 8"),
    "odd output stride": (("resnet50",), {"output_stride": 7}, "It accepts 8, 16, 32"),
    "misspelt": (("resnest26",), {}, r"no model 'resnest26'.*resnest26d"),
    "no tag": (("resnet18.nonsense",), {}, r"no weights tagged 'nonsense'.*a1_in1k"),
    "old name": (("convnext_tiny_in22ft1k",), {}, r"renamed.*convnext_tiny\.fb_in22k_ft_in1k"),
    "a path": (("someone/net",), {}, "hf-hub:someone/net"),
    "unknown prefix": (("ftp:net",), {}, "unknown prefix"),
    "no folder": (("local-dir:/nowhere",), {}, "There is no folder /nowhere"),
    "a size that it cannot take": (("swin_tiny_patch4_window7_224",), {"image_size": (3, 3)}, "3x3 pixels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_there_is(case):
    names, asked, words = REFUSED[case]
    with pytest.raises(FeatxError, match=words) as caught:
        describe(*names, **asked)
    assert "\n" not in str(caught.value)


def test_levels_cannot_be_asked_for_in_two_ways_at_once():
    with pytest.raises(UsageError, match="--out-indices and --strides both choose the levels"):
        describe("resnet50", out_indices=(1,), strides=(8,))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "hrnet_w18_small", "test_vit", "vgg11", "sedarknet21"])
def test_output_strides_are_those_that_the_maps_then_have(name):
    for stride in output_strides(resolve(name)):
        for level in describe(name, output_stride=stride, image_size=(256, 256)).levels:
            assert level.stride <= max(stride, 32)
            assert level.height == -(-256 // level.stride)


def test_a_fixed_size_is_rebuilt_as_timm_does_it():
    description = describe("vit_base_patch16_224", image_size=(256, 320), out_indices=(-1,))
    assert shapes(description) == [(768, 16, 20)]


def test_maps_that_disagree_with_the_levels_are_not_accepted():
    (level,) = levels_at(4)
    assert levels.check_maps("m", [level], [torch.zeros(1, 8, 5, 6)])[0].shape == (8, 5, 6)
    for maps in ([torch.zeros(1, 9, 5, 6)], [torch.zeros(1, 8, 5)], [], [torch.zeros(1, 8, 5, 6)] * 2):
        with pytest.raises(ModelError):
            levels.check_maps("m", [level], maps)


def test_every_family_of_timm_has_a_model_in_the_tests():
    assert sorted(FAMILIES) == timm.list_modules()
    for module, name in FAMILIES.items():
        assert timm.models.is_model_in_modules(name, module), name


# Parameters of a network from which on one image is enough.
MANY = 20_000_000


@pytest.mark.parametrize("name", FAMILIES.values())
def test_maps_equal_timms_bit_for_bit(name, request):
    if name in HUGE and not request.config.getoption("large"):
        pytest.skip("a huge one, for --large")
    torch.manual_seed(0)
    reference = timm.create_model(name, features_only=True).eval()
    pyramid = featx.load_pyramid(name, weights="random", seed=0, image_size=SMALLER.get(name), device="cpu")
    count = 1 if pyramid.parameters > MANY else 2
    batch = torch.randn(count, 3, pyramid.input.height, pyramid.input.width)
    with torch.no_grad():
        expected = reference(batch)
    if str(getattr(reference, "output_fmt", "")).endswith("NHWC"):
        expected = [values.permute(0, 3, 1, 2) for values in expected]
    maps = pyramid(batch)
    assert [level.index for level in pyramid.levels] == list(reference.feature_info.out_indices)
    for level, ours, theirs in zip(pyramid.levels, maps, expected, strict=True):
        assert ours.shape == (count, *level.shape)
        assert torch.equal(ours, theirs)
        assert torch.isfinite(ours).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a timm configuration: Input data was truncated"),
        ("[]", r"Expected `object`, got `array`"),
        ("{}", "missing required field `architecture`"),
        ('{"architecture": 1}', r"Expected `str`, got `int` - at `\$\.architecture`"),
        ('{"architecture": "test_vit", "pretrained_cfg": 1}', r"at `\$\.pretrained_cfg`"),
    ],
)
def test_a_damaged_configuration_names_its_field(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        describe(f"local-dir:{tmp_path}")

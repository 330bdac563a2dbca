# Any module: what a hook on timm's network sees, bit for bit; its layout and place measured; or why it is refused.
from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch

import featx
from featx.errors import ModelError, UsageError
from featx.models.order import Order
from featx.models.pyramid import draw_up
from featx.requests import ModelRequest
from tests.models.test_tracing import opened

# What is expected of modules: the layout of their own output, with the number of tokens before those of the map.
NETWORKS = {
    "in place": (
        "test_resnet",
        64,
        {"bn1": "NCHW", "act1": "NCHW", "layer3.0.bn1": "NCHW", "layer3.0.conv2": "NCHW", "global_pool": "vector"},
    ),
    "tokens": (
        "test_vit",
        64,
        {"patch_embed.proj": "NCHW", "blocks.0.attn": "NLC 1", "blocks.4.mlp.fc1": "NLC 1", "norm": "NLC 1"},
    ),
    "channels last": (
        "test_convnext",
        64,
        {"stages.2.blocks.0.conv_dw": "NCHW", "stages.2.blocks.0.mlp": "NHWC", "head.norm": "vector"},
    ),
    "windows": (
        "swin_tiny_patch4_window7_224",
        112,
        {
            "layers.0.blocks.1.norm1": "NHWC",
            "layers.0.blocks.1.mlp": "NLC 0",
            "layers.1.downsample.norm": "NHWC",
            "layers.2.blocks.0.norm2": "NLC 0",
        },
    ),
    "squeeze-excite": ("test_efficientnet", 64, {"blocks.3.0.se": "NCHW", "blocks.3.0.se.conv_reduce": "vector"}),
    "registers": ("vit_small_patch14_reg4_dinov2", 56, {"blocks.1.mlp": "NLC 5"}),
}


def pyramid_of(name, modules=None, **options):
    return featx.load_pyramid(name, weights="random", device="cpu", modules=modules, **options)


def noise(pyramid, count=2):
    return torch.randn(count, 3, *pyramid.traced, generator=torch.manual_seed(1))


def hooked(network, names, batch):
    """What forward hooks on a network of timm's see, copied before anything can change it in place."""
    seen = {name: [] for name in names}
    for name in names:
        network.get_submodule(name).register_forward_hook(lambda *given, name=name: seen[name].append(given[2].clone()))
    with torch.no_grad():
        network.forward_head(network.forward_features(batch), pre_logits=True)
    return seen


def arranged(values, layout, shape):
    """Bring an output to what is kept, as its layout says; and what precedes the cells, of tokens."""
    if layout == "vector":
        return values.flatten(1), None
    if layout.startswith("NLC"):
        prefix = int(layout[3:])
        return values[:, prefix:].transpose(1, 2).reshape(len(values), *shape), values[:, :prefix]
    return values.permute(0, 3, 1, 2) if layout == "NHWC" else values, None


@pytest.mark.parametrize(("name", "size", "modules"), NETWORKS.values(), ids=NETWORKS)
def test_the_output_is_what_a_hook_sees_and_the_levels_are_as_without(name, size, modules, tmp_path):
    rebuilt = draw_up(ModelRequest(name, image_size=size)).description.rebuilt
    network = timm.create_model(name, **({"img_size": size} if rebuilt else {})).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    options = {"weights": tmp_path / "weights.pth", "image_size": size, "device": "cpu"}
    tokens = any(re.fullmatch("NLC [1-9]", layout) for layout in modules.values())
    pyramid = featx.load_pyramid(name, modules=tuple(modules), prefix_tokens=tokens, **options)
    plain, batch = featx.load_pyramid(name, **options), noise(pyramid)
    seen, arrays = hooked(network, modules, batch), pyramid.arrays(batch)
    for level, values in zip(plain.levels, plain(batch), strict=True):
        assert torch.equal(arrays[level.key], values)
    for module, layout in modules.items():
        key = f"module_{module}"
        expected, prefix = arranged(seen[module][0], layout, arrays[key].shape[1:])
        assert torch.equal(arrays[key], expected), module
        assert (f"{key}_prefix" in arrays) == (layout in ("NLC 1", "NLC 5"))
        assert f"{key}_prefix" not in arrays or torch.equal(arrays[f"{key}_prefix"], prefix)
    of_maps = [module for module, layout in modules.items() if layout != "vector"]
    assert {level.name for level in pyramid.modules} == set(of_maps)
    assert all(level.stride and level.key == f"module_{level.name}" for level in pyramid.modules)


def test_only_modules_in_the_order_of_the_network_without_repeats():
    pyramid = pyramid_of("test_resnet", ("layer2.0.conv2", "layer*.0.conv2", "conv1.0"), maps=False, image_size=64)
    names = ["conv1.0", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"]
    assert list(pyramid.arrays(noise(pyramid))) == [f"module_{name}" for name in names]
    assert pyramid.levels == ()


@pytest.mark.parametrize(
    ("module", "size", "options"),
    [
        ("layer2.0.conv1", 128, {}),
        ("layer3.0.bn2", 288, {}),
        ("layer3.0.conv2", 288, {"output_stride": 8}),
    ],
)
def test_cells_lie_where_the_input_is_that_they_depend_on(module, size, options):
    (level,) = draw_up(ModelRequest("resnet18", image_size=size, modules=module, **options)).description.modules
    network, seen = opened(timm.create_model("resnet18", **options)), []
    network.get_submodule(module).register_forward_hook(lambda *given: seen.append(given[2]))
    image = torch.full((1, 3, size, size), 1e-6, dtype=torch.float64, requires_grad=True)
    network.forward_features(image)
    place = (level.height // 2, level.width // 2 + 1)
    seen[0][0, :, *place].sum().backward()
    shown = image.grad[0].abs().sum(0)
    for axis, cell in enumerate(place):
        profile = shown.sum(1 - axis)
        assert profile[0] == profile[-1] == 0
        centre = float(profile @ torch.arange(size).double() / profile.sum())
        assert level.offset + level.stride * cell == pytest.approx(centre, abs=1e-6)


def test_a_module_that_gives_a_level_lies_where_the_level_does():
    """In networks of all layouts, and through windows that are rolled and cut."""
    for name in ("test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "nest_tiny_jx"):
        levels = draw_up(ModelRequest(name)).description.levels
        found = draw_up(ModelRequest(name, modules=[level.name for level in levels])).description.modules
        for level, module in zip(levels, found, strict=True):
            assert (module.stride, module.offset, module.shape) == (level.stride, level.offset, level.shape), name


def test_tokens_in_another_order_are_never_taken_for_a_map():
    """Hiera's come unit by unit, and a permutation of a map's rows has the shape of the map."""
    fields = {field.key: field.shape for field in pyramid_of("hiera_tiny_224", ("patch_embed", "blocks.0")).fields}
    assert fields["module_patch_embed"] == (96, 56, 56)
    assert fields["module_blocks.0"] == (3136, 96)
    order, image = Order(), torch.zeros(1, 3, 4, 6, device="meta")
    order.begin(image)
    with order:
        rolled, flipped = image.roll(1, 2), image.permute(0, 2, 3, 1).flatten(1, 2).flip(1)
        back = rolled.roll(-1, 2)
    assert order.numbers_of(back)[0, 0].flatten().tolist() == list(range(24))
    assert order.numbers_of(rolled)[0, 0, 0].tolist() == list(range(18, 24))
    assert order.numbers_of(flipped)[0, :, 0].tolist() == list(range(24))[::-1]


def test_one_call_of_a_module_that_runs_several_times():
    pyramid = pyramid_of("dla34", ("level2.tree1.relu@1", "level2.tree1.relu@2"), image_size=64)
    batch = noise(pyramid)
    torch.manual_seed(0)
    seen = hooked(timm.create_model("dla34").eval(), ["level2.tree1.relu"], batch)["level2.tree1.relu"]
    arrays = pyramid.arrays(batch)
    for call in range(2):
        assert torch.equal(arrays[f"module_level2.tree1.relu@{call + 1}"], seen[call])
    assert not torch.equal(*seen)


def test_photos_at_their_own_size():
    pyramid = pyramid_of("test_vit", ("blocks.1.mlp", "patch_embed"), fit="native", maps=False)
    assert [field.shape for field in pyramid.fields] == [(64, None, None)] * 2
    torch.manual_seed(0)
    network = timm.create_model("test_vit", dynamic_img_size=True).eval()
    for height, width in ((96, 64), (48, 112)):
        batch, shape = torch.randn(1, 3, height, width), (64, height // 16, width // 16)
        expected = hooked(network, ["blocks.1.mlp"], batch)["blocks.1.mlp"][-1]
        assert torch.equal(pyramid.arrays(batch)["module_blocks.1.mlp"], arranged(expected, "NLC 1", shape)[0])


def test_threads_do_not_take_each_others_outputs():
    pyramid = pyramid_of("test_resnet", ("bn1", "layer3.0.conv2"), image_size=64)
    batches = [torch.randn(1, 3, 64, 64, generator=torch.manual_seed(seed)) for seed in range(9)]
    expected = [pyramid.arrays(batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        for ours, alone in zip(pool.map(pyramid.arrays, batches), expected, strict=True):
            assert all(torch.equal(ours[key], alone[key]) for key in alone)


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        (
            "test_resnet",
            "layer3.0.conv9",
            "has no module layer3.0.conv9. Did you mean .*layer3.0.conv.*--modules` lists",
        ),
        ("test_resnet", "blocks.*", "has no module that matches blocks"),
        ("test_resnet", "fc", "fc of test_resnet does not run: .* or it is the classifier"),
        ("pvt_v2_b0", "stages.0.blocks", "is not run as a whole, only the modules in it. Use --module stages.0"),
        ("pit_ti_224", "transformers.0", "gives a tuple, not a tensor. Use --module transformers.0.norm"),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn", "windows or other pieces.*layers.0.blocks.0,"),
        ("swinv2_tiny_window8_256", "layers.0.blocks.0.attn.cpb_mlp", "gives 1 x 15 x 15 x 3, "),
        ("cait_xxs24_224", "pos_drop@2", "pos_drop of cait_xxs24_224 runs once, so there is no call 2"),
        ("dla34", "level2.tree1.relu", "runs 2 times in a pass. Choose a call: --module level2.tree1.relu@1 to "),
    ],
)
def test_what_cannot_be_kept_says_why_and_what_can(name, module, message):
    with pytest.raises(ModelError, match=message):
        draw_up(ModelRequest(name, modules=(module,)))


def test_a_pattern_says_what_it_leaves_out():
    description = draw_up(ModelRequest("test_vit", modules="blocks.0.attn.*")).description
    (note,) = description.notes
    assert note.startswith("3 modules of --module blocks.0.attn.* cannot be kept, such as blocks.0.attn.q_norm, which")
    assert description.captures == tuple(f"blocks.0.attn.{each}" for each in ("qkv", "norm", "proj", "proj_drop"))


def test_tokens_of_no_map_are_refused_where_their_number_varies():
    with pytest.raises(ModelError, match=r"pos_embed of csatv2 gives tokens of no map, .* Leave out --fit native"):
        draw_up(ModelRequest("csatv2", modules=("stages.0.0.attn.attn.pos_embed",), fit="native"))


def test_names_are_expected():
    for wrong in ("", " , ", (), 3):
        with pytest.raises(UsageError, match=r"--module: expected names, such as layer3\.0\.conv2"):
            ModelRequest("test_resnet", modules=wrong)


def test_modules_of_detectors():
    pytest.importorskip("ultralytics")
    pyramid = pyramid_of("yolov8n", ("model.2.cv1.bn", "model.4"), image_size=64)
    plain, batch, seen = pyramid_of("yolov8n", image_size=64), torch.rand(2, 3, 64, 64), []
    plain.module.get_submodule("model.2.cv1.bn").register_forward_hook(lambda *given: seen.append(given[2].clone()))
    expected, arrays = plain(batch), pyramid.arrays(batch)
    assert torch.equal(arrays["module_model.2.cv1.bn"], seen[0])
    assert torch.equal(arrays["module_model.4"], expected[2])
    assert [level.stride for level in pyramid.modules] == [4, 8]

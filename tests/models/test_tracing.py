# Strides and offsets: against what cells really see, found by differentiating networks whose every path is open.
from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from featx.models.timm.description import describe
from featx.models.tracing import Axis, Tracer
from featx.requests import ModelRequest


def opened(network: nn.Module) -> nn.Module:
    """Make every input pixel that can reach an output do so: averages for weights and maxima, no branch at zero."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                average = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, average)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network.double().eval()


def seen(network: nn.Module, size: int, level: int, row: int, column: int) -> tuple[int, int, int, int]:
    """First and last input row and column on which a cell depends."""
    # Small enough that no sum of branches is cut off by a bounded activation.
    image = torch.full((1, 3, size, size), 1e-6, dtype=torch.float64, requires_grad=True)
    network(image)[level][0, :, row, column].sum().backward()
    touched = image.grad[0].abs().sum(0) > 0
    rows, columns = touched.any(1).nonzero(), touched.any(0).nonzero()
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


# Networks without global pooling or attention, in which what a cell sees is a box; and a level in the middle of each.
OPEN = [
    ("resnet18", 3),
    ("resnet26d", 2),
    ("tf_efficientnet_lite0", 2),  # pads on one side only
    ("mobilenetv2_050", 3),
    ("vgg11", 4),
    ("densenet121", 2),
    ("dla34", 2),
    ("inception_v3", 2),  # does not pad at all
    ("repvgg_a0", 2),
    ("cs3darknet_focus_s", 2),  # takes every second pixel
    ("regnetx_002", 2),
]


@pytest.mark.parametrize(("name", "level"), OPEN)
def test_boxes_are_what_cells_see(name, level):
    size = 320
    with torch.device("meta"):
        skeleton = timm.create_model(name, features_only=True).eval()
        image = torch.empty(1, 3, size, size)
    tracer = Tracer()
    with torch.no_grad(), tracer:
        tracer.begin(image)
        maps = skeleton(image)
    vertical, horizontal = tracer.grid_of(maps[level])
    network = opened(timm.create_model(name, features_only=True))
    row, column = vertical.length // 2, horizontal.length // 2 - 1
    expected = (
        max(vertical.first + row * vertical.stride, 0),
        min(vertical.last + row * vertical.stride, size - 1),
        max(horizontal.first + column * horizontal.stride, 0),
        min(horizontal.last + column * horizontal.stride, size - 1),
    )
    assert 0 < expected[0] <= expected[1] < size - 1, "a box that is cut off on all sides would prove nothing"
    assert seen(network, size, level, row, column) == expected


# stride and offset, by the arithmetic of patches, one by one.
KNOWN = {
    "vit_base_patch16_224": [(16, 7.5)] * 3,
    "swin_tiny_patch4_window7_224": [(4, 1.5), (8, 3.5), (16, 7.5), (32, 15.5)],
    "convnext_atto": [(4, 1.5), (8, 3.5), (16, 7.5), (32, 15.5)],
    "resnet50": [(2, 0), (4, 0), (8, 0), (16, 0), (32, 0)],
    "tf_efficientnet_b0": [(2, 1), (4, 3), (8, 7), (16, 15), (32, 31)],
    "crossvit_tiny_240": [(12, 5.5), (240 / 14, (240 / 14 - 1) / 2)],
    "levit_128s": [(16, 0), (32, 0), (64, 0)],
    "pvt_v2_b0": [(4, 0), (8, 0), (16, 0), (32, 0)],
}


@pytest.mark.parametrize("name", KNOWN)
def test_networks_whose_geometry_is_known(name):
    levels = describe(ModelRequest(name)).levels
    assert [level.stride for level in levels] == pytest.approx([stride for stride, _ in KNOWN[name]], rel=1e-12)
    assert [level.offset for level in levels] == pytest.approx([offset for _, offset in KNOWN[name]], rel=1e-9)


def test_where_padding_pushes_the_view_aside_the_offset_is_left_open():
    levels = describe(ModelRequest("cpubone_b3")).levels
    assert levels[-1].offset is None
    assert levels[-1].stride == 32


def test_strides_are_measured_in_a_dilated_network():
    levels = describe(ModelRequest("resnet50", output_stride=8)).levels
    assert [level.stride for level in levels] == [2, 4, 8, 8, 8]


def test_merging_cells_is_a_window_over_them():
    assert Axis(8, 4.0, 0.0, 3.0).merged(4) == Axis(4, 8.0, 0.0, 7.0)
    assert Axis(8).merged(3) is None


def test_resampling_keeps_the_outer_edges():
    axis = Axis(240).scaled(224)
    assert axis.offset - axis.stride / 2 == pytest.approx(-0.5)
    assert axis.offset + axis.stride * 223.5 == pytest.approx(239.5)

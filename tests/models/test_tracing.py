# Strides and offsets: against what cells really see, found by differentiating networks whose every path is open.
from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from featx.models.axes import Axis
from featx.models.timm.description import describe
from featx.models.tracing import Tracer
from featx.requests import ModelRequest
from featx.values import plain


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


def traced(network: nn.Module, size: int, level: int = 0) -> tuple[Axis, Axis]:
    """Return the grid of a level."""
    tracer = Tracer()
    with torch.no_grad(), tracer:
        like = next(network.parameters())
        image = torch.zeros(1, 3, size, size, device=like.device, dtype=like.dtype)
        tracer.begin(image)
        return tracer.grid_of(network(image)[level])


def centroid(network: nn.Module, size: int, level: int, row: int, column: int) -> tuple[float, float]:
    """Return where the input is, on average, on which a cell depends; it must not be cut off by a border."""
    # Small enough that no sum of branches is cut off by a bounded activation.
    image = torch.full((1, 3, size, size), 1e-6, dtype=torch.float64, requires_grad=True)
    network(image)[level][0, :, row, column].sum().backward()
    shown = image.grad[0].abs().sum(0)
    places = []
    for axis in range(2):
        profile = shown.sum(1 - axis)
        assert profile[0] == profile[-1] == 0, "a cell that sees a border would prove nothing"
        places.append(float(profile @ torch.arange(size).double() / profile.sum()))
    return places[0], places[1]


# Networks without global pooling or attention, in which nothing spreads what a cell sees; and a level of each that is
# not cut off by borders.
OPEN = [
    ("resnet18", 3),
    ("resnet26d", 2),  # pools its shortcuts
    ("tf_efficientnet_lite0", 2),  # pads on one side only
    ("mobilenetv2_050", 3),
    ("vgg11", 4),
    ("densenet121", 2),
    ("dla34", 2),  # pools its shortcuts
    ("inception_v3", 2),  # does not pad at all
    ("repvgg_a0", 2),
    ("cs3darknet_focus_s", 2),
    ("regnetx_002", 2),
]


@pytest.mark.parametrize(("name", "level"), OPEN)
def test_centres_are_those_of_what_cells_see(name, level):
    size = 320
    with torch.device("meta"):
        skeleton = timm.create_model(name, features_only=True).eval()
    vertical, horizontal = traced(skeleton, size, level)
    network = opened(timm.create_model(name, features_only=True))
    row, column = vertical.length // 2, horizontal.length // 2 - 1
    for axis, cell, found in zip(
        (vertical, horizontal), (row, column), centroid(network, size, level, row, column), strict=True
    ):
        place = found - cell * axis.stride
        if axis.spread == 0:
            assert place == pytest.approx(axis.offset, abs=1e-6)
        else:
            assert axis.lowest < place < axis.highest
            assert axis.lowest < axis.offset < axis.highest


class Operation(nn.Module):
    """A network of one operation on maps, between a strided convolution and an even window."""

    def __init__(self, operation) -> None:
        super().__init__()
        self.before, self.operation = nn.Conv2d(3, 4, 3, 2, 1), operation

    def forward(self, image):
        return [F.avg_pool2d(self.operation(self.before(image)), 2, 1)]


def space_to_depth(values):
    return torch.cat([values[:, :, row::2, column::2] for row in range(2) for column in range(2)], 1)


def shifted_windows(values):
    """Roll rows, attend to the cells of a window, and roll back."""
    batch, channels, height, width = values.shape
    windows = values.roll((-2, -1), (2, 3)).reshape(batch, channels, height // 4, 4, width // 4, 4)
    tokens = windows.permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, channels)
    tokens = torch.eye(16, dtype=values.dtype, device=values.device).expand(len(tokens), 16, 16) @ tokens
    windows = tokens.reshape(batch, height // 4, width // 4, 4, 4, channels).permute(0, 5, 1, 3, 2, 4)
    return windows.reshape(values.shape).roll((2, 1), (2, 3))


OPERATIONS = {
    "even kernel, padded on one side": lambda values: F.avg_pool2d(F.pad(values, (1, 0, 0, 1)), 2, 1),
    "dilated": lambda values: F.conv2d(values, torch.ones(4, 4, 2, 3).to(values), padding=(1, 0), dilation=2),
    "strided slice": lambda values: values[:, :, 1::2, ::2],
    "cropped": lambda values: values[:, :, 3:-2, 1:],
    "space to depth, sliced": space_to_depth,
    "space to depth": lambda values: F.pixel_unshuffle(values, 2),
    "depth to space": lambda values: F.pixel_shuffle(values, 2),
    "nearest": lambda values: F.interpolate(values, scale_factor=2),
    "nearest, of another size": lambda values: F.interpolate(values, (60, 100)),
    "every second": lambda values: F.interpolate(values, scale_factor=0.5),
    "bilinear": lambda values: F.interpolate(values, scale_factor=2, mode="bilinear"),
    "bilinear, corners aligned": lambda values: F.interpolate(values, (79, 157), mode="bilinear", align_corners=True),
    "bilinear, smaller": lambda values: F.interpolate(values, (20, 20), mode="bilinear", antialias=True),
    "transposed": lambda values: F.conv_transpose2d(values, torch.ones(4, 4, 4, 2).to(values), None, 2, (1, 0)),
    "folded": lambda values: F.fold(F.unfold(values, 3, 1, 1, 1), values.shape[-2:], 3, 1, 1, 1),
    "unfolded": lambda values: F.unfold(values, 4, stride=4).reshape(1, -1, 10, 10),
    "rolled": lambda values: values.roll((3, -2), (2, 3)),
    "shifted windows": shifted_windows,
    "channels last": lambda values: F.pad(values.permute(0, 2, 3, 1)[:, 2:, :-1], (0, 0, 3, 0)).permute(0, 3, 1, 2),
    "adaptive": lambda values: F.adaptive_avg_pool2d(values, (20, 10)),
    "gated by itself": lambda values: values * (values.mean((2, 3), keepdim=True) + 1).detach(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_moves_cells_as_their_responses_move(name):
    size = 80
    network = opened(Operation(OPERATIONS[name]))
    grid = traced(network, size)
    # Cells in the middle: where maps are scaled up, as many as repeat.
    middle = [range(axis.length // 3, axis.length // 3 + (30 if axis.length > 45 else 4)) for axis in grid]
    found = torch.tensor([[centroid(network, size, 0, row, column) for column in middle[1]] for row in middle[0]])
    for axis, cells in enumerate(middle):
        places = grid[axis].offset + grid[axis].stride * torch.tensor(cells)
        measured = found[..., axis].mean(1 - axis)
        assert measured.mean() == pytest.approx(float(places.double().mean()), abs=1e-4)
        if "nearest" not in name:
            assert measured.tolist() == pytest.approx(places.tolist(), abs=grid[axis].stride / 16)


def test_branches_that_pull_apart_are_told_and_weighed():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.straight, self.pooled = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1)

        def forward(self, image):
            shortcut = self.pooled(F.avg_pool2d(image, 2))
            once = shortcut + self.straight(image)
            return [once, once + F.relu(once), torch.cat([shortcut, self.straight(image)], 1), once + shortcut]

    grids = [traced(Branches(), 64, level)[0] for level in range(4)]
    assert [(axis.lowest, axis.highest, axis.spread) for axis in grids] == [(0, 0.5, 0.25)] * 4
    assert [axis.offset for axis in grids] == pytest.approx([1 / 4, 1 / 4, 1 / 4, 1 / 3])
    assert [axis.strength for axis in grids] == [2, 4, 1, 3]


def test_what_is_pooled_to_one_cell_has_no_place():
    assert traced(Operation(lambda values: values.mean((2, 3), keepdim=True).expand_as(values)), 32) is None


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


def test_levels_tell_how_far_branches_lie_apart():
    straight, pooled = (describe(ModelRequest(name)).levels for name in ("resnet50", "resnet50d"))
    assert [level.offset_spread for level in straight] == [0] * 5
    assert [level.offset_spread for level in pooled] == [0, 0, 0.25, 0.375, 0.438]
    assert [level.offset for level in pooled] == [0, 0, 1, 3, 7]
    assert "offset_spread" not in plain(straight[0])
    assert plain(pooled[-1])["offset_spread"] == 0.438


def test_upsampled_branches_have_a_place():
    levels = describe(ModelRequest("hrnet_w18_small")).levels
    # From stride 32 to 4, by nearest neighbours: the first of 8 cells is centred 14 pixels before their middle.
    assert levels[1].offset_spread * levels[1].stride >= 14
    assert -16 <= levels[1].offset < 0


def test_strides_are_measured_in_a_dilated_network():
    levels = describe(ModelRequest("resnet50", output_stride=8)).levels
    assert [level.stride for level in levels] == [2, 4, 8, 8, 8]


def test_merging_cells_is_a_window_over_them():
    assert Axis(8, 4.0, 0.0, 1.0, 0.5, 2.0).merged(4) == Axis(4, 8.0, 2.0, 3.0, 2.5, 2.0)
    assert Axis(8).merged(3) is None


def test_resampling_keeps_the_outer_edges():
    axis = Axis(240).scaled(224)
    assert axis.offset - axis.stride / 2 == pytest.approx(-0.5)
    assert axis.offset + axis.stride * 223.5 == pytest.approx(239.5)

# Cells found in photos: a dot that moves in the photo, through the pixels of every fit and a real network.
from __future__ import annotations

import importlib.util
import sys
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import set_fused_attn

import featx
from featx.errors import ModelError
from featx.images import cells
from featx.images.frame import Frame
from tests.helpers import ROOT

# Small networks of different families; and others, of the long version.
MODELS = ("test_resnet", "test_byobnet", "resnet18", "resnet18d", "edgenext_xx_small", "vit_tiny_patch16_224")
MORE = (
    *("test_vit", "test_efficientnet", "test_convnext", "test_mambaout", "test_nfnet", "resnest14d", "hrnet_w18_small"),
    *("legacy_seresnet18", "res2net50_14w_8s", "regnetx_002", "mobilenetv4_conv_small", "ghostnet_050", "hgnetv2_b0"),
    *("tf_efficientnet_b0", "cs3darknet_focus_s", "ese_vovnet19b_slim_dw", "mobilevit_xxs", "repvit_m0_9"),
    *("rexnet_100", "poolformerv2_s12", "pvt_v2_b0", "inception_next_atto", "starnet_s100"),
    *("swin_tiny_patch4_window7_224", "dla34", "mnasnet_050"),
)
FITS = ("crop", "squash", "pad", "native")

# A photo that is not square; dots in it, the radius of a dot in pixels; what is too weak a difference.
SIZE, DOTS, RADIUS, WEAK = (300, 210), 6, 2.0, 0.1

# Random initialisations of a network, also in the long version: kernels of few channels lean to a side by chance.
SEEDS, MANY = 3, 12

# Networks whose deepest cells all see the borders of 224 pixels, which shifts where they respond: their photo, and the
# input, have twice the size.
WIDE = ("mobilenetv4_conv_small", "tf_efficientnet_b0", "rexnet_100", "mnasnet_050")

# How far a dot may be found from where it is, in cells.
QUARTER = 0.25


def local():
    """What is made of the whole image is that of the photo without a dot, for all."""

    class Held(script().Local):
        def hold(self, result: torch.Tensor) -> torch.Tensor:
            return result[:1].expand_as(result)

    return Held()


@cache
def script():
    """Return the script that measures centres, as a module."""
    specification = importlib.util.spec_from_file_location("measure_centres", ROOT / "scripts" / "measure_centres.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where its dataclasses look for their names
    specification.loader.exec_module(module)
    return module


def photos(times: int) -> tuple[list[Image.Image], np.ndarray]:
    """Return a photo of noise, and the same with a bright dot in many places near its middle; and these, (x, y)."""
    width, height = times * SIZE[0], times * SIZE[1]
    generator = np.random.default_rng(0)
    noise = generator.integers(96, 160, (height, width, 3)).astype(np.float64)
    places = generator.uniform((0.38 * width, 0.38 * height), (0.62 * width, 0.62 * height), (DOTS, 2))
    y, x = np.mgrid[:height, :width]
    dots = [np.exp(-((x - right) ** 2 + (y - down) ** 2) / (2 * RADIUS**2))[..., None] for right, down in places]
    colours = generator.choice((-1, 1), (DOTS, 3)) * 95
    drawn = [noise + dot * colour for dot, colour in zip(dots, colours, strict=True)]
    return [Image.fromarray(values.round().clip(0, 255).astype(np.uint8)) for values in (noise, *drawn)], places


def centroids(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of where maps, (N + 1, C, H, W), differ from the first; weak differences do not count."""
    energy = (values[1:] - values[:1]).square().sum(1).double().numpy()
    energy[energy < WEAK * energy.max((1, 2), keepdims=True)] = 0
    energy /= energy.sum((1, 2), keepdims=True)
    rows, columns = (np.arange(length) for length in energy.shape[1:])
    return energy.sum(2) @ rows, energy.sum(1) @ columns


@pytest.fixture(autouse=True)
def unfused():
    """Have attention show its weights, which are held while a dot moves."""
    set_fused_attn(enable=False)
    yield
    set_fused_attn(enable=True)


@pytest.mark.parametrize("model", MODELS + MORE)
def test_a_moved_dot_is_found_within_a_quarter_of_a_cell(model, threads, request):
    if model in MORE and not request.config.getoption("--large"):
        pytest.skip("part of the long version")
    threads(1)
    times = 2 if model in WIDE else 1
    drawn, places = photos(times)
    seeds = MANY if model in MORE else SEEDS
    for fit in FITS:
        size = 448 if times == 2 and fit != "native" else None
        options = {"weights": "random", "out_indices": "all", "device": "cpu"}
        try:
            pyramid = featx.load_pyramid(model, fit=fit, image_size=size, **options)
        except ModelError:
            assert fit == "native", "every network takes the other fits"
            continue
        pixels, frames = zip(*map(pyramid.preprocess, drawn), strict=True)
        batch, frame = torch.stack(pixels), frames[0]
        off = np.mean([deviations(pyramid, batch, frame, places, seed) for seed in range(seeds)], axis=0)
        for level, found in zip(pyramid.levels, off, strict=True):
            allowed = QUARTER + np.array(pair(level.offset_spread)) / 2
            assert (abs(found) < allowed).all(), (fit, level, found)


def deviations(pyramid, batch: torch.Tensor, frame: Frame, places: np.ndarray, seed: int) -> np.ndarray:
    """Return how far from the dots they are found, on average, in cells: (levels, 2), y and x."""
    noise = torch.randn(2, 3, *pyramid.traced, generator=torch.manual_seed(seed))
    script().prepare(pyramid.module, noise)
    with local():
        maps = pyramid(batch)
    found = []
    for level, values in zip(pyramid.levels, maps, strict=True):
        x, y = cells.to_pixel(frame, level, *centroids(values))
        down, across = np.mean(y - places[:, 1]) * frame.scale[1], np.mean(x - places[:, 0]) * frame.scale[0]
        found.append(np.array([down, across]) / pair(level.stride))
    return np.array(found)


def pair(value) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)

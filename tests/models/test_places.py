# Cells found in photos: where networks really look, through the pixels of every fit, against what featx says.
from __future__ import annotations

import importlib.util
import sys
from functools import cache

import numpy as np
import pytest
from PIL import Image
from timm.layers import set_fused_attn

from featx.errors import ModelError
from featx.images import cells
from featx.images.fitting import make
from featx.models.pyramid import draw_up
from featx.requests import ModelRequest
from tests.helpers import ROOT

# Small networks of different families.
MODELS = (
    *("test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet", "test_mambaout", "test_nfnet"),
    *("resnet18", "resnet18d", "resnest14d", "legacy_seresnet18", "res2net50_14w_8s"),
    *("regnetx_002", "densenet121", "dla46_c", "hrnet_w18_small", "vgg11", "mobilenetv4_conv_small", "ghostnet_050"),
    *("tf_efficientnet_b0", "cs3darknet_focus_s", "ese_vovnet19b_slim_dw", "mobilevit_xxs", "edgenext_xx_small"),
    *("repvit_m0_9", "rexnet_100", "hgnetv2_b0", "lcnet_035", "poolformerv2_s12", "pvt_v2_b0", "inception_next_atto"),
    *("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s", "selecsls42", "starnet_s1", "fastvit_t8"),
)
FITS = ("crop", "squash", "pad", "native")

# A photo that is not square, and how far a cell may lie from where it is said to be, in cells.
SIZE, QUARTER = (300, 210), 0.25


@cache
def script():
    """Return the script that measures centres, as a module."""
    specification = importlib.util.spec_from_file_location("measure_centres", ROOT / "scripts" / "measure_centres.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where its dataclasses look for their names
    specification.loader.exec_module(module)
    return module


def ramp() -> Image.Image:
    """A photo whose red and green say how far right and down a pixel lies."""
    width, height = SIZE
    values = np.full((height, width, 3), 255.0)
    values[..., 0] = (np.arange(width) + 0.5) / width * 255
    values[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    return Image.fromarray(np.round(values).astype(np.uint8))


def lines_of(pixels: np.ndarray) -> list[tuple[float, float]]:
    """Fit lines to where the columns and rows of an input really lie in the photo: (slope, intercept), x then y."""
    inside = pixels[..., 2] >= 254
    found = []
    for channel, axis in ((0, 0), (1, 1)):
        places = np.flatnonzero(inside.any(axis))[3:-3]
        colours = np.where(inside, pixels[..., channel], np.nan)
        values = np.nanmean(colours, axis=axis)[places] / 255 * SIZE[channel] - 0.5
        found.append(tuple(np.polyfit(places, values, 1)))
    return found


def middle(places: list) -> tuple[float, float]:
    """Return the cell in the middle of those that were measured, and the pixel of the input that it looks at."""
    return np.mean([place.cell for place in places]), np.mean([place.pixel for place in places])


@pytest.fixture(autouse=True)
def fused():
    """Give attention its fused kernel back, which hides what is measured."""
    yield
    set_fused_attn(enable=True)


@pytest.mark.parametrize("model", MODELS)
def test_a_cell_is_found_in_the_photo_within_a_quarter_of_it(model):
    measured = {}
    for fit in FITS:
        try:
            description = draw_up(ModelRequest(model, weights="random", fit=fit, out_indices="all")).description
        except ModelError:
            assert fit == "native", "every network takes the other fits"
            continue
        size = description.traced
        if size not in measured:
            measured[size] = script().measure(description, 1)
        image, frame = make(description.preprocessing).place(ramp())
        (x_slope, x_start), (y_slope, y_start) = lines_of(np.asarray(image, np.float64))
        for level, (down, across) in zip(description.levels, measured[size], strict=True):
            (row, below), (column, right) = middle(down), middle(across)
            x, y = cells.to_pixel(frame, level, row, column)
            stride, spread = (np.broadcast_to(value, 2) for value in (level.stride, level.offset_spread))
            off = (
                abs(y_start + y_slope * below - y) / y_slope / stride[0] - spread[0] / 2,
                abs(x_start + x_slope * right - x) / x_slope / stride[1] - spread[1] / 2,
            )
            assert max(off) < QUARTER, (fit, level, off)

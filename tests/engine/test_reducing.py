# Reductions: what they say comes out is what comes out, one after the other, whatever they do.
from __future__ import annotations

import numpy as np
import pytest
import torch

import featx
from featx.engine.computing import Computer
from featx.engine.reducing import StoredType
from featx.values import Field


class Mean:
    """Every map to its mean."""

    def fields(self, fields):
        return [Field(field.key, field.shape[:1]) for field in fields]

    def __call__(self, values, photos):
        return [value.mean((2, 3)) for value in values]


@pytest.fixture(scope="module")
def pyramid():
    return featx.load_pyramid("test_resnet", weights="random", image_size=64, device="cpu", embedding=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_maps_are_stored_in_their_type_and_vectors_in_full_precision(pyramid, dtype):
    computer = Computer(pyramid, [StoredType(dtype)], 2)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    arrays = computer(pixels)
    expected = pyramid.run(pyramid.normalise(pixels))
    assert [field.dtype for field in computer.fields] == [*[dtype] * (len(expected) - 1), "float32"]
    for field, values, full in zip(computer.fields, arrays.values, expected, strict=True):
        assert (values.dtype, tuple(values.shape[1:])) == (getattr(torch, field.dtype), field.shape)
        assert torch.equal(values, full.to(values.dtype))


def test_one_follows_the_other():
    pyramid = featx.load_pyramid("test_resnet", weights="random", image_size=64, device="cpu")
    computer = Computer(pyramid, [Mean(), StoredType("float16")], 2)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    arrays = computer(pixels)
    assert [field.dtype for field in computer.fields] == ["float32"] * len(pyramid.levels)
    with torch.no_grad():
        maps = pyramid.run(pyramid.normalise(pixels))
    for level, values, full in zip(pyramid.levels, arrays.values, maps, strict=True):
        assert tuple(values.shape) == (2, level.channels)
        np.testing.assert_allclose(values, full.mean((2, 3)), rtol=1e-5, atol=1e-6)

# What follows from the declared options: the reference page, the types for editors, signatures, and what is refused.
from __future__ import annotations

import dataclasses
import inspect
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

import featx
from featx.declaring import declaration, declared
from featx.errors import UsageError
from featx.models import runtimes
from featx.models.libraries import LIBRARIES
from featx.options import BACKENDS, GROUPS, RECIPE
from featx.requests import Job, ModelRequest
from featx.runs.formats import FORMATS

SCRIPT = Path(__file__).parent.parent / "scripts" / "write_reference.py"
write_reference = module_from_spec(spec_from_file_location("write_reference", SCRIPT))
write_reference.__spec__.loader.exec_module(write_reference)


@pytest.mark.parametrize("write", [write_reference.reference, write_reference.stub], ids=["reference", "stub"])
def test_what_is_written_from_the_options_is_current(write):
    file = write_reference.REFERENCE if write is write_reference.reference else write_reference.STUB
    assert Path(file).read_text() == write(), "run scripts/write_reference.py"


def options():
    return [each for group in GROUPS for each in declared(group)]


def test_every_option_is_a_keyword_and_in_the_reference():
    keywords = inspect.signature(featx.extract).parameters
    page = write_reference.reference()
    for each in options():
        assert each.name in keywords
        assert f"`--{each.name.replace('_', '-')}" in page
        assert declaration(each).help.endswith(".")


def test_options_have_one_name_each():
    names = [each.name for each in options()]
    assert len(names) == len(set(names))
    assert {each.name for each in dataclasses.fields(Job)} == {*names, "inputs", "listed"}


def test_formats_are_those_of_the_table():
    metavar = next(declaration(each).metavar for each in options() if each.name == "format")
    assert metavar.split("|") == list(FORMATS)


def test_backends_are_those_of_the_table():
    assert tuple(runtimes.BACKENDS) == BACKENDS


def test_libraries_are_those_of_the_table():
    words = r"\|".join(sorted(LIBRARIES))
    assert f"`--source {words}`" in write_reference.reference()


def test_the_recipe_is_plain_json():
    assert json.loads(json.dumps(RECIPE)) == RECIPE


@pytest.mark.parametrize("caller", [featx.extract, featx.load_pyramid])
def test_a_misspelt_keyword_is_refused_with_the_nearest(caller):
    with pytest.raises(TypeError, match=r"'strdes'\. Did you mean strides\?"):
        caller(*["photo.jpg", "test_resnet"][caller is featx.load_pyramid :], strdes=[8])


SAME = [
    ("strides", "8,16", [8, 16], (8.0, 16.0)),
    ("strides", "8", 8, (8.0,)),
    ("out_indices", "0,-1", (0, -1), (0, -1)),
    ("out_indices", "all", "all", "all"),
    ("out_indices", "0,1,2", range(3), (0, 1, 2)),
    ("out_indices", "1,2", np.array([1, 2]), (1, 2)),
    ("strides", "4,8", np.array([4, 8]), (4.0, 8.0)),
    ("image_size", "384", 384, (384, 384)),
    ("image_size", "256x320", [256, 320], (256, 320)),
    ("seed", "7", 7, 7),
    ("output_stride", "8", 8, 8),
]


@pytest.mark.parametrize(("name", "text", "value", "expected"), SAME)
def test_text_and_values_become_the_same(name, text, value, expected):
    made = [getattr(ModelRequest("test_resnet", **{"weights": "random", name: given}), name) for given in (text, value)]
    assert made == [expected, expected]
    assert [type(each) for each in made] == [type(expected)] * 2


WRONG = [
    ("strides", "8;16", "comma-separated numbers, such as 8,16,32"),
    ("strides", object(), "comma-separated numbers"),
    ("out_indices", "1,x", "such as 0,2,-1, or all"),
    ("out_indices", [float("inf")], "such as 0,2,-1"),
    ("out_indices", [2.5], "such as 0,2,-1"),
    ("image_size", "huge", r"one side \(384\) or height x width"),
    ("image_size", (1, 2, 3), "one side"),
    ("image_size", 0, "one side"),
    ("seed", "one", "a whole number that fits"),
    ("seed", True, "a whole number that fits"),
    ("pool", "mean", "expected avg, max, gem or cls, not 'mean'"),
    ("precision", "fp8", "expected fp32, bf16 or fp16, not 'fp8'"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_what_was_expected_is_said(name, value, words):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: .*{words}"):
        ModelRequest("test_resnet", **{name: value})


LIMITS = [
    ("batch_size", "auto", None),
    ("batch_size", "16", 16),
    ("max_pixels", "30M", 30_000_000),
    ("memory_limit", "1.5G", 1_500_000_000),
    ("max_bytes", 10, 10),
    ("time_limit", "2.5", 2.5),
]


@pytest.mark.parametrize(("name", "given", "expected"), LIMITS)
def test_amounts(name, given, expected):
    assert getattr(Job("test_resnet", **{name: given}), name) == expected


CONTRADICTIONS = [
    ({"out_indices": [1], "strides": [8]}, "--out-indices and --strides"),
    ({"image_size": 64, "test_size": True}, "--image-size and --test-size"),
    ({"seed": 1}, "--seed is for --weights random"),
    ({"pool": "avg"}, "Add --embedding"),
    ({"maps": False}, "Add --embedding or --final"),
    ({"maps": False, "embedding": True, "strides": [8]}, "Levels were chosen"),
    ({"maps": False, "embedding": True, "norm": True}, "needs levels"),
    ({"maps": False, "embedding": True, "prefix_tokens": True}, "needs levels"),
]


@pytest.mark.parametrize(("asked", "words"), CONTRADICTIONS)
@pytest.mark.parametrize("kind", [ModelRequest, Job])
def test_what_contradicts_itself_is_refused_everywhere(kind, asked, words):
    with pytest.raises(UsageError, match=words):
        kind("test_resnet", **asked)

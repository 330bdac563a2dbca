# What follows from the declared options: the reference page, the types for editors, signatures, and what is refused.
from __future__ import annotations

import dataclasses
import inspect
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

import featx
from featx.command_options import SOURCES
from featx.declaring import declaration, declared
from featx.engine.bench import bench
from featx.errors import UsageError
from featx.explore.similarity import similar
from featx.explore.verify import verify
from featx.format_options import CONVERTED as WORDS_OF_FORMATS
from featx.models import runtimes
from featx.models.libraries import LIBRARIES
from featx.options import GROUPS, RECIPE
from featx.requests import Job, ModelRequest
from featx.run_options import BACKENDS
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
    assert tuple(FORMATS) == WORDS_OF_FORMATS


def test_backends_are_those_of_the_table():
    assert tuple(runtimes.BACKENDS) == BACKENDS


def test_libraries_are_those_of_the_table():
    assert sorted(LIBRARIES) == sorted(SOURCES)


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
    ("max_pixels", "1_000_000", 1_000_000),
    ("max_pixels", 1e6, 1_000_000),
    ("max_bytes", 10, 10),
    ("max_bytes", "500B", 500),
    ("max_bytes", "4GB", 4 * 10**9),
    ("max_bytes", "4 GB", 4 * 10**9),
    ("max_bytes", "4GiB", 4 << 30),
    ("max_bytes", "512kib", 512 << 10),
    ("max_bytes", "1.5M", 1_500_000),
    ("max_bytes", "2TB", 2 * 10**12),
    ("time_limit", "2.5", 2.5),
    ("device", "cuda:0,1", "cuda:0,1"),
    ("device", torch.device("cpu"), "cpu"),
    ("output", "out", Path("out")),
]


@pytest.mark.parametrize(("name", "given", "expected"), LIMITS)
def test_amounts(name, given, expected):
    assert getattr(Job("test_resnet", **{name: given}), name) == expected


UNFIT = [
    ("batch_size", "8,16", "expected a whole number from 1 to 65536 or auto, not '8,16'"),
    ("max_pixels", "30MB", "expected a whole number of at least 1, such as 179M, not '30MB'"),
    ("max_bytes", "1.5B", "expected a number of bytes, such as 1GB, not '1.5B'"),
    ("max_bytes", "9" * 400, r"not '9{12}\.\.\.9{13}'"),
    ("max_bytes", "4 XB", "not '4 XB'"),
    ("memory_limit", True, "not True"),
    ("time_limit", "inf", "expected seconds, from 0.1 to 1000000, not 'inf'"),
    ("time_limit", float("nan"), "not nan"),
    ("format", "zip", "expected npz, .* webdataset or zarr, not 'zip'"),
    ("device", "cpu,1", "expected auto, cpu, .* not 'cpu,1'. cpu takes no number"),
    ("device", "cuda:0,0", "'cuda:0,0' names a GPU twice"),
    ("device", "cuda:x", "not 'cuda:x'"),
    ("embedding", "no", "expected True or False, not 'no'"),
    ("output", 5, "expected a path, not 5"),
]


@pytest.mark.parametrize(("name", "given", "words"), UNFIT)
def test_what_does_not_fit_is_refused(name, given, words):
    with pytest.raises(
        UsageError, match=f"^--{name.replace('_', '-')}: {'.*' if words.startswith('not') else ''}{words}"
    ):
        Job("test_resnet", **{name: given})


OF_ONE_COMMAND = {
    "list_models, limit": (lambda: featx.list_models(limit=0), "--limit: expected a whole number of at least 1, not 0"),
    "list_models, levels": (
        lambda: featx.list_models(min_levels=-1),
        "--min-levels: .* of at least 1, not -1",
    ),
    "list_models, sort": (lambda: featx.list_models(sort="x"), "--sort: expected name or params, not 'x'"),
    "list_models, strides": (lambda: featx.list_models(strides="x"), "--stride: expected .* such as 4,8, not 'x'"),
    "list_models, parameters": (lambda: featx.list_models(max_parameters=0), "--max-params: expected .* such as 30M"),
    "verify": (lambda: verify("run", recompute=-1), "--recompute: expected a whole number of at least 0, not -1"),
    "similar": (lambda: similar("run", "1.jpg", count=0), "--count: expected a whole number of at least 1, not 0"),
    "bench": (lambda: bench(Job("test_resnet"), 7, 1), "--count: expected a whole number from 8 to 100000, not 7"),
}


@pytest.mark.parametrize("case", OF_ONE_COMMAND)
def test_functions_refuse_what_their_commands_refuse(case):
    call, words = OF_ONE_COMMAND[case]
    with pytest.raises(UsageError, match=words):
        call()


CONTRADICTIONS = [
    ({"out_indices": [1], "strides": [8]}, "--out-indices and --strides"),
    ({"image_size": 64, "test_size": True}, "--image-size and --test-size"),
    ({"seed": 1}, "--seed is for --weights random"),
    ({"pool": "avg"}, "Add --embedding"),
    ({"maps": False}, r"Add --embedding(,| or) --final"),
    ({"maps": False, "embedding": True, "strides": [8]}, "Levels were chosen"),
    ({"maps": False, "embedding": True, "norm": True}, "needs levels"),
    ({"maps": False, "embedding": True, "prefix_tokens": True}, "needs levels"),
    ({"maps": False, "embedding": True, "attention": True}, "needs levels"),
]


@pytest.mark.parametrize(("asked", "words"), CONTRADICTIONS)
@pytest.mark.parametrize("kind", [ModelRequest, Job])
def test_what_contradicts_itself_is_refused_everywhere(kind, asked, words):
    with pytest.raises(UsageError, match=words):
        kind("test_resnet", **asked)

# summary.json, whoever damaged it: one error that names the file and what it lacks, never one of Python's.
from __future__ import annotations

import copy
import json

import pytest

import featx
from featx.engine.again import request_of
from featx.errors import FeatxError
from featx.explore.verify import verify
from tests.helpers import extract, lines, make_photos, write_lines

SENSELESS = (..., None, "x", -1, [], {}, [None], float("inf"), "\ud800", "a\0b", "../../x")


@pytest.fixture
def run(tmp_path):
    extract(make_photos(tmp_path / "photos", 2), tmp_path / "out", embedding=True, final=True, out_indices=(1, 4))
    return tmp_path / "out"


def places(value, place=()):
    """Every place in a JSON document; of lists, the first entry."""
    yield place
    for key in value if isinstance(value, dict) else range(min(len(value), 1)) if isinstance(value, list) else ():
        yield from places(value[key], (*place, key))


def changed(document, place, value):
    made = copy.deepcopy(document)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return made


def use(folder):
    """Do with a run whatever reads its summary and its manifest."""
    run = featx.open_run(folder)
    for key in run:
        run.frame(key)
        dict(run[key])
    run.dataset()
    request_of(run.summary)
    verify(folder)


def test_any_damage_of_the_summary_is_one_error(run):
    summary = json.loads((run / "summary.json").read_text())
    refused = 0
    for place in list(places(summary))[1:]:
        for value in SENSELESS:
            (run / "summary.json").write_text(json.dumps(changed(summary, place, value)))
            try:
                use(run)
            except FeatxError:
                refused += 1
    assert refused > 100


def test_any_damage_of_a_line_is_one_error(run):
    entries = lines(run)
    for place in list(places(entries[0]))[1:]:
        for value in SENSELESS:
            write_lines(run, [changed(entries[0], place, value), entries[1]])
            try:
                use(run)
            except FeatxError:
                pass
            except FileNotFoundError:  # a name inside of the folder, and of no file
                if place != ("output",):
                    raise


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (("levels", 0, "dtype"), r"summary.json is damaged: .* `dtype` - at `\$.levels\[0\]`"),
        (("levels", 0, "stride"), r"summary.json is damaged: .* `stride` - at `\$.levels\[0\]`"),
        (("arrays", 0, "shape"), r"summary.json is damaged: .* `shape` - at `\$.arrays\[0\]`"),
        (("weights", "sha256"), r"summary.json is damaged: .* `sha256` - at `\$.weights`"),
        (("recipe", "versions"), r"summary.json is damaged: .* `versions` - at `\$.recipe`"),
        (("counts", "total"), r"summary.json is damaged: .* `total` - at `\$.counts`"),
        (("input", "height"), r"summary.json is damaged: .* `height` - at `\$.input`"),
    ],
    ids=str,
)
def test_what_is_missing_is_named(run, place, words):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(changed(summary, place, ...)))
    with pytest.raises(FeatxError, match=words):
        featx.open_run(run)


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (("levels", 1, "stride"), "16", r"Expected .*, got `str` - at `\$.levels\[1\].stride`"),
        (("arrays", 0, "shape", 1), "7", r"Expected `int \| null`, got `str` - at `\$.arrays\[0\].shape\[1\]`"),
        (("recipe", "dtype"), "int4", r"Invalid enum value 'int4' - at `\$.recipe.dtype`"),
        (("recipe", "batch_size"), 0, r"Expected `int` >= 1 - at `\$.recipe.batch_size`"),
        (("recipe", "norm"), "x", r"Expected `bool`, got `str` - at `\$.recipe.norm`"),
    ],
    ids=str,
)
def test_what_is_not_what_it_should_be_is_named(run, place, value, fault):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(changed(summary, place, value)))
    with pytest.raises(FeatxError, match=f"summary.json is damaged: {fault}"):
        featx.open_run(run)

# Recipes of earlier runs and in files: the same features for new photos, and what differs is said or refused.
from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm import create_model

import featx
from featx.errors import UsageError, WeightsError
from featx.runs import recipe_files
from tests.helpers import extract, lines, make_photos, notes, outputs

RECIPE = {"strides": [8, 4], "fit": "pad", "dtype": "float16", "embedding": True, "pool": "max"}


@pytest.fixture
def run(tmp_path):
    """A run with some options, of photos that are gone in the end."""
    extract(make_photos(tmp_path / "old", 6), tmp_path / "run", **RECIPE)
    return tmp_path / "run"


def changed(run, **more):
    """Change what a run's summary says of itself."""
    summary = json.loads((run / "summary.json").read_text())
    for name, value in more.items():
        summary[name] = {**summary[name], **value} if isinstance(value, dict) else value
    (run / "summary.json").write_text(json.dumps(summary))


def test_new_photos_get_the_bytes_that_the_run_itself_would_give_them(run, photos, tmp_path):
    heard = []
    report = featx.extract(photos, output=tmp_path / "new", like=run, device="cpu", listener=heard.append)
    assert not [text for text in notes(heard) if "Not as in" in text]
    recipe = json.loads((run / "summary.json").read_text())["recipe"]
    assert report.summary["recipe"] == recipe  # the batch size and the threads among the rest
    featx.extract(photos, output=run, like=run, device="cpu")
    found = outputs(run)
    assert outputs(tmp_path / "new") == {name: found[name] for name in outputs(tmp_path / "new")}


def test_three_photos_alone_would_go_in_other_batches(photos, tmp_path):
    alone = extract(photos, tmp_path / "alone")
    extract(make_photos(tmp_path / "many", 8), tmp_path / "run")
    like = featx.extract(photos, output=tmp_path / "like", like=tmp_path / "run", device="cpu")
    assert (alone.summary["recipe"]["batch_size"], like.summary["recipe"]["batch_size"]) == (2, 8)


def test_typed_options_win_and_what_differs_is_said(run, photos, tmp_path):
    heard = []
    options = {"like": run, "device": "cpu", "out_indices": [1], "dtype": "float32"}
    report = featx.extract(photos, output=tmp_path / "new", listener=heard.append, **options)
    assert [level["index"] for level in report.summary["levels"]] == [1]
    assert report.summary["recipe"]["pool"] == "max"
    [note] = [text for text in notes(heard) if text.startswith("Not as in")]
    assert note == f"Not as in {run}: dtype float16 -> float32, levels [1, 2] -> [1]"


def test_versions_that_moved_are_said(run, photos, tmp_path):
    recipe = json.loads((run / "summary.json").read_text())["recipe"]
    changed(run, recipe={"versions": {**recipe["versions"], "torch": "2.10.0"}})
    heard = []
    featx.extract(photos, output=tmp_path / "new", like=run, device="cpu", listener=heard.append)
    [note] = [text for text in notes(heard) if text.startswith("Not as in")]
    assert note.startswith(f"Not as in {run}: versions.torch 2.10.0 -> ")


def weights(path, seed):
    model = create_model("test_resnet", num_classes=0)
    with_seed = {name: value + seed for name, value in model.state_dict().items()}
    save_file(with_seed, path)
    return path


def test_other_weights_are_refused_unless_they_were_typed(photos, tmp_path):
    file = weights(tmp_path / "model.safetensors", 0)
    extract(photos, tmp_path / "run", weights=file)
    weights(file, 1)
    with pytest.raises(WeightsError, match=r"are not those that .*run was made with"):
        featx.extract(photos, output=tmp_path / "new", like=tmp_path / "run", device="cpu")
    assert not (tmp_path / "new" / "summary.json").exists()
    for more in ({"weights": "random"}, {"model": "test_vit", "weights": "random", "image_size": None}):
        output = tmp_path / next(iter(more))
        featx.extract(photos, output=output, like=tmp_path / "run", device="cpu", **more)
        assert len(lines(output)) == 3


def test_a_run_with_boxes_needs_those_of_the_new_photos(photos, tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("key,x1,y1,x2,y2\nphotos/0.jpg,1,2,30,40\n")
    extract(photos, tmp_path / "run", boxes=boxes, maps=False)
    with pytest.raises(UsageError, match=r"Add .*--boxes"):
        featx.extract(photos, output=tmp_path / "new", like=tmp_path / "run", device="cpu")
    featx.extract(photos, output=tmp_path / "new", like=tmp_path / "run", device="cpu", boxes=boxes)
    assert outputs(tmp_path / "new") == outputs(tmp_path / "run")


def test_the_command_prints_a_recipe_that_it_reads(run, featx_command, tmp_path):
    printed = featx_command("info", run, "--recipe").stdout
    expected = {"model": "test_resnet", "weights": "random", "image_size": [64, 64], **RECIPE}
    assert tomllib.loads(printed) == expected
    (tmp_path / "recipe.toml").write_text(f"{printed}batch-size = 4\n")
    words = ("extract", tmp_path / "old", "--recipe", "recipe.toml", "--output", "again", "--device", "cpu")
    assert featx_command(*words).returncode == 0
    assert outputs(tmp_path / "again") == outputs(run)
    shown = featx_command("info", f"{run}/").stdout
    assert "6 of 6 done" in shown
    assert "level_2 float16" in shown
    assert printed.partition("\n")[2] in shown
    assert json.loads(featx_command("info", run, "--recipe", "--json").stdout) == expected
    assert featx_command("info", run.name).stdout == featx_command("info", f"./{run.name}").stdout != ""
    run.rename(run.parent / "test_resnet")  # a model's name, about which the options are
    assert "has no level at stride 3" in featx_command("info", "test_resnet", "--strides", "3").stderr


def test_a_run_that_does_not_say_its_options_is_shown_without_them(run, featx_command):
    """As earlier versions wrote it."""
    summary = json.loads((run / "summary.json").read_text())
    del summary["options"]
    (run / "summary.json").write_text(json.dumps(summary))
    assert json.loads(featx_command("info", run, "--json").stdout).items() >= summary.items()
    shown = featx_command("info", run)
    assert (shown.returncode, "6 of 6 done" in shown.stdout) == (0, True)
    assert shown.stdout.endswith("The featx that wrote it did not record its options\n")
    for options in (("--recipe",), ("--recipe", "--json")):
        refused = featx_command("info", run, *options)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "which did not record its options. Type them instead" in refused.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imagesize = 384", "'imagesize', which is not an option of a recipe. Did you mean image_size?"),
        ("output = 'x'", "'output', which is not an option of a recipe"),
        ("image_size = 'huge'", "recipe.toml: image_size: expected one side"),
        ("embedding = 1", "recipe.toml: embedding: expected True or False, not 1"),
        ("fit = 'crop'\nfit = 'pad'", "is not TOML"),
        ("image_size = 64\nimage-size = 64", "has 'image_size' twice"),
        ("strides = 8\nout_indices = 1", "--out-indices and --strides both choose the levels"),
        ("weights = 'random'", "extract needs --model NAME"),
        ("[extract]\nfit = 'pad'", "'extract', which is not an option"),
    ],
)
def test_wrong_recipes_are_refused(photos, tmp_path, text, words):
    path = tmp_path / "recipe.toml"
    path.write_text(text if "weights" in text else f"model = 'test_resnet'\n{text}")
    with pytest.raises(UsageError) as refused:
        featx.extract(photos, recipe=path, output=tmp_path / "new")
    assert words in str(refused.value)


def test_recipes_that_cannot_be_read_are_refused(run, photos, tmp_path):
    with pytest.raises(UsageError, match=r"none.toml cannot be read: No such file"):
        featx.extract(photos, recipe=tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\x00")
    with pytest.raises(UsageError, match=r"binary.toml is not TOML"):
        featx.extract(photos, recipe=tmp_path / "binary.toml")
    with pytest.raises(UsageError, match="both give the recipe"):
        featx.extract(photos, recipe=tmp_path / "none.toml", like=run)
    changed(run, options={"zoom": 2})
    with pytest.raises(UsageError, match=r"--zoom, which this featx does not have\. Update featx"):
        featx.extract(photos, like=run)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_texts_survive_toml(text):
    assert tomllib.loads(f"text = {recipe_files._toml(text)}") == {"text": text}

# Models: the catalogue's answers against the networks themselves, filters against brute force, and other timm versions.
from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_data_config

import featx
from featx.errors import FeatxError, ModelError, UsageError, WeightsError
from featx.models import catalogue, search
from featx.models.timm import survey
from featx.requests import ModelRequest
from featx.values import Note, Surveyed

BOOK = catalogue.read()

# The catalogue is of one timm version; with another one these would compare it with something else.
same_timm = pytest.mark.skipif(metadata.version("timm") != BOOK.version, reason="the catalogue is of another timm")

# One for each thing that an entry can say, measured anew.
SAMPLE = [
    "resnet50",  # tags of other sizes
    "regnety_032",  # a test size
    "swin_tiny_patch4_window7_224",  # channels last, rebuilt for other sizes
    "crossvit_9_240",  # strides that are no integers
    "inception_v3",  # no padding
    "nest_tiny",  # square sizes only
    "halonet26t",  # multiples of 256
    "efficientformer_l1",  # no other size
    "test_vit",
    "deepseek_vit_412m",  # multiples of 14
    "hrnet_w18_small",
    "vgg11",
    "legacy_seresnet18",  # an address instead of a hub
    "tresnet_m",  # no level 0
]


@same_timm
def test_every_architecture_has_its_entry():
    assert BOOK.names == timm.list_models()
    assert list(BOOK.entries) == BOOK.names
    for name, entry in BOOK.entries.items():
        assert entry["levels"], name
        assert all(level["height"] and level["channels"] and level["stride"] for level in entry["levels"]), name
        first = 1 if entry["family"] == "tresnet" else 0  # timm counts a level there that it does not have
        assert [level["index"] for level in entry["levels"]] == list(range(first, first + len(entry["levels"])))
        assert set(entry["default_levels"]) <= {level["index"] for level in entry["levels"]}
    tagged = {f"{name}.{tag['tag']}" for name, entry in BOOK.entries.items() for tag in entry["pretrained"]}
    assert tagged == set(timm.list_pretrained())


@same_timm
@pytest.mark.parametrize("name", SAMPLE)
def test_an_entry_is_what_the_network_is(name):
    assert json.loads(json.dumps(survey.entry(name))) == BOOK.entries[name]


@same_timm
def test_the_file_is_what_its_writer_writes(tmp_path):
    catalogue.write(BOOK, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == catalogue.PACKAGED.read_bytes()


@same_timm
@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "resnet50.fb_swsl_ig1b_ft_in1k",
        "vit_base_patch16_224",
        "swin_base_patch4_window12_384",
    ],
)
def test_the_catalogue_says_what_building_says(name):
    request = ModelRequest(name)
    assert search.describe_model(request) == json.loads(json.dumps(survey.describe(request)))


@same_timm
def test_a_tag_of_another_size_has_its_own_levels():
    own = search.describe_model(ModelRequest("resnet50"))
    changed = next(tag for tag in BOOK.entries["resnet50"]["pretrained"] if "levels" in tag["changes"])
    other = search.describe_model(ModelRequest(f"resnet50.{changed['tag']}"))
    assert other["levels"] != own["levels"]
    assert (
        other["levels"] == json.loads(json.dumps(survey.describe(ModelRequest(f"resnet50.{changed['tag']}"))))["levels"]
    )


@same_timm
@pytest.mark.parametrize(
    "arguments",
    [["list-models"], ["list-models", "--license", "apache", "--stride", "4,8"], ["info", "-m", "resnet50"]],
)
def test_nothing_heavy_is_loaded_to_answer(arguments):
    script = (
        "import os, sys; from featx.cli.main import main\n"
        "os._exit = sys.exit; sys.argv = ['featx', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'timm', 'numpy', 'PIL') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "resnet50" in done.stdout


# Filters


def entries(**wanted):
    return {entry["model"]: entry for entry in featx.list_models(**wanted)}


FILTERS = {
    "pretrained": ({"pretrained": True}, lambda entry: entry["pretrained"]),
    "strides": (
        {"strides": (4, 32)},
        lambda entry: (
            {4, 32} <= {level["stride"] for level in entry["levels"] if not isinstance(level["stride"], list)}
        ),
    ),
    "min_levels": ({"min_levels": 6}, lambda entry: len(entry["levels"]) >= 6),
    "max_parameters": ({"max_parameters": 5_000_000}, lambda entry: entry["parameters"] <= 5_000_000),
    "license": (
        {"license": "Apache"},
        lambda entry: any("apache" in (tag["license"] or "") for tag in entry["pretrained"]),
    ),
    "family": ({"family": "resnet"}, lambda entry: entry["family"] == "resnet"),
    "families": ({"family": "swin*"}, lambda entry: entry["family"].startswith("swin")),
    "any_size": ({"any_size": True}, lambda entry: entry["sizes"] and not entry["sizes"]["rebuilt"]),
    "patterns": ({"patterns": ["vit_t*", "resnest"]}, None),
}


@pytest.mark.parametrize("case", FILTERS)
def test_a_filter_takes_those_for_which_it_holds(case):
    wanted, holds = FILTERS[case]
    found = entries(**wanted)
    expected = {
        name
        for name, entry in BOOK.entries.items()
        if (holds(entry) if holds else "resnest" in name or name.startswith("vit_t"))
    }
    assert set(found) == expected
    assert 0 < len(found) < len(BOOK.names)


def test_filters_hold_together_and_the_order_is_the_one_asked_for():
    wanted = {"license": "apache-2.0", "max_parameters": 30_000_000, "strides": (4, 8, 16, 32)}
    found = entries(**wanted, sort="params")
    assert set(found) == set.intersection(*(set(entries(**{name: value})) for name, value in wanted.items()))
    sizes = [entry["parameters"] for entry in found.values()]
    assert sizes == sorted(sizes)
    assert all("apache-2.0" in tag["license"] for entry in found.values() for tag in entry["pretrained"])


def test_names_stand_for_the_weights_that_were_asked_for():
    entry = entries(patterns="resnext101_32x4d", license="apache")["resnext101_32x4d"]
    default = BOOK.entries["resnext101_32x4d"]["pretrained"][0]
    assert "apache" not in default["license"]
    assert entry["name"] == f"resnext101_32x4d.{entry['pretrained'][0]['tag']}"
    assert entries(patterns="resnet50", license="apache")["resnet50"]["name"] == "resnet50"


def test_a_limit_says_how_many_there_are():
    notes = []
    found = featx.list_models("resnet*", limit=3, listener=notes.append)
    total = len(featx.list_models("resnet*"))
    assert len(found) == 3
    assert [note.text for note in notes] == [f"3 of {total} models; --limit shows more"]


EMPTY = {
    "the first": ({"max_parameters": 10}, "None of the 1371 models have at most 10 parameters"),
    "a later one": (
        {"patterns": "resnest*", "strides": (4, 64)},
        r"None of the \d+ models that match resnest\* and have a level at stride 4 have a level at stride 64",
    ),
    "the licence": ({"patterns": "resnet18", "license": "gpl"}, "have weights under a licence called 'gpl'"),
}


@same_timm
@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_answer_names_the_filter_that_emptied_it(case):
    wanted, words = EMPTY[case]
    with pytest.raises(ModelError, match=words):
        featx.list_models(**wanted)


def test_misspelt_names_get_the_nearest():
    with pytest.raises(ModelError, match=r"No models match resnett50. Nearest: .*resnet50"):
        featx.list_models("resnett50")
    with pytest.raises(ModelError, match=r"no model 'resnest26'. Nearest: .*resnest26d"):
        search.describe_model(ModelRequest("resnest26"))
    with pytest.raises(ModelError, match=r"timm has renamed convnext_tiny_in22ft1k.*convnext_tiny\.fb_in22k_ft_in1k"):
        search.describe_model(ModelRequest("convnext_tiny_in22ft1k"))
    with pytest.raises(ModelError, match="no weights tagged ''"):
        search.describe_model(ModelRequest("resnet18."))
    with pytest.raises(ModelError, match=r"no weights tagged 'nonsense'.*a1_in1k"):
        search.describe_model(ModelRequest("resnet18.nonsense"))
    with pytest.raises(UsageError, match="--sort: expected name or params, not 'size'"):
        featx.list_models(sort="size")


ADVICE = {
    "dinov2": "vit_base_patch14_dinov2",
    "ResNet18": "resnet18",
    "resnet-18": "resnet18",
    "resnet": "resnet50",
    "convnextv2": "convnextv2_base",
    "convnxt_tiny": "convnext_tiny",
    "renset50": "resnet50",
    "vit-b": "vit_base_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
    "efficientnetv2": "efficientnetv2_rw_m",
    "efficientnet-B0": "efficientnet_b0",
    "dinov3-base": "vit_base_patch16_dinov3",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "swin-t": "swin_s3_tiny_224",
    "resnett": "resnet10t",
}


@same_timm
@pytest.mark.parametrize("asked", ADVICE)
def test_the_first_suggestion_is_what_most_people_mean(asked):
    with pytest.raises(ModelError, match=rf"Nearest: {ADVICE[asked]}\b"):
        search.describe_model(ModelRequest(asked))


@pytest.mark.parametrize("asked", ["googlenet", "xyz", "someone/net"])
def test_nothing_is_suggested_that_nobody_can_have_meant(asked):
    with pytest.raises(ModelError, match=r"list-models` shows all|Write hf-hub:someone/net for a repository"):
        search.describe_model(ModelRequest(asked))


@same_timm
@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ({"family": "resnt"}, "Nearest: resnet, "),
        ({"family": "ConvNeXt"}, "Nearest: convnext$"),
        ({"family": "zzz"}, "Leave out that filter"),
        ({"license": "appache"}, r"Nearest: apache-2\.0$"),
        ({"license": "gpl", "patterns": "resnet18"}, r"Possible: apache-2\.0"),
        ({"source": "tim"}, r"expected timm or ultralytics, not 'tim'\. Did you mean timm\?"),
    ],
)
def test_filters_by_a_misspelt_name_have_the_nearest(wanted, hint):
    with pytest.raises(FeatxError, match=hint):
        featx.list_models(**wanted)


@same_timm
def test_misspelt_tags_have_the_nearest_as_names_that_can_be_copied():
    with pytest.raises(ModelError, match=r"no weights tagged 'a1_in2k'\. Nearest: resnet50\.a1_in1k, "):
        search.describe_model(ModelRequest("resnet50.a1_in2k"))


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("precision", "bf-16", r"expected fp32, bf16 or fp16, not 'bf-16'\. Did you mean bf16\?"),
        ("precision", "16", r"Did you mean bf16 or fp16\?"),
        ("backend", "OpenVINO", r"Did you mean openvino\?"),
        ("backend", "tensorrt", "not 'tensorrt'$"),
    ],
)
def test_misspelt_values_have_the_nearest(name, value, hint):
    with pytest.raises(UsageError, match=hint):
        ModelRequest("resnet18", **{name: value})


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("https://huggingface.co/timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("https://huggingface.co/timm/resnet50.a1_in1k/", "resnet50.a1_in1k"),
        ("https://huggingface.co/timm/resnet50.a1_in1k/tree/main", "resnet50.a1_in1k"),
        ("hf.co/timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("https://huggingface.co/someone/net", "hf-hub:someone/net"),
        ("hf-hub:timm/resnet50.a1_in1k", "hf-hub:timm/resnet50.a1_in1k"),
        ("local-dir:timm/resnet50/", f"local-dir:{Path.cwd()}/timm/resnet50"),
        ("someone/net", "someone/net"),
        ("timm/some/thing", "timm/some/thing"),
        ("timm/", "timm/"),
        ("yolov8n", "yolov8n"),
    ],
)
def test_a_model_has_one_name_however_it_is_written(written, name):
    assert ModelRequest(written).model == name


def test_a_name_may_be_copied_from_the_hub_s_page(featx_command, photo, tmp_path):
    copied = "timm/test_resnet.r160_in1k"
    described = featx_command("info", "--model", copied, "--json")
    assert json.loads(described.stdout)["model"] == "test_resnet.r160_in1k"
    random = ("--weights", "random", "--device", "cpu")
    done = featx_command("extract", photo, "--model", copied, *random)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "features" / "test_resnet.r160_in1k" / "summary.json").read_text())
    assert summary["model"] == "test_resnet.r160_in1k"
    again = featx_command("extract", photo, "--model", "test_resnet.r160_in1k", *random, "--json")
    assert json.loads(again.stdout)["counts"]["done"] == 1
    assert "nothing to compute" in featx_command("extract", photo, "--model", copied, *random).stdout
    assert featx.load_pyramid(copied, weights="random", device="cpu").name == "test_resnet.r160_in1k"


@pytest.mark.parametrize("trouble", ["no home", "a cache that may not be written"])
def test_without_a_place_to_keep_what_was_measured_it_is_said(another_timm, tmp_path, monkeypatch, trouble):
    if trouble == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without a home
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        (tmp_path / "file").write_text("mine")
    heard = []
    featx.list_models("test_resnet", listener=heard.append)
    notes = [note.text for note in heard if isinstance(note, Note)]
    assert any("will be measured again next time" in text for text in notes), notes


def test_the_question_of_the_readme_is_one_command(featx_command):
    asked = [
        "--license",
        "apache",
        "--max-params",
        "30M",
        "--stride",
        "4,8",
        "--stride",
        "16",
        "--stride",
        "32",
        "--sort",
        "params",
        "--limit",
        "20",
    ]
    done = featx_command("list-models", *asked, COLUMNS="100")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["model", "stride·channels", "params", "input", "weights", "licence"]
    assert len(rows) == 20
    assert all(re.search(r"4·\d+.*8·\d+.*16·\d+.*32·\d+ .* M +\d+x\d+ ", row) for row in rows), rows
    millions = [float(re.search(r"([\d.]+) M", row)[1]) for row in rows]
    assert millions == sorted(millions)


@pytest.mark.parametrize(("text", "count"), [("30M", 30_000_000), ("1.5g", 1_500_000_000), ("250k", 250_000), ("7", 7)])
def test_numbers_of_parameters(text, count):
    from featx.conversions import amount

    convert = amount("30M")
    assert convert("--max-params", text) == count
    for wrong in ("many", "1.2.3M", "M", "-3M", ""):
        with pytest.raises(UsageError, match="--max-params"):
            convert("--max-params", wrong)


# Another timm


@pytest.fixture
def another_timm(monkeypatch, tmp_path):
    """The installed timm calls itself another version than the catalogue's."""
    honest = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9.9" if name == "timm" else honest(name))
    monkeypatch.setattr(timm, "__version__", "9.9.9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "featx" / "models-4-timm-9.9.9.json"


def test_another_timm_is_measured_and_remembered(another_timm, monkeypatch):
    heard = []
    found = featx.list_models("test_resnet", listener=heard.append)
    known = f"timm 9.9.9 is installed, but the catalogue is of {BOOK.version}"
    said = f"{known}: models are measured when they are asked for ({another_timm})"
    assert heard == [Note(said), Surveyed(1, 1)]
    assert found[0]["levels"] == BOOK.entries["test_resnet"]["levels"]
    monkeypatch.setattr(survey, "entry", lambda _: pytest.fail("measured twice"))
    heard.clear()
    assert featx.list_models("test_resnet", listener=heard.append) == found
    assert search.describe_model(ModelRequest("test_resnet"))["levels"]
    assert heard == [Note(said)]


def test_a_model_that_cannot_be_measured_is_said_and_left_out(another_timm, monkeypatch):
    honest = survey.entry

    def entry(name):
        if name == "test_vit2":
            raise ModelError("timm cannot build test_vit2: nonsense")
        return honest(name)

    monkeypatch.setattr(survey, "entry", entry)
    heard = []
    found = featx.list_models(["test_vit2", "test_vit3"], listener=heard.append)
    assert [entry["model"] for entry in found] == ["test_vit3"]
    with pytest.raises(ModelError, match="None of the models that match test_vit2 could be measured"):
        featx.list_models("test_vit2")
    assert search.describe_model(ModelRequest("test_vit2"))["levels"], "what can be built is described all the same"
    assert Note("test_vit2 was skipped: timm cannot build test_vit2: nonsense") in heard


def test_what_was_measured_before_an_interruption_is_kept(another_timm, monkeypatch):
    honest = survey.entry

    def entry(name):
        if name == "test_vit3":
            raise KeyboardInterrupt
        return honest(name)

    monkeypatch.setattr(survey, "entry", entry)
    with pytest.raises(KeyboardInterrupt):
        featx.list_models(["test_vit2", "test_vit3"])
    assert list(catalogue.read(another_timm).entries) == ["test_vit2"]


def test_a_cache_that_cannot_be_written_is_said(another_timm, tmp_path):
    (tmp_path / "featx").write_text("in the way")
    heard = []
    assert featx.list_models("test_resnet", listener=heard.append)
    assert "will be measured again next time" in heard[-1].text


# Inputs


@same_timm
def test_a_test_size_is_the_one_that_timm_has():
    described = search.describe_model(ModelRequest("regnety_032", test_size=True))
    config = resolve_data_config(
        pretrained_cfg=timm.models.get_pretrained_cfg("regnety_032").to_dict(), use_test_size=True
    )
    assert config["input_size"] == (3, 288, 288)
    assert (described["input"]["height"], described["input"]["crop_pct"]) == (288, config["crop_pct"])
    assert described["input"]["configuration"] == "test"
    assert described["levels"][-1]["height"] == 9
    own = search.describe_model(ModelRequest("regnety_032"))
    assert (own["input"]["height"], own["input"]["crop_pct"]) == (224, 0.95)
    assert own["test_input"] == {"height": 288, "width": 288, "crop_pct": 1.0}


def test_a_pyramid_takes_the_test_size(photo):
    pyramid = featx.load_pyramid("resnet18", weights="random", test_size=True, out_indices=(4,), device="cpu")
    config = resolve_data_config(
        pretrained_cfg=timm.models.get_pretrained_cfg("resnet18").to_dict(), use_test_size=True
    )
    pixels, _ = pyramid.preprocess(photo)
    from PIL import Image

    expected = timm.data.create_transform(**config, is_training=False)(Image.open(photo).convert("RGB"))
    assert torch.equal(pixels, expected)
    assert pixels.shape == config["input_size"] != (3, 224, 224)


def test_test_sizes_that_there_are_not():
    with pytest.raises(ModelError, match="no test size"):
        search.describe_model(ModelRequest("test_resnet", test_size=True))
    with pytest.raises(UsageError, match="both choose the size"):
        search.describe_model(ModelRequest("regnety_032", test_size=True, image_size=(256, 256)))


SIZES = {
    "no other": ("efficientformer_l1", (256, 320), "Its only size is 224x224"),
    "patches of 14": ("deepseek_vit_412m", (256, 320), "The nearest size it accepts is 252x322; its own is 546x546"),
    "square": ("nest_tiny", (250, 320), "The nearest size it accepts is 320x320"),
    "halos": ("halonet26t", (257, 400), "The nearest size it accepts is 256x512"),
    "too small": ("vgg11", (16, 16), "The nearest size it accepts is 32x32"),
}


@pytest.mark.parametrize("case", SIZES)
def test_a_size_that_a_model_cannot_take_gets_the_nearest(case):
    name, size, words = SIZES[case]
    with pytest.raises(ModelError, match=f"{name} cannot take an input of {size[0]}x{size[1]} pixels. {words}"):
        search.describe_model(ModelRequest(name, image_size=size))
    near = re.search(r"is (\d+)x(\d+);", words + ";")
    if near:
        size = int(near[1]), int(near[2])
        assert search.describe_model(ModelRequest(name, image_size=size))["input"]["height"] == size[0]


@pytest.mark.filterwarnings("ignore::UserWarning:timm")  # from timm's resampling of position tables
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "coatnet_pico_rw_224"])
def test_a_rebuilt_network_is_timm_s_with_pretrained_weights_resampled(name, tmp_path):
    torch.manual_seed(5)
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(name).state_dict(), path)
    pyramid = featx.load_pyramid(name, weights=path, image_size=(384, 256), device="cpu")
    assert pyramid.rebuilt
    reference = timm.create_model(
        name, features_only=True, img_size=(384, 256), pretrained=True, pretrained_cfg_overlay={"file": str(path)}
    ).eval()
    batch = torch.randn(2, 3, 384, 256)
    with torch.no_grad():
        expected = reference(batch)
    if str(getattr(reference, "output_fmt", "")).endswith("NHWC"):
        expected = [values.permute(0, 3, 1, 2) for values in expected]
    for ours, theirs in zip(pyramid(batch), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["volo_d1_224", "gmixer_12_224", "hiera_tiny_224"])
def test_weights_that_cannot_follow_are_said_beforehand_and_not_blamed(name, tmp_path, featx_command):
    assert BOOK.entries[name]["sizes"]["resampled"] is False
    assert "pretrained weights cannot be used then" in featx_command("info", "--model", name).stdout
    torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=f"a different shape.*Weights of {name} cannot be resampled to 256x320"):
        featx.load_pyramid(name, weights=tmp_path / "weights.pth", image_size=(256, 320), device="cpu")


def test_a_network_that_takes_the_size_is_left_as_it_is():
    pyramid = featx.load_pyramid("test_vit", weights="random", image_size=(96, 128), device="cpu")
    assert not pyramid.rebuilt
    torch.manual_seed(0)
    reference = timm.create_model("test_vit", features_only=True).eval()
    batch = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(pyramid(batch), reference(batch), strict=True))


# Truth


@pytest.mark.parametrize(
    ("name", "index", "stride", "ratio"),
    [
        ("crossvit_9_240", 1, 240 / 14, [17.1429, 17.1429]),
        ("inception_v3", -1, 32, [37.375, 37.375]),
        ("resnet50", -1, 32, None),
    ],
)
def test_where_the_map_is_not_the_input_by_the_stride_it_is_said(name, index, stride, ratio):
    level = search.describe_model(ModelRequest(name))["levels"][index]
    assert level["stride"] == pytest.approx(stride)
    assert level.get("ratio") == ratio


@same_timm
def test_a_network_that_is_not_the_catalogue_s_is_stopped(monkeypatch):
    altered = json.loads(json.dumps(BOOK.entries["test_resnet"]))
    altered["levels"][3]["channels"] += 1
    book = catalogue.Catalogue("timm", BOOK.version, BOOK.names, BOOK.renamed, {"test_resnet": altered})
    monkeypatch.setattr(catalogue, "read", lambda: book)
    with pytest.raises(ModelError, match="Level 3 of test_resnet has channels 192; the catalogue says 193"):
        featx.load_pyramid("test_resnet", weights="random", device="cpu")
    featx.load_pyramid("test_resnet", weights="random", out_indices=(1, 2), device="cpu")
    altered["levels"][3]["channels"] -= 1
    altered["levels"][1]["height"] += 1
    with pytest.raises(ModelError, match="Level 1 of test_resnet has height"):
        featx.load_pyramid("test_resnet", weights="random", device="cpu")
    featx.load_pyramid("test_resnet", weights="random", image_size=96, device="cpu")

# YOLO: the maps of ultralytics' own graph, its letterbox, its checkpoints without their code, and no trace at home.
from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import featx
from featx.errors import FeatxError, ModelError, UsageError, WeightsError
from featx.images import fitting
from featx.models import libraries
from featx.models.yolo import importing, loading
from featx.models.yolo.library import Ultralytics
from featx.requests import ModelRequest
from tests.helpers import HANGS, natural_image

pytest.importorskip("cv2", exc_type=ImportError, reason="OpenCV misses libraries of the system")
LIBRARY = Ultralytics()

from ultralytics.data.augment import LetterBox, classify_transforms  # noqa: E402 - after featx has kept it quiet
from ultralytics.nn.tasks import DetectionModel, torch_safe_load  # noqa: E402

MODELS = (
    *("yolov8n", "yolov8s", "yolov8m", "yolov8l", "yolov8x"),
    *("yolov5n", "yolov9t", "yolov9e", "yolov10n", "yolo11n", "yolo12n", "yolo26n"),
)


def hand_walk(layers, batch):
    """Every layer's output, as a person reads the graph; the last layer is the head."""
    outputs, value = [], batch
    for layer in layers[:-1]:
        if layer.f != -1:
            value = (
                outputs[layer.f]
                if isinstance(layer.f, int)
                else [value if source == -1 else outputs[source] for source in layer.f]
            )
        value = layer(value)
        outputs.append(value)
    return outputs


@pytest.mark.parametrize("name", MODELS)
def test_maps_equal_a_hand_written_walk_bit_for_bit(name):
    size = 640 if name == "yolov8n" else 128
    pyramid = featx.load_pyramid(name, weights="random", part="all", image_size=size, device="cpu")
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", verbose=False).eval()
    batch = torch.rand(1, 3, size, size)
    with torch.no_grad():
        outputs = hand_walk(model.model, batch)
    for level, values in zip(pyramid.levels, pyramid(batch), strict=True):
        assert torch.equal(values, outputs[int(level.name.removeprefix("model."))]), level
        assert values.shape == (1, *level.shape)
    neck = [level for level in pyramid.levels if level.part == "neck"]
    assert [int(level.name.removeprefix("model.")) for level in neck] == list(model.model[-1].f)
    assert [level.stride for level in neck] == model.stride.tolist()
    backbone = [level for level in pyramid.levels if level.part == "backbone"]
    assert [level.stride for level in backbone] == [2, 4, 8, 16, 32]
    depth = len(model.yaml["backbone"])
    for level, after in zip(backbone, [*backbone[1:], None], strict=True):
        place = int(level.name.removeprefix("model."))
        assert place < depth
        if after is None or name != "yolov9e":  # whose backbone goes down twice
            following = outputs[place + 1] if place + 1 < depth else None
            assert following is None or following.shape[-1] < outputs[place].shape[-1], "it is the last at its stride"


def test_what_yolov8n_gives_at_640():
    backbone, neck = (LIBRARY.describe(ModelRequest("yolov8n", part=part)).levels for part in ("backbone", "neck"))
    assert [level.channels for level in backbone] == [16, 32, 64, 128, 256]
    assert [level.stride for level in backbone] == [2, 4, 8, 16, 32]
    assert [level.height for level in backbone] == [320, 160, 80, 40, 20]
    assert [level.key for level in backbone] == [f"level_{index}" for index in range(5)]
    assert [level.channels for level in neck] == [64, 128, 256]
    assert [level.stride for level in neck] == [8, 16, 32]
    assert [level.key for level in neck] == ["level_0", "level_1", "level_2"]
    both = LIBRARY.describe(ModelRequest("yolov8n", part="all")).levels
    assert [level.key for level in both[4:6]] == ["backbone_4", "neck_0"]
    assert both[-1].part == "neck"


def test_levels_are_chosen_by_stride_and_index():
    def keys(**asked):
        return [level.key for level in LIBRARY.describe(ModelRequest("yolov8n", **asked)).levels]

    assert keys(out_indices=(-1, 1)) == ["level_1", "level_4"]
    assert keys(strides=(8, 32)) == ["level_2", "level_4"]
    assert keys(part="neck", strides=(16,)) == ["level_1"]
    assert keys(part="all", strides=(4, 32)) == ["backbone_1", "backbone_4", "neck_2"]
    with pytest.raises(ModelError, match="no level at stride 64"):
        keys(part="all", strides=(64,))
    with pytest.raises(UsageError, match="which part"):
        keys(part="all", out_indices=(1,))


def test_other_tasks_have_the_same_levels():
    plain = LIBRARY.describe(ModelRequest("yolo11n", part="all")).levels
    for name in ("yolo11n-seg", "yolo11n-pose", "yolo11n-obb"):
        assert LIBRARY.describe(ModelRequest(name, part="all")).levels == plain
    classifier = LIBRARY.describe(ModelRequest("yolo11n-cls"))
    assert (classifier.input.height, classifier.input.fit, len(classifier.levels)) == (224, "crop", 5)
    with pytest.raises(ModelError, match="no neck"):
        LIBRARY.describe(ModelRequest("yolo11n-cls", part="neck"))
    assert [level.stride for level in LIBRARY.describe(ModelRequest("yolov8n-p6")).levels] == [2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"model": "yolov8z"}, ModelError, "ultralytics has no model 'yolov8z'. Nearest: yolov8"),
        (
            {"model": "yolov8n.pt"},
            ModelError,
            "yolov8n.pt is a file of weights, not a model. Use --model yolov8n --weights yolov8n.pt",
        ),
        ({"model": "yolov8s-world"}, ModelError, "cannot run yolov8s-world"),
        ({"image_size": (320, 300)}, ModelError, "multiples of 32; the nearest size is 320x288"),
        ({"embedding": True}, UsageError, "has no --embedding"),
        ({"norm": True}, UsageError, "has no --norm"),
        ({"output_stride": 8}, UsageError, "has no --output-stride"),
        ({"part": "head"}, UsageError, "expected backbone, neck or all, not 'head'"),
    ],
)
def test_what_cannot_be_is_refused(asked, error, message):
    with pytest.raises(error, match=message):
        LIBRARY.describe(ModelRequest(**{"model": "yolov8n", **asked}))


# Images


@pytest.mark.parametrize("size", [(640, 640), (333, 500), (1000, 37), (97, 801), (641, 480), (50, 50)])
def test_pixels_are_those_of_ultralytics_letterbox(size):
    image = natural_image(1, *size)
    preprocessor = fitting.make({"fit": "letterbox", "input_size": (3, 320, 416)})
    placed, frame = preprocessor.place(image)
    expected = LetterBox(new_shape=(320, 416), auto=False)(image=np.asarray(image))
    np.testing.assert_array_equal(np.asarray(placed), expected)
    pixels, _ = preprocessor(image)
    np.testing.assert_array_equal(pixels.numpy(), expected.transpose(2, 0, 1).astype(np.float32) / 255)
    # The frame's corners are those of the picture in the grey.
    inside = np.flatnonzero((expected != 114).any((0, 2)))
    left, top = frame.to_input(-0.5, -0.5)
    assert abs(left + 0.5 - inside[0]) <= 1
    assert abs(frame.to_input(size[0] - 0.5, 0)[0] - 0.5 - inside[-1]) <= 1
    assert (frame.original, frame.input) == (size, (416, 320))
    assert top == pytest.approx((320 - round(size[1] * min(320 / size[1], 416 / size[0]))) // 2 - 0.5)


def test_classifiers_get_the_middle_of_the_image():
    image = natural_image(1, 300, 400)
    config = LIBRARY.describe(ModelRequest("yolov8n-cls")).preprocessing
    pixels, _ = fitting.make(config)(image)
    assert torch.equal(pixels, classify_transforms(224)(image))


# Weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint as ultralytics writes it: half precision, with the model's own objects."""
    torch.manual_seed(5)
    model = DetectionModel("yolov8n.yaml", nc=3, verbose=False)
    path = tmp_path_factory.mktemp("yolo") / "best.pt"
    torch.save({"epoch": 3, "model": model.half(), "ema": None, "train_args": {"imgsz": 640}}, path)
    return path, model.float().eval()


def test_a_checkpoint_of_ultralytics(checkpoint):
    path, model = checkpoint
    before = {*map(repr, torch.serialization.get_safe_globals())}
    pyramid = featx.load_pyramid("yolov8n", weights=path, part="neck", image_size=128, device="cpu")
    assert {*map(repr, torch.serialization.get_safe_globals())} == before
    assert (pyramid.weights.kind, len(pyramid.weights.sha256)) == ("file", 64)
    batch = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        outputs = hand_walk(model.model, batch)
    for values, place in zip(pyramid(batch), (15, 18, 21), strict=True):
        assert torch.equal(values, outputs[place])


def test_a_state_dict_in_safetensors(checkpoint, tmp_path):
    _, model = checkpoint
    save_file(model.state_dict(), tmp_path / "best.safetensors")
    pyramid = featx.load_pyramid("yolov8n", weights=tmp_path / "best.safetensors", image_size=64, device="cpu")
    assert torch.equal(pyramid.module.model[0].conv.weight, model.model[0].conv.weight)


def test_of_a_checkpoint_of_another_model_nothing_is_taken(checkpoint):
    with pytest.raises(WeightsError, match="parameters of yolov8s have a different shape"):
        featx.load_pyramid("yolov8s", weights=checkpoint[0], device="cpu")
    with pytest.raises(WeightsError, match="a different backbone from yolo11n"):
        featx.load_pyramid("yolo11n", weights=checkpoint[0], device="cpu")


class Command:
    """What a pickle can do to whoever loads it."""

    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        return os.system, (self.text,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"model": Command(f"touch {canary}")}, path)
    with pytest.raises(WeightsError, match="without running code"):
        featx.load_pyramid("yolov8n", weights=path, device="cpu")
    path.write_bytes(pickle.dumps(Command(f"touch {canary}")))
    with pytest.raises(WeightsError, match="without running code"):
        featx.load_pyramid("yolov8n", weights=path, device="cpu")
    assert not canary.exists()
    torch.load(path, weights_only=False) if path.read_bytes()[:2] == b"PK" else pickle.loads(path.read_bytes())
    assert canary.exists(), "it would have been"


def test_an_ultralytics_that_does_not_load_safely_is_refused(checkpoint, monkeypatch):
    tasks = LIBRARY._tasks
    monkeypatch.setattr(
        tasks, "torch_safe_load", lambda weight, safe_only=None: torch_safe_load(weight, safe_only=False)
    )
    with pytest.raises(WeightsError, match="bypasses its own safe loading"):
        loading.load_safely(LIBRARY._tasks, checkpoint[0])
    monkeypatch.setattr(tasks, "torch_safe_load", lambda weight, safe_only=None: ({"model": None}, weight))
    with pytest.raises(WeightsError, match="bypasses its own safe loading"):
        loading.load_safely(LIBRARY._tasks, checkpoint[0])
    monkeypatch.setattr(tasks, "torch_safe_load", lambda weight: None)
    with pytest.raises(WeightsError, match="cannot load checkpoints safely"):
        loading.load_safely(LIBRARY._tasks, checkpoint[0])


def test_a_checkpoint_of_another_activation_is_refused(checkpoint, tmp_path):
    """Every shape fits, and the numbers would be others."""
    path, model = checkpoint
    loaded = torch.load(path, weights_only=False)
    loaded["model"].yaml = {**model.yaml, "activation": "torch.nn.ReLU()"}
    torch.save(loaded, tmp_path / "relu.pt")
    with pytest.raises(WeightsError, match="a different activation from yolov8n"):
        featx.load_pyramid("yolov8n", weights=tmp_path / "relu.pt", device="cpu")


def test_functions_that_a_checkpoint_brings_are_not_called(checkpoint, tmp_path):
    """They come out of the safe loading: methods of classes that it knows, as hooks of the module."""
    path, _ = checkpoint
    loaded = torch.load(path, weights_only=False)
    hooked = loaded["model"].model[3]
    hooked._state_dict_pre_hooks[0] = DetectionModel.init_criterion
    torch.save(loaded, tmp_path / "hooked.pt")
    safely = loading.load_safely(LIBRARY._tasks, tmp_path / "hooked.pt")["model"]
    with pytest.raises(TypeError, match="init_criterion"):  # it is called there
        safely.state_dict()
    featx.load_pyramid("yolov8n", weights=tmp_path / "hooked.pt", image_size=64, device="cpu")


def test_a_state_dict_in_a_container(checkpoint, tmp_path):
    _, model = checkpoint
    torch.save({"model": model.state_dict()}, tmp_path / "state.pt")
    pyramid = featx.load_pyramid("yolov8n", weights=tmp_path / "state.pt", image_size=64, device="cpu")
    assert torch.equal(pyramid.module.model[0].conv.weight, model.model[0].conv.weight)


def test_averaged_parameters_come_first_and_either_may_be_chosen(checkpoint, tmp_path):
    path, model = checkpoint
    averaged = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "ema": averaged}, tmp_path / "two.pt")
    for asked, part, added in (("", "ema", 1), (":ema", "ema", 1), (":model", "model", 0)):
        pyramid = featx.load_pyramid("yolov8n", weights=f"{tmp_path / 'two.pt'}{asked}", image_size=64, device="cpu")
        assert (pyramid.weights.part, pyramid.weights.source) == (part, str(tmp_path / "two.pt"))
        assert torch.equal(pyramid.module.model[0].conv.weight, model.model[0].conv.weight + added)
    with pytest.raises(WeightsError, match="holds no 'teacher'"):
        featx.load_pyramid("yolov8n", weights=f"{path}:teacher", device="cpu")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"), (b"<!doctype html>", "an HTML page")],
)
def test_files_that_are_no_checkpoints_are_called_what_they_are(tmp_path, content, words):
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        featx.load_pyramid("yolov8n", weights=tmp_path / "best.pt", device="cpu")


def test_models_of_two_activations_may_be_built_at_once(monkeypatch):
    """While ultralytics builds yolov6 it keeps ReLU for the whole process, as yolov8's threads would see it."""
    tasks, began, built = LIBRARY._tasks, threading.Event(), {}
    honest = tasks.parse_model

    def parse_model(configuration, **options):
        if "activation" not in configuration:
            return honest(configuration, **options)
        tasks.Conv.default_act = torch.nn.ReLU()
        began.set()
        other.join(0.5)  # it waits for this one, or is done by now
        return honest(configuration, **options)

    def build():
        began.wait(HANGS)
        built["yolov8n"] = LIBRARY._layers("yolov8n", "meta")[0]

    before = tasks.Conv.default_act
    monkeypatch.setattr(tasks, "parse_model", parse_model)
    other = threading.Thread(target=build)
    other.start()
    relu = LIBRARY._layers("yolov6n", "meta")[0]
    other.join(HANGS)
    assert tasks.Conv.default_act is before
    assert isinstance(built["yolov8n"][0].act, torch.nn.SiLU)
    assert isinstance(relu[0].act, torch.nn.ReLU)


def test_configurations_in_the_current_folder_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("yolov8n.yaml", "yolov8.yaml"):
        (tmp_path / name).write_text("nc: 1\nbackbone: []\nhead: []\n")
    assert len(Ultralytics().describe(ModelRequest("yolov8n")).levels) == 5


@pytest.mark.parametrize("weights", ["pretrained", "none.pt"])
def test_weights_that_are_not_there(weights):
    with pytest.raises(WeightsError, match=r"--weights yolov8n\.pt|There is no checkpoint"):
        featx.load_pyramid("yolov8n", weights=weights, device="cpu")


# The command


def test_a_run_leaves_nothing_at_home_and_says_nothing_of_itself(fresh_command, featx_command, photo, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    command = (
        "extract",
        photo,
        "--model",
        "yolov8n",
        "--weights",
        "random",
        "--part",
        "all",
        "--image-size",
        "320x256",
    )
    done = fresh_command(*command, "--output", "out", "--json", HOME=str(home), XDG_CONFIG_HOME="")
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("*"))
    assert "ltralytics" not in done.stderr
    summary = json.loads(done.stdout)
    assert summary["source"] == "ultralytics"
    assert summary["versions"]["ultralytics"]
    assert summary["input"]["fit"] == "letterbox"
    run = featx.open_run(tmp_path / "out")
    arrays = run["astronaut.jpg"]
    assert {name: values.shape for name, values in arrays.items()}["neck_2"] == (256, 10, 8)
    assert run.frame("astronaut.jpg").to_input(255.5, 255.5) == (127.5, 159.5)
    pyramid = featx.load_pyramid("yolov8n", weights="random", part="all", image_size=(320, 256), device="cpu")
    pixels, _ = pyramid.preprocess(photo)
    np.testing.assert_allclose(arrays["neck_2"], pyramid.arrays(pixels[None])["neck_2"][0], rtol=1e-3, atol=1e-5)
    again = featx_command("verify", "out", "--recompute", "1", HOME=str(home))
    assert "bit for bit the same" in again.stdout, again.stderr


def test_importing_it_changes_nothing_here():
    script = (
        "import os, sys, warnings, cv2, numpy, torch\n"
        "from PIL import Image\n"
        "def state():\n"
        "    printing = numpy.get_printoptions(), vars(torch._tensor_str.PRINT_OPTS).copy()\n"
        "    functions = torch.save, cv2.getNumThreads(), cv2.imread, cv2.imwrite, cv2.imshow, Image.open\n"
        "    return dict(os.environ), list(warnings.filters), printing, functions\n"
        "before = state()\n"
        "from featx.models.libraries import library\n"
        "library('ultralytics')\n"
        "assert 'ultralytics' in sys.modules\n"
        "after = state()\n"
        "assert before == after, (before, after)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_library_that_opencv_misses_is_named(monkeypatch):
    def missing(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(importing, "import_module", missing)
    with pytest.raises(FeatxError, match=r"libGL\.so\.1.*opencv-python-headless"):
        Ultralytics()


@pytest.mark.parametrize(
    "command",
    [("extract", "photo.png", "--weights", "random"), ("info",)],
)
def test_without_the_extra_it_says_how_to_get_it(tmp_path, command):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    script = (
        "import sys; sys.modules['ultralytics'] = None\n"
        "from importlib import metadata; honest = metadata.version\n"
        "def version(name):\n"
        "    if name == 'ultralytics': raise metadata.PackageNotFoundError(name)\n"
        "    return honest(name)\n"
        "metadata.version = version\n"
        f"sys.argv = ['featx', {', '.join(map(repr, command))}, '--model', 'yolov8n']\n"
        "from featx.cli.main import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "featx: ultralytics is not installed. Run `pip install 'featx[yolo]'`.\n"


def test_models_are_listed_and_described(featx_command, tmp_path):
    listing = ("list-models", "--source", "ultralytics", "yolov8[ns]", "--stride", "32")
    done = featx_command(*listing, "--json", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    entries = json.loads(done.stdout)
    assert [entry["model"] for entry in entries] == ["yolov8n", "yolov8s"]
    assert {entry["source"] for entry in entries} == {"ultralytics"}
    again = featx_command(*listing, "--names", XDG_CACHE_HOME=str(tmp_path))
    assert again.stdout.split() == ["yolov8n", "yolov8s"]
    value = json.loads(featx_command("info", "--model", "yolov8s", "--json", XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert value["levels"] == entries[1]["levels"]
    assert value["parts"] == ["backbone", "neck"]
    assert value["license"].startswith("AGPL-3.0")
    assert [level["channels"] for level in value["levels"]] == [32, 64, 128, 256, 512]
    neck = featx_command("info", "--model", "yolov8s", "--part", "neck", XDG_CACHE_HOME=str(tmp_path)).stdout
    assert "AGPL-3.0" in neck
    assert "parts backbone, neck (--part)" in neck


def test_every_name_can_be_described(request):
    """Of every configuration one name with --large, otherwise of every third."""
    names = LIBRARY.catalogue().names
    assert {"yolov8n", "yolo11x-seg", "yolov5l-p6", "yolov10b", "yolov9e", "yolo12m", "yolov6s", "yolov3-tiny"} <= {
        *names
    }
    files = {path: name for name, (path, _) in LIBRARY._files.items()}
    assert len(files) > 40
    for name in [*files.values()][:: 1 if request.config.getoption("large") else 3]:
        described = LIBRARY.describe(ModelRequest(name))
        assert len(described.levels) >= 5, name
        assert all(level.stride for level in described.levels)


def test_the_table_of_libraries():
    assert [libraries.library_of(name) for name in ("yolov8n", "resnet50", "hf-hub:org/yolo")] == [
        "ultralytics",
        "timm",
        "timm",
    ]
    with pytest.raises(UsageError, match="--source: expected timm or ultralytics, not 'torch'"):
        featx.list_models(source="torch")

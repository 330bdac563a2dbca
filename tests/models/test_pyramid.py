# The pyramid in one's hand: devices, gradients, sizes, and what it says of itself.
from __future__ import annotations

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import featx
from featx.errors import ModelError, UsageError
from featx.models import pyramid as pyramid_
from tests.helpers import natural_image


@pytest.fixture(scope="module")
def small():
    return featx.load_pyramid("test_resnet", weights="random", device="cpu")


def test_a_photo_goes_the_same_way_as_through_timm(small, photo):
    torch.manual_seed(0)
    reference = timm.create_model("test_resnet", features_only=True).eval()
    transform = create_transform(**resolve_model_data_config(reference), is_training=False)
    with torch.no_grad():
        expected = reference(transform(Image.open(photo).convert("RGB"))[None])
    pixels, frame = small.preprocess(photo)
    assert frame.original == (512, 512)
    for ours, theirs in zip(small(pixels[None]), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_paths_and_images_of_any_mode_are_taken_and_left_alone(small, photo):
    image = Image.open(photo)
    assert torch.equal(small.preprocess(image)[0], small.preprocess(str(photo))[0])
    grey = natural_image(0).convert("LA")
    before = grey.tobytes()
    small.preprocess(grey)
    assert (grey.mode, grey.tobytes()) == ("LA", before)


def test_orientation_of_an_image_in_memory_counts(small):
    image = natural_image(0, 96, 48)
    image.getexif()[0x0112] = 6
    _, frame = small.preprocess(image)
    assert (frame.original, frame.orientation) == ((48, 96), 6)


def test_other_sizes_than_the_model_s_own_are_run(small):
    maps = small(torch.zeros(3, 3, 64, 96))
    assert [tuple(values.shape[2:]) for values in maps] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


def test_maps_can_feed_a_head_that_is_trained(small):
    head = torch.nn.Conv2d(small.levels[-1].channels, 2, 1)
    head(small(torch.zeros(1, 3, 64, 64))[-1]).sum().backward()
    assert head.weight.grad is not None


def test_channels_last_networks_come_out_channels_first():
    swin = featx.load_pyramid("test_mambaout", weights="random", device="cpu")
    assert str(swin.module.output_fmt).endswith("NHWC")
    maps = swin(torch.zeros(1, 3, swin.input.height, swin.input.width))
    assert [tuple(values.shape[1:]) for values in maps] == [level.shape for level in swin.levels]


@pytest.mark.parametrize(
    ("name", "words"),
    [("cuda:7", "no cuda:7"), ("gpu", "expected auto"), ("meta", "expected auto")],
)
def test_a_device_that_is_not_there_is_said(name, words):
    with pytest.raises(UsageError, match=words):
        pyramid_.choose_devices(name)


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [device.type for device in pyramid_.choose_devices("auto")] == ["cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pyramid_.choose_devices("auto")[0].type in ("cpu", "mps")


def test_several_gpus_and_all_of_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert pyramid_.choose_devices("cuda:0,2") == [torch.device("cuda:0"), torch.device("cuda:2")]
    assert pyramid_.choose_devices("all") == [torch.device(f"cuda:{number}") for number in range(3)]
    for name in ("cuda:0,3", "cuda:1,cpu", "cuda:0,"):
        with pytest.raises(UsageError):
            pyramid_.choose_devices(name)


@pytest.mark.parametrize(
    ("precision", "dtype", "error"), [("bf16", torch.bfloat16, 2e-2), ("fp16", torch.float16, 3e-3)]
)
def test_lower_precisions_are_asked_for_and_close(precision, dtype, error, photo):
    exact = featx.load_pyramid("test_resnet", weights="random", device="cpu")
    rough = featx.load_pyramid("test_resnet", weights="random", device="cpu", precision=precision)
    pixels, _ = exact.preprocess(photo)
    for ours, theirs in zip(rough(pixels[None]), exact(pixels[None]), strict=True):
        assert ours.dtype == dtype
        assert (ours.float() - theirs).norm() / theirs.norm() < error
    with pytest.raises(UsageError, match=r"expected fp32, bf16 or fp16, not .int8."):
        featx.load_pyramid("test_resnet", weights="random", device="cpu", precision="int8")


def test_running_out_of_memory_names_the_batch(small, monkeypatch):
    def exhausted(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(small.module, "forward", exhausted)
    with pytest.raises(ModelError, match=r"ran out of memory on a batch of 4.*a smaller batch"):
        small(torch.zeros(4, 3, 32, 32))


def test_a_network_that_gives_other_maps_than_it_said_is_stopped(monkeypatch):
    pyramid = featx.load_pyramid("test_resnet", weights="random", device="cpu")
    honest = pyramid.module.forward
    monkeypatch.setattr(pyramid.module, "forward", lambda batch: list(reversed(honest(batch))))
    with pytest.raises(ModelError, match="as described"):
        pyramid(torch.zeros(1, 3, 160, 160))
    monkeypatch.setattr(pyramid.module, "forward", lambda batch: [values[..., 1:] for values in honest(batch)])
    with pytest.raises(ModelError, match=r"not \(32, 80, 80\) as described"):
        pyramid(torch.zeros(1, 3, 160, 160))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnet50"])
def test_a_gpu_agrees_with_the_processor(name, photo):
    here, there = (featx.load_pyramid(name, weights="random", device=device) for device in ("cpu", "cuda"))
    pixels, _ = here.preprocess(photo)
    for ours, theirs in zip(here(pixels[None]), there(pixels[None]), strict=True):
        difference = (ours - theirs.cpu()).norm() / ours.norm()
        assert difference < 1e-5


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (2, 64, 64, 3)])
def test_a_batch_of_another_shape_is_refused(shape):
    pyramid = featx.load_pyramid("test_resnet", weights="random", device="cpu")
    with pytest.raises(UsageError, match=r"Expected a batch of shape \(B, 3, H, W\), not "):
        pyramid(torch.zeros(shape))


def test_an_image_that_cannot_be_read_is_one_sentence(small, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for path, reason in (("missing.jpg", "no such file"), ("broken.jpg", "it is a text file, not an image")):
        with pytest.raises(featx.FeatxError, match=f"{path} cannot be read: {reason}. Try another image$"):
            small.preprocess(tmp_path / path)
    with pytest.raises(featx.FeatxError, match="The image cannot be read: floating-point pixels have no agreed range"):
        small.preprocess(Image.new("F", (8, 8)))


@pytest.mark.parametrize("option", ["strides", "out_indices"])
def test_no_level_at_all_is_refused(option):
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} names no level. Leave it out"):
        featx.load_pyramid("test_resnet", weights="random", device="cpu", **{option: []})

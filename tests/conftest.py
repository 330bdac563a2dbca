# What the tests share: a real photo, made-up folders of images, and the real command in a process of its own.
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# What is started in the background may have been told to ignore it, and hands that on to every command here.
signal.signal(signal.SIGINT, signal.default_int_handler)

PHOTO = Path(__file__).parent / "photos" / "astronaut.jpg"


def pytest_addoption(parser):
    parser.addoption("--large", action="store_true", help="also run the long versions")


@pytest.fixture
def photo() -> Path:
    """NASA's portrait of Eileen Collins, 512 x 512, public domain."""
    return PHOTO


@pytest.fixture
def threads():
    """Set torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def featx_command(tmp_path, monkeypatch):
    """Run ``featx`` as a person would: another process, this folder, no terminal, no hub."""
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hub-cache"),
        "TORCH_HOME": str(tmp_path / "torch-cache"),
        "COLUMNS": "200",
    }
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)

    def run(
        *arguments: object, stdin: bytes = b"", cwd: Path = tmp_path, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "featx", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=cwd,
            env={**environment, **extra},
            timeout=300,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        )

    return run


def natural_image(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Noise with a photograph's falling spectrum, so that JPEG and resampling have something to do."""
    generator = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    spectrum = 1 / np.maximum(np.hypot(x, y), 1 / max(width, height))
    channels = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * generator.random((height, width)))
        values = np.fft.ifft2(spectrum * phases).real
        channels.append((values - values.min()) / np.ptp(values) * 255)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))

# Importing ultralytics without what that does to the process: its settings, its files at home, its replaced functions.
"""The only file that imports ultralytics."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from featx.errors import FeatxError
from featx.files import temporary_folder
from featx.process import ALONE

# Settings while ultralytics is imported: write nothing into the user's home, contact no server, install nothing, print
# nothing.
QUIET = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false", "ULTRALYTICS_SAFE_LOAD": "true"}


def import_tasks() -> Any:
    """Import the module of ultralytics that builds and loads its models, and undo what that does to the process.

    Raises
    ------
    FeatxError
        If it is not installed, or cannot be imported.
    """
    try:
        metadata.version("ultralytics")
        with ALONE, _undisturbed():
            from ultralytics.nn import tasks
    except ModuleNotFoundError as error:  # of its metadata, too
        raise FeatxError("ultralytics is not installed", "Run `pip install 'featx[yolo]'`") from error
    except ImportError as error:  # on machines without a screen OpenCV often misses libGL
        raise FeatxError(
            f"ultralytics cannot be imported: {error}",
            "Install what is missing, or replace opencv-python with opencv-python-headless",
        ) from error
    return tasks


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep ultralytics from changing what belongs to the whole process, and from writing files at home."""
    numpy_options, torch_options = np.get_printoptions(), vars(torch._tensor_str.PRINT_OPTS).copy()  # noqa: SLF001
    with (
        temporary_folder() as place,
        mock.patch.dict(os.environ, {**QUIET, "YOLO_CONFIG_DIR": str(place)}),
        warnings.catch_warnings(),
    ):
        cv2 = import_module("cv2") if find_spec("cv2") else None
        threads = cv2.getNumThreads() if cv2 else 0
        replaced = [(torch, "save"), (Image, "open"), *((cv2, name) for name in ("imread", "imwrite", "imshow") if cv2)]
        originals = [getattr(module, name) for module, name in replaced]
        try:
            yield
        finally:
            # Its own way to open images, for one, tries to install a package when an image is broken.
            for (module, name), original in zip(replaced, originals, strict=True):
                setattr(module, name, original)
            if cv2:
                cv2.setNumThreads(threads)
            np.set_printoptions(**numpy_options)
            vars(torch._tensor_str.PRINT_OPTS).update(torch_options)  # noqa: SLF001

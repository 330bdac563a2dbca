# Names: the models of ultralytics that featx can run, read off its configuration files, and what their names say.
"""Models by their names."""

from __future__ import annotations

import re
from pathlib import Path

# Words in the names of models that featx does not run: their layers read texts, they download weights by themselves, or
# their images are prepared in another way.
LEFT_OUT = ("world", "resnet", "rtdetr")

# Sides of the input that detectors and classifiers are made for.
DETECTOR_SIDE, CLASSIFIER_SIDE = 640, 224

# Where the letter of a scale goes in a name: yolov8-seg at scale n is yolov8n-seg.
FAMILY = re.compile(r"(yolo(?:e-)?v?\d+)([a-z]?)(-.*)?")


def configurations(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return the configuration file and the scale of every model that featx can run, by name: one model a scale."""
    names = {}
    for path in sorted(folder.glob("*/yolo*.yaml")):
        match = FAMILY.fullmatch(path.stem)
        if match is None or any(word in path.stem for word in LEFT_OUT):
            continue
        scales = re.findall(r"^ +([a-z]): *\[", path.read_text(encoding="utf-8"), re.MULTILINE)
        scaled = {f"{match[1]}{scale}{match[3] or ''}": (path, scale) for scale in scales if not match[2]}
        names.update(scaled or {path.stem: (path, match[2] if match[2] in scales else "")})
    return names


def own_size(name: str) -> tuple[int, int]:
    """Return height and width of the input that a model is made for."""
    side = CLASSIFIER_SIDE if classifies(name) else DETECTOR_SIDE
    return side, side


def family(name: str) -> str:
    """Return the name of a model without its scale and task: ``yolov8`` of ``yolov8n-seg``."""
    match = FAMILY.fullmatch(name)
    return match[1] if match else name


def classifies(name: str) -> bool:
    """Whether a model is a classifier, whose images are cropped and not letterboxed."""
    return name.endswith("-cls")

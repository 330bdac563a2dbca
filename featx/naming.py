# Names of models and devices: as people write them, and what they come to.
"""What a model, its folder and a device are called."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from featx.errors import UsageError

# Prefix of the name of a model in a folder.
LOCAL = "local-dir:"

# A timm model as named on its hub page, and any repository by the URL of its page.
_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?(?:tree/main/?)?")
_OF_TIMM = re.compile(r"timm/([\w.-]+)")


def model_name(text: str) -> str:
    """Return the name of a model, which may be given as on its hub page.

    ``timm/resnet50.a1_in1k``, and the page's URL, become ``resnet50.a1_in1k``; the URL of any other repository becomes
    ``hf-hub:owner/name``. A folder's path is made absolute, so that its runs can be read from anywhere.
    """
    if text.startswith(LOCAL) and text != LOCAL:
        return LOCAL + os.path.abspath(os.path.expanduser(text.removeprefix(LOCAL)))  # noqa: PTH100, PTH111
    page = _PAGE.fullmatch(text)
    repository = page[1] if page else text
    of_timm = _OF_TIMM.fullmatch(repository)
    return of_timm[1] if of_timm else f"hf-hub:{repository}" if page else text


def as_model(_: str, value: Any) -> str:
    """Expect the name of a model."""
    return model_name(str(value))


def folder_name(model: str) -> str:
    """Name the folder of a model's features: the model's name, without prefix or slashes."""
    prefix, _, rest = model.rpartition(":")
    return Path(rest).resolve().name if prefix == "local-dir" else rest.replace("/", "--")


def device_name(name: str, value: Any) -> str:
    """Expect the name of one device, or of several GPUs."""
    text = str(value)
    numbers = text.removeprefix("cuda:").split(",") if re.fullmatch(r"cuda:[0-9]{1,9}(,[0-9]{1,9})*", text) else []
    if text not in ("auto", "cpu", "cuda", "all", "mps") and not numbers:
        kind = re.match("cpu|mps", text)
        hint = f"{kind[0]} takes no number" if kind else ""
        raise UsageError(f"{name}: expected auto, cpu, cuda, cuda:1, cuda:0,1, all or mps, not {text!r}", hint)
    if len({*map(int, numbers)}) < len(numbers):
        raise UsageError(f"{name}: {text!r} names a GPU twice", "Name each GPU once")
    return text

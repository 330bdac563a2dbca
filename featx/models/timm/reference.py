# References: what a model's name stands for in timm, whether it is registered there, in a folder, or on the hub.
"""From a name to timm's entry point and pretrained configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import timm
import timm.models
from msgspec import Struct

from featx.errors import ModelError
from featx.models import catalogue
from featx.models.hub import hub_file
from featx.paths import expanded

CONFIGURATION = "config.json"


@dataclass(frozen=True, slots=True)
class Reference:
    """A model's name, resolved.

    Attributes
    ----------
    name : str
        As it was asked for.
    timm_name : str
        What `timm.create_model` is given: a hub's repository has become a local folder by then.
    architecture : str
        timm's entry point.
    config : dict
        timm's pretrained configuration: input, hub id, licence …
    """

    name: str
    timm_name: str
    architecture: str
    config: dict[str, Any]

    @property
    def fixed_size(self) -> bool:
        """Whether timm says that the network is built for one input size."""
        return bool(self.config.get("fixed_input_size", False))

    @property
    def files(self) -> tuple[str, ...]:
        """The configuration file of a folder or repository; none for what is registered in timm."""
        prefix, colon, folder = self.timm_name.partition(":")
        return (str(Path(folder) / CONFIGURATION),) if colon and prefix == "local-dir" else ()

    @property
    def family(self) -> str:
        """The module of timm that the architecture is in."""
        return str(timm.models.model_entrypoint(self.architecture).__module__.rpartition(".")[2])


def resolve(name: str) -> Reference:
    """Find out what a model's name stands for; ``hf-hub:`` names take a small file from the hub.

    Raises
    ------
    ModelError
        If timm knows no such architecture or tag; the message has the nearest names.
    WeightsError
        If a hub repository's configuration cannot be found.
    """
    prefix, colon, rest = name.partition(":")
    if not colon:
        return _resolve_registered(name)
    if prefix == "hf-hub":
        repository, _, revision = rest.partition("@")
        folder = hub_file(repository, [CONFIGURATION], revision or None).path.parent
    elif prefix == "local-dir":
        folder = Path(expanded(rest))
    else:
        raise ModelError(f"{name!r} has an unknown prefix", "Use hf-hub:owner/name, local-dir:path, or a timm name")
    config, stated = _configuration(folder)
    _require_architecture(stated.architecture)
    return Reference(name, f"local-dir:{folder}", stated.architecture, {**config, **stated.pretrained_cfg})


class _Configuration(Struct):
    """What is needed of a model's ``config.json``; timm writes more."""

    architecture: str
    pretrained_cfg: dict[str, Any] = {}


def _configuration(folder: Path) -> tuple[dict[str, Any], _Configuration]:
    """Read a model's configuration.

    Raises
    ------
    ModelError
        If there is none, or it is damaged, which names the field.
    """
    file, hint = folder / CONFIGURATION, "The folder needs a config.json that names its architecture"
    try:
        config = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        return config, msgspec.convert(config, _Configuration)
    except OSError as error:
        what = f"{folder} holds no timm configuration" if folder.is_dir() else f"There is no folder {folder}"
        raise ModelError(what, hint) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not a timm configuration: {error}", hint) from error


def _resolve_registered(name: str) -> Reference:
    architecture, dot, tag = name.partition(".")
    _require_architecture(architecture)
    known = timm.models.get_arch_pretrained_cfgs(architecture)
    if dot and name not in known:
        raise catalogue.unknown_tag(architecture, tag, [tagged.partition(".")[2] for tagged in known])
    return Reference(name, name, architecture, timm.models.get_pretrained_cfg(name).to_dict())


def _require_architecture(architecture: str) -> None:
    renamed = timm.models.get_deprecated_models()
    if architecture in renamed or not timm.is_model(architecture):
        raise catalogue.unknown_model(architecture, timm.list_models(), renamed)

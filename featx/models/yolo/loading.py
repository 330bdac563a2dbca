# Loading: the parameters in a checkpoint of ultralytics, which is a pickled model, without running any code in it.
"""Reading checkpoints of ultralytics."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featx.errors import WeightsError, first_line, is_out_of_memory
from featx.models.checkpoints import Checkpoint, read_checkpoint, require_checkpoint
from featx.models.weights import hashed
from featx.process import ALONE, quiet, replaced

UPGRADE = "pip install -U ultralytics"

BYPASSED = "The installed ultralytics bypasses its own safe loading"


def read(tasks: Any, path: Path, name: str, part: str, configuration: dict[str, Any]) -> Checkpoint:
    """Read a model's parameters from a checkpoint; no code in it is run.

    Parameters
    ----------
    tasks : module
        ``ultralytics.nn.tasks``.
    path : Path
        The file.
    name : str
        The model, for people.
    part : str
        The container to take, ``ema`` or ``model``; empty takes the first one in the file.
    configuration : dict
        The model's own.

    Raises
    ------
    WeightsError
        If the file is not a checkpoint that can be loaded safely, has no such container, or is of another model.
    """
    source = str(path.absolute())
    if path.suffix != ".pt":
        return read_checkpoint(path, source, part=part)
    require_checkpoint(path)
    loaded = load_safely(tasks, path)
    found = [container for container in ("ema", "model") if loaded.get(container)]
    if part and part not in found:
        raise WeightsError(f"{path} holds no {part!r}", f"It holds {' and '.join(found) or 'a single network'}")
    part = part or next(iter(found), "")
    model = loaded[part] if part else loaded
    if not isinstance(model, nn.Module | dict):
        raise WeightsError(f"{path} holds no state dict", "Give a file that ultralytics has saved")
    if isinstance(model, nn.Module):
        _require_same_graph(path, name, configuration, vars(model).get("yaml"))
    tensors = dict(_tensors(model)) if isinstance(model, nn.Module) else dict(model)
    floats = {
        str(name): value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }
    return Checkpoint(floats, source, hashed(path).sha256, part)


def load_safely(tasks: Any, path: Path) -> dict[str, Any]:
    """Load a checkpoint in ultralytics' own safe way, which lets out known classes only; make sure that it is used.

    Raises
    ------
    WeightsError
        If it was not, or the checkpoint cannot be loaded so.
    """
    safe = "safe_only" in inspect.signature(tasks.torch_safe_load).parameters and tasks._SafeLoad.SUPPORTED  # noqa: SLF001
    if not safe:
        raise WeightsError("The installed ultralytics cannot load checkpoints safely", UPGRADE)
    honest, loads = tasks.torch_load, []

    def load(*arguments: Any, **options: Any) -> Any:
        if options.get("weights_only") is not True:
            raise WeightsError(BYPASSED, UPGRADE)
        loads.append(True)
        return honest(*arguments, **options)

    try:
        with ALONE, _own_safe_globals(), replaced(tasks, "torch_load", load), quiet():
            loaded, _ = tasks.torch_safe_load(str(path.resolve()), safe_only=True)
    except WeightsError:
        raise
    except Exception as error:  # it raises a dozen classes
        if is_out_of_memory(error):
            raise
        reason = re.sub(r"^ERROR\W*", "", first_line(error))
        raise WeightsError(
            f"{path} cannot be loaded without running code in it: {reason}",
            "Use one of ultralytics' own files, or save its state dict as .safetensors",
        ) from error
    if not loads:
        raise WeightsError(BYPASSED, UPGRADE)
    return dict(loaded)


@contextmanager
def _own_safe_globals() -> Iterator[None]:
    """Put torch's list of safe classes back, which ultralytics adds to."""
    before = torch.serialization.get_safe_globals()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _require_same_graph(path: Path, name: str, ours: dict[str, Any], theirs: Any) -> None:
    """Refuse a checkpoint of a model that is wired differently, though all shapes may fit."""
    if not isinstance(theirs, dict):
        return
    their_facts, our_facts = _facts(theirs), _facts(ours)
    others = [fact for fact in our_facts if their_facts[fact] != our_facts[fact]]
    if others:
        raise WeightsError(
            f"{path} has a different {others[0]} from {name}", "Check --model, or give a file of that model"
        )


def _tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a loaded module without calling its functions: it may bring its own."""
    facts = vars(module)
    for kind in ("_parameters", "_buffers"):
        yield from ((f"{prefix}{name}", value) for name, value in facts[kind].items() if isinstance(value, Tensor))
    for name, inner in facts["_modules"].items():
        if isinstance(inner, nn.Module):
            yield from _tensors(inner, f"{prefix}{name}.")


def _facts(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return what the numbers of a model depend on apart from its parameters: what each layer reads, and its kind."""
    backbone, head = (configuration.get(part, ()) for part in ("backbone", "head"))
    return {
        "activation": configuration.get("activation"),
        "backbone": [(layer[0], layer[2]) for layer in backbone],
        "neck": [(layer[0], layer[2]) for layer in head[:-1]],
    }

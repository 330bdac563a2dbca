# The recipe of a run: everything that changes its numbers, and how two of them are held against each other.
"""One folder, one recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featx.errors import OutputError

ANEW = "Choose another folder with --output, or start anew with --overwrite"


def require_same_recipe(folder: Path, earlier: dict[str, Any] | None, now: dict[str, Any], architecture: str) -> None:
    """Refuse to mix two recipes, the new one of a network of that architecture, in one folder.

    Raises
    ------
    OutputError
        Naming every field that differs, then and now.
    """
    if earlier is None:
        return
    flat_then, flat_now = dict(_flat(earlier["recipe"])), dict(_flat(now))
    part = earlier["weights"].get("part")
    if part and ":" not in flat_then["weights"]:  # an earlier featx told the container in the summary alone
        flat_then["weights"] += f":{part}"
    fields = [name for name in {**flat_then, **flat_now} if flat_then.get(name) != flat_now.get(name)]
    # One network has several names, and an earlier featx did not write down the versions of all libraries.
    same_network = earlier.get("architecture") == architecture and flat_then["weights"] == flat_now["weights"]
    unsaid = {name for name in fields if name.startswith("versions.") and name not in flat_then}
    fields = [name for name in fields if name not in unsaid and not (name == "model" and same_network)]
    if fields:
        changes = ", ".join(f"{name} {_short(flat_then.get(name))} -> {_short(flat_now.get(name))}" for name in fields)
        raise OutputError(f"{folder} holds features of another recipe ({changes})", ANEW)


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"

# Completion: the words that a shell offers for an argument, from the packaged catalogue and the declared choices.
"""Completions of arguments on the command line; where there are none, shells complete file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Complete = Callable[[str], list[str]]


def models(incomplete: str) -> list[str]:
    """Complete the name of a model, and after its dot the tags of its weights."""
    from featx.models import catalogue

    known = catalogue.read()
    if known is None:
        return []
    architecture, dot, _ = incomplete.partition(".")
    if not dot:
        return [name for name in known.names if name.startswith(incomplete)]
    entry = known.entries.get(architecture, {"pretrained": []})
    return [f"{architecture}.{each['tag']}" for each in entry["pretrained"]]


def families(_: str) -> list[str]:
    """Complete a family of models."""
    from featx.models import catalogue

    known = catalogue.read()
    return sorted({entry["family"] for entry in known.entries.values()}) if known else []


def licences(_: str) -> list[str]:
    """Complete a licence of weights."""
    from featx.models import catalogue

    known = catalogue.read()
    tags = (tag for entry in known.entries.values() for tag in entry["pretrained"]) if known else ()
    return sorted({tag["license"] for tag in tags if tag["license"]})


def completing(name: str, choices: Sequence[str]) -> Complete | None:
    """Return what completes an option: names, or those of its choices that are words."""
    names = {"model": models, "family": families, "license": licences}
    words = [word for word in choices if re.fullmatch("[a-z][a-z0-9]*", word)]
    return names.get(name) or (_one_of(words) if words else None)


def _one_of(words: list[str]) -> Complete:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete

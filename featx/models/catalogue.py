# What is known about models without loading timm: the catalogue's files, and searching them.
"""The catalogue: an entry for every architecture of one version of a library of models.

An entry is what `featx.models.libraries.Library.entry` measured: family, parameters, layout, input, sizes,
output strides, default levels, all levels, other outputs, and pretrained tags with what is different for them.
``data/catalogue.json`` has them for the timm version that featx was made with; for another one, and for other
libraries, they are measured once, and kept in the user's cache folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from featx.collecting import many_records
from featx.command_options import ListOptions
from featx.errors import ModelError
from featx.files import cache_folder, write_atomically
from featx.models import schema
from featx.nearest import Weight, named_alike, nearest
from featx.text import count_of

PACKAGED = Path(__file__).parent / "data" / "catalogue.json"
FLOAT32_BYTES = 4

# Up to this many licences or families are all listed where none was found.
FEW = 8

# Of the entries; a cache in another format is not read.
FORMAT = 4

# What an entry says of other outputs than levels.
EXTRAS = ("embedding", "final", "prefix_tokens", "attention", "norm")

# What it says for some libraries only.
OPTIONAL = ("parts", "license")

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models of one version of a library.

    Attributes
    ----------
    source, version : str
        The library, ``timm`` or another, and its version.
    names : list of str
        Of all its architectures, in natural order.
    renamed : dict of str to str
        Its old names for models, and the new ones.
    entries : dict
        Entry by architecture; some may be missing where models are measured on demand.
    """

    source: str
    version: str
    names: list[str]
    renamed: dict[str, str]
    entries: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on models, and the words for it that follow "models that …".

    If the condition asks for a name, `asked` is that name, and `values` gives an entry's names of the same kind.
    """

    words: str
    holds: Callable[[str, Entry], bool]
    asked: str = ""
    values: Callable[[Entry], Iterable[str | None]] = lambda _: ()

    def hint(self, entries: Iterable[Entry]) -> str:
        """Say what to do if no entry passes: use one of the names that the entries have."""
        there = sorted({value for entry in entries for value in self.values(entry) if value})
        few = f"Possible: {', '.join(there)}" if 0 < len(there) <= FEW else "Leave out that filter, or widen it"
        return _suggested(nearest(self.asked, there), few)


@many_records()
def read(path: Path = PACKAGED) -> Catalogue | None:
    """Read a catalogue file; None where there is none, or it is damaged."""
    try:
        stored = schema.decode(path.read_bytes())
    except (OSError, ValueError):
        return None
    entries: dict[str, Any] = {**stored.entries}
    return Catalogue(stored.source, stored.version, stored.names, stored.renamed, entries)


def write(models: Catalogue, path: Path) -> None:
    """Write a catalogue file, one line per entry, complete or not at all."""
    facts = asdict(models)
    entries = facts.pop("entries")
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in entries.items()
    )
    head = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
    text = f'{{\n{head},\n"entries": {{\n{lines}\n}}}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [text.encode()])


def cache_path(library: str, version: str) -> Path | None:
    """Return where the measured catalogue of a library is cached; None without a home folder."""
    caches = cache_folder()
    return caches / f"models-{FORMAT}-{library}-{version}.json" if caches else None


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that one of the patterns (globs, or parts of names) matches; all names without patterns."""
    if not patterns:
        return list(names)
    return [name for name in names if any(_matches(name, pattern) for pattern in patterns)]


def select(entries: dict[str, Entry], filters: Iterable[Filter], start: str) -> dict[str, Entry]:
    """Return the entries that pass every filter; `start` describes the entries that were given.

    Raises
    ------
    ModelError
        If none is left; the message names the filter that took the last.
    """
    passed = [start] if start else []
    for condition in filters:
        left = {name: entry for name, entry in entries.items() if condition.holds(name, entry)}
        if not left:
            before = f"{len(entries)} models" + (f" that {' and '.join(passed)}" if passed else "")
            raise ModelError(f"None of the {before} {condition.words}", condition.hint(entries.values()))
        entries = left
        passed.append(condition.words)
    return entries


def filters(wanted: ListOptions) -> list[Filter]:
    """Return the filters that were asked for; see `featx.list_models`."""
    found, family, licence = [], wanted.family, wanted.license
    if family:
        words = f"belong to family {family!r}"
        found.append(Filter(words, lambda _, entry: fnmatchcase(entry["family"], family), family, _families))
    if wanted.pretrained:
        found.append(Filter("have pretrained weights", lambda _, entry: bool(entry["pretrained"])))
    if licence:
        words = f"have weights under a licence called {licence!r}"
        found.append(Filter(words, _has_licence(licence), licence, _licences))
    if wanted.any_size:
        words = "take other image sizes without being rebuilt"
        found.append(Filter(words, lambda _, entry: bool(entry["sizes"]) and not entry["sizes"]["rebuilt"]))
    found.extend(Filter(f"have a level at stride {stride:g}", _has_stride(stride)) for stride in wanted.strides)
    least, most = wanted.min_levels, wanted.max_parameters
    if least is not None:
        words = f"have at least {count_of(least, 'level')}"
        found.append(Filter(words, lambda _, entry: len(entry["levels"]) >= least))
    if most is not None:
        words = f"have at most {most:,} parameters"
        found.append(Filter(words, lambda _, entry: entry["parameters"] <= most))
    return found


def licensed(tag: dict[str, Any], text: str) -> bool:
    """Whether a tag's licence has a text in its name."""
    return text.lower() in (tag["license"] or "").lower()


def ordered(entries: dict[str, Entry], sort: str) -> dict[str, Entry]:
    """Sort by name, as they come, or by the number of parameters."""
    if sort == "name":
        return entries
    return dict(sorted(entries.items(), key=lambda item: item[1]["parameters"]))


def listed(source: str, name: str, entry: Entry, license: str | None = None) -> dict[str, Any]:  # noqa: A002
    """Return what a list of models shows of one of them, and of its tags those under the licence asked for."""
    facts = ("family", "parameters", "levels", "default_levels", "input", "sizes", "output_strides", *EXTRAS)
    tags = [tag for tag in entry["pretrained"] if license is None or licensed(tag, license)]
    # A name without a tag stands for the weights of its first tag.
    tagged = f"{name}.{tags[0]['tag']}" if tags and tags[0] is not entry["pretrained"][0] else name
    return {
        "model": name,
        "name": tagged,
        "source": source,
        **{fact: entry[fact] for fact in facts},
        "pretrained": [_without_changes(tag) for tag in tags],
    }


def knows(models: Catalogue, name: str) -> bool:
    """Whether there is an entry for ``arch``, or for the weights of ``arch.tag``."""
    architecture, dot, tag = name.partition(".")
    entry = models.entries.get(architecture)
    return entry is not None and (not dot or any(known["tag"] == tag for known in entry["pretrained"]))


def with_tag(models: Catalogue, name: str) -> Entry:
    """Return the entry of ``arch``, or the one of ``arch.tag`` with what these weights change."""
    architecture, _, tag = name.partition(".")
    entry = models.entries[architecture]
    return next(({**entry, **known["changes"]} for known in entry["pretrained"] if known["tag"] == tag), entry)


def described(models: Catalogue, name: str) -> dict[str, Any]:
    """Return what ``featx info`` shows of ``arch`` or ``arch.tag`` when nothing else is asked for."""
    entry = with_tag(models, name)
    levels = [level for level in entry["levels"] if level["index"] in entry["default_levels"]]
    return {
        "model": name,
        "source": models.source,
        "architecture": name.partition(".")[0],
        **{fact: entry[fact] for fact in ("family", "layout", "parameters")},
        "levels": levels,
        "available_levels": len(entry["levels"]),
        **{fact: entry[fact] for fact in ("input", "test_input")},
        "pretrained": [_without_changes(tag) for tag in entry["pretrained"]],
        **{fact: entry[fact] for fact in ("output_strides", "fixed_size", "sizes", "native")},
        "rebuilt": False,
        **{fact: entry[fact] for fact in EXTRAS},
        **{fact: entry[fact] for fact in OPTIONAL if fact in entry},
        "bytes_per_image": bytes_per_image(levels),
    }


def bytes_per_image(levels: Sequence[dict[str, Any]]) -> int | None:
    """Return the size of all float32 maps of one image; None where a map's size is not known."""
    if any(level["height"] is None for level in levels):
        return None
    return sum(FLOAT32_BYTES * int(level["channels"] * level["height"] * level["width"]) for level in levels)


def unknown_model(name: str, names: Sequence[str], renamed: dict[str, str], library: str = "timm") -> ModelError:
    """Return the error of a model that does not exist; it names similar ones."""
    if name in renamed:
        return ModelError(f"{library} has renamed {name}", f"Use {renamed[name]}")
    if "/" in name and library == "timm":
        near = named_alike(name, names, _weights())
        elsewhere = f"Write hf-hub:{name} for a repository, or local-dir:{name} for a folder"
        return ModelError(f"timm has no model {name!r}", _suggested(near, elsewhere))
    return ModelError(f"{library} has no model {name!r}", advice([name], names))


def unknown_tag(architecture: str, tag: str, tags: Iterable[str]) -> ModelError:
    """Return the error of weights that an architecture does not have; it names the nearest, or all that it has."""
    tags = list(tags)
    near = [f"{architecture}.{known}" for known in nearest(tag, tags)]
    return ModelError(
        f"{architecture} has no weights tagged {tag!r}", _suggested(near, f"It has {', '.join(tags) or 'none'}")
    )


def advice(asked: Sequence[str], names: Sequence[str]) -> str:
    """Name the models that were most probably meant."""
    weights = _weights()
    near = dict.fromkeys(name for text in asked for name in nearest(text, names, weights))
    return _suggested(near, "`featx list-models` shows all")


def _suggested(near: Iterable[str], otherwise: str) -> str:
    names = ", ".join(near)
    return f"Nearest: {names}" if names else otherwise


def _weights() -> Weight:
    """Count a model's pretrained weights: of several models of a kind, most people mean the one with many."""
    packaged = read()
    counts = {name: len(entry["pretrained"]) for name, entry in packaged.entries.items()} if packaged else {}
    return lambda name: counts.get(name, 0)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) if set("*?[") & set(pattern) else pattern in name


def _has_stride(stride: float) -> Callable[[str, Entry], bool]:
    return lambda _, entry: any(level["stride"] == stride for level in entry["levels"])


def _has_licence(text: str) -> Callable[[str, Entry], bool]:
    return lambda _, entry: any(licensed(tag, text) for tag in entry["pretrained"])


def _licences(entry: Entry) -> list[str | None]:
    return [tag["license"] for tag in entry["pretrained"]]


def _families(entry: Entry) -> list[str]:
    return [entry["family"]]


def _without_changes(tag: dict[str, Any]) -> dict[str, Any]:
    return {fact: value for fact, value in tag.items() if fact != "changes"}

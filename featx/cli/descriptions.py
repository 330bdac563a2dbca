# What info prints: a model's facts, its levels and its weights, and the words for inputs that other commands use.
"""Models in words and tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

from featx.cli.streams import stdout
from featx.cli.tables import plain_table, print_json
from featx.dtypes import bytes_of
from featx.errors import UsageError
from featx.images import coverage
from featx.paths import is_url
from featx.runs.layout import SUMMARY
from featx.runs.recipe_files import options_of_run, recipe_text
from featx.runs.summary import require_summary
from featx.text import amount_of, count_of, printable, spacing
from featx.values import Input

# Relative difference below which two strides are equal but for rounding.
SAME_STRIDE = 1e-4

# How the tables describe where an input size comes from.
CONFIGURATIONS = {"own": "its own size", "test": "its test size", "asked": "as asked for"}


def description(value: dict[str, Any], *, as_json: bool) -> None:
    """Show one model."""
    if as_json:
        print_json(value)
        return
    out = stdout()
    facts = Table.grid(padding=(0, 2))
    for name, text in _model_facts(value).items():
        facts.add_row(f"[dim]{name}[/]", escape(text))
    out.print(facts)
    shown, depth = len(value["levels"]), value["available_levels"]
    out.print()
    out.print(levels_table(value["levels"]))
    if shown < depth:
        out.print(f"[dim]{shown} of {depth} levels; --out-indices all shows the others[/]")
    for text in filter(None, (_misleading_ratio(value["levels"]), _apart(value["levels"]))):
        out.print(f"[dim]{text}[/]")
    out.print()
    out.print(_tags(value) if value["pretrained"] else f"[dim]{_no_weights(value)}[/]")


def modules(values: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Show modules, with what is kept of them, or why nothing is."""
    if as_json:
        print_json(values)
        return
    table = plain_table("module", "type", ">stride", ">offset", "kept")
    for value in values:
        place = [spacing(value["stride"]), spacing(value["offset"])] if value["stride"] is not None else ["", ""]
        table.add_row(escape(value["name"]), value["type"], *place, _kept(value))
    stdout().print(table)


def _kept(value: dict[str, Any]) -> str:
    """Say what is kept of a module's output."""
    if value["fault"]:
        return f"[dim]no: {escape(value['fault'])}[/]"
    text = " x ".join(map(str, value["shape"]))
    named = {"NCHW": "", "NHWC": "", "NLC": "", "NCL": "", "tokens": "tokens ", "vector": "vector "}
    before = f", {count_of(value['prefix_tokens'], 'prefix token')}" if value["prefix_tokens"] else ""
    return f"{named[value['layout']]}{text}{before}"


def is_run(name: str) -> bool:
    """Whether what could name a model is the path of a run's folder, or a URL; those of the web name models."""
    if is_url(name):
        return not name.lower().startswith(("http://", "https://"))
    return os.sep in name and (Path(name) / SUMMARY).is_file()


def run(options: dict[str, Any], *, recipe: bool, as_json: bool) -> None:
    """Show a run, or its recipe alone; the options are those of the command, of which only the folder applies."""
    folder = options["model"]
    if others := sorted(options.keys() - {"model"}):
        raise UsageError(f"--{others[0].replace('_', '-')} is for a model, and {folder} is a run", "Leave it out")
    summary = require_summary(folder)
    if as_json:
        print_json(options_of_run(folder) if recipe else summary)
        return
    unknown = not recipe and not summary.get("options")
    text = "The featx that wrote it did not record its options\n" if unknown else recipe_text(folder)
    out = stdout()
    if not recipe:
        facts = Table.grid(padding=(0, 2))
        for name, fact in _run_facts(summary).items():
            facts.add_row(f"[dim]{name}[/]", escape(printable(fact)))
        maps = [*summary["levels"], *summary.get("modules", [])]
        out.print(facts, "", levels_table(maps, summary["recipe"]["grid"]), "", sep="\n")
        if cost := losses_table(summary):
            out.print(cost, "", sep="\n")
    out.print(text, markup=False, soft_wrap=True, end="")


def _run_facts(summary: dict[str, Any]) -> dict[str, str]:
    """The lines above the levels of a run."""
    feed, counts, weights = summary["input"], summary["counts"], summary["weights"]
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return {
        "model": summary["model"],
        "weights": f"{weights['kind']}, {weights['source']}",
        "input": f"{size_of(feed)}, {fit_of(feed)}, {feed['interpolation']}",
        "images": f"{counts['done']} of {counts['total']} done{failed}",
        "arrays": ", ".join(f"{each['key']} {each['dtype']}" for each in summary["arrays"]),
    }


def _model_facts(value: dict[str, Any]) -> dict[str, str]:
    """The lines above the table of levels."""
    feed, tested = value["input"], value["test_input"]
    name, architecture = value["model"], value["architecture"]
    own = feed["configuration"] == "own"
    sizes = "" if own or feed["height"] is None else f" ({CONFIGURATIONS[feed['configuration']]})"
    other = (
        f"; {size_of(tested)}, crop {tested['crop_pct']:g} with --test-size"
        if tested and own and feed["height"]
        else ""
    )
    return {
        "model": name + (f"  ({architecture})" if architecture != name else ""),
        "family": value["family"],
        "parameters": f"{value['parameters'] / 1e6:.1f} M, without the head",
        "input": f"{size_of(feed)}{sizes}, {fit_of(feed)}, {feed['interpolation']}{other}",
        "sees": coverage.described(msgspec.convert(feed, Input)),
        "fits": _fits(value),
        "other sizes": _sizes(value["sizes"]) + (" (as here)" if value["rebuilt"] else ""),
        "mean, std": f"{_numbers(feed['mean'])}, {_numbers(feed['std'])}",
        "output strides": ", ".join(map(str, value["output_strides"])) or "its own only",
        "other outputs": _other_outputs(value),
        "bytes per photo": _bytes(value),
        **({"licence": value["license"]} if "license" in value else {}),
    }


def _other_outputs(value: dict[str, Any]) -> str:
    """List what a model offers in addition to its levels."""
    final, tokens = value["final"], value["prefix_tokens"]
    parts = [
        f"embedding {value['embedding']}" if value["embedding"] else "",
        _final_map(final) if final else "",
        count_of(tokens, "prefix token") if tokens else "",
        _attention(value) if value["attention"] else "",
        "final norm (--norm)" if value["norm"] else "",
        f"parts {', '.join(value['parts'])} (--part)" if value.get("parts") else "",
    ]
    return ", ".join(part for part in parts if part) or "none"


def _final_map(final: dict[str, Any]) -> str:
    sides = "" if final["height"] is None else f" x {final['height']} x {final['width']}"
    return f"final map {final['channels']}{sides}"


def _attention(value: dict[str, Any]) -> str:
    """Say whose attention there is, and in which levels, if only in a few."""
    query, levels = value["attention"]["query"], value["attention"]["levels"]
    few = "" if len(levels) == value["available_levels"] else f" in level {', '.join(map(str, levels))}"
    return f"attention of the {query}{few} (--attention)"


def _sizes(sizes: dict[str, Any] | None) -> str:
    if sizes is None:
        return "none"
    which = "any" if sizes["multiple"] == 1 else f"multiples of {sizes['multiple']}"
    square = ", square" if sizes["square"] else ""
    rebuilt = ", the network is rebuilt for them" if sizes["rebuilt"] else ""
    weights = "" if sizes.get("resampled", True) else ", and pretrained weights cannot be used then"
    return f"{which}{square}{rebuilt}{weights}"


def _fits(value: dict[str, Any]) -> str:
    """List the ways of fitting a photo that a model takes."""
    native, pad = value["native"], "pad (a letterbox)" if value["source"] == "ultralytics" else "pad"
    if native is None:
        return f"crop, squash, {pad}; not native: the network is built for one size"
    return f"crop, squash, {pad}, native (in multiples of {native['multiple']})"


def _bytes(value: dict[str, Any]) -> str:
    if value["bytes_per_image"] is not None:
        return amount_of(value["bytes_per_image"])
    each = [_bytes_per_megapixel(level) for level in value["levels"]]
    return "?" if None in each else f"{amount_of(sum(filter(None, each)))} a megapixel"


def _bytes_per_megapixel(level: dict[str, Any]) -> int | None:
    """Return the bytes of a map for a million pixels of the input; None where its stride is unknown."""
    stride = level["stride"]
    if stride is None:
        return None
    cell: float = stride[0] * stride[1] if isinstance(stride, list | tuple) else stride**2
    each = bytes_of(level.get("dtype", "float32"))
    return int(each * level["channels"] * 1e6 / cell)


def size_of(feed: dict[str, Any]) -> str:
    """Say how large an input is."""
    if feed["height"] is not None:
        return f"{feed['height']} x {feed['width']}"
    reduced = f", at most {feed['max_side']} a side" if feed.get("max_side") else ""
    return f"the photo's own size{reduced}"


def fit_of(feed: dict[str, Any]) -> str:
    """Say how photos are brought to the size of an input."""
    if feed["height"] is None:
        return f"in multiples of {feed['multiple']}"
    whole = feed["fit"] != "crop" and feed["crop_pct"] == 1
    return feed["fit"] if whole else f"{feed['fit']} {feed['crop_pct']:g}"


def losses_table(summary: dict[str, Any]) -> Table | None:
    """Make the table of what smaller maps lose; None if they lose nothing."""
    cost, recipe = summary.get("cost"), summary["recipe"]
    if not cost:
        return None
    if not cost["images"]:
        table = plain_table("lost")
        table.add_row("not measured, since --tile was given")
        return table
    steps = {"grid": recipe["grid"], "components": recipe["components"], "dtype": recipe["dtype"] != "float32"}
    used = [step for step, value in steps.items() if value]
    names = [recipe["dtype"] if step == "dtype" else step for step in used]
    table = plain_table("lost", *(f">{name}" for name in names))
    for key, errors in cost["levels"].items():
        table.add_row(key, *(f"{errors[step]:.2%}" for step in used))
    return table


def levels_table(levels: Sequence[dict[str, Any]], grid: object = None) -> Table:
    """Make the table of levels, with how far branches lie apart if any do; on a grid, cells may vary with the photo."""
    spread = [">spread"] if any(level.get("offset_spread") for level in levels) else []
    table = plain_table(">level", "module", ">channels", ">stride", ">offset", *spread, ">map", ">bytes")
    for level in levels:
        known = level["height"] is not None
        each = bytes_of(level.get("dtype", "float32"))
        size = each * level["channels"] * level["height"] * level["width"] if known else None
        dense = None if known else _bytes_per_megapixel(level)
        part = level.get("part", "")
        places = [level["stride"], level["offset"], *([level.get("offset_spread", 0)] if spread else [])]
        table.add_row(
            part if level["index"] < 0 else f"{part} {level['index']}".strip(),
            level["name"],
            str(level["channels"]),
            *(spacing(place) if known or not grid else "varies" for place in places),
            f"{level['height']} x {level['width']}" if known else "by photo",
            amount_of(size) if size is not None else f"{amount_of(dense)}/MP" if dense and not grid else "?",
        )
    return table


def _misleading_ratio(levels: Sequence[dict[str, Any]]) -> str:
    """Warn where input size divided by map size is not the stride, and name the level where it is furthest off."""
    worst = max(levels, key=_off)
    if _off(worst) < SAME_STRIDE:
        return ""
    ratio = " x ".join(dict.fromkeys(f"{number:.4g}" for number in worst["ratio"]))
    return (
        "Strides are the measured spacing of cells. Use them instead of input size divided by map size, "
        f"which is {ratio} at level {worst['index']}."
    )


def _apart(levels: Sequence[dict[str, Any]]) -> str:
    """Explain the column of spreads, if there is one."""
    if not any(level.get("offset_spread") for level in levels):
        return ""
    return "An offset with a spread is the mean of branches that lie so many cells apart."


def _off(level: dict[str, Any]) -> float:
    """Return how far input size divided by map size is from a level's stride, relative to the stride."""
    stride, ratios = level["stride"], level.get("ratio", ())
    return max(abs(ratio / stride - 1) for ratio in ratios) if ratios and isinstance(stride, int | float) else 0.0


def _tags(value: dict[str, Any]) -> Table:
    """Make the table of pretrained weights, marking the default and those that the name chooses."""
    table = plain_table("pretrained tag", "licence", ">input", "")
    _, dot, chosen = value["model"].partition(".")
    for number, tag in enumerate(value["pretrained"]):
        size = f"{tag['input_size'][1]}x{tag['input_size'][2]}"
        marks = ["default"] * (not number) + ["chosen"] * (bool(dot) and tag["tag"] == chosen)
        table.add_row(tag["tag"], tag["license"] or "not stated", size, ", ".join(marks))
    return table


def _no_weights(value: dict[str, Any]) -> str:
    if value["source"] == "ultralytics":
        return f"featx fetches no weights for it; give extract --weights {value['model']}.pt"
    return "no pretrained weights"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)

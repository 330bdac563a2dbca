# What commands print when they are done: tables for people, JSON for scripts, and errors.
"""Text for the terminal: data to standard output, messages to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.markup import escape
from rich.table import Table

from featx.cli.columns import print_models
from featx.cli.streams import stderr, stdout
from featx.errors import FeatxError
from featx.images import coverage
from featx.runs.layout import MANIFEST
from featx.text import amount_of, count_of, images, printable, spacing
from featx.values import RANDOM_WEIGHTS, Input

if TYPE_CHECKING:
    from featx.command_options import ListOptions
    from featx.explore.sampling import Sampled
    from featx.explore.similarity import Neighbours
    from featx.explore.verify import Recomputed, Verified
    from featx.images.annotations import Fault


# Relative difference below which two strides are equal but for rounding.
SAME_STRIDE = 1e-4

# Rows of annotations without features that are listed.
FAULTS = 20

# How the tables describe where an input size comes from.
CONFIGURATIONS = {"own": "its own size", "test": "its test size", "asked": "as asked for"}


def error(failure: Exception) -> None:
    """Print one line: what went wrong, and how to fix it."""
    message, hint = (failure.message, failure.hint) if isinstance(failure, FeatxError) else (str(failure), "")
    text = printable(_sentence(message) + (_sentence(f" {hint}") if hint else ""))
    out = stderr()
    out.print(f"[bold red]featx:[/] {escape(text)}", soft_wrap=not out.is_terminal)


def models(entries: Sequence[dict[str, Any]], wanted: ListOptions, *, names: bool, as_json: bool) -> None:
    """Show a list of models, or the first of them; a narrow terminal keeps the columns they were chosen by."""
    shown = entries[: wanted.limit]
    if as_json:
        print_json(shown)
    elif names:
        sys.stdout.write("".join(f"{entry['name']}\n" for entry in shown))
    else:
        print_models(shown, wanted)
    if len(shown) < len(entries):
        stderr().print(f"{len(shown)} of {len(entries)} models; --limit shows more")
    elif not names and not as_json:
        stderr().print(count_of(len(entries), "model"))


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
    if text := _misleading_ratio(value["levels"]):
        out.print(f"[dim]{text}[/]")
    out.print()
    out.print(_tags(value) if value["pretrained"] else f"[dim]{_no_weights(value)}[/]")


def fetched(value: dict[str, Any], *, as_json: bool) -> None:
    """Show what was fetched, and how to use it."""
    if as_json:
        print_json(value)
        return
    out = stdout()
    out.print(f"{escape(value['output'])}/{value['file']}  {amount_of(value['bytes'])}", soft_wrap=True)
    out.print(f"[dim]sha256 {value['sha256']}, from {escape(value['source'])}[/]", soft_wrap=True)
    out.print(f"Use it with --model local-dir:{escape(value['output'])}", soft_wrap=True)


def timings(value: dict[str, Any], *, as_json: bool) -> None:
    """Show where the time goes."""
    if as_json:
        print_json(value)
        return
    out, workers = stdout(), value["workers"]
    table = _table("stage", ">images/s", ">threads", "work")
    for stage, threads, work in (
        ("read", "readers", "decode, resize, crop"),
        ("forward", "forwards", f"batches of {workers['batch_size']}, {count_of(workers['threads'], 'core')} each"),
        ("write", "writers", f"lay out, hash, write {amount_of(round(value['bytes_per_image']))}"),
        ("commit", "", "wait for the disk"),
    ):
        rate = value["stages"][stage]["images_per_second"]
        table.add_row(stage, f"{rate:.1f}", str(workers[threads]) if threads else "1", work)
    table.add_row("limit", f"{value['limit']:.1f}", "", "what the stages allow together")
    table.add_row("pipeline", f"{value['pipeline']:.1f}", "", f"{value['share']:.0%} of the limit")
    out.print(table)
    names = ", ".join(value[name] for name in ("model", "device", "precision", "backend", "dtype"))
    out.print(f"[dim]{names}; {images(value['images'])}, {count_of(value['rounds'], 'round')}[/]")


def neighbours(value: Neighbours, *, as_json: bool) -> None:
    """Show the images that are most similar to a query."""
    if as_json:
        print_json(asdict(value))
        return
    if value.weights == "random":
        stderr().print("[yellow]random weights: nothing was learned, so these similarities mean little[/]")
    out, table = stdout(), _table(">rank", ">cosine", "image")
    for rank, each in enumerate(value.found, 1):
        table.add_row(str(rank), f"{each.score:.4f}", escape(printable(each.key)))
    out.print(table)
    stderr().print(f"[dim]{len(value.found)} of {images(value.images)}[/]")


def drawn(value: Neighbours, output: Path, *, as_json: bool) -> None:
    """Say what was drawn."""
    if not as_json:
        stderr().print(f"wrote {escape(printable(str(output)))}, {images(len(value.found))}", soft_wrap=True)


def sampled(value: Sampled, *, as_json: bool) -> None:
    """Show what was written of boxes or points, and those that have no row."""
    if as_json:
        shapes = {name: list(shape) for name, shape in value.arrays.items()}
        listed = [{"line": each.line, "key": each.key, "reason": each.reason} for each in value.faults]
        print_json({"rows": value.rows, "output": str(value.output), "arrays": shapes, "faults": listed})
        return
    if value.weights == "random":
        stderr().print(f"[yellow]{RANDOM_WEIGHTS}[/]")
    faults(value.faults, value.counted)
    out, size = stdout(), amount_of(value.output.stat().st_size)
    for name, shape in value.arrays.items():
        out.print(f"{name} {' x '.join(map(str, shape))} float32")
    rows = count_of(value.rows, value.what, "boxes" if value.what == "box" else "")
    where = escape(printable(str(value.output)))
    out.print(f"[bold]{rows}[/] of {count_of(value.photos, 'photo')}, {size} in {where}", soft_wrap=True)


def faults(found: Sequence[Fault], counted: str) -> None:
    """List rows of annotations that cannot be used: the first of them, and how many there are."""
    if not found:
        return
    table = _table(f">{counted}", "photo", "why it has no features")
    for fault in found[:FAULTS]:
        table.add_row(str(fault.line), escape(printable(fault.key)), escape(printable(fault.reason)))
    out, more = stderr(), len(found) - FAULTS
    out.print(table, soft_wrap=not out.is_terminal)
    rest = f", {more} of them not shown; --json lists all" if more > 0 else ""
    out.print(f"[red]{count_of(len(found), f'{counted}')} without features[/]{rest}")


def verified(value: Verified, *, as_json: bool) -> None:
    """Show the result of a check."""
    if as_json:
        print_json({**asdict(value), "folder": str(value.folder), "sound": value.sound, "complete": value.complete})
        return
    out = stdout()

    def say(text: str) -> None:
        out.print(text, markup=False, soft_wrap=True)

    for key in value.missing:
        say(f"missing: {printable(key)}")
    for key, fault in value.damaged.items():
        say(f"damaged: {printable(key)}: {printable(fault)}")
    for fault in value.unreadable:
        say(f"damaged: {MANIFEST} {printable(fault)}")
    for name in value.uncommitted:
        say(f"not in the manifest: {printable(name)}; the next extract makes it again")
    for name in value.foreign:
        say(f"unexpected file: {printable(name)}")
    if value.unfinished:
        say(f"{count_of(value.unfinished, 'temporary file')}, removed by the next extract")
    faults = len(value.missing) + len(value.damaged)
    say(f"{value.checked - faults} of {count_of(value.checked + value.to_do, 'output')} intact")
    if value.to_do:
        say(f"{images(value.to_do)} not computed yet; run the same extract command to resume")
    if value.failed:
        say(f"{images(value.failed)} failed; the manifest says why")
    if value.recomputed:
        say(_recomputed(value.recomputed))
    if value.repaired and (faults or value.unreadable):
        say("Removed from the manifest; run the same extract command to make them again")


def _recomputed(value: Recomputed) -> str:
    skipped = f", {images(value.skipped)} skipped: changed or deleted since the run" if value.skipped else ""
    versions = f" (now {', '.join(value.versions)})" if value.versions else ""
    failed = f", {len(value.failed)} failed, the first {value.failed[0]}" if value.failed else ""
    rest = printable(f"{skipped}{failed}{versions}")
    if not value.images:
        return f"not reproduced: no image extracted again{rest}" if value.skipped else f"no image extracted again{rest}"
    if not value.where:
        return f"{images(value.images)} extracted again: bit for bit the same{rest}"
    verdict = "within" if value.deviation <= value.tolerance else "beyond"
    return (
        f"{images(value.images)} extracted again: largest difference {value.deviation:.1e} of the level's largest "
        f"number, in {printable(value.where)}, {verdict} {value.tolerance:g}{rest}"
    )


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
        f"final map of {final['channels']} channels, stride {spacing(final['stride'])}" if final else "",
        count_of(tokens, "prefix token") if tokens else "",
        "final norm (--norm)" if value["norm"] else "",
        f"parts {', '.join(value['parts'])} (--part)" if value.get("parts") else "",
    ]
    return ", ".join(part for part in parts if part) or "none"


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
    each = 2 if level.get("dtype") == "float16" else 4
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
    return feed["fit"] if feed["fit"] == "letterbox" else f"{feed['fit']} {feed['crop_pct']:g}"


def levels_table(levels: Sequence[dict[str, Any]]) -> Table:
    """Make the table of levels."""
    table = _table(">level", "module", ">channels", ">stride", ">offset", ">map", ">bytes")
    for level in levels:
        known = level["height"] is not None
        each = 2 if level.get("dtype") == "float16" else 4
        size = each * level["channels"] * level["height"] * level["width"] if known else None
        dense = None if known else _bytes_per_megapixel(level)
        part = level.get("part", "")
        table.add_row(
            part if level["index"] < 0 else f"{part} {level['index']}".strip(),
            level["name"],
            str(level["channels"]),
            spacing(level["stride"]),
            spacing(level["offset"]),
            f"{level['height']} x {level['width']}" if known else "by photo",
            amount_of(size) if size is not None else f"{amount_of(dense)}/MP" if dense else "?",
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


def _off(level: dict[str, Any]) -> float:
    """Return how far input size divided by map size is from a level's stride, relative to the stride."""
    stride, ratios = level["stride"], level.get("ratio", ())
    return max(abs(ratio / stride - 1) for ratio in ratios) if ratios and isinstance(stride, int | float) else 0.0


def _tags(value: dict[str, Any]) -> Table:
    """Make the table of pretrained weights, marking the default and those that the name chooses."""
    table = _table("pretrained tag", "licence", ">input", "")
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


def _table(*columns: str) -> Table:
    """Make a plain table; headings that begin with > are right-aligned. Texts after the first wrap if necessary."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        right = column.startswith(">")
        heading = column.lstrip(">")
        table.add_column(heading, justify="right" if right else "left", no_wrap=right or not number, overflow="fold")
    return table


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "…")) else f"{text}."


def print_json(value: Any) -> None:
    """Print one JSON document."""
    # msgspec only indents, which is slow in json; json encodes, since texts may hold lone surrogates.
    sys.stdout.write(msgspec.json.format(json.dumps(value), indent=2) + "\n")

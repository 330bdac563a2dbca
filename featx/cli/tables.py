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
from featx.values import Input

if TYPE_CHECKING:
    from featx.command_options import ListOptions
    from featx.explore.similarity import Neighbours
    from featx.explore.verify import Recomputed, Verified


# Relative difference below which two strides are equal but for rounding.
SAME_STRIDE = 1e-4

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
    for text in filter(None, (_misleading_ratio(value["levels"]), _apart(value["levels"]))):
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
    sizes = "" if own else f" ({CONFIGURATIONS[feed['configuration']]})"
    other = f"; {_size(tested)}, crop {tested['crop_pct']:g} with --test-size" if tested and own else ""
    return {
        "model": name + (f"  ({architecture})" if architecture != name else ""),
        "family": value["family"],
        "parameters": f"{value['parameters'] / 1e6:.1f} M, without the head",
        "input": f"{_size(feed)}{sizes}, {feed['fit']} {feed['crop_pct']:g}, {feed['interpolation']}{other}",
        "sees": coverage.described(msgspec.convert(feed, Input)),
        "other sizes": _sizes(value["sizes"]) + (" (as here)" if value["rebuilt"] else ""),
        "mean, std": f"{_numbers(feed['mean'])}, {_numbers(feed['std'])}",
        "output strides": ", ".join(map(str, value["output_strides"])) or "its own only",
        "other outputs": _other_outputs(value),
        "bytes per photo": amount_of(value["bytes_per_image"]),
        **({"licence": value["license"]} if "license" in value else {}),
    }


def _other_outputs(value: dict[str, Any]) -> str:
    """List what a model offers in addition to its levels."""
    final, tokens = value["final"], value["prefix_tokens"]
    parts = [
        f"embedding {value['embedding']}" if value["embedding"] else "",
        f"final map {final['channels']} x {final['height']} x {final['width']}" if final else "",
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


def _size(feed: dict[str, Any]) -> str:
    return f"{feed['height']} x {feed['width']}"


def levels_table(levels: Sequence[dict[str, Any]]) -> Table:
    """Make the table of levels, with how far branches lie apart if any do."""
    spread = [">spread"] if any(level.get("offset_spread") for level in levels) else []
    table = _table(">level", "module", ">channels", ">stride", ">offset", *spread, ">map", ">bytes")
    for level in levels:
        known = level["height"] is not None
        each = 2 if level.get("dtype") == "float16" else 4
        size = each * level["channels"] * level["height"] * level["width"] if known else None
        part = level.get("part", "")
        table.add_row(
            part if level["index"] < 0 else f"{part} {level['index']}".strip(),
            level["name"],
            str(level["channels"]),
            spacing(level["stride"]),
            spacing(level["offset"]),
            *(spacing(level.get("offset_spread", 0)) for _ in spread),
            f"{level['height']} x {level['width']}" if known else "?",
            "?" if size is None else amount_of(size),
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
    """Explain the column of spreads, where there is one."""
    if not any(level.get("offset_spread") for level in levels):
        return ""
    return (
        "Some levels add up branches with different centres: spread is how far apart, in cells; offset is their mean."
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

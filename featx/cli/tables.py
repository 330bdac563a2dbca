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
from featx.runs.layout import BASIS
from featx.text import amount_of, count_of, images, printable
from featx.values import RANDOM_SIMILARITY, RANDOM_WEIGHTS

if TYPE_CHECKING:
    from featx.command_options import ListOptions
    from featx.explore.converting import Converted
    from featx.explore.page import Page
    from featx.explore.patches import Patches
    from featx.explore.sampling import Sampled
    from featx.explore.similarity import Neighbours
    from featx.explore.verify import Recomputed, Verified
    from featx.explore.viewing import View
    from featx.images.annotations import Fault
    from featx.runs.merging import Merged


# The most rows of annotations without features that are listed.
FAULTS = 20


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
    table = plain_table("stage", ">images/s", ">threads", "work")
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
    table = plain_table(">rank", ">cosine", "image")
    for rank, each in enumerate(value.found, 1):
        table.add_row(str(rank), f"{each.score:.4f}", escape(printable(each.key)))
    _ranking(value, table, f"{len(value.found)} of {images(value.images)}", as_json=as_json)


def patches(value: Patches, *, as_json: bool) -> None:
    """Show the patches that are most similar to a query."""
    table = plain_table(">rank", ">cosine", ">x", ">y", "image")
    for rank, each in enumerate(value.found, 1):
        place = (f"{pixel:.1f}" for pixel in (each.x, each.y))
        table.add_row(str(rank), f"{each.score:.4f}", *place, escape(printable(each.key)))
    said = f"{count_of(len(value.found), 'place')} in {images(value.images)}, compared on {value.level}"
    _ranking(value, table, said, as_json=as_json)


def _ranking(value: Neighbours | Patches, table: Table, said: str, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(value))
        return
    if value.weights == "random":
        _tell(f"[yellow]{RANDOM_SIMILARITY}[/]")
    stdout().print(table)
    stderr().print(f"[dim]{said}[/]")


def drawn(count: int, noun: str, output: Path, *, as_json: bool) -> None:
    """Say how much was drawn."""
    if not as_json:
        stderr().print(f"wrote {escape(printable(str(output)))}, {count_of(count, noun)}", soft_wrap=True)


def viewed(value: View, *, as_json: bool) -> None:
    """Print the path of a picture, and say what is in it."""
    notes = []
    if value.gone:
        verb, others = ("is", "") if len(value.gone) == 1 else ("are", " and others")
        those = f"{count_of(len(value.gone), 'photo')} {verb} gone or changed"
        notes.append(f"[yellow]{those}: {escape(printable(value.gone[0]))}{others}[/]")
    _written(value, notes, value.photos, as_json=as_json)


def paged(value: Page, *, as_json: bool) -> None:
    """Print the path of a page, and say what is on it, and what is not."""
    notes = [escape(note) for note in value.notes]
    _written(value, notes, len(value.photos), f"{amount_of(value.bytes)}, ", as_json=as_json)


def _written(value: View | Page, notes: Sequence[str], shown: int, size: str = "", *, as_json: bool) -> None:
    """Print the path of a picture or page, after notes, its size and how many photos it shows."""
    if as_json:
        print_json({**asdict(value), "output": str(value.output)})
        return
    warning = [f"[yellow]{RANDOM_SIMILARITY}[/]"] if value.weights == "random" else []
    rest = "; to see others, name them or raise --max-photos" if shown < value.images else ""
    for line in (*warning, *notes, f"[dim]{size}{shown} of {count_of(value.images, 'photo')}{rest}[/]"):
        _tell(line)
    stdout().print(printable(str(value.output)), markup=False, highlight=False, soft_wrap=True)


def _tell(text: str) -> None:
    """Write a sentence to standard error: broken between words on a terminal, and nowhere in a file."""
    out = stderr()
    out.print(text, highlight=False, soft_wrap=not out.is_terminal)


def sampled(value: Sampled, *, as_json: bool) -> None:
    """Show what was written of boxes or points, and those that have no row."""
    if as_json:
        shapes = {name: list(shape) for name, shape in value.arrays.items()}
        found = msgspec.to_builtins(value.faults)
        print_json({"rows": value.rows, "output": str(value.output), "arrays": shapes, "faults": found})
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
    table = plain_table(f">{counted}", "photo", "why it has no features")
    for fault in found[:FAULTS]:
        table.add_row(str(fault.line), escape(printable(fault.key)), escape(printable(fault.reason)))
    out, more = stderr(), len(found) - FAULTS
    out.print(table, soft_wrap=not out.is_terminal)
    rest = f", {more} of them not shown; --json lists all" if more > 0 else ""
    out.print(f"[red]{count_of(len(found), f'{counted}')} {'has' if len(found) == 1 else 'have'} no features[/]{rest}")


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
    if value.basis:
        say(f"damaged: {BASIS} {value.basis}; maps cannot be returned to the network's channels, nor the run continued")
    for fault in value.unreadable:
        say(f"damaged: {printable(fault)}")
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


def merged(value: Merged, *, as_json: bool) -> None:
    """Show the result of merging."""
    if as_json:
        print_json({**asdict(value), "folder": str(value.folder)})
        return
    what = f"{count_of(value.parts, 'part')} merged" if value.parts else "nothing to merge"
    failed = f", {value.failed} failed" if value.failed else ""
    stdout().print(f"{what}: {value.done} done{failed} in one manifest", highlight=False)


def converted(value: Converted, *, as_json: bool) -> None:
    """Show the result of converting."""
    if as_json:
        print_json({**asdict(value), "output": str(value.output)})
        return
    failed = f", {value.failed} failed" if value.failed else ""
    where = escape(printable(str(value.output)))
    now = "nothing to convert" if not value.converted else f"{value.converted} converted now"
    out = stdout()
    out.print(f"{value.done} done{failed} as {value.format} ({now})", highlight=False)
    out.print(f"{amount_of(value.bytes)} in {where}/", highlight=False, soft_wrap=True)


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


def plain_table(*columns: str) -> Table:
    """Make a plain table; headings that begin with > are right-aligned. Texts after the first wrap if necessary."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        right = column.startswith(">")
        heading = column.lstrip(">")
        table.add_column(heading, justify="right" if right else "left", no_wrap=right or not number, overflow="fold")
    return table


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "…")) else f"{text}."


def print_json(value: Any) -> None:
    """Print one JSON document."""
    # msgspec only indents, which is slow in json; json encodes, since texts may hold lone surrogates.
    sys.stdout.write(msgspec.json.format(json.dumps(value), indent=2) + "\n")

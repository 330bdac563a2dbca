# What extract prints besides progress: the forecast before a run, and the summary after it.
"""The text before and after a run."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

from msgspec import convert, to_builtins
from rich.console import Console
from rich.markup import escape

from featx.cli.descriptions import fit_of, levels_table, losses_table, size_of
from featx.cli.rates import clock
from featx.cli.streams import stdout
from featx.cli.tables import faults, print_json
from featx.dtypes import SCALE
from featx.text import amount_of, count_of, images, printable
from featx.values import EMBEDDING, Level, Outcome, plain

if TYPE_CHECKING:
    from featx.engine.extract import Report
    from featx.engine.forecast import Forecast

# Reasons of failures that are listed.
REASONS = 5


def forecast_lines(value: Forecast) -> list[str]:
    """Say what a run will write, and how much memory it will take."""
    if not value.images:
        return []
    feed = plain(value.input)
    total = f", {amount_of(value.bytes)} for {images(value.images)}" if value.images > 1 else ""
    free = f"; {amount_of(value.free)} free" if value.free is not None else ""
    made = [f"smaller  {each.options}: {amount_of(each.bytes)}" for each in value.savings]
    made += [f"fits     {each.options}: {amount_of(each.bytes)}" for each in value.fitting]
    return [
        f"input    {size_of(feed)}, {fit_of(feed)}{_seen(value)}",
        *_tiles(value),
        f"output   {'about ' if value.largest else ''}{amount_of(value.bytes_per_image)} an image{total}{free}",
        f"memory   {_memory(value)}",
        *made,
    ]


def _tiles(value: Forecast) -> list[str]:
    if value.tiles is None:
        return []
    tile, halo, count, longest = value.tiles
    what = "every photo in one pass" if count == 1 else f"{count:,} of the largest photo, each seen in {longest:,}"
    return [f"tiles    {tile:,} and a halo of {halo:,} pixels: {what}"]


def _seen(value: Forecast) -> str:
    if value.photo is None or value.seen is None:
        return ""
    width, height = value.photo
    if value.largest is not None:
        larger = f", the largest seen {value.largest[0]} x {value.largest[1]}" if value.largest != value.photo else ""
        return f"; a typical photo has {width} x {height}{larger}"
    share = "all" if value.seen > 0.995 else f"{value.seen:.0%}"
    return f": sees {share} of a {width} x {height} photo"


def _memory(value: Forecast) -> str:
    if value.elsewhere:
        return "that of Ray's workers, which is not forecast"
    if value.batch_size is None or value.forwards is None:
        return "as much of the GPU's memory as speeds it up"
    passes = f"{count_of(value.forwards, 'pass', 'passes')} of {value.batch_size} at a time"
    if value.memory is None or value.pass_memory is None:
        return f"not known for this network; {passes}"
    available = f"; {amount_of(value.available_memory)} available" if value.available_memory is not None else ""
    return f"{amount_of(value.memory)} at most, {passes}{available}"


def report(value: Report, *, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Show the result of a run, or of a dry run."""
    if as_json:
        failures = [{"key": each.item.key, "stage": each.stage, "error": each.error} for each in value.failures]
        found = {"forecast": plain(value.forecast)} if dry_run else value.summary
        unused = {"box_faults": to_builtins(value.box_faults)} if value.counted else {}
        print_json({**found, "output": str(value.output), "failures": failures, **unused})
        return
    faults(value.box_faults, value.counted)
    if quiet:
        return
    out = stdout()
    if dry_run:
        lines = forecast_lines(value.forecast) if value.forecast else []
        work = f"{images(value.forecast.images)} to compute" if value.forecast and lines else "nothing to compute"
        for line in (work, *lines):
            out.print(line, highlight=False)
        return
    call, counts = value.summary.get("call", {}), value.summary["counts"]
    if value.tried and call.get("done") == counts["done"]:
        _print_run(out, value.summary)
    if value.summary["weights"]["kind"] == "random":
        out.print(f"[yellow]{value.summary['weights']['note']} (seed {value.summary['weights']['seed']})[/]")
    out.print(_counts(value, call), highlight=False, soft_wrap=True)
    for line in _reasons(value.failures):
        out.print(f"  {escape(printable(line))}", highlight=False, soft_wrap=True)
    size = f"{amount_of(value.summary['bytes'])} in " if "bytes" in value.summary else ""
    out.print(f"{size}{escape(str(value.output))}/", soft_wrap=True, highlight=False)
    if value.summary["counts"]["done"]:
        out.print(f"[dim]next:[/] {escape(_next(value))}", soft_wrap=True, highlight=False)


def _print_run(out: Console, summary: dict[str, Any]) -> None:
    """Show what a new run holds, and what it was made with."""
    stored = {array["key"] for array in summary["arrays"]}
    levels = [level for level in summary["levels"] if convert(level, Level).key in stored]
    maps = [*levels, *([summary["final"]] if levels and "final" in summary else []), *summary.get("modules", [])]
    shown = {convert(level, Level).key for level in maps}
    if maps:
        out.print(levels_table(maps, summary["recipe"]["grid"]))
    if cost := losses_table(summary):
        out.print(cost)
    for array in summary["arrays"]:
        if array["key"].endswith(SCALE) or array["key"] in shown:
            continue
        if not levels or len(array["shape"]) != 3:
            out.print(_array(array))
    weights = summary["weights"]
    if weights["kind"] != "random":
        part = f", {weights['part']}" if "part" in weights else ""
        out.print(f"[dim]weights {escape(weights['source'])}{part}, sha256 {weights['sha256'][:12]}[/]", soft_wrap=True)
    out.print(f"[dim]on[/] {summary['recipe']['device']}[dim], batches of[/] {summary['recipe']['batch_size']}")


def _array(array: dict[str, Any]) -> str:
    """Describe an array; of those that each box has, as many as there are boxes."""
    count, *others = array["shape"]
    shape = " x ".join(str(length) for length in (others if count is None else array["shape"]))
    return " ".join(filter(None, (array["key"], shape, array["dtype"], "per box" if count is None else "")))


def _counts(value: Report, call: dict[str, Any]) -> str:
    """Say how many images are done and failed, in the run and in this call."""
    counts = value.summary["counts"]
    others = counts["failed"] - len(value.failures)
    of_others = f", {others} of them not among the images of this call" if others > 0 else ""
    failed = f", [red]{counts['failed']} failed[/]{of_others}" if counts["failed"] else ""
    now = "nothing to compute"
    if value.tried:
        seconds = call["seconds"]
        shard = f" as shard {call['shard']}" if "shard" in call else ""
        now = (
            f"{value.computed} computed now{shard} in {clock(seconds)}, {value.tried / max(seconds, 1e-3):.1f} images/s"
        )
    return f"[bold]{counts['done']} of {counts['total']} done[/]{failed} ({now})"


def _reasons(failures: list[Outcome]) -> list[str]:
    """Count failures by their reasons, the most frequent first."""
    counted = Counter(f"{each.stage}: {each.error}" for each in failures)
    first = {f"{each.stage}: {each.error}": each.item.key for each in reversed(failures)}
    most = counted.most_common(REASONS)
    lines = [f"{images(count)}: {reason}; the first is {first[reason]}" for reason, count in most]
    more = len(counted) - REASONS
    return [*lines, f"and {count_of(more, 'other reason')}; the manifest has all"] if more > 0 else lines


def _next(value: Report) -> str:
    """Return a command to try after a run."""
    folder = shlex.quote(str(value.output))
    if any(array["key"] == EMBEDDING for array in value.summary["arrays"]):
        return f"featx similar {folder} PHOTO"
    return f"featx verify {folder}"

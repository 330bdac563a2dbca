#!/usr/bin/env python3
# The proof: real forward passes of every architecture that fits in memory, featx against timm, bit for bit.
"""Run every architecture of the installed timm with random weights, and compare all its levels with timm's own.

Each model runs in a process of its own; a line is appended to the results when it ends, and models that have a line
are not run again. Both networks get the same seed, so nothing is downloaded. What the largest models would take hours
for is made cheaper, for both networks alike: large parameters are filled with copies of one block of random numbers,
and an image is smaller where the work would pass a bound, if the network takes other sizes; the results say so.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import multiprocessing
import os
import sys
import threading
import time
from contextlib import suppress
from fnmatch import fnmatchcase
from multiprocessing import connection
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import weight_init
from torch.overrides import TorchFunctionMode

from featx import load_pyramid
from featx.engine import resources
from featx.models import catalogue
from featx.models.descriptions import Description
from featx.models.timm.description import describe
from featx.requests import ModelRequest

# Parameters times pixels up to which a model runs at its own size: about two seconds for a network of matrices.
LARGEST_WORK = 0.2e9 * 224**2

CATALOGUE = catalogue.read()

# Results that stand; others are tried again.
FINAL = ("equal", "does not fit")

# What a process exits with when its model takes more memory than allowed.
TOO_LARGE = 77


def main() -> None:
    """Prove what is not proved yet, then print the table."""
    options = _options()
    results = read(options.output)
    names = [name for name in timm.list_models() if any(fnmatchcase(name, pattern) for pattern in options.patterns)]
    waiting = [name for name in names if results.get(name, {}).get("result") not in FINAL]
    print(f"{len(names)} models, {len(names) - len(waiting)} proved before", file=sys.stderr)
    running: dict[Any, tuple[str, Any, float]] = {}
    with options.output.open("a+", encoding="utf-8") as file:
        if file.tell() and not options.output.read_bytes().endswith(b"\n"):
            file.write("\n")  # after a line that an interruption tore
        while waiting or running:
            while waiting and len(running) < options.jobs:
                name = waiting.pop(0)
                running.update([_start(name, options.memory * 1e9)])
            for sentinel in connection.wait(list(running), timeout=1):
                result = _collect(*running.pop(sentinel), options.seconds)
                results[result["model"]] = result
                file.write(json.dumps(result) + "\n")
                file.flush()
                print(f"{len(results)} {_line(result)}", file=sys.stderr)
            for _, (process, _), began in running.values():
                if time.monotonic() - began > options.seconds:
                    process.kill()
    print(table([results[name] for name in names]))
    sys.exit(any(results[name]["result"] not in FINAL for name in names))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Read the results of earlier calls, by model."""
    if not path.exists():
        return {}
    results = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # torn by an interruption
            line = json.loads(text)
            results[line["model"]] = line
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Count the results, and list everything that is not equal."""
    counts = collections.Counter(result["result"] for result in results)
    smaller = sum("size" in result and result["size"] != _own_size(result["model"]) for result in results)
    rows = [f"{count:5} {name}" for name, count in counts.most_common()]
    rows.append(f"{smaller:5} of them at a smaller size than their own")
    others = [_line(result) for result in results if result["result"] != "equal"]
    return "\n".join([*rows, f"{len(results):5} in all", *others])


def prove(name: str, memory: float) -> dict[str, Any]:
    """Run one model in timm and in featx on the same input, and compare every level bit for bit."""
    description = describe(ModelRequest(name, out_indices="all"))
    facts = {"levels": len(description.levels), "parameters": description.parameters}
    if description.parameters * 4 > memory:
        return {"result": "does not fit", "detail": f"{description.parameters / 1e9:.1f} G parameters", **facts}
    smaller = _smaller_size(description)
    if smaller:
        description = describe(ModelRequest(name, out_indices="all", image_size=smaller))
    facts["size"] = [description.input.height, description.input.width]
    batch = torch.randn(1, 3, description.input.height, description.input.width, generator=torch.manual_seed(1))
    torch.manual_seed(0)
    with _Quick():
        reference = timm.create_model(name, **description.plan.arguments).eval()
    last = str(getattr(reference, "output_fmt", "")).endswith("NHWC")
    with torch.no_grad():
        expected = [level.permute(0, 3, 1, 2) if last else level for level in reference(batch)]
    channels = reference.feature_info.channels()
    del reference
    gc.collect()
    with _Quick():
        pyramid = load_pyramid(name, weights="random", out_indices="all", image_size=smaller, device="cpu")
    maps = pyramid(batch)
    faults = [
        level.key
        for level, ours, theirs, count in zip(pyramid.levels, maps, expected, channels, strict=True)
        if not torch.equal(ours, theirs) or ours.shape[1:] != level.shape or level.channels != count
    ]
    blank = [level.key for level, ours in zip(pyramid.levels, maps, strict=True) if not torch.isfinite(ours).all()]
    if faults or blank:
        return {"result": "differs", "detail": f"unequal {faults}, not finite {blank}", **facts}
    return {"result": "equal", "detail": "", **facts}


def _own_size(name: str) -> list[int] | None:
    entry = CATALOGUE.entries.get(name) if CATALOGUE else None
    return [entry["input"]["height"], entry["input"]["width"]] if entry else None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN", help="glob patterns of names")
    parser.add_argument("--output", type=Path, default=Path("proof.jsonl"), help="results, a JSON object a line")
    parser.add_argument("--memory", type=float, default=8, help="gigabytes that one model may take")
    parser.add_argument("--jobs", type=int, default=resources.cores(), help="models at a time, one thread each")
    parser.add_argument("--seconds", type=float, default=1200, help="after which a model is given up")
    return parser.parse_args()


def _start(name: str, memory: float) -> tuple[int, tuple[str, Any, float]]:
    """Fork: timm, loaded once, is there in every process at no cost."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, memory, sender))
    process.start()
    sender.close()
    return process.sentinel, (name, (process, receiver), time.monotonic())


def _work(name: str, memory: float, sender: Any) -> None:
    torch.set_num_threads(1)
    weight_init._trunc_normal_ = _uniform_
    threading.Thread(target=_watch, args=(memory,), daemon=True).start()
    try:
        result = prove(name, memory)
    except Exception as error:  # noqa: BLE001 - whatever a model trips over is its result
        result = {"result": "failed", "detail": f"{type(error).__name__}: {error}".splitlines()[0]}
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    sender.send({"model": name, **result, "peak_mb": peak // 1000})


def _uniform_(tensor: torch.Tensor, mean: float, std: float, *_: float) -> torch.Tensor:
    """Uniform numbers of the deviation that timm's truncated normal ones would have."""
    return tensor.uniform_(mean - 3**0.5 * std, mean + 3**0.5 * std)


class _Quick(TorchFunctionMode):
    """Fills large parameters with copies of one block; its length is a prime, so that no two rows are the same."""

    BLOCK = 1_048_573

    def __init__(self) -> None:
        super().__init__()
        self._block = torch.rand(self.BLOCK, generator=torch.Generator().manual_seed(0))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.Tensor.uniform_, torch.Tensor.normal_) and args[0].numel() > self.BLOCK:
            values, first, second = args[0], *(*args[1:], *kwargs.values(), 0.0, 1.0)[:2]
            if values.device.type == "cpu" and values.is_contiguous():
                wide, low = (second - first, first) if function is torch.Tensor.uniform_ else (second * 12**0.5, first)
                low = low if function is torch.Tensor.uniform_ else low - wide / 2
                for piece in torch.split(values.detach().view(-1), self.BLOCK):
                    torch.mul(self._block[: len(piece)], wide, out=piece).add_(low)
                return values
        return function(*args, **kwargs)


def _smaller_size(description: Description) -> tuple[int, int] | None:
    """Return a size at which the largest models take seconds; None where the own one will do or is the only one."""
    feed, name = description.input, description.architecture
    work = description.parameters * feed.height * feed.width
    sizes = CATALOGUE.entries.get(name, {}).get("sizes") if CATALOGUE else None
    if work <= LARGEST_WORK or sizes is None:
        return None
    step = max(sizes["multiple"], 32 if sizes["multiple"] < 14 else 1)
    side = int(min(feed.height, feed.width) * (LARGEST_WORK / work) ** 0.5) // step * step
    return (max(side, step),) * 2


def _watch(memory: float) -> None:
    while True:
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        if resident * os.sysconf("SC_PAGESIZE") > memory:
            os._exit(TOO_LARGE)
        time.sleep(0.05)


def _collect(name: str, ends: tuple[Any, Any], began: float, allowed: float) -> dict[str, Any]:
    process, receiver = ends
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        fault, detail = "failed", f"its process ended with {process.exitcode}"
        if process.exitcode == TOO_LARGE:
            fault, detail = "does not fit", "more memory than allowed"
        elif time.monotonic() - began > allowed:
            fault, detail = "too slow", f"given up after {allowed:.0f} s"
        result = {"model": name, "result": fault, "detail": detail}
    process.join()
    return {**result, "seconds": round(time.monotonic() - began, 2)}


def _line(result: dict[str, Any]) -> str:
    return f"{result['model']}: {result['result']} {result['detail']}".rstrip() + f" ({result['seconds']} s)"


if __name__ == "__main__":
    main()

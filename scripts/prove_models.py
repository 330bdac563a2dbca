#!/usr/bin/env python3
# The proof: real forward passes of every architecture that fits in memory, featx against timm, bit for bit.
"""Run every architecture of the installed timm with random weights, and compare all its levels with timm's own.

Each model runs in a process of its own; a line is appended to the results when it ends, and models that have a line
are not run again. Both networks get the same seed, so nothing is downloaded. Truncated normal numbers, which take most
of the time, are replaced by uniform ones of the same deviation, in both.
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
from fnmatch import fnmatchcase
from multiprocessing import connection
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import weight_init

from featx import backbones, load_pyramid
from featx.records import ModelRequest

# What a process exits with when its model takes more memory than allowed.
TOO_LARGE = 77


def main() -> None:
    """Prove what is not proved yet, then print the table."""
    options = _options()
    results = read(options.output)
    names = [name for name in timm.list_models() if any(fnmatchcase(name, pattern) for pattern in options.patterns)]
    waiting = [name for name in names if name not in results]
    print(f"{len(names)} models, {len(names) - len(waiting)} proved before", file=sys.stderr)
    running: dict[Any, tuple[str, Any, float]] = {}
    with options.output.open("a", encoding="utf-8") as file:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                name = waiting.pop(0)
                running.update([_start(name, options.memory * 1e9)])
            for sentinel in connection.wait(list(running), timeout=1):
                result = _collect(*running.pop(sentinel))
                results[result["model"]] = result
                file.write(json.dumps(result) + "\n")
                file.flush()
                print(f"{len(results)} {_line(result)}", file=sys.stderr)
            for sentinel, (name, (process, _), began) in running.items():
                if time.monotonic() - began > options.seconds:
                    process.kill()
                    print(f"{name}: stopped after {options.seconds} s ({sentinel})", file=sys.stderr)
    print(table([results[name] for name in names]))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Read the results of earlier calls, by model."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {line["model"]: line for line in lines}


def table(results: list[dict[str, Any]]) -> str:
    """Count the results, and list everything that is not equal."""
    counts = collections.Counter(result["result"] for result in results)
    rows = [f"{count:5} {name}" for name, count in counts.most_common()]
    others = [_line(result) for result in results if result["result"] != "equal"]
    return "\n".join([*rows, f"{len(results):5} in all", *others])


def prove(name: str, memory: float) -> dict[str, Any]:
    """Run one model in timm and in featx on the same input, and compare every level bit for bit."""
    request = ModelRequest(name, weights="random", out_indices="all")
    description = backbones.describe(request)
    facts = {"levels": len(description.levels), "parameters": description.parameters}
    if description.parameters * 4 > memory:
        return {"result": "does not fit", "detail": f"{description.parameters / 1e9:.1f} G parameters", **facts}
    batch = torch.randn(1, 3, description.input.height, description.input.width, generator=torch.manual_seed(1))
    torch.manual_seed(0)
    indices = tuple(level.index for level in description.levels)
    reference = timm.create_model(name, features_only=True, out_indices=indices).eval()
    last = str(getattr(reference, "output_fmt", "")).endswith("NHWC")
    with torch.no_grad():
        expected = [level.permute(0, 3, 1, 2) if last else level for level in reference(batch)]
    channels = reference.feature_info.channels()
    del reference
    gc.collect()
    pyramid = load_pyramid(name, weights="random", out_indices="all", device="cpu")
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN", help="glob patterns of names")
    parser.add_argument("--output", type=Path, default=Path("proof.jsonl"), help="results, a JSON object a line")
    parser.add_argument("--memory", type=float, default=8, help="gigabytes that one model may take")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models at a time, one thread each")
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
    weight_init._trunc_normal_ = _quick_normal_
    threading.Thread(target=_watch, args=(memory,), daemon=True).start()
    try:
        result = prove(name, memory)
    except Exception as error:  # noqa: BLE001 - whatever a model trips over is its result
        result = {"result": "failed", "detail": f"{type(error).__name__}: {error}".splitlines()[0]}
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    sender.send({"model": name, **result, "peak_mb": peak // 1000})


def _quick_normal_(tensor: torch.Tensor, mean: float, std: float, *_: float) -> torch.Tensor:
    return tensor.uniform_(mean - 3**0.5 * std, mean + 3**0.5 * std)


def _watch(memory: float) -> None:
    while True:
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        if resident * os.sysconf("SC_PAGESIZE") > memory:
            os._exit(TOO_LARGE)
        time.sleep(0.05)


def _collect(name: str, ends: tuple[Any, Any], began: float) -> dict[str, Any]:
    process, receiver = ends
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        large = process.exitcode == TOO_LARGE
        detail = "more memory than allowed" if large else f"its process ended with {process.exitcode}"
        result = {"model": name, "result": "does not fit" if large else "failed", "detail": detail}
    process.join()
    return {**result, "seconds": round(time.monotonic() - began, 2)}


def _line(result: dict[str, Any]) -> str:
    return f"{result['model']}: {result['result']} {result['detail']}".rstrip() + f" ({result['seconds']} s)"


if __name__ == "__main__":
    main()

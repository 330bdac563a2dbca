"""Compare what featx forecasts with what runs take: bytes, memory, and the time left after a tenth of the run.

    python scripts/compare_forecasts.py photos/ [MODEL ...]

Every model and size runs in a process of its own, with random weights; an asterisk marks what misses its bound (bytes
within 1 %, memory 0 to 25 % above, time within 20 %).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMBINATIONS = (
    "resnet18",
    "resnet50",
    "resnet50 image_size=640",
    "resnet50 image_size=1280 batch_size=2",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny image_size=512",
    "efficientnet_b0",
    "tf_efficientnetv2_s",
    "regnety_032 dtype=float16",
    "resnet18 maps=False embedding=True format=npy",
    "test_resnet",
)


def run(photos: str, combination: str) -> dict[str, Any]:
    """Extract in this process, and return forecasts and facts."""
    import featx
    from featx.cli.rates import Rates
    from featx.engine.events import Foreseen, Planned
    from featx.values import Outcome

    model, *texts = combination.split()
    options = {
        name: json.loads(value.lower()) if value[0] in "TF0123456789" else value
        for name, value in (text.split("=") for text in texts)
    }
    seen: dict[str, Any] = {}

    def listen(event: object) -> None:
        if isinstance(event, Foreseen):
            seen["forecast"] = event.forecast
        elif isinstance(event, Planned):
            seen["rates"], seen["planned"] = Rates(event.to_do, event.summary["recipe"]["batch_size"]), event.to_do
        elif isinstance(event, Outcome):
            rates = seen["rates"]
            rates.enter(event)
            left = rates.seconds_left()
            if "left" not in seen and rates.finished >= seen["planned"] / 10 and left is not None:
                seen["left"], seen["at"] = left, time.monotonic()
            seen["last"] = time.monotonic()

    with tempfile.TemporaryDirectory() as output:
        report = featx.extract(photos, model, output, weights="random", listener=listen, **options)
        actual = sum(path.stat().st_size for path in Path(output).rglob("*.np*"))
    forecast = seen["forecast"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "images": report.computed,
        "bytes": [forecast.bytes, actual],
        "memory": [forecast.memory, peak],
        "time": [seen["left"], seen["last"] - seen["at"]] if "left" in seen else None,
    }


def main() -> None:
    """Run all combinations, and print a table."""
    photos, *chosen = sys.argv[1:]
    print(f"{'model':48}{'bytes':>8}{'memory, MB':>16}{'':>7}{'time left, s':>16}")
    for combination in COMBINATIONS:
        if chosen and combination.split()[0] not in chosen:
            continue
        command = [sys.executable, __file__, "--one", photos, combination]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        value = json.loads(done.stdout.splitlines()[-1])
        size, memory = (value[name][0] / value[name][1] for name in ("bytes", "memory"))
        figures = f"{value['memory'][0] / 1e6:.0f} / {value['memory'][1] / 1e6:.0f}"
        line = f"{combination:48}{size:8.4f}{figures:>16}{memory:6.2f}{' ' if 1 <= memory <= 1.25 else '*'}"
        if value["time"]:
            left, took = value["time"]
            line += f"{left:7.1f} / {took:.1f}{' ' if 0.8 <= left / took <= 1.2 else '*'}"
        print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(run(*sys.argv[2:])))
    else:
        main()

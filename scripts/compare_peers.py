#!/usr/bin/env python3
# The comparison: the same photos, model, weights and files, through featx and through what people write instead.
"""Time featx against scripts and other tools that extract the same features.

Every contestant runs in a process of its own and times itself from its first photo to its last file, the model being
loaded; rounds are interleaved, and the table shows medians. All use random weights of one seed, and write each photo's
levels as float32 in an .npz.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the rounds and print the table; or, as a contestant, run once and print the seconds."""
    options = _options()
    if options.contestant:
        sys.stdout.write(f"{CONTESTANTS[options.contestant](options):.3f}\n")
        return
    names = [name for name in CONTESTANTS if _takes_part(name, options)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            seconds[name].append(_run(name))
            print(f"round {number + 1}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr)
    print(table(options, seconds))


def table(options: argparse.Namespace, seconds: dict[str, list[float]]) -> str:
    """Lay out images a second, and featx's advantage over each."""
    count = len(_photos(options))
    rates = {name: count / statistics.median(values) for name, values in seconds.items()}
    rows = [f"| {name} | {rate:.1f} | {rates['featx'] / rate:.2f} |" for name, rate in rates.items()]
    title = f"{options.model}, {options.precision}, {count} photos, medians of {options.rounds} rounds, {_machine()}"
    return "\n".join([title, "", "| | images/s | featx is faster by |", "|---|---|---|", *rows])


def run_featx(options: argparse.Namespace) -> float:
    """Featx itself."""
    import featx

    with tempfile.TemporaryDirectory() as folder:
        report = featx.extract(
            options.photos,
            options.model,
            f"{folder}/out",
            weights="random",
            precision=options.precision,
            backend=options.backend,
        )
        return float(report.summary["seconds"])


def run_loop(options: argparse.Namespace) -> float:
    """One photo after the other, as the documentation of timm has it."""
    import torch
    from PIL import Image

    network, transform = _network(options)

    def maps(path: Path) -> list[Any]:
        with torch.inference_mode(), _autocast(options):
            return list(network(transform(Image.open(path).convert("RGB"))[None]))

    return _time((path, [level[0] for level in maps(path)]) for path in _photos(options))


def run_loader(options: argparse.Namespace) -> float:
    """A DataLoader with a worker a core, batches of 8, channels last."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    network, transform = _network(options)
    network = network.to(memory_format=torch.channels_last)
    paths = _photos(options)

    class Photos(Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, number: int) -> Any:
            return number, transform(Image.open(paths[number]).convert("RGB"))

    def results() -> Iterator[tuple[Path, list[Any]]]:
        for numbers, batch in DataLoader(Photos(), 8, num_workers=torch.get_num_threads()):
            with torch.inference_mode(), _autocast(options):
                maps = network(batch.contiguous(memory_format=torch.channels_last))
            for position, number in enumerate(numbers.tolist()):
                yield paths[number], [level[position] for level in maps]

    return _time(results())


def run_torchvision(options: argparse.Namespace) -> float:
    """Torchvision's create_feature_extractor on its own model of the name, the same loader as above left out."""
    import torch
    import torchvision
    from PIL import Image
    from torchvision.models.feature_extraction import create_feature_extractor

    _, transform = _network(options)
    model = torchvision.models.get_model(options.model).eval()
    nodes = {node: node for node in ("relu", "layer1", "layer2", "layer3", "layer4")}
    network = create_feature_extractor(model, nodes)

    def maps(path: Path) -> list[Any]:
        with torch.inference_mode(), _autocast(options):
            return list(network(transform(Image.open(path).convert("RGB"))[None]).values())

    return _time((path, [level[0] for level in maps(path)]) for path in _photos(options))


def run_thingsvision(options: argparse.Namespace) -> float:
    """thingsvision, one level after the other, since it extracts one module at a time."""
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor = get_extractor(model_name=options.model, source="timm", device="cpu", pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for module in ("act1", "layer1", "layer2", "layer3", "layer4"):
            backend, transforms = extractor.get_backend(), extractor.get_transformations()
            dataset = ImageDataset(root=options.photos, out_path=folder, backend=backend, transforms=transforms)
            batches = DataLoader(dataset=dataset, batch_size=8, backend=backend)
            extractor.extract_features(batches=batches, module_name=module, flatten_acts=False, output_dir=folder)
        return time.perf_counter() - began


CONTESTANTS: dict[str, Callable[[argparse.Namespace], float]] = {
    "featx": run_featx,
    "one photo at a time": run_loop,
    "DataLoader": run_loader,
    "torchvision": run_torchvision,
    "thingsvision": run_thingsvision,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a folder of photos")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--backend", default="torch", help="featx's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _takes_part(name: str, options: argparse.Namespace) -> bool:
    if name == "torchvision":
        return str(options.model).startswith("resnet") and options.model[6:].isdecimal()
    return name != "thingsvision" or importlib.util.find_spec("thingsvision") is not None


def _run(name: str) -> float:
    done = subprocess.run([sys.executable, *sys.argv, "--contestant", name], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _network(options: argparse.Namespace) -> tuple[Any, Any]:
    import timm
    import torch

    torch.manual_seed(0)
    network = timm.create_model(options.model, features_only=True).eval()
    config = timm.data.resolve_model_data_config(network)
    return network, timm.data.create_transform(**config, is_training=False)


def _autocast(options: argparse.Namespace) -> Any:
    import torch

    return torch.autocast("cpu", torch.bfloat16) if options.precision == "bf16" else nullcontext()


def _time(results: Iterable[tuple[Path, list[Any]]]) -> float:
    """Seconds from the first photo to the last file."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for path, maps in results:
            arrays = {f"level_{number}": level.float().numpy() for number, level in enumerate(maps)}
            np.savez(Path(folder) / f"{path.name}.npz", **arrays)
        return time.perf_counter() - began


def _photos(options: argparse.Namespace) -> list[Path]:
    return sorted(Path(options.photos).iterdir())


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {sum(line.startswith('processor') for line in lines) or '?'} cores"


if __name__ == "__main__":
    main()

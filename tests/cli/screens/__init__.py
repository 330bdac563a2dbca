# Screens: every command in terminals of two sizes, good and wrong, as text that a person has read.
"""The commands, what they find, and how what they print is made comparable.

``scripts/write_screens.py`` writes the files beside this one; the tests only read them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte

from tests.helpers import natural_image

HERE = Path(__file__).parent

Size = tuple[int, int]

Size = tuple[int, int]

# Columns and lines.
SIZES = ((80, 24), (120, 40))

SMALL = ("--model", "test_resnet", "--weights", "random", "--device", "cpu")

# What differs between runs and machines, and what stands in its place.
VARIABLE = (
    (r"\d+:\d\d(?=[ ,)])", "0:00"),
    (r"[\d,.]+ images/s", "0.0 images/s"),
    (r"[\d,.]+ [kMGT]?B (free|available|at most)", r"0 MB \1"),
    (r"(?s) takes about .* all the same\.", " takes too much memory …"),
    (r"\d+\.\d+\.\d+(\.\w+)?(?= is installed)", "0.0.0"),
    (r"(?m)^(read|forward|write|commit|limit|pipeline)( .*)$", lambda found: re.sub(r" +\d[\d.,]*", " 0", found[0])),
)

# Name, and the arguments.
COMMANDS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "help": ("--help",),
    "version": ("--version",),
    **{
        f"help-{name}": (name, "--help")
        for name in ("list-models", "info", "extract", "similar", "sample", "view", "bench", "fetch", "verify")
    },
    "unknown-command": ("extrat", "photos"),
    "unknown-option": ("extract", "photos", "--modle", "resnet18"),
    "no-model": ("extract", "photos"),
    "list": ("list-models", "resnet1*", "convnext_tiny", "vit_base_patch16_224", "--sort", "params"),
    "list-filtered": (
        *("list-models", "--license", "apache", "--max-params", "30M", "--stride", "4,8,16,32"),
        *("--sort", "params", "--limit", "5"),
    ),
    "list-nothing": ("list-models", "resnet", "--license", "appache"),
    "list-unknown": ("list-models", "resnett"),
    "info": ("info", "resnet50"),
    "info-transformer": ("info", "vit_base_patch14_dinov2"),
    "info-unknown": ("info", "dinov2"),
    "info-twice": ("info", "resnet50", "--model", "resnet18"),
    "info-size": ("info", "swin_tiny_patch4_window7_224", "--image-size", "225"),
    "extract-dry": ("extract", "photos", *SMALL, "-o", "run", "--embedding", "--dry-run"),
    "extract": ("extract", "photos", *SMALL, "-o", "run", "--embedding"),
    "extract-again": ("extract", "photos", *SMALL, "-o", "run", "--embedding"),
    "extract-recipe": ("extract", "photos", *SMALL, "-o", "run", "--embedding", "--strides", "8,16"),
    "extract-quiet": ("extract", "photos", *SMALL, "-o", "quiet", "--quiet"),
    "extract-other-folder": ("extract", "photos", *SMALL, "-o", "photos"),
    "extract-missing": ("extract", "pictures", *SMALL),
    "extract-empty": ("extract", "empty", *SMALL),
    "extract-url": ("extract", "xyz://example.org/1.jpg", *SMALL),
    "extract-too-large": ("extract", "photos", *SMALL, "--no-maps", "--embedding", "--image-size", "100000"),
    "extract-contradiction": ("extract", "photos", *SMALL, "--strides", "8", "--out-indices", "1"),
    "extract-batch": ("extract", "photos", *SMALL, "--batch-size", "8,16"),
    "extract-format": ("extract", "photos", *SMALL, "--format", "npz2"),
    "extract-stride": ("extract", "photos", *SMALL, "--strides", "7"),
    "extract-device": ("extract", "photos", "--model", "test_resnet", "--weights", "random", "--device", "cpu,1"),
    "extract-weights": ("extract", "photos", "--model", "test_resnet", "--weights", "none.pth"),
    "verify": ("verify", "run"),
    "verify-recompute": ("verify", "run", "--recompute", "2"),
    "verify-not-a-run": ("verify", "photos"),
    "similar": ("similar", "run", "photos/1.jpg", "-k", "2"),
    "similar-sheet": ("similar", "run", "photos/1.jpg", "-k", "2", "-o", "sheet.txt"),
    "similar-folder": ("similar", "run", "photos"),
    "similar-no-embeddings": ("similar", "quiet", "photos/1.jpg"),
    "similar-patches": ("similar", "run", "photos/1.jpg", "--at", "160,120", "-k", "2"),
    "similar-outside": ("similar", "run", "photos/1.jpg", "--at", "4000,30"),
    "view": ("view", "run", "--level", "1,2"),
    "view-page": ("view", "run", "--html", "page.html"),
    "view-no-model": ("view", "photos/1.jpg"),
    "view-key": ("view", "run", "1.jpgs"),
    "view-attention": ("view", "run", "--attention"),
    "sample": ("sample", "run", "--boxes", "boxes.csv", "-o", "boxes.parquet", "--level", "2"),
    "sample-all-used": ("sample", "run", "--points", "points.csv", "-o", "points.npz"),
    "sample-suffix": ("sample", "run", "--boxes", "boxes.csv", "-o", "boxes.txt"),
    "bench": ("bench", "test_resnet", "--device", "cpu", "--count", "8", "--rounds", "1"),
    "bench-dtype": ("bench", "test_resnet", "--dtype", "int16"),
    "fetch-unknown": ("fetch", "resnet999", "-o", "weights"),
    "fetch-no-output": ("fetch", "resnet18"),
}


def prepare(folder: Path) -> None:
    """Make what the commands find: three photos and a broken one, an empty folder, boxes and points."""
    photos = folder / "photos"
    photos.mkdir()
    (folder / "empty").mkdir()
    for number in range(1, 4):
        natural_image(number, 320, 240).save(photos / f"{number}.jpg")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    (folder / "boxes.csv").write_text(
        "key,x1,y1,x2,y2,label\n1.jpg,80,60,200,180,cat\n2.jpg,90,70,90,90,dog\n2.jpg,0,0,20,240,dog\n9.jpg,1,2,3,4,cat\n"
    )
    (folder / "points.csv").write_text("key,x,y\n1.jpg,160,120\n3.jpg,100,80.5\n")


def shown(forge: Callable[..., dict], folder: Path, environment: dict, size: Size) -> Iterator[tuple[str, str]]:
    """Run all commands, one after another, in a terminal of a size, and yield the name and the screen of each."""
    prepare(folder)
    environment = {**environment, "COLUMNS": None, "TERM": "xterm", "HF_HUB_OFFLINE": "1"}
    for name, arguments in COMMANDS.items():
        done = forge(folder, *arguments, terminal=size, environment=environment, isolation=True)
        typed, screen = " ".join(("featx", *arguments)), rendered(done["screen"], size[0])
        yield name, f"$ {typed}\n{screen}\nstatus {done['status']}\n"


def rendered(written: str, columns: int) -> str:
    """Return what a terminal, as high as need be, shows of it, with what varies replaced."""
    screen = pyte.Screen(columns, 400)
    pyte.Stream(screen).feed(written)
    text = "\n".join(line.rstrip() for line in screen.display).strip("\n")
    for pattern, replacement in VARIABLE:
        text = re.sub(pattern, replacement, text)
    return text


def path_of(name: str, size: Size) -> Path:
    """Return the file of a screen."""
    return HERE / f"{name}.{size[0]}.txt"

#!/usr/bin/env python3
# Draws docs/screen.svg, the picture of the README: two commands, run in a terminal, and what they really print.
"""Run the commands of the picture in a terminal of their own; needs pyte (``pip install pyte``).

``tests/test_readme.py`` compares the picture with what the commands print: after a change of words, draw it again.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).parent.parent
PICTURE, PHOTO = ROOT / "docs" / "screen.svg", ROOT / "tests" / "photos" / "astronaut.jpg"
COLUMNS, ROWS = 86, 60

COMMANDS = (
    "featx info resnest26d",
    "featx extract photos/ --model resnest26d --weights random --strides 8,16,32",
)

# What rich calls a colour of pyte's.
COLOURS = {"default": None, "brown": "yellow"}


def main() -> None:
    """Run the commands, and write the picture."""
    screens: list[list[Text]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder))
        for command in COMMANDS:
            prompt = Text.assemble(("$ ", "bold green"), (command, "bold"))
            screens.append([prompt, *run(shlex.split(command)[1:], folder)])
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(Text("\n\n").join(Text("\n").join(lines) for lines in screens))
        picture = console.export_svg(title="featx")
    # Nobody who looks at the picture is to fetch fonts from elsewhere.
    PICTURE.write_text(re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL), encoding="utf-8")


def make_photos(folder: Path) -> None:
    """Make the folder ``photos`` that the commands read: two photos, and one that is cut off."""
    photos = folder / "photos"
    photos.mkdir()
    (photos / "astronaut.jpg").write_bytes(PHOTO.read_bytes())
    (photos / "broken.jpg").write_bytes(PHOTO.read_bytes()[:20_000])
    with Image.open(PHOTO) as photo:
        ImageOps.mirror(photo).save(photos / "mirrored.png")


def run(arguments: list[str], folder: str) -> list[Text]:
    """Run featx in a terminal, and return the lines that stay on it."""
    import pyte

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    command = [sys.executable, "-m", "featx", *arguments]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    while True:
        try:
            stream.feed(os.read(ours, 65_536))
        except OSError:  # the other end is closed
            break
    process.wait()
    lines = [drawn([screen.buffer[row][column] for column in range(COLUMNS)]) for row in range(ROWS)]
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def drawn(cells: list[Any]) -> Text:
    """Return a line of pyte's cells with its colours."""
    text = Text()
    for (colour, bold), group in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
        text.append("".join(cell.data for cell in group), Style(color=COLOURS.get(colour, colour), bold=bold))
    text.rstrip()
    return text


if __name__ == "__main__":
    main()

# Pictures on a terminal that can show them (kitty, iTerm2, sixel), or in the desktop's viewer.
"""How ``--show`` shows a picture."""

from __future__ import annotations

import base64
import fcntl
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from featx.cli.streams import stderr

# Characters of base64 in one of kitty's commands; seconds that a terminal has to answer.
CHUNK, PATIENCE = 4096, 0.3

# Colours of a sixel picture, and its width in pixels if the terminal does not tell its own.
COLOURS, WIDTH = 128, 800

# Programs that open a file on a desktop.
VIEWERS = ("open",) if sys.platform == "darwin" else ("xdg-open", "wslview")


def show(path: Path) -> None:
    """Draw a picture on the terminal if it can show one, or else open the desktop's viewer; say so if there is neither.

    Pages always go to the desktop.
    """
    page = path.suffix.lower() in (".html", ".htm")
    kind = terminal_kind() if sys.stderr.isatty() and not page else ""
    if kind:
        for piece in {"kitty": _kitty, "iterm2": _iterm2, "sixel": _sixel}[kind](path):
            sys.stderr.write(piece)
        sys.stderr.write("\n")
        sys.stderr.flush()
    elif not _open(path):
        terminal = "" if page else "this terminal shows no pictures, and "
        stderr().print(f"Not shown: {terminal}there is no desktop viewer", soft_wrap=True)


def terminal_kind() -> str:
    """Return how the terminal takes pictures: ``kitty``, ``iterm2``, ``sixel``, or nothing if it takes none."""
    program, name = os.environ.get("TERM_PROGRAM", ""), os.environ.get("TERM", "")
    if not os.environ.get("TMUX"):  # which passes neither of these on
        if "kitty" in name or "ghostty" in (name + program) or os.environ.get("KITTY_WINDOW_ID"):
            return "kitty"
        if program in ("iTerm.app", "WezTerm"):
            return "iterm2"
    return "sixel" if _has_sixel() else ""


def _has_sixel() -> bool:
    """Ask the terminal for its attributes (DA1), of which 4 stands for sixel."""
    answer = b""
    with suppress(OSError, termios.error):
        handle = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if os.tcgetpgrp(handle) == os.getpgrp():  # else a job in the background, which asking would stop
                answer = _asked(handle, b"\x1b[c", b"c")
        finally:
            os.close(handle)
    found = re.search(rb"\x1b\[\?([\d;]+)c", answer)
    return found is not None and b"4" in found[1].split(b";")


def _asked(terminal: int, question: bytes, end: bytes) -> bytes:
    """Return a terminal's answer up to its end, or what there is of it when patience ends."""
    before, answer = termios.tcgetattr(terminal), b""
    try:
        tty.setcbreak(terminal)
        os.write(terminal, question)
        while not answer.endswith(end) and select.select([terminal], [], [], PATIENCE)[0]:
            answer += os.read(terminal, 64)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    return answer


def _kitty(path: Path) -> Iterator[str]:
    """Write a picture in kitty's graphics protocol: PNG in pieces of base64."""
    text = _encoded(_as_png(path))
    pieces = [text[at : at + CHUNK] for at in range(0, len(text), CHUNK)]
    for place, piece in enumerate(pieces):
        control = "f=100,a=T," if place == 0 else ""
        yield f"\x1b_G{control}m={int(place < len(pieces) - 1)};{piece}\x1b\\"


def _iterm2(path: Path) -> Iterator[str]:
    """Write a picture in iTerm2's inline images protocol."""
    data = path.read_bytes()
    yield f"\x1b]1337;File=inline=1;size={len(data)};width=100%:{_encoded(data)}\a"


def _sixel(path: Path) -> Iterator[str]:
    """Write a picture in DEC's sixel: bands of six rows, each with the columns of every colour in turn."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        image = picture.convert("RGB")
    width = min(image.width, _pixels_across())
    image = image.resize((width, max(1, round(image.height * width / image.width))))
    indexed = image.quantize(COLOURS)
    yield f'\x1bPq"1;1;{image.width};{image.height}'
    palette = np.array(indexed.getpalette(), float).reshape(-1, 3)
    for colour, channels in enumerate(np.rint(palette / 255 * 100).astype(int)):
        yield f"#{colour};2;" + ";".join(map(str, channels))
    places = np.asarray(indexed)
    for top in range(0, len(places), 6):
        band = places[top : top + 6]
        weights = 1 << np.arange(len(band))[:, None]
        rows = (f"#{colour}" + _run_lengths(((band == colour) * weights).sum(0)) for colour in np.unique(band))
        yield "$".join(rows) + "-"
    yield "\x1b\\"


def _run_lengths(columns: Any) -> str:
    """Write the six pixels of each column as a character, and repeats as a count and that character."""
    text = "".join(chr(63 + int(column)) for column in columns)
    return re.sub(r"(.)\1{3,}", lambda found: f"!{len(found[0])}{found[1]}", text)


def _pixels_across() -> int:
    """Return the width of the terminal in pixels, or a default if it does not tell."""
    with suppress(OSError):
        _, _, across, _ = struct.unpack("4H", fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8)))
        return across or WIDTH
    return WIDTH


def _as_png(path: Path) -> bytes:
    if path.suffix.lower() == ".png":
        return path.read_bytes()
    from PIL import Image

    buffer = BytesIO()
    with Image.open(path) as image:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _encoded(data: bytes) -> str:
    return base64.standard_b64encode(data).decode()


def _open(path: Path) -> bool:
    """Open the desktop's viewer, if there is one, without waiting for it."""
    desktop = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    viewer = next(filter(None, map(shutil.which, VIEWERS)), None)
    if not (desktop and viewer):
        return False
    nowhere = subprocess.DEVNULL
    subprocess.Popen(  # noqa: S603 - a fixed program, and a path
        [viewer, str(path.absolute())], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
    )
    return True

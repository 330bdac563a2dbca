# Pictures on terminals: what is written decodes to the picture, and a terminal is asked before sixel is sent.
from __future__ import annotations

import base64
import os
import re
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

from featx.cli import pictures
from tests.helpers import natural_image

VARIABLES = ("TERM", "TERM_PROGRAM", "TMUX", "KITTY_WINDOW_ID", "DISPLAY", "WAYLAND_DISPLAY")


@pytest.fixture
def drawn(tmp_path):
    natural_image(0, 90, 61).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_kitty_gets_the_file_in_pieces(drawn):
    pieces = list(pictures._kitty(drawn))
    found = [re.fullmatch(r"\x1b_G(f=100,a=T,)?m=([01]);([A-Za-z0-9+/=]{1,4096})\x1b\\", piece) for piece in pieces]
    assert len(pieces) > 1
    assert [bool(each[1]) for each in found] == [True] + [False] * (len(pieces) - 1)
    assert [each[2] for each in found] == ["1"] * (len(pieces) - 1) + ["0"]
    assert base64.b64decode("".join(each[3] for each in found)) == drawn.read_bytes()


def test_kitty_gets_a_jpeg_as_png(tmp_path):
    natural_image(0).save(tmp_path / "a.jpg")
    data = b"".join(base64.b64decode(piece.split(";")[1][:-2]) for piece in pictures._kitty(tmp_path / "a.jpg"))
    assert data.startswith(b"\x89PNG")


def test_iterm2_gets_the_file(drawn):
    (text,) = pictures._iterm2(drawn)
    head, data = re.fullmatch(r"\x1b\]1337;File=([^:]*):([^\a]*)\a", text).groups()
    assert base64.b64decode(data) == drawn.read_bytes()
    assert f"size={drawn.stat().st_size}" in head.split(";")
    assert "inline=1" in head.split(";")


def decoded(text: str) -> np.ndarray:
    """Draw sixel, as a terminal does."""
    body = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    width, height = int(body[1]), int(body[2])
    values, palette, colour, top, left = np.zeros((height + 6, width, 3)), {}, 0, 0, 0
    for token in re.finditer(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|(\$)|(-)", body[3]):
        if token[1]:
            colour = int(token[1])
            if token[2]:
                palette[colour] = [int(token[place]) / 100 * 255 for place in (2, 3, 4)]
        elif token[8]:
            left = 0
        elif token[9]:
            left, top = 0, top + 6
        else:
            count, bits = (int(token[5]), ord(token[6]) - 63) if token[5] else (1, ord(token[7]) - 63)
            for row in range(6):
                if bits >> row & 1:
                    values[top + row, left : left + count] = palette[colour]
            left += count
    return values[:height]


def test_sixel_draws_the_picture(drawn):
    with Image.open(drawn) as image:
        expected = np.asarray(image.convert("RGB").quantize(pictures.COLOURS).convert("RGB")).astype(float)
    np.testing.assert_allclose(decoded("".join(pictures._sixel(drawn))), expected, atol=1.5)


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/1", "KITTY_WINDOW_ID": "1"}, ""),
        ({"TERM": "xterm-256color"}, ""),
    ],
)
def test_terminals_are_known_by_their_variables(monkeypatch, variables, kind):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pictures, "_has_sixel", lambda: False)
    assert pictures.terminal_kind() == kind


@pytest.mark.parametrize(("answer", "has"), [(b"\x1b[?62;4;22c", True), (b"\x1b[?62;14;22c", False), (b"", False)])
def test_a_terminal_is_asked_for_sixel(monkeypatch, answer, has):
    ours, its = os.openpty()
    name = os.ttyname(its)
    open_file = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: open_file(name if path == "/dev/tty" else path, flags))
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())

    def reply():
        asked = b""
        while not asked.endswith(b"\x1b[c"):
            asked += os.read(ours, 16)
        os.write(ours, answer)

    thread = threading.Thread(target=reply, daemon=True)
    thread.start()
    assert pictures._has_sixel() is has
    thread.join()
    os.close(ours)
    os.close(its)


def test_a_job_in_the_background_does_not_touch_the_terminal(monkeypatch):
    """It would be stopped."""
    monkeypatch.setattr(os, "open", lambda *_: os.dup(0))
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    monkeypatch.setattr(pictures.termios, "tcgetattr", lambda _: pytest.fail("asked"))
    assert not pictures._has_sixel()


def test_without_a_terminal_the_desktop_s_viewer_gets_the_path(monkeypatch, drawn, capsys):
    opened = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(pictures.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: opened.append(command))
    pictures.show(drawn)
    assert opened == [[f"/usr/bin/{pictures.VIEWERS[0]}", str(drawn)]]
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(pictures.sys, "platform", "linux")
    pictures.show(drawn)
    assert capsys.readouterr().err == "Not shown: this terminal shows no pictures, and there is no desktop viewer\n"

# Screens: what every command shows in two terminals, good and wrong, against what a person has read.
from __future__ import annotations

import pytest

from tests.cli import screens


@pytest.mark.parametrize("size", screens.SIZES, ids=str)
def test_every_screen_is_the_one_that_was_read(forge, tmp_path, no_hub, size):
    expected = {name: screens.path_of(name, size).read_text() for name in screens.COMMANDS}
    found = dict(screens.shown(forge, tmp_path, no_hub, size))
    differing = [name for name in expected if found[name] != expected[name]]
    assert {name: found[name] for name in differing} == {name: expected[name] for name in differing}


@pytest.mark.parametrize("size", screens.SIZES, ids=str)
def test_no_screen_is_unexpected_or_too_wide(size):
    for name in screens.COMMANDS:
        text = screens.path_of(name, size).read_text()
        assert "Unexpected" not in text
        assert "Traceback" not in text
        assert max(map(len, text.splitlines()[1:])) <= size[0]


def test_no_screen_is_left_over():
    names = {screens.path_of(name, size).name for name in screens.COMMANDS for size in screens.SIZES}
    assert {path.name for path in screens.HERE.glob("*.txt")} == names


def test_the_first_screen_shows_all_commands():
    text = screens.path_of("nothing", (80, 24)).read_text().splitlines()[1:-1]
    assert len(text) <= 24
    for command in ("list-models", "info", "extract", "similar", "bench", "fetch", "verify"):
        assert any(command in line for line in text)

# No test looks at a clock: on a machine with other things to do, what takes a second here takes a minute.
"""Tests wait for events (`wait_until`), count calls, or take the clock's place."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import LONGEST
from tests.helpers import TESTS

# What waits on behalf of the tests, and an image that hangs.
ALLOWED = {"helpers.py": {"monotonic", "sleep"}, "forge.py": {"sleep"}, "faults/hostile/sitecustomize.py": {"sleep"}}

FILES = {path.relative_to(TESTS).as_posix(): ast.parse(path.read_text()) for path in sorted(TESTS.rglob("*.py"))}


def uses(tree):
    """Return what a module takes of the clock: `time.sleep` and its like, however they are imported."""
    found, names = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ("time", "timeit"):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and names.get(getattr(node.value, "id", "")) in ("time", "timeit"):
            found.add(node.attr)
    return found


@pytest.mark.parametrize("name", FILES)
def test_no_test_looks_at_a_clock(name):
    assert uses(FILES[name]) <= ALLOWED.get(name, set())


@pytest.mark.parametrize("name", FILES)
def test_no_test_waits_in_a_busy_loop(name):
    loops = [node for node in ast.walk(FILES[name]) if isinstance(node, ast.While)]
    assert [node.lineno for node in loops if all(isinstance(line, ast.Pass | ast.Assert) for line in node.body)] == []


def test_the_longest_files_exist():
    assert set(LONGEST) <= FILES.keys()

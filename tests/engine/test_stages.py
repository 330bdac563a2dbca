# Stages: a map in order that holds back nothing, is bounded, and ends when it is told to.
from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from featx.engine.stages import Stage
from tests.helpers import HANGS


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as executor:
        yield executor


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
def test_it_is_a_map_in_order(pool, depth):
    assert list(Stage(pool, lambda value: value * value, range(20), depth, 0.1)) == [n * n for n in range(20)]


def test_a_result_does_not_wait_for_the_values_after_it(pool):
    seen = threading.Event()

    def values():
        yield 1
        assert seen.wait(HANGS)
        yield 2

    stage = Stage(pool, str, values(), 10, 0.1)
    assert next(stage) == "1"
    assert not stage.ready(0)
    seen.set()
    assert list(stage) == ["2"]


def test_values_are_taken_a_bounded_number_ahead(pool):
    taken = []

    def values():
        for number in range(100):
            taken.append(number)
            yield number

    stage = Stage(pool, int, values(), 5, 0.1)
    for number in range(100):
        assert next(stage) == number
        assert len(taken) <= number + 1 + 5 + 1


@pytest.mark.parametrize("where", ["function", "values"])
def test_an_error_comes_in_its_place(pool, where):
    def values():
        yield from (1, 2)
        if where == "values":
            raise RuntimeError("third")
        yield 3

    def function(value):
        if value == 3:
            raise RuntimeError("third")
        return value

    stage = Stage(pool, function, values(), 10, 0.1)
    assert [next(stage), next(stage)] == [1, 2]
    with pytest.raises(RuntimeError, match="third"):
        next(stage)


def test_whoever_waits_looks_again_and_again(pool):
    hold, looks = threading.Event(), []

    def look():
        looks.append(1)
        if len(looks) == 3:
            raise RuntimeError("it hangs")

    stage = Stage(pool, lambda _: hold.wait(HANGS), [1], 1, 0.01, look)
    with pytest.raises(RuntimeError, match="it hangs"):
        next(stage)
    hold.set()


def test_closing_ends_whoever_waits(pool):
    hold = threading.Event()
    first = Stage(pool, lambda _: hold.wait(HANGS), range(10), 2, 0.01)
    second = Stage(pool, str, first, 2, 0.01)
    second.close()
    first.close()
    with pytest.raises(CancelledError):
        list(second)
    hold.set()

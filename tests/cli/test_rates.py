# Rates: the speed and the time left, on a clock of the test's own.
from __future__ import annotations

import pytest

from featx.cli.rates import WINDOW, Rates, clock
from featx.values import Item, Outcome

DONE, FAILED = Outcome(Item("a", "/a"), bytes=1_000_000), Outcome(Item("b", "/b"), stage="decode", error="broken")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def enter(rates, group, failed=0):
    for number in range(group):
        rates.enter(FAILED if number < failed else DONE)


def test_nothing_is_said_before_two_batches():
    now = Clock()
    rates = Rates(100, 8, now)
    enter(rates, 8)
    assert (rates.text(), rates.left(), rates.line()) == ("", "", "8 of 100 images")
    now.now += 4
    enter(rates, 8)
    assert rates.text() == "2.0 images/s, 2.0 MB/s"
    assert rates.left() == "0:42 left"  # 84 images at 2 a second
    assert rates.line() == "16 of 100 images, 2.0 images/s, 2.0 MB/s, 0:42 left"


def test_a_slow_start_does_not_last():
    now = Clock()
    rates = Rates(10_000, 10, now)
    enter(rates, 10)
    now.now += 20  # the first pass compiles
    enter(rates, 10)
    assert rates.seconds_left() > 10_000
    for _ in range(60):
        now.now += 1
        enter(rates, 10)
    assert rates.text().startswith("10.0 images/s")
    assert rates.seconds_left() == pytest.approx((10_000 - 620) / 10)


def test_a_machine_that_gets_busy_is_noticed_within_the_window():
    now = Clock()
    rates = Rates(1000, 4, now)
    for _ in range(40):
        now.now += 1
        enter(rates, 4)
    for _ in range(round(WINDOW / 10) + 2):
        now.now += 10
        enter(rates, 4)
    assert rates.text().startswith("0.4 images/s")


def test_the_time_left_runs_down_between_groups_and_ends():
    now = Clock()
    rates = Rates(24, 4, now)
    for _ in range(2):
        now.now += 8
        enter(rates, 8)
    assert rates.left() == "0:08 left"
    now.now += 3
    assert rates.left() == "0:05 left"
    now.now += 100
    assert rates.left() == "0:00 left"
    enter(rates, 8, failed=2)
    assert rates.left() == ""
    assert rates.text().endswith(", 2 failed")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (9, "0:09"), (760, "12:40"), (11_100, "3:05:00")])
def test_times_are_read_as_on_a_clock(seconds, text):
    assert clock(seconds) == text

# Numbers and counts as people read them.
from __future__ import annotations

import pytest

from featx.text import amount_of, count_of

AMOUNTS = [
    (0, "0 B"),
    (512, "512 B"),
    (1000, "1.00 kB"),
    (76_800, "76.8 kB"),
    (409_600, "0.41 MB"),
    (9_200_000, "9.20 MB"),
    (450_400_000, "450.4 MB"),
    (4_294_967_295, "4,295 MB"),
    (12_300_000_000, "12.3 GB"),
    (3_932_160_000_000, "3,932 GB"),
    (20 * 10**12, "20.0 TB"),
]


@pytest.mark.parametrize(("count", "text"), AMOUNTS)
def test_bytes(count, text):
    assert amount_of(count) == text


def test_counts():
    assert [count_of(1, "round"), count_of(2, "core"), count_of(3, "batch", "batches")] == [
        "1 round",
        "2 cores",
        "3 batches",
    ]

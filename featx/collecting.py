# Python's cycle collector, which looks at every record again and again, paused while very many are made.
"""Making a million records."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def many_records() -> Iterator[None]:
    """Pause Python's cycle collector while a million records, which have no cycles, are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

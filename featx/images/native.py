# Native sizes: the input that a photo at its own size makes, worked out from sizes alone.
"""Photos at their own size: reduced if they are too large, and padded to a size that the network takes."""

from __future__ import annotations

Size = tuple[int, int]

# What ultralytics fills borders with.
GREY = (114, 114, 114)


def reduced(size: Size, max_side: int | None) -> Size:
    """Return the (width, height) of a photo whose longer side may have `max_side` pixels; it never grows."""
    longer = max(size)
    if max_side is None or longer <= max_side:
        return size
    width, height = (max(1, round(side * max_side / longer)) for side in size)
    return width, height


def filled_up(size: Size, multiple: int, least: int | None) -> Size:
    """Return (width, height) after padding on the right and at the bottom to multiples that the network takes."""
    width, height = (-(-max(side, least or 1) // multiple) * multiple for side in size)
    return width, height

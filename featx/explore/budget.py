# Budget: how large photos, and how many components and photos, fit into a page of limited size.
"""What a page of limited size holds."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil

import numpy as np

from featx.errors import FeatxError
from featx.explore import packing
from featx.explore.packing import Basis, Packed
from featx.explore.shown import Shown, as_seen
from featx.text import count_of
from featx.values import Level

# The shares of the squared length of features that components may leave out, from what 8 bits lose anyway to the point
# beyond which dropping photos is better than dropping components.
LOST = np.geomspace(1e-3, 3e-2, 60)

# Longest sides of the photos in pixels, their quality as JPEG, and the share of a page that photos may fill.
SIDES, QUALITY, SHARE = (1024, 768, 512, 384, 256, 192), 85, 0.25

# Bytes that the description of a photo takes besides its key, and that of its cells in a level.
PHOTO, CELLS = 300, 160


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits into a page.

    Attributes
    ----------
    photos : list of Shown
        The photos.
    jpegs : list of str
        Their pictures as the model saw them, JPEG in base64; empty where a photo is gone.
    side : int
        The longest side that a picture may have, in pixels.
    bases : dict of str to Basis
        Name of an array to its components.
    counts : dict of str to int
        Name of an array to how many of its components are kept.
    lost : float
        The largest share of the squared length of features that the components may leave out.
    """

    photos: list[Shown]
    jpegs: list[str]
    side: int
    bases: dict[str, Basis]
    counts: dict[str, int]
    lost: float

    @property
    def gone(self) -> list[str]:
        """Keys of the photos without a picture."""
        return [photo.key for photo, jpeg in zip(self.photos, self.jpegs, strict=True) if not jpeg]

    @property
    def reduced(self) -> bool:
        """Whether there are fewer components than there would be in a larger page."""
        return self.lost > float(LOST[0])

    def packed(self, level: Level) -> Packed:
        """Pack a level's features."""
        return packing.pack(self.photos, level, self.bases[level.key], self.counts[level.key])


def plan(photos: Sequence[Shown], levels: Sequence[Level], max_mb: float, fixed: int) -> Plan:
    """Choose what fits into a page, by shrinking photos first, then dropping components, then photos.

    Parameters
    ----------
    photos, levels : sequence
        All that are wanted.
    max_mb : float
        The size of the page, in millions of bytes.
    fixed : int
        The bytes of it that are taken already.

    Raises
    ------
    FeatxError
        If one photo does not fit.
    """
    room = max_mb * 1e6 - fixed
    bases = {level.key: packing.fit(photos, level) for level in levels}
    cells = np.cumsum([[packing.cells_on(photo, level) for level in levels] for photo in photos], axis=0)
    about = np.cumsum([PHOTO + 7 * len(photo.key) + CELLS * len(levels) for photo in photos])
    pictures = [_pictures(photo) for photo in photos]
    jpegs = np.cumsum([[len(picture) for picture in each] for each in pictures], axis=0)

    def counts(lost: float) -> list[int]:
        return [basis.needed(lost) for basis in bases.values()]

    def size(photo: int, side: int, lost: float) -> int:
        numbers = (4 * ceil(k * (4 + n) / 3 + 1) for k, n in zip(counts(lost), cells[photo], strict=True))
        return int(about[photo] + jpegs[photo, side] + sum(numbers))

    least, most = len(SIDES) - 1, LOST[-1]
    last = next((photo for photo in reversed(range(len(photos))) if size(photo, least, most) <= room), None)
    if last is None:
        smallest = ceil((fixed + size(0, least, most)) / 1e5) / 10
        raise FeatxError(
            f"One photo with {count_of(len(levels), 'level')} does not fit into {max_mb:g} MB",
            f"Raise --max-mb to {smallest:g}, or show fewer levels",
        )
    small = (each for each in range(least) if jpegs[last, each] <= SHARE * room and size(last, each, most) <= room)
    side = next(small, least)
    lost = next(float(share) for share in LOST if size(last, side, share) <= room)
    kept = [picture[side] for picture in pictures[: last + 1]]
    return Plan([*photos[: last + 1]], kept, SIDES[side], bases, dict(zip(bases, counts(lost), strict=True)), lost)


def _pictures(photo: Shown) -> list[str]:
    """Encode a photo as the model saw it, in each size; empty texts if it is gone."""
    found: dict[tuple[int, int], str] = {}
    sizes = [_within(photo.frame.input, side) for side in SIDES]
    largest = as_seen(photo, *sizes[0])
    if largest is None:
        return [""] * len(SIDES)
    for size in dict.fromkeys(sizes):
        encoded = BytesIO()
        largest.resize(size).save(encoded, "JPEG", quality=QUALITY, optimize=True)
        found[size] = base64.b64encode(encoded.getbuffer()).decode()
    return [found[size] for size in sizes]


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return a size of the same aspect ratio whose longer side is at most `side`."""
    share = min(1.0, side / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))

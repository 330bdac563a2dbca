# Coverage: how much of a photo a model sees, worked out from sizes alone.
"""The share of a photo that is left when it has been fitted to a model's input."""

from __future__ import annotations

import math

from featx.values import Input

Size = tuple[int, int]

# Common shapes of photos, by name.
COMMON = {"4:3": (4000, 3000), "square": (3000, 3000)}


def seen(feed: Input, size: Size) -> float:
    """Return the share of a photo's area that the model sees, from 0 to 1.

    Follows timm's evaluation transform (`timm.data.transforms_imagenet_eval`, timm 1.0): the photo is resized so that
    the crop keeps ``crop_pct`` of each side, and its centre is cropped.

    Parameters
    ----------
    feed : Input
        What the model is fed.
    size : (int, int)
        Width and height of the photo as a viewer shows it, in pixels.
    """
    if feed.fit in ("letterbox", "native") or feed.height is None or feed.width is None:
        return 1.0
    width, height = _resized(feed, feed.height, feed.width, size)
    return min(1.0, feed.width / width) * min(1.0, feed.height / height)


def _resized(feed: Input, tall: int, wide: int, size: Size) -> Size:
    """Return the size that a photo has before it is cropped to `tall` x `wide`, rounded as timm and torchvision do."""
    width, height = size
    target = (math.floor(wide / feed.crop_pct), math.floor(tall / feed.crop_pct))
    if feed.fit == "squash":
        return target
    if feed.fit == "crop" and target[0] == target[1]:
        long = int(target[0] * max(size) / min(size))
        return (target[0], long) if width <= height else (long, target[0])
    ratios = (width / target[0], height / target[1])
    ratio = max(ratios) if feed.fit == "pad" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def described(feed: Input) -> str:
    """Say how much the model sees of photos of common shapes."""
    shares = {name: seen(feed, size) for name, size in COMMON.items()}
    if min(shares.values()) > 0.995:
        return "all of every photo"
    return f"{shares['4:3']:.0%} of a 4:3 photo, {shares['square']:.0%} of a square one"

# PNG files of every kind, written by hand, and what they show, worked out by hand: the reference for decoding.
from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}

# Adam7: where each pass starts, and its steps, across and down (PNG, 8.2).
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind, data=b"", checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def rows_of(samples, bits):
    """Every row after its filter's number, which is none."""
    shifts = np.arange(bits - 1, -1, -1)
    packed = (np.packbits(row.reshape(-1, 1) >> shifts & 1) for row in samples)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def write(samples, colour, bits, *, transparent=None, palette=None, interlaced=False, before=(), after=()):
    """Write (H, W, S) samples; `before` and `after` are chunks ahead of the pixels and behind them."""
    height, width, _ = samples.shape
    parts = [samples[top::down, left::across] for left, top, across, down in PASSES] if interlaced else [samples]
    data = zlib.compress(b"".join(rows_of(part, bits) for part in parts if part.size))
    pieces = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)), *before]
    if palette is not None:
        pieces.append(chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparent is not None:
        pieces.append(chunk(b"tRNS", np.asarray(transparent, ">u2" if colour != PALETTE else "u1").tobytes()))
    halves = (data[: len(data) // 2], data[len(data) // 2 :])
    pieces += [*(chunk(b"IDAT", half) for half in halves), *after, chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def shown(samples, colour, bits, *, transparent=None, palette=None):
    """Work out what a file shows on white: (H, W, 3) floats from 0 to 255."""
    most = (1 << bits) - 1
    alpha = np.ones((*samples.shape[:2], 1))
    if colour == PALETTE:
        colours = palette[samples[..., 0]] / 255
        if transparent is not None:
            alphas = np.pad(np.asarray(transparent), (0, 256 - len(transparent)), constant_values=255)
            alpha = alphas[samples] / 255
    else:
        count = 1 if colour in (GREY, GREY_ALPHA) else 3
        colours = samples[..., :count] / most
        if colour in (GREY_ALPHA, RGB_ALPHA):
            alpha = samples[..., count:] / most
        elif transparent is not None:
            alpha = 1.0 - (samples == np.asarray(transparent) % (1 << bits)).all(-1, keepdims=True)
    return np.broadcast_to((colours * alpha + 1 - alpha) * 255, (*samples.shape[:2], 3))

# TIFF files of every layout, written by hand, and what they show, worked out by hand: the reference for decoding.
from __future__ import annotations

import struct
import zlib

import numpy as np

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2

COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}

# Types of the tags' values: the code and, for struct, the letter.
SHORT, LONG, RATIONAL, LONG8 = (3, "H"), (4, "I"), (5, "II"), (16, "Q")

REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def pack(values, bits, order):
    """Write a row of samples; fewer bits than a byte, or an odd number of them, are filled up from the left."""
    if bits in (8, 16, 32, 64):
        kind = values.dtype.kind if values.dtype.kind == "f" else "u"
        return values.astype(f"{order}{kind}{bits // 8}", casting="unsafe").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((values.reshape(-1, 1).astype(np.int64) >> shifts & 1).astype(np.uint8)).tobytes()


def lzw(data):
    """Compress as LZW that never uses its table: nine bits a byte, cleared before codes grow longer."""
    codes = []
    for start in range(0, len(data), 250):
        codes += [256, *data[start : start + 250]]
    return pack(np.array([*codes, 257]), 9, "<")


def packbits(rows):
    """Compress rows as literal runs."""
    pieces = [row[start : start + 128] for row in rows for start in range(0, len(row), 128)]
    return b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)


def differences(values, bits):
    """The horizontal predictor: each sample less the one to its left."""
    changed = values.astype(np.int64)
    changed[:, 1:] -= values[:, :-1].astype(np.int64)
    return changed & ((1 << bits) - 1)


def float_differences(row, width, channels, bits):
    """The predictor for floats: a row's bytes by their weight, each less the one a pixel to its left."""
    size = bits // 8
    planes = np.frombuffer(row, np.uint8).reshape(width * channels, size)
    planes = planes.T.reshape(-1).astype(np.int64)
    planes[channels:] -= planes[:-channels].copy()
    return (planes & 255).astype(np.uint8).tobytes()


def block(values, bits, order, compression, predictor, fill_order):
    """Encode one strip or tile, (rows, columns, samples)."""
    if predictor == 2:
        values = differences(values, bits)
    rows = [pack(row.reshape(-1), bits, ">" if predictor == 3 else order) for row in values]
    if predictor == 3:
        rows = [float_differences(row, values.shape[1], values.shape[2], bits) for row in rows]
    data = {
        NONE: lambda: b"".join(rows),
        LZW: lambda: lzw(b"".join(rows)),
        DEFLATE: lambda: zlib.compress(b"".join(rows)),
        PACKBITS: lambda: packbits(rows),
    }[compression]()
    return data.translate(REVERSED) if fill_order == 2 else data


def blocks(samples, tile, rows_per_strip):
    """Cut (H, W, S) samples into strips, or into tiles that are filled up at the edges."""
    height, width, _ = samples.shape
    if not tile:
        return [samples[top : top + rows_per_strip] for top in range(0, height, rows_per_strip)]
    down, across = -(-height // tile) * tile, -(-width // tile) * tile
    filled = np.pad(samples, ((0, down - height), (0, across - width), (0, 0)), mode="edge")
    return [
        filled[top : top + tile, left : left + tile] for top in range(0, down, tile) for left in range(0, across, tile)
    ]


def directory(tags, order, big, data_start):
    """Write an image file directory; values that do not fit into their entries follow it."""
    entry, room, count_code = (20, 8, "Q") if big else (12, 4, "H")
    inline = struct.calcsize(f"={count_code}") + entry * len(tags) + room
    out, extra = struct.pack(order + count_code, len(tags)), b""
    for tag, ((code, letter), values) in sorted(tags.items()):
        data = struct.pack(order + letter * (len(values) // len(letter)), *values)
        if len(data) > room:
            place = struct.pack(order + ("Q" if big else "I"), data_start + inline + len(extra))
            extra += data + bytes(len(data) % 2)
        else:
            place = data.ljust(room, b"\0")
        out += struct.pack(order + ("HHQ" if big else "HHI"), tag, code, len(values) // len(letter)) + place
    return out + bytes(room) + extra


def write(
    samples,
    photometric,
    bits,
    *,
    planar=1,
    order="<",
    big=False,
    compression=NONE,
    predictor=1,
    fill_order=1,
    sample_format=UNSIGNED,
    extra=(),
    tile=0,
    rows_per_strip=5,
    colour_map=None,
    orientation=None,
    more=None,
):
    """Write a TIFF file.

    `samples` is (H, W, S), integers of `bits` bits or floats; `more` are further tags, as in
    ``{282: (RATIONAL, (72, 1))}``, and replace those that are written anyway.
    """
    height, width, channels = samples.shape
    planes = [samples] if planar == 1 else [samples[..., [channel]] for channel in range(channels)]
    pieces = [
        block(each, bits, order, compression, predictor, fill_order)
        for plane in planes
        for each in blocks(plane, tile, rows_per_strip)
    ]
    header = 16 if big else 8
    offsets = header + np.cumsum([0, *(len(piece) + len(piece) % 2 for piece in pieces)])
    address = LONG8 if big else LONG
    tags = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * channels),
        259: (SHORT, [compression]),
        262: (SHORT, [photometric]),
        277: (SHORT, [channels]),
        284: (SHORT, [planar]),
        **({} if fill_order == 1 else {266: (SHORT, [fill_order])}),
        **({} if predictor == 1 else {317: (SHORT, [predictor])}),
        **({} if sample_format == UNSIGNED else {339: (SHORT, [sample_format] * channels)}),
        **({} if not extra else {338: (SHORT, list(extra))}),
        **({} if colour_map is None else {320: (SHORT, colour_map.T.reshape(-1).tolist())}),
        **({} if orientation is None else {274: (SHORT, [orientation])}),
    }
    places = (offsets[:-1].tolist(), [len(piece) for piece in pieces])
    if tile:
        tags |= {322: (SHORT, [tile]), 323: (SHORT, [tile]), 324: (address, places[0]), 325: (address, places[1])}
    else:
        tags |= {278: (LONG, [rows_per_strip]), 273: (address, places[0]), 279: (address, places[1])}
    mark = b"II" if order == "<" else b"MM"
    start = int(offsets[-1])
    head = struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start)
    body = b"".join(piece + bytes(len(piece) % 2) for piece in pieces)
    return mark + head + body + directory(tags | (more or {}), order, big, start)


def shown(samples, photometric, bits, *, extra=(), colour_map=None):
    """Work out what a file shows on white: (H, W, 3) floats from 0 to 255."""
    values = samples.astype(np.float64) / ((1 << bits) - 1)
    count = COLOURS[photometric]
    colours, alpha = values[..., :count], np.ones(values.shape[:2])
    for place, kind in enumerate(extra):
        if kind in (ASSOCIATED, UNASSOCIATED):
            alpha = values[..., count + place]
    if photometric == PALETTE:
        colours = colour_map[samples[..., 0]] / 65535
    elif photometric == WHITE_IS_ZERO:
        colours = 1 - colours
    elif photometric == CMYK:
        colours = (1 - colours[..., :3]) * (1 - colours[..., 3:])
    elif photometric == YCBCR:
        light, blue, red = np.moveaxis(colours - (0, 128 / 255, 128 / 255), -1, 0)
        colours = np.stack([light + 1.402 * red, light - 0.344136 * blue - 0.714136 * red, light + 1.772 * blue], -1)
        colours = np.clip(colours, 0, 1)
    if ASSOCIATED not in extra:
        colours = colours * alpha[..., None]
    return np.broadcast_to((colours + 1 - alpha[..., None]) * 255, (*samples.shape[:2], 3))


def made_up(photometric, bits, extra=(), size=(19, 21), seed=0):
    """Make samples of smooth and of noisy places; where alpha is associated, no colour exceeds it."""
    generator = np.random.default_rng(seed)
    most = (1 << bits) - 1
    height, width = size
    count = COLOURS[photometric] + len(extra)
    ramp = np.linspace(0, most, height * width).reshape(height, width)
    samples = np.stack([np.roll(ramp, 5 * channel) for channel in range(count)], -1).round().astype(np.int64)
    samples[::3] = generator.integers(0, most + 1, samples[::3].shape)
    samples[0, :2] = [[0], [most]]
    if ASSOCIATED in extra:
        alpha = samples[..., [COLOURS[photometric] + extra.index(ASSOCIATED)]]
        samples[..., : COLOURS[photometric]] = np.minimum(samples[..., : COLOURS[photometric]], alpha)
    return samples

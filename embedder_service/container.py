"""Takes the one picture out of an image file that is decoded, and leaves everything else behind.

A file carries more than a picture: text, thumbnails, colour profiles, further pages and frames. Pillow reads those in
Python, in time and memory that a hostile file chooses: a JPEG of 16 MB can hold a million Exif segments, which Pillow
joins one by one. Here a file is walked once, in a bounded number of steps, and a decoder gets nothing but the picture.
What remains of the rest is the EXIF orientation.

Sources: ITU-T T.81 annex B (JPEG), https://www.w3.org/TR/png-3/, https://www.w3.org/Graphics/GIF/spec-gif89a.txt,
https://developers.google.com/speed/webp/docs/riff_container, TIFF 6.0, CIPA DC-008 (Exif).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from service_kit.errors import InvalidArgument

FORMATS = "JPEG, PNG, WEBP, GIF, BMP, TIFF"

# Segments, chunks, blocks, tags, strips: hundreds in files as cameras and editors write them.
_MAX_PARTS = 65_536
# Each scan of a JPEG costs the time of the whole picture, even one of a few bytes: 32 ms for 50 megapixels. Encoders
# write 10 scans, 18 in CMYK; by hand, more are of use in small pictures.
MAX_SCANS = 20
_MAX_SCANS_OF_SMALL = 100
_MAX_SCANNED_PIXELS = 1_000_000_000


class Picture(NamedTuple):
    """A file with one picture, and how that is to be turned."""

    data: bytes
    orientation: int  # as in EXIF: 1 to 8, 1 is upright


def sniff(data: bytes) -> str:
    """Tell the format from a file's first bytes: one of `FORMATS`.

    Raises:
        InvalidArgument: it is none of those, or empty.
    """
    if not data:
        raise InvalidArgument(f"the image is empty (0 bytes); send the bytes of a {FORMATS} file")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    raise InvalidArgument(
        f"the {len(data)} bytes, which begin with 0x{data[:4].hex()}, are not an image in a known format; "
        f"send one of {FORMATS}"
    )


def picture(name: str, data: bytes) -> Picture:
    """Take the first picture out of a file of the format `name`, unchanged.

    Raises:
        ValueError: the file is damaged, or has more parts than a sound one would.
    """
    try:
        return _READERS[name](data)
    except (IndexError, struct.error) as error:
        raise ValueError("the file ends before its picture") from error


_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF; Pillow cannot read it with the other byte order
)

# 0xFF before a marker is padding, 0xFF00 is a byte of coded data.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
# Restart markers are part of the coded data, and there can be millions.
_JPEG_MARKER_AFTER_DATA = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_EOI, _SOS, _COM, _APP0, _APP1, _APP14, _APP15 = 0xD9, 0xDA, 0xFE, 0xE0, 0xE1, 0xEE, 0xEF
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(data: bytes) -> Picture:
    kept = [data[:2]]
    orientation = 1
    pixels = 0
    position = 2
    for _ in range(_MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise ValueError("the file ends before its picture")
        marker = found[1][0]
        position = found.end()
        if not _has_length(marker):
            continue
        segment = slice(position - 2, position + _jpeg_length(data, position))
        if marker == _SOS:
            _check_scans(data, segment.stop, pixels)
            kept.append(data[segment.start :])
            return Picture(b"".join(kept), orientation)
        if marker == _APP1 and orientation == 1:
            orientation = _orientation(data[position + 2 : segment.stop])
        if marker in _SOF:
            rows, columns = struct.unpack_from(">HH", data, position + 3)
            pixels = rows * columns
        # These two say how colours are stored.
        if marker in (_APP0, _APP14) or not (_APP0 <= marker <= _APP15 or marker == _COM):
            kept.append(data[segment])
        position = segment.stop
    raise _too_many("segments")


def _has_length(marker: int) -> bool:
    return marker >= 0xC0 and not 0xD0 <= marker <= _EOI


def _jpeg_length(data: bytes, position: int) -> int:
    length = int.from_bytes(data[position : position + 2], "big")
    if length < 2:
        raise ValueError("the length of a segment is missing")
    return length


def _check_scans(data: bytes, position: int, pixels: int) -> None:
    most = max(MAX_SCANS, min(_MAX_SCANS_OF_SMALL, _MAX_SCANNED_PIXELS // max(1, pixels)))
    scans = 1
    for _ in range(_MAX_PARTS):
        found = _JPEG_MARKER_AFTER_DATA.search(data, position)
        if found is None or found[1][0] == _EOI:
            return
        marker = found[1][0]
        position = found.end()
        if _has_length(marker):
            position += int.from_bytes(data[position : position + 2], "big")
        scans += marker == _SOS
        if scans > most:
            raise ValueError(f"it is coded in more than {most} scans")
    raise _too_many("segments")


# The chunks that make the picture. Without the others an animated PNG is its default image.
_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))


def _png(data: bytes) -> Picture:
    kept = [data[:8]]
    orientation = 1
    position = 8
    for _ in range(_MAX_PARTS):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if kind in _PNG_CHUNKS:
            kept.append(data[position:end])
        elif kind == b"eXIf":
            orientation = _orientation(data[position + 8 : end - 4])
        elif kind and not kind[:1].islower():  # a small letter marks what can be left out
            raise ValueError(f"it has a chunk of the unknown kind {kind!r}")
        if kind == b"IEND" or end >= len(data):
            return Picture(b"".join(kept), orientation)
        position = end
    raise _too_many("chunks")


_GIF_EXTENSION, _GIF_IMAGE, _GIF_END, _GIF_GRAPHIC_CONTROL = 0x21, 0x2C, 0x3B, 0xF9


def _gif(data: bytes) -> Picture:
    position = header = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    control = b""  # has the transparent colour
    steps = 0
    while steps < _MAX_PARTS:
        steps += 1
        if data[position] == _GIF_IMAGE:
            return Picture(data[:header] + control + data[position:], 1)
        if data[position] == _GIF_END:
            raise ValueError("it has no picture")
        if data[position] != _GIF_EXTENSION:
            position += 1  # between blocks, decoders skip what they do not know
            continue
        start = position
        position += 2
        while data[position] and steps < _MAX_PARTS:
            steps += 1
            position += 1 + data[position]
        position += 1
        if data[start + 1] == _GIF_GRAPHIC_CONTROL:
            control = data[start:position]
    raise _too_many("blocks")


def _webp(data: bytes) -> Picture:
    orientation = 1
    position = 12
    for _ in range(_MAX_PARTS):
        if position >= len(data):
            return Picture(data, orientation)
        start = position + 8
        end = start + int.from_bytes(data[position + 4 : start], "little")
        if data[position : position + 4] == b"EXIF":
            orientation = _orientation(data[start:end])
        position = end + (end & 1)
    raise _too_many("chunks")


def _bmp(data: bytes) -> Picture:
    return Picture(data, 1)


# What a decoder needs to know of a picture: size, samples, compression, strips, tiles, palette.
_TIFF_TAGS = frozenset(
    (
        *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339),
        *(347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
    )
)
_ORIENTATION, _SHORT = 274, 3


def _tiff(data: bytes) -> Picture:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2] == 43
    offset, count, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    offset, count, entry = order + offset, order + count, order + entry
    at = 8 if big else 4
    (start,) = struct.unpack_from(offset, data, at)
    (entries,) = struct.unpack_from(count, data, start)
    if entries > _MAX_PARTS:
        raise _too_many("tags")
    start += struct.calcsize(count)
    kept: dict[int, bytes] = {}
    orientation = 1
    for position in range(start, start + entries * struct.calcsize(entry), struct.calcsize(entry)):
        tag, kind, values, value = struct.unpack_from(entry, data, position)
        if tag in _TIFF_TAGS:
            if values > _MAX_PARTS:
                raise ValueError(f"it has more than {_MAX_PARTS} values of the tag {tag}")
            kept.setdefault(tag, data[position : position + struct.calcsize(entry)])
        elif tag == _ORIENTATION and kind == _SHORT:
            (orientation,) = struct.unpack_from(order + "H", value)
    # A directory of its own behind the file: all offsets stay true, and no further pages follow it.
    directory = struct.pack(count, len(kept)) + b"".join(kept.values()) + struct.pack(offset, 0)
    end = len(data) + len(data) % 2
    header = data[:at] + struct.pack(offset, end)
    return Picture(b"".join((header, data[len(header) :].ljust(end - len(header), b"\0"), directory)), orientation)


def _orientation(exif: bytes) -> int:
    """The orientation in a block of EXIF, 1 where there is none or the block is damaged: the pixels are sound then."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for position in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, position)
            if tag == _ORIENTATION and kind == _SHORT:
                return int(value)
    except struct.error:
        pass
    return 1


def _too_many(parts: str) -> ValueError:
    return ValueError(f"it has more than {_MAX_PARTS} {parts}")


_READERS: dict[str, Callable[[bytes], Picture]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
}

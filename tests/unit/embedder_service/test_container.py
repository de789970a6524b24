"""Files that would take a naive decoder minutes or gigabytes, each within the 16 MiB that a caller may send."""

import contextlib
import io
import struct
import time
import zlib
from functools import cache

import numpy as np
import pytest
from PIL import Image

from embedder_service.decode import decode
from service_kit.errors import InvalidArgument

SIZE = 16 << 20
# Seconds of a core. The worst of these took 0.5; without a bound, all take from 2 to more than 1,000.
BOUND = 2.0


@cache
def encoded(format, mode="RGB", size=(64, 48), **options):
    file = io.BytesIO()
    Image.new(mode, size, 80).save(file, format, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg(inserted):
    data = encoded("JPEG")
    return data[:2] + inserted + data[2:]


def jpeg_scans(size, repeated, **options):
    data = encoded("JPEG", size=size, progressive=True, subsampling=0, **options)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * repeated + b"\xff\xd9"


def png(inserted):
    data = encoded("PNG")
    return data[:33] + inserted + data[33:]


def gif(inserted):
    data = encoded("GIF", "P")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + inserted + data[start:]


def webp(inserted):
    body = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + b"\x3f\0\0\x2f\0\0"
        + inserted
        + encoded("WEBP", lossless=True)[12:]
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bmp(width, height, bits, runs):
    palette = bytes(range(256)) * 4
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 1 if bits == 8 else 2, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs


def tiff(width, rows, offsets, *tags, body=b""):
    """Grey, with strips of one row at the offsets."""
    values = np.asarray(offsets, "<u4").tobytes()
    tags = sorted(
        [
            *((256, 4, 1, width), (257, 4, 1, len(offsets) * rows), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)),
            *((273, 4, len(offsets), values), (278, 4, 1, rows)),
            *tags,
        ]
    )
    behind = 8 + 2 + 12 * len(tags) + 4
    directory, data = struct.pack("<H", len(tags)), b""
    for tag, kind, count, value in tags:
        if isinstance(value, bytes):
            directory += struct.pack("<HHII", tag, kind, count, behind + len(data))
            data += value
        else:
            directory += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + data + body


MEGABYTE = zlib.compress(bytes(1 << 20))
BOMBS = {
    "a million Exif segments": lambda: jpeg(b"\xff\xe1\x00\x09Exif\0\0x" * (SIZE // 11)),
    "sixty thousand Exif segments": lambda: jpeg(b"\xff\xe1\x00\x09Exif\0\0x" * 60_000),
    "millions of empty segments": lambda: jpeg(b"\xff\xe2\x00\x02" * (SIZE // 4)),
    "padding before a marker": lambda: jpeg(b"\xff" * SIZE),
    "a thousand scans": lambda: jpeg_scans((640, 480), 1_000),
    "ninety scans of 49 megapixels": lambda: jpeg_scans((7_000, 7_000), 90),
    "a million chunks": lambda: png(chunk(b"prVt", b"") * (SIZE // 12)),
    "colour profiles of a megabyte each": lambda: png(chunk(b"iCCP", b"x\0\0" + MEGABYTE) * 15_000),
    "damaged texts of a megabyte each": lambda: png(chunk(b"zTXt", b"x\0\0" + MEGABYTE[:-4] + b"....") * 15_000),
    "a comment in blocks of one byte": lambda: gif(b"!\xfe" + b"\1x" * (SIZE // 2) + b"\0"),
    "millions of extensions": lambda: gif(b"!\1\0" * (SIZE // 3)),
    "millions of RIFF chunks": lambda: webp(b"ABCD\0\0\0\0" * (SIZE // 8)),
    "run lengths of 49 megapixels": lambda: bmp(7_000, 7_000, 4, b"\xff\x12" * 200_000),
    "runs that overflow their row": lambda: bmp(1, 60_000, 8, b"\1\2" * (SIZE // 2)),
    "a resolution of a million values": lambda: tiff(
        1, 1, [8] * 2, (282, 5, 1_900_000, struct.pack("<II", 1, 2) * 1_900_000)
    ),
    "a million strips": lambda: tiff(1, 1, np.arange(1_000_000)),
    "strips a byte apart": lambda: tiff(7_000, 70, np.arange(2_000, 2_100), body=bytes(1_000_000)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_file_takes_long(bomb):
    data = BOMBS[bomb]()
    started = time.thread_time()
    with contextlib.suppress(InvalidArgument):
        assert decode(data, height=224, width=224, resize="bicubic").shape == (224, 224, 3)
    assert time.thread_time() - started < BOUND


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_progressive_jpeg_as_encoders_write_it_is_read_at_any_size(mode):
    data = encoded("JPEG", mode, (7_000, 7_000), progressive=True, subsampling=0)
    assert decode(data, height=224, width=224, resize="bicubic").shape == (224, 224, 3)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(b"".join(b"\xff\xe2\xff\xff" + bytes(0xFFFD) for _ in range(100))),
        jpeg(b"\xff\xfe\x00\x10 not a picture "),
        png(chunk(b"tEXt", b"Comment\0" + b"x" * 100_000) + chunk(b"gAMA", struct.pack(">I", 45_455))),
        gif(b"!\xfe" + (b"\xff" + b"x" * 255) * 1_000 + b"\0"),
        webp(b"XMP " + struct.pack("<I", 100_000) + b"x" * 100_000),
    ],
    ids=["colour profile", "comment", "text", "long comment", "XMP"],
)
def test_what_surrounds_a_picture_does_not_change_it(data):
    result = decode(data, height=8, width=8, resize="bicubic")
    assert abs(result.astype(int) - result[0, 0]).max() == 0


def test_the_thumbnail_in_a_jpeg_is_not_the_picture():
    thumbnail = encoded("JPEG", size=(8, 8))
    picture = Image.effect_noise((64, 64), 50)
    file = io.BytesIO()
    picture.save(file, "JPEG")
    data = file.getvalue()
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(4) + thumbnail
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    result = decode(data, height=64, width=64, resize="bicubic")
    np.testing.assert_array_equal(result, decode(file.getvalue(), height=64, width=64, resize="bicubic"))
    assert result.std() > 10

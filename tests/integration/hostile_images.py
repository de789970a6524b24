"""Image files that are damaged, lie about themselves, or are made to cost their reader time and memory.

Each is made from a number: the same number, the same file.
"""

import io
import random
import struct
import zlib
from functools import cache
from pathlib import Path

import skimage.data
from PIL import Image

PHOTOGRAPH = Path(skimage.data.__file__).parent / "chelsea.png"


def hostile_image(number):
    """File number `number`: bytes, from none to some 100 kB."""
    chance = random.Random(number)
    make = chance.choices((mutated, lying, bomb, polyglot, noise), (70, 15, 5, 5, 5))[0]
    return make(chance)


def encoded(image, format, append_images=(), **options):
    file = io.BytesIO()
    # Copies, since saving leaves its options on an image, for formats that cannot do with them.
    image.copy().save(file, format, append_images=[frame.copy() for frame in append_images], **options)
    return file.getvalue()


@cache
def real_images():
    """Sound files of every format, in all their modes: a list of (format, bytes)."""
    photograph = Image.open(PHOTOGRAPH).convert("RGB").resize((120, 80))
    frames = [photograph.rotate(90), photograph.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6
    as_mode = {mode: photograph.convert(mode) for mode in ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA")}
    as_mode["RGBA"].putalpha(128)
    as_mode["I;16"] = Image.frombytes("I;16", (60, 80), photograph.convert("L").tobytes() * 2)
    kinds = [
        *(("JPEG", mode, options) for mode in ("RGB", "L", "CMYK") for options in ({}, {"progressive": True})),
        ("JPEG", "RGB", {"exif": exif, "icc_profile": bytes(500), "restart_marker_blocks": 2, "comment": b"comment"}),
        ("MPO", "RGB", {"save_all": True, "append_images": frames}),
        *(("PNG", mode, {}) for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "I;16")),
        ("PNG", "RGB", {"exif": exif, "icc_profile": bytes(500), "transparency": (0, 0, 0)}),
        ("PNG", "P", {"transparency": bytes(range(256))}),
        ("PNG", "RGBA", {"save_all": True, "append_images": frames}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {}),
        ("WEBP", "RGBA", {"lossless": True, "exif": exif, "icc_profile": bytes(500)}),
        ("WEBP", "RGB", {"save_all": True, "append_images": frames}),
        ("GIF", "P", {}),
        ("GIF", "P", {"transparency": 3, "interlace": 1, "comment": b"comment" * 100}),
        ("GIF", "RGB", {"save_all": True, "append_images": frames}),
        *(("BMP", mode, {}) for mode in ("RGB", "L", "P", "1", "RGBA")),
        *(("TIFF", mode, {}) for mode in ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "I;16")),
        *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        ("TIFF", "1", {"compression": "group4"}),
        ("TIFF", "RGB", {"save_all": True, "append_images": frames, "big_tiff": True}),
        ("TIFF", "RGB", {"exif": exif}),
    ]
    files = [(format, encoded(as_mode[mode], format, **options)) for format, mode, options in kinds]
    run_lengths = b"".join(bytes((120, value)) + b"\0\0" for value in range(80)) + b"\0\1"
    return [*files, ("BMP", bmp(120, 80, 8, 1, run_lengths)), ("BMP", bmp(120, 80, 4, 2, run_lengths))]


def bmp(width, height, bits, compression, pixels):
    """A BMP file with a palette."""
    palette = bytes(range(256)) * (4 if bits == 8 else 1)
    palette = palette[: 4 << bits]
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 1 << bits, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def chunk(kind, data):
    """A chunk of a PNG file, its checksum right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def some_image(chance):
    return chance.choice(real_images())


def mutated(chance):
    """A sound file, damaged one to four times."""
    format, data = some_image(chance)
    damages = (flip_bits, truncate, splice, repeat, edit_number, remove)
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = chance.choice(damages)(chance, data)
        if not data:
            break
    return png_with_right_checksums(data) if format == "PNG" and chance.random() < 0.7 else data


def place(chance, data):
    """Somewhere in the file, half of the time in its header."""
    return chance.randrange(len(data) if chance.random() < 0.5 else min(len(data), 200))


def flip_bits(chance, data):
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 4, 30))):
        data[place(chance, data)] ^= 1 << chance.randrange(8)
    return bytes(data)


def truncate(chance, data):
    return data[: place(chance, data)]


def splice(chance, data):
    """Puts a piece of another file in."""
    other = some_image(chance)[1]
    start, at = place(chance, other), place(chance, data)
    return data[:at] + other[start : start + chance.choice((4, 50, 2_000))] + data[at:]


def repeat(chance, data):
    """Repeats a piece, be it a segment, a chunk or a part of one."""
    start = place(chance, data)
    piece = data[start : start + chance.choice((2, 12, 70, 500))]
    return data[:start] + piece * chance.choice((2, 10, 300)) + data[start:]


def edit_number(chance, data):
    """Writes an extreme number over whatever is there: a length, a count, an offset."""
    width = chance.choice((1, 2, 4, 8))
    top = (1 << 8 * width) - 1
    value = chance.choice((0, 1, 2, top, top - 1, top >> 1, (top >> 1) + 1, len(data), chance.randint(0, top)))
    at = place(chance, data)
    return data[:at] + (value & top).to_bytes(width, chance.choice(("little", "big"))) + data[at + width :]


def remove(chance, data):
    start = place(chance, data)
    return data[:start] + data[start + chance.choice((1, 4, 12, 200)) :]


def png_with_right_checksums(data):
    """The damaged file, with checksums that let the damage through to the decoder."""
    whole, position = data[:8], 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        whole += data[position:end] + struct.pack(">I", zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return whole


def lying(chance):
    """A sound file whose header gives other dimensions."""
    format, data = some_image(chance)
    width, height = (chance.choice((0, 1, 79, 121, 5_000, 7_000, 16_383, 65_535, 2**31)) for _ in range(2))
    data = bytearray(data)
    if format in ("JPEG", "MPO"):
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            if (at := data.find(marker)) >= 0:
                struct.pack_into(">HH", data, at + 5, height & 0xFFFF, width & 0xFFFF)
    elif format == "PNG":
        struct.pack_into(">II", data, 16, width, height)
        return png_with_right_checksums(bytes(data))
    elif format == "GIF":
        at = chance.choice((6, data.find(b",", 13 + (3 << (data[10] & 7) + 1)) + 5))
        struct.pack_into("<HH", data, at, width & 0xFFFF, height & 0xFFFF)
    elif format == "BMP":
        struct.pack_into("<Ii", data, 18, width, chance.choice((1, -1)) * (height & 0x7FFFFFFF))
    elif format == "WEBP":
        struct.pack_into("<I", data, 24 if data[12:16] == b"VP8X" else 26, width)
    else:
        for tag, value in ((b"\0\1", width), (b"\1\1", height)):  # 256 and 257, little-endian
            at = data.find(tag + b"\3\0", 8) if chance.random() < 0.5 else data.find(tag + b"\4\0", 8)
            if at >= 0:
                struct.pack_into("<I", data, at + 8, value)
    return bytes(data)


def bomb(chance):
    """A small file that would grow large, or take long, in a decoder that follows it."""
    photograph = Image.open(PHOTOGRAPH)
    small = photograph.resize((64, 48))
    side = chance.choice((3_000, 7_000, 30_000, 60_000))
    header = struct.pack(">IIBBBBB", side, side, chance.choice((8, 16)), chance.choice((0, 2, 6)), 0, 0, 0)
    scans = encoded(small, "JPEG", progressive=True)
    scan = scans[scans.rindex(b"\xff\xda") : -2]
    plain = encoded(small, "PNG")
    blown = zlib.compress(bytes(1 << 20))
    gif = encoded(small, "GIF")
    palette_end = 13 + (3 << (gif[10] & 7) + 1)
    tiff = b"II*\0\x08\0\0\0"
    webp = encoded(small, "WEBP")[12:]
    extended = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + (side & 0x3FFF).to_bytes(3, "little") * 2
    bombs = (
        lambda: plain[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", blown) + chunk(b"IEND", b""),
        lambda: plain[:33] + chunk(b"zTXt", b"x\0\0" + blown) * 50 + plain[33:],
        lambda: plain[:33] + chunk(b"iCCP", b"x\0\0" + blown) * 50 + plain[33:],
        lambda: plain[:33] + chunk(b"prVt", b"") * 9_000 + plain[33:],
        lambda: scans[:-2] + scan * chance.choice((50, 99, 200)) + b"\xff\xd9",
        lambda: scans[:2] + b"\xff\xe1\x00\x09Exif\0\0x" * 9_000 + scans[2:],
        lambda: gif[:6] + struct.pack("<HH", side, 800) + gif[10:],
        lambda: gif[:palette_end] + b"!\xfe" + b"\1x" * 50_000 + b"\0" + gif[palette_end:],
        lambda: gif[:palette_end] + gif[palette_end:-1] * 50 + b";",
        lambda: bmp(2_000, 1_900, 4, 2, b"\xff\x12" * 16_000),
        lambda: bmp(side, 100, 8, 1, b"\1\2" * 40_000),
        # A directory that follows itself, and a chain of them.
        lambda: tiff + struct.pack("<HHHIII", 1, 256, 3, 1, 8, 8),
        lambda: tiff + b"".join(struct.pack("<HHHIII", 1, 256, 3, 1, 8, 26 + 18 * n) for n in range(5_000)),
        lambda: tiff + struct.pack("<H", 65_535) + struct.pack("<HHII", 256, 3, 1, 8) * 8_000,
        lambda: b"RIFF" + struct.pack("<I", 22 + len(webp)) + b"WEBP" + extended + webp,
        lambda: b"RIFF" + struct.pack("<I", 80_022) + b"WEBP" + extended + b"ABCD\0\0\0\0" * 10_000,
    )
    return chance.choice(bombs)()


def polyglot(chance):
    """A file that is two things."""
    data = some_image(chance)[1]
    gif = encoded(Image.open(PHOTOGRAPH).resize((64, 48)), "GIF")
    html = b"<html><script>alert(1)</script></html>"
    others = (
        lambda: data + b"PK\5\6" + bytes(18),
        lambda: b"GIF89a/*" + gif[8:] + b"*/=1;alert(1)",
        lambda: data + html,
        lambda: html + data,
        lambda: b"%PDF-1.7\n1 0 obj\n<< /Filter /DCTDecode >>\nstream\n" + data + b"\nendstream\nendobj\n%%EOF",
        lambda: data + some_image(chance)[1],
        lambda: data[:4] + some_image(chance)[1],
        lambda: b"\x7fELF" + data,
    )
    return chance.choice(others)()


def noise(chance):
    """Random bytes, some behind a real beginning; at times none at all."""
    beginning = chance.choice((b"", some_image(chance)[1][:12], some_image(chance)[1][:60]))
    return chance.choice((b"", beginning, beginning + chance.randbytes(chance.choice((1, 100, 5_000)))))

import contextlib
import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import embedder_service
from embedder_service.decode import decode
from embedder_service.resizing import FILTERS
from service_kit.errors import InvalidArgument

# pytest turns on again what `decode` turns off.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

ROOT = Path(embedder_service.__file__).parents[1]
SIDE = 32
EXIF_ORIENTATION = 0x0112
# Orientation -> what a camera did to the picture before it wrote it down; the inverse of what a viewer must do.
CAMERA = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


def pixels(data, side=SIDE, resize="bicubic", **limits):
    return decode(data, height=side, width=side, resize=resize, **limits)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width, height, depth=8, colour=2, body=b"", transparent=None):
    """A PNG file made of its header and whatever body, without a picture behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    colour = b"" if transparent is None else chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    return b"\x89PNG\r\n\x1a\n" + header + colour + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def chelsea(photographs):
    return Image.open(photographs / "chelsea.png").convert("RGB")


@pytest.fixture(scope="module")
def reference(chelsea):
    return pixels(encoded(chelsea)).astype(int)


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_deflate", "big_tiff": True}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 6),
        ("JPEG", {"quality": 95}, 6),
        ("JPEG", {"quality": 95, "progressive": True}, 6),
        ("GIF", {}, 20),
    ],
)
def test_every_format_gives_the_same_picture(chelsea, reference, format, options, tolerance):
    result = pixels(encoded(chelsea, format, **options))
    assert result.dtype == np.uint8
    assert result.shape == (SIDE, SIDE, 3)
    assert abs(result - reference).mean() <= tolerance


def test_height_and_width_are_not_mixed_up(chelsea):
    assert decode(encoded(chelsea), height=20, width=30, resize="bicubic").shape == (20, 30, 3)


@pytest.mark.parametrize("resize", FILTERS)
def test_the_filter_is_the_one_asked_for(chelsea, resize):
    expected = np.asarray(chelsea.resize((224, 224), getattr(Image.Resampling, resize.upper())))
    # No more than rounding: resizing.py has two ways for one of them.
    np.testing.assert_allclose(pixels(encoded(chelsea), side=224, resize=resize), expected, atol=2)


def test_an_unknown_filter_is_the_callers_bug(chelsea):
    with pytest.raises(ValueError, match=r"unknown resize filter 'cubist'; choose one of bilinear, bicubic, lanczos"):
        pixels(encoded(chelsea), resize="cubist")


@pytest.mark.parametrize("orientation", CAMERA)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_exif_orientation_is_undone(chelsea, format, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    small = chelsea.resize((96, 64))
    turned = pixels(encoded(CAMERA[orientation](small), format, exif=exif, **options)).astype(int)
    upright = pixels(encoded(small, format, **options))
    # JPEG rounds otherwise in a turned picture.
    assert abs(turned - upright).max() <= (3 if format == "JPEG" else 0)


def test_damaged_exif_does_not_spoil_a_sound_picture(chelsea, reference):
    data = encoded(chelsea, exif=b"Exif\0\0II*\0\xff\xff\xff\xff not a directory")
    np.testing.assert_array_equal(pixels(data), reference)


@pytest.mark.parametrize("mode", ["L", "1"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_grey_images_have_three_equal_channels(chelsea, format, mode):
    result = pixels(encoded(chelsea.convert(mode), format))
    np.testing.assert_array_equal(result[..., 0], result[..., 1])
    np.testing.assert_array_equal(result[..., 0], result[..., 2])
    assert abs(result.mean() - np.asarray(chelsea.convert("L")).mean()) < 3


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_not_seen_as_a_negative(chelsea, reference, format):
    result = pixels(encoded(chelsea.convert("CMYK"), format))
    assert abs(result - reference).mean() < 3


def test_palette_images_are_looked_up(chelsea, reference):
    result = pixels(encoded(chelsea.quantize(256)))
    assert abs(result - reference).mean() < 8


def flat(mode, colour, **options):
    """The mean colour of a flat image, stored as PNG."""
    return pixels(encoded(Image.new(mode, (8, 8), colour), **options)).mean(axis=(0, 1))


def test_transparency_is_put_on_white():
    np.testing.assert_array_equal(flat("RGBA", (255, 0, 0, 0)), [255, 255, 255])
    np.testing.assert_allclose(flat("RGBA", (255, 0, 0, 128)), [255, 127, 127], atol=1)
    np.testing.assert_array_equal(flat("RGBA", (255, 0, 0, 255)), [255, 0, 0])
    np.testing.assert_allclose(flat("LA", (0, 128)), [127, 127, 127], atol=1)


def test_a_transparent_colour_without_an_alpha_channel_is_put_on_white_too():
    np.testing.assert_array_equal(flat("RGB", (10, 20, 30), transparency=(10, 20, 30)), [255, 255, 255])
    np.testing.assert_array_equal(flat("L", 10, transparency=10), [255, 255, 255])
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    np.testing.assert_array_equal(pixels(encoded(palette))[0, 0], [200, 100, 50])
    np.testing.assert_array_equal(pixels(encoded(palette, transparency=1))[0, 0], [255, 255, 255])


@pytest.mark.parametrize(
    ("depth", "colour", "row", "pixel", "shown"),
    [
        (1, 0, b"\0", [0], [0, 0, 0]),
        (2, 0, b"\xaa\xaa", [2], [170, 170, 170]),
        (4, 0, b"\x99" * 4, [9], [153, 153, 153]),
        (8, 0, b"\x4d" * 8, [77], [77, 77, 77]),
        (16, 0, b"\x12\x34" * 8, [0x1234], [18, 18, 18]),
        (16, 2, b"\x12\x34\x56\x78\x9a\xbc" * 8, [0x1234, 0x5678, 0x9ABC], [18, 86, 154]),
    ],
)
def test_the_transparent_colour_of_a_png_is_meant_in_its_own_depth(depth, colour, row, pixel, shown):
    def corner(transparent):
        body = zlib.compress((b"\0" + row) * 8)
        return pixels(png(8, 8, depth=depth, colour=colour, body=body, transparent=transparent))[0, 0]

    np.testing.assert_array_equal(corner(pixel), [255, 255, 255])
    np.testing.assert_array_equal(corner([pixel[0] ^ (1 << depth - 1), *pixel[1:]]), shown)


def tiff(planes, *tags):
    """An uncompressed TIFF file, a strip for each plane of samples (bytes), of 8x8 pixels."""
    start = 8 + len(b"".join(planes))
    offsets = [8 + sum(map(len, planes[:n])) for n in range(len(planes))]
    tags = sorted([(256, [8]), (257, [8]), (277, [len(planes)]), (278, [8]), (273, offsets), *tags])
    values = start + 2 + 12 * len(tags) + 4
    directory, behind = struct.pack("<H", len(tags)), b""
    for tag, numbers in tags:
        data = struct.pack(f"<{len(numbers)}H", *numbers)
        directory += struct.pack("<HHI", tag, 3, len(numbers))
        directory += data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", values + len(behind))
        behind += data if len(data) > 4 else b""
    return b"II*\0" + struct.pack("<I", start) + b"".join(planes) + directory + bytes(4) + behind


@pytest.mark.parametrize(("photometric", "expected"), [(0, 255 - 0x12), (1, 0x12)])
def test_sixteen_bits_of_grey_may_count_from_white(photometric, expected):
    data = tiff([b"\x34\x12" * 64], (258, [16]), (262, [photometric]))
    np.testing.assert_array_equal(pixels(data)[0, 0], [expected] * 3)


def test_separate_planes_are_read_when_pillow_can_and_refused_when_it_cannot():
    shared = (262, [2]), (284, [2])
    data = tiff([b"\x10" * 64, b"\x20" * 64, b"\x30" * 64], (258, [8, 8, 8]), *shared)
    np.testing.assert_array_equal(pixels(data)[0, 0], [0x10, 0x20, 0x30])
    data = tiff([b"\0\x10" * 64, b"\0\x20" * 64, b"\0\x30" * 64], (258, [16, 16, 16]), *shared)
    with pytest.raises(InvalidArgument, match="16 bits in separate planes"):
        pixels(data)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight_not_clipped(format):
    ramp = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    result = pixels(encoded(Image.fromarray(ramp), format))
    np.testing.assert_allclose(result[..., 0], ramp / 257, atol=0.51)


def test_sixteen_bits_in_colour_are_scaled_to_eight():
    rows = b"".join(b"\0" + struct.pack(">HHH", 65535, 32768, 0) * 8 for _ in range(8))
    np.testing.assert_allclose(pixels(png(8, 8, depth=16, body=zlib.compress(rows)))[0, 0], [255, 128, 0], atol=1)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_an_agreed_white_are_refused(dtype):
    with pytest.raises(InvalidArgument, match=r"32-bit pixels .* send it with 8 or 16 bits"):
        pixels(encoded(Image.fromarray(np.ones((8, 8), dtype)), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels(data)[0, 0], [255, 0, 0])


def test_a_multi_picture_jpeg_gives_its_first_picture(chelsea, reference):
    data = encoded(chelsea, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=95)
    assert abs(pixels(data) - reference).mean() < 6


def test_large_jpegs_decoded_at_a_fraction_look_as_if_decoded_whole(chelsea):
    large = chelsea.resize((chelsea.width * 6, chelsea.height * 6), Image.Resampling.LANCZOS)
    data = encoded(large, "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BICUBIC))
    assert abs(pixels(data, side=224).astype(int) - whole).mean() < 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16"])
def test_large_images_reduced_first_look_as_if_resized_at_once(chelsea, mode):
    if mode == "I;16":
        large = Image.fromarray(np.asarray(chelsea.convert("L").resize((1900, 1100))).astype(np.uint16) * 257)
        whole = chelsea.convert("L").resize((1900, 1100)).convert("RGB")
    else:
        large = chelsea.resize((1900, 1100)).convert(mode)
        whole = large.convert("RGB")
    if mode in ("RGBA", "LA"):
        large.putalpha(128)
        whole = Image.blend(whole, Image.new("RGB", whole.size, "white"), 127 / 255)
    at_once = np.asarray(whole.resize((64, 48), Image.Resampling.BICUBIC)).astype(int)
    result = decode(encoded(large, "TIFF" if mode == "CMYK" else "PNG"), height=48, width=64, resize="bicubic")
    assert abs(result - at_once).mean() < 2


# Not `getrusage`: a process begins with the peak of the one that started it.
PEAK = """
import pathlib, re, sys
from embedder_service.decode import picture
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
data = sys.stdin.buffer.read()
before = peak()
picture(data, height=224, width=224, resize="bicubic")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("format", "mode", "options", "bytes_per_pixel"),
    [
        ("PNG", "RGB", {}, 5),
        ("PNG", "RGBA", {}, 7),
        ("PNG", "LA", {}, 7),
        ("GIF", "P", {"transparency": 0}, 4),
        ("TIFF", "CMYK", {"compression": "tiff_deflate"}, 11),
        ("WEBP", "RGBA", {"lossless": True, "method": 0, "quality": 0}, 14),
        ("JPEG", "CMYK", {"progressive": True, "subsampling": 0}, 11),
    ],
)
def test_memory_is_bounded_by_the_pixels(format, mode, options, bytes_per_pixel):
    image = Image.new(mode, (4000, 2500))
    done = subprocess.run(
        [sys.executable, "-c", PEAK], input=encoded(image, format, **options), cwd=ROOT, capture_output=True, check=True
    )
    assert int(done.stdout) < bytes_per_pixel * image.width * image.height


def test_a_bomb_costs_a_header_read():
    bomb = png(30_000, 30_000, body=zlib.compress(bytes(3_000_000)))
    assert len(bomb) < 4_000
    started = time.perf_counter()
    with pytest.raises(InvalidArgument, match=r"30000x30000 = 900000000 pixels, above the limit of 50000000"):
        pixels(bomb, max_pixels=50_000_000)
    assert time.perf_counter() - started < 0.1


def vp8x(width, height):
    body = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + struct.pack("<I", width - 1)[:3]
    body += struct.pack("<I", height - 1)[:3]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def test_no_side_is_longer_than_a_jpeg_can_be():
    with pytest.raises(InvalidArgument, match=r"1x70000 pixels, above the limit of 65535 for each side"):
        pixels(png(1, 70_000, body=zlib.compress(bytes(4 * 70_000))))


@pytest.mark.parametrize("format", ["JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_the_limit_holds_for_every_format(format):
    data = encoded(Image.new("RGB", (101, 100)), format)
    with pytest.raises(
        InvalidArgument, match=f"the {format} image is 101x100 = 10100 pixels, above the limit of 10000"
    ):
        pixels(data, max_pixels=10_000)
    assert pixels(data, max_pixels=10_100).shape == (SIDE, SIDE, 3)


def test_the_largest_webp_costs_a_header_read():
    with pytest.raises(InvalidArgument, match=r"has more pixels than the limit of 50000000; send it scaled down"):
        pixels(vp8x(16_383, 16_383))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP"])
def test_pillows_own_limit_is_left_alone_and_has_no_say(chelsea, monkeypatch, format):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert pixels(encoded(chelsea, format)).shape == (SIDE, SIDE, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_a_file_cannot_make_pillow_write_warnings(chelsea):
    data = encoded(chelsea, "TIFF").replace(struct.pack("<HHI", 284, 3, 1), struct.pack("<HHI", 284, 3, 2))
    program = (
        "import sys; from embedder_service.decode import decode;"
        "decode(sys.stdin.buffer.read(), height=8, width=8, resize='bicubic')"
    )
    done = subprocess.run([sys.executable, "-c", program], input=data, cwd=ROOT, capture_output=True)
    assert done.stderr == b""
    assert done.returncode == 0


def test_empty_bytes_are_called_that():
    with pytest.raises(InvalidArgument, match=r"the image is empty \(0 bytes\)"):
        pixels(b"")


@pytest.mark.parametrize(
    "data", [b"hello, this is text", b"<svg></svg>", b"%PDF-1.7", b"\0" * 100, b"RIFF....WAVEfmt "]
)
def test_bytes_of_no_known_format_are_refused(data):
    with pytest.raises(
        InvalidArgument, match=r"begin with 0x[0-9a-f]{8}, are not an image .* send one of JPEG, PNG, WEBP"
    ):
        pixels(data)


def test_formats_that_pillow_knows_but_the_service_does_not_offer_are_refused(chelsea):
    for format in ("PPM", "ICO", "EPS", "TGA", "JPEG2000"):
        with pytest.raises(InvalidArgument, match="not an image in a known format"):
            pixels(encoded(chelsea.resize((32, 32)), format))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.001, 0.01, 0.5, 0.9])
def test_truncated_files_are_refused_with_the_reason(chelsea, format, part):
    data = encoded(chelsea, format)
    with pytest.raises(InvalidArgument) as caught:
        pixels(data[: max(4, int(len(data) * part))])
    assert format in caught.value.message
    assert "object at 0x" not in caught.value.message


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_whatever_is_wrong_with_the_bytes_nothing_but_invalid_argument_comes_out(chelsea, format):
    good = np.frombuffer(encoded(chelsea.resize((64, 48)), format), np.uint8)
    generator = np.random.default_rng(1)
    for _ in range(200):
        bad = good.copy()
        places = generator.integers(12, min(len(bad), 400), size=8)
        bad[places] = generator.integers(0, 256, size=8)
        with contextlib.suppress(InvalidArgument):
            assert pixels(bad.tobytes(), max_pixels=1_000_000).shape == (SIDE, SIDE, 3)


def test_an_image_of_no_size_is_refused():
    with pytest.raises(InvalidArgument, match="GIF image"):
        pixels(b"GIF89a" + struct.pack("<HH", 0, 0) + b"\0\0\0;")


def test_threads_do_not_disturb_each_other(chelsea, reference):
    data = encoded(chelsea)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(pixels, [data] * 64):
            np.testing.assert_array_equal(result, reference)

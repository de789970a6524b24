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
from embedder_service.decode import FILTERS, decode
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


def png(width, height, depth=8, colour=2, body=b""):
    """A PNG file made of its header and whatever body, without a picture behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


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
    np.testing.assert_array_equal(pixels(encoded(chelsea), side=224, resize=resize), expected)


def test_an_unknown_filter_is_the_callers_bug(chelsea):
    with pytest.raises(
        ValueError, match=r"unknown resize filter 'cubist'; choose one of bilinear, hamming, bicubic, lanczos"
    ):
        pixels(encoded(chelsea), resize="cubist")


def test_the_result_can_be_written_to(chelsea):
    pixels(encoded(chelsea))[:] = 0


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

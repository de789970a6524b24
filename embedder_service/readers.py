"""Pillow's readers of the formats, put right where they are wrong, wasteful or can be made slow.

They are opened by the file's format instead of through `PIL.Image.open`: that restricts the formats to these, and
leaves Pillow's process-wide `MAX_IMAGE_PIXELS` out of play, so each caller brings its own limit.
https://pillow.readthedocs.io/en/stable/handbook/image-file-formats.html
"""

from __future__ import annotations

import os
import warnings

from PIL import ExifTags, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from embedder_service import container

# Pillow remarks on every oddity in a file. Errors are raised; the rest is noise, and no caller should be able to fill a
# log with it.
warnings.filterwarnings("ignore", module=r"PIL\.")
# A JPEG within a TIFF is libtiff's to limit.
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(container.MAX_SCANS))

# Pillow unpacks run lengths in Python, some 20 million pixels or 2 million runs a second.
_MAX_RUN_LENGTH_PIXELS = 4_000_000
_MAX_RUN_LENGTH_BYTES = 1_000_000


class _Bmp(BmpImageFile):
    def load_prepare(self) -> None:
        assert self.fp is not None
        size, pixels = self.fp.seek(0, os.SEEK_END), self.width * self.height
        if self.tile[0].codec_name == "bmp_rle" and (pixels > _MAX_RUN_LENGTH_PIXELS or size > _MAX_RUN_LENGTH_BYTES):
            raise ValueError(
                f"it is coded in run lengths, which is only for up to {_MAX_RUN_LENGTH_PIXELS} pixels and "
                f"{_MAX_RUN_LENGTH_BYTES} bytes, and has {pixels} in {size}"
            )
        self.fp.seek(self.tile[0].offset)
        super().load_prepare()


class _Png(PngImageFile):
    def _open(self) -> None:
        super()._open()
        # The file gives the transparent colour in its own depth, Pillow compares it with pixels of 8 bits.
        match self.tile[0].args, self.info.get("transparency"):
            case "L;2", int(grey):
                self.info["transparency"] = grey * 85
            case "L;4", int(grey):
                self.info["transparency"] = grey * 17
            case "RGB;16B", tuple(colour):
                self.info["transparency"] = tuple(sample >> 8 for sample in colour)


class _Tiff(TiffImageFile):
    def _setup(self) -> None:
        super()._setup()
        wide = max(self.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))) > 8
        if wide and self.tile[0].codec_name == "raw" and self.tag_v2.get(ExifTags.Base.PlanarConfiguration) == 2:
            # Pillow reads a byte of each sample.
            raise ValueError("it has 16 bits in separate planes, which can be read only when they are compressed")
        if self.mode.startswith("I;16") and self.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:
            self.info[MIN_IS_WHITE] = True

    def load_read(self, read_bytes: int) -> bytes:
        # Pillow would read an uncompressed strip up to where the next one begins, byte by byte if a file says so.
        assert self.fp is not None
        return self.fp.read(max(read_bytes, self.decodermaxblock))


class _WebP(WebPImageFile):
    def load_prepare(self) -> None:
        # Its two canvases are not needed for a second picture: 8 bytes for each pixel less at the peak.
        self._decoder = None
        super().load_prepare()


# In `info`: the 16 bits of grey are 0 for white. In 8 bits, Pillow sees to that.
MIN_IS_WHITE = "min_is_white"

READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": _Png,
    "WEBP": _WebP,
    "GIF": GifImageFile,
    "BMP": _Bmp,
    "TIFF": _Tiff,
}

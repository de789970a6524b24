"""A model bundle on disk: everything an embedder needs, in one directory. Nothing here needs TensorFlow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder_service.model import checksums, manifest
from embedder_service.model.manifest import Manifest
from service_kit.errors import FailedPrecondition, InvalidArgument

MANIFEST = "manifest.json"
SAVED_MODEL = "saved_model"
OPENVINO_F32 = "openvino/model.xml"
OPENVINO_INT8 = "openvino/int8.xml"
PCA = "pca.npz"

__all__ = ["Bundle", "Manifest", "images_digest", "is_bundle", "load", "pattern_image"]


@dataclass(frozen=True)
class Bundle:
    """A directory with a valid manifest."""

    path: Path
    manifest: Manifest

    @property
    def saved_model(self) -> Path:
        """TensorFlow SavedModel, uint8 [N, H, W, 3] -> float32 [N, D]."""
        return self.path / SAVED_MODEL

    def openvino_model(self, precision: str) -> Path:
        """The OpenVINO IR to run in a precision; bf16 runs the float IR, rounded by the CPU plugin.

        Raises:
            FailedPrecondition: the bundle does not contain that precision, or names a file outside of it.
        """
        contained = self.manifest.precisions
        entry = contained.get(precision) or (contained.get("f32") if precision == "bf16" else None)
        if entry is None:
            raise FailedPrecondition(
                f"the bundle {self.path} has no precision {precision!r}; it has {', '.join(sorted(contained))}"
            )
        model = self.path / entry.model
        if not model.resolve().is_relative_to(self.path.resolve()):
            raise FailedPrecondition(f"the bundle {self.path} names a model outside of it, {entry.model!r}")
        return model

    def verify_checksums(self, expected: str | None = None) -> None:
        """Compare every file with SHA256SUMS, before anything but the manifest is read.

        Args:
            expected: the SHA-256 of SHA256SUMS itself, in hex, which names one bundle and no other; None takes any.

        Raises:
            FailedPrecondition: a file is missing, was added, or has changed; the message names each. Or it is another
                bundle than expected.
        """
        if found := checksums.problems(self.path):
            raise FailedPrecondition(
                f"the bundle {self.path} is not as it was built: {'; '.join(found)}; copy or build it again"
            )
        digest = checksums.sha256(self.path / checksums.FILE)
        if expected is not None and digest != expected.lower():
            raise FailedPrecondition(
                f"the bundle {self.path} is another one: its {checksums.FILE} has the SHA-256 {digest}, not {expected}"
            )


def load(path: Path | str) -> Bundle:
    """Open a bundle, reading its manifest alone.

    Raises:
        FailedPrecondition: there is no such directory, it is not a bundle, or not one this program can serve.
    """
    path = Path(path)
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such directory" if not path.is_dir() else f"it has no readable {MANIFEST}"
        raise FailedPrecondition(
            f"{path} is not a model bundle: {reason}; make one with `lookalike bundle build --out {path}`"
        ) from error
    return Bundle(path, manifest.parse(text, str(file)))


def is_bundle(path: Path) -> bool:
    """Whether a directory is a bundle, of whatever schema: safe to replace by a new one."""
    try:
        return f'"kind": "{manifest.KIND}"' in (path / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def images_digest(paths: Iterable[Path]) -> str:
    """SHA-256 in hex over the contents of a set of files, whatever their names and order.

    Compare it with `Manifest.images_digest` to tell whether a bundle was built from these files.

    Raises:
        InvalidArgument: a file cannot be read.
    """
    return digest_of(file_digests(paths))


def file_digests(paths: Iterable[Path]) -> list[tuple[str, Path]]:
    """(SHA-256, path) of each file, ordered by content, so that names and order do not matter to what follows."""
    try:
        return sorted((checksums.sha256(path), path) for path in paths)
    except OSError as error:
        raise InvalidArgument(f"the image file {error.filename} cannot be read: {error.strerror}") from error


def digest_of(files: Iterable[tuple[str, Path]]) -> str:
    """The `images_digest` of what `file_digests` returned."""
    return hashlib.sha256("".join(digest for digest, _ in files).encode()).hexdigest()


def pattern_image(height: int, width: int) -> NDArray[np.uint8]:
    """An image any machine can make: uint8 [1, height, width, 3], gradients, stripes and blocks in whole numbers."""
    y, x, channel = np.ogrid[:height, :width, :3]
    gradient = (x * 255 // width + y * 128 // height + channel * 40) % 256
    stripes = ((x + 2 * y) // 8 % 2) * 60
    blocks = ((x // 32 + y // 32 + channel) % 3) * 50
    return np.asarray((gradient + stripes + blocks) % 256, dtype=np.uint8)[np.newaxis]

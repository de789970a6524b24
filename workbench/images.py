"""Image files in a folder, with ids that stay the same from run to run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import CommandError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
        id: its path relative to the folder that was searched, with forward slashes on every system.
        path: its absolute path.
        label: its class: the name of the folder that it lies in.
    """

    id: str
    path: Path
    label: str


def classes(files: Sequence[ImageFile]) -> list[str] | None:
    """Returns the class of each image, or None where all have the same, so that there are no classes."""
    labels = [file.label for file in files]
    return labels if len(set(labels)) > 1 else None


def find_images(root: Path, exclude: Collection[str] = ()) -> list[ImageFile]:
    """Returns all image files under a folder, ordered by id. What is an image is told by the file's suffix.

    Args:
        root: the folder. Hidden files and folders in it are left out.
        exclude: names of folders directly in `root` to leave out.

    Raises:
        CommandError: there is no such folder, or no image in it.
    """
    # A shell leaves "~" alone where it is quoted, as make does with IMAGES.
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise CommandError(f"{root} is not a folder: give the path of a folder with images")
    files = []
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if path.suffix.lower() not in SUFFIXES or parts[0] in exclude or any(part.startswith(".") for part in parts):
            continue
        if path.is_file():
            files.append(ImageFile("/".join(parts), path, path.parent.name))
    if not files:
        raise CommandError(f"there are no images in {root}: looked for {', '.join(sorted(SUFFIXES))} at any depth")
    return sorted(files, key=lambda file: file.id)

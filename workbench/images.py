"""Image files in a folder, with ids that stay the same from run to run."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
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
    files = [file for file in walk(root, exclude) if isinstance(file, ImageFile)]
    if not files:
        raise CommandError(f"there are no images in {root}: looked for {', '.join(sorted(SUFFIXES))} at any depth")
    return sorted(files, key=lambda file: file.id)


def walk(root: Path, exclude: Collection[str] = ()) -> Iterator[ImageFile | OSError]:
    """Yields the image files under a folder, in no particular order, and the errors of folders that cannot be read.

    As with `find_images`, hidden files and folders are left out. Links to folders are not followed.

    Args:
        root: the folder, as an absolute path.
        exclude: names of folders directly in `root` to leave out.
    """
    folders = [("", str(root))]  # prefix of ids, and path
    while folders:
        prefix, folder = folders.pop()
        label = os.path.basename(folder)
        try:
            entries = os.scandir(folder)
        except OSError as error:
            yield error
            continue
        with entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or (not prefix and name in exclude):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append((f"{prefix}{name}/", entry.path))
                elif os.path.splitext(name)[1].lower() in SUFFIXES and _is_file(entry):
                    yield ImageFile(prefix + name, Path(entry.path), label)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False

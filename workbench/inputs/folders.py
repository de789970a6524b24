"""Images in a folder, at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from workbench.images import ImageFile, walk
from workbench.inputs.found import Found, Input, read_file, unreadable


def folder(path: Path, *, class_from_folder: bool = True) -> Input:
    """Returns the images of a folder; ids are paths relative to it. Hidden files and folders are left out."""
    root = path.resolve()

    def find() -> Iterator[Found]:
        for file in walk(root):
            if isinstance(file, OSError):
                where = Path(file.filename)
                yield unreadable(
                    where.relative_to(root).as_posix(), str(where), f"the folder cannot be read: {file.strerror}"
                )
            else:
                yield found_file(file, class_from_folder=class_from_folder)

    return Input(str(root), find, countable=True, distinct=True)


def found_file(file: ImageFile, *, class_from_folder: bool = True) -> Found:
    """Returns an image file as something found."""
    attributes = {"class": file.label} if class_from_folder else {}
    return Found(file.id, str(file.path), attributes, partial(read_file, file.path))

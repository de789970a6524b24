"""Caltech-101: 8,677 images of 101 classes (Li, Andreeto, Ranzato and Perona, 2022, doi:10.22002/D1.20086)."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from workbench.download import download, require_md5
from workbench.errors import CommandError

URL = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
MD5 = "3138e1922a9193bfa496528edbbc45d0"

_ARCHIVE = "101_ObjectCategories.tar.gz"
_FOLDER = "101_ObjectCategories"
# Images of nothing in particular, which are no class; the lesson leaves them out, and so do the figures.
_NO_CLASS = "BACKGROUND_Google"


def fetch_caltech101(directory: Path, *, url: str = URL, md5: str = MD5) -> Path:
    """Downloads and unpacks the images, unless they are there; returns the folder with one folder per class.

    A file caltech-101.zip that lies in `directory` already is used instead of a download.

    Raises:
        CommandError: the download failed, or what was downloaded is not what it should be.
    """
    images = directory / _FOLDER
    if images.is_dir():
        return images
    archive = directory / "caltech-101.zip"
    if archive.exists():
        require_md5(archive, md5)
    else:
        download(url, archive, md5=md5)
    # Unpacked aside and moved, so that the folder is there only when it is complete.
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        _unpack(archive, Path(temporary))
        shutil.rmtree(Path(temporary) / _FOLDER / _NO_CLASS, ignore_errors=True)
        (Path(temporary) / _FOLDER).rename(images)
    archive.unlink()
    return images


def _unpack(archive: Path, directory: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as outer:
            name = next((name for name in outer.namelist() if Path(name).name == _ARCHIVE), None)
            if name is None:
                raise CommandError(f"{archive} does not contain {_ARCHIVE}: remove it and run the command again")
            with outer.open(name) as inner, tarfile.open(fileobj=inner, mode="r:gz") as tar:
                _extract(tar, directory)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise CommandError(f"{archive} cannot be unpacked: {error}. Remove it and run the command again") from error


def _extract(tar: tarfile.TarFile, directory: Path) -> None:
    """Writes the regular files of an archive. tarfile's own safe way, `filter="data"`, came with Python 3.11.4 only."""
    root = directory.resolve()
    for member in tar:
        content = tar.extractfile(member) if member.isfile() else None
        if content is None:
            continue
        path = (root / member.name).resolve()
        if not path.is_relative_to(root):
            raise tarfile.TarError(f"{member.name!r} points outside of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with content, path.open("wb") as file:
            shutil.copyfileobj(content, file)

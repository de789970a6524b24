"""Unpacking Caltech-101: from a zip file with a tar file inside to one folder per class."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from workbench.caltech101 import fetch_caltech101
from workbench.errors import CommandError


def _archive(directory, members, inner="caltech-101/101_ObjectCategories.tar.gz"):
    """Writes the archive where an earlier download would have put it; returns its checksum."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "caltech-101.zip"
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr(inner, packed.getvalue())
    return hashlib.md5(path.read_bytes()).hexdigest()


_MEMBERS = {
    "101_ObjectCategories/cup/image_0001.jpg": b"cup",
    "101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": b"anything",
}


def test_classes_are_unpacked_and_the_background_is_left_out(tmp_path):
    md5 = _archive(tmp_path, _MEMBERS)
    images = fetch_caltech101(tmp_path, md5=md5)
    assert [path.relative_to(images).as_posix() for path in images.rglob("*.jpg")] == ["cup/image_0001.jpg"]
    assert [path.name for path in tmp_path.iterdir()] == ["101_ObjectCategories"], "nothing else is left"
    assert fetch_caltech101(tmp_path, url="unused:", md5="unused") == images, "what is there is taken"


def test_an_archive_with_a_wrong_checksum_is_refused(tmp_path):
    _archive(tmp_path, _MEMBERS)
    with pytest.raises(CommandError, match="MD5"):
        fetch_caltech101(tmp_path)


def test_members_cannot_escape_the_folder(tmp_path):
    md5 = _archive(tmp_path / "data", {**_MEMBERS, "../../outside.txt": b"gotcha"})
    with pytest.raises(CommandError, match="cannot be unpacked"):
        fetch_caltech101(tmp_path / "data", md5=md5)
    assert not list(tmp_path.rglob("outside.txt"))
    assert not (tmp_path / "data" / "101_ObjectCategories").exists()


def test_another_archive_is_refused_by_what_it_lacks(tmp_path):
    md5 = _archive(tmp_path, _MEMBERS, inner="something.tar.gz")
    with pytest.raises(CommandError, match=r"does not contain 101_ObjectCategories\.tar\.gz"):
        fetch_caltech101(tmp_path, md5=md5)

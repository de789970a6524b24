"""Image files in folders: which there are, and what they are called."""

import pytest

from workbench.errors import CommandError
from workbench.images import find_images


def _touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_ids_are_paths_relative_to_the_folder_however_it_is_named(tmp_path, monkeypatch):
    _touch(tmp_path, "cats/a.jpg", "dogs/deep/b.PNG")
    monkeypatch.chdir(tmp_path.parent)
    absolute = find_images(tmp_path)
    relative = find_images(tmp_path.relative_to(tmp_path.parent))
    roundabout = find_images(tmp_path / "cats" / "..")
    assert [file.id for file in absolute] == ["cats/a.jpg", "dogs/deep/b.PNG"]
    assert absolute == relative == roundabout
    assert all(file.path.is_absolute() for file in absolute)


def test_the_class_is_the_folder_that_an_image_lies_in(tmp_path):
    _touch(tmp_path, "cats/a.jpg", "dogs/deep/b.png")
    assert [file.label for file in find_images(tmp_path)] == ["cats", "deep"]


def test_other_files_hidden_ones_and_excluded_folders_are_left_out(tmp_path):
    _touch(tmp_path, "a.webp", "notes.txt", ".hidden.jpg", ".cache/b.jpg", "rest/c.jpg", "cats/rest/d.jpg")
    assert [file.id for file in find_images(tmp_path, exclude=["rest"])] == ["a.webp", "cats/rest/d.jpg"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CommandError, match="nowhere is not a folder"):
        find_images(tmp_path / "nowhere")


def test_a_folder_without_images_is_named(tmp_path):
    _touch(tmp_path, "notes.txt")
    with pytest.raises(CommandError, match=f"no images in {tmp_path}"):
        find_images(tmp_path)

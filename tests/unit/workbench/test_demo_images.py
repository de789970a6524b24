"""The demo images: enough of them, readable, and the same every time."""

import hashlib
import shutil

import pytest
from PIL import Image

from workbench import demo_images
from workbench.edits import EDITS
from workbench.images import find_images


def _digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo") / "demo"
    return demo_images.make_demo_images(directory), directory


def test_there_are_enough_copies_for_150_dimensions_in_one_folder_for_each_photograph(made):
    demo, _ = made
    files = find_images(demo.copies)
    assert len(files) == len(demo_images.PHOTOGRAPHS) * len(EDITS) > 400
    assert {file.label for file in files} == {query.stem for query in demo.queries}
    assert {file.path.suffix for file in files} == {".jpg", ".png", ".webp"}


def test_every_image_can_be_read(made):
    demo, _ = made
    for path in (*demo.queries, *(file.path for file in find_images(demo.copies))):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 16, path


def test_queries_are_not_among_the_copies(made):
    _, directory = made
    copies = set(_digests(directory / "copies").values())
    assert not copies & set(_digests(directory / "queries").values())


def test_what_is_there_is_left_alone_and_what_is_incomplete_is_made_anew_and_the_same(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "demo")
    demo = demo_images.make_demo_images(tmp_path / "demo")
    demo.queries[0].write_bytes(b"left alone")
    demo_images.make_demo_images(tmp_path / "demo")
    assert demo.queries[0].read_bytes() == b"left alone"
    demo.queries[1].unlink()
    demo_images.make_demo_images(tmp_path / "demo")
    assert _digests(tmp_path / "demo") == _digests(made[1])

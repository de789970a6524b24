"""Images to try things with, without a download: the photographs inside scikit-image, each in 24 edited copies."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from workbench.edits import EDITS
from workbench.errors import CommandError
from workbench.progress import progress

# The most telling ones first: a demonstration of a few queries takes them from the front.
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "camera.png",
    "retina.jpg",
    "coins.png",
    "hubble_deep_field.jpg",
    "page.png",
    "moon.png",
    "ihc.png",
    "gravel.png",
    "brick.png",
    "text.png",
    "grass.png",
    "cell.png",
    "clock_motion.png",
)
_MAX_SIDE = 512


@dataclass(frozen=True)
class DemoImages:
    """Where the demo images lie.

    Attributes:
        copies: folder with one folder of edited copies per photograph, to be stored.
        queries: the photographs themselves, to be searched by; they are not among the copies. Their stems are the
            names of the folders of their copies.
    """

    copies: Path
    queries: tuple[Path, ...]


def make_demo_images(directory: Path) -> DemoImages:
    """Writes the demo images into a directory, the same ones every time, unless they are there already.

    Raises:
        CommandError: scikit-image is not installed.
    """
    demo = DemoImages(directory / "copies", tuple(directory / "queries" / f"{_stem(name)}.jpg" for name in PHOTOGRAPHS))
    if not _complete(demo):
        source = _photographs()
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Made aside and moved, so that a run that was interrupted leaves nothing half done.
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            made = Path(temporary) / directory.name
            with progress("Editing photographs", len(PHOTOGRAPHS), "photographs") as bar:
                for name in PHOTOGRAPHS:
                    _write(source / name, made)
                    bar.advance()
            shutil.rmtree(directory, ignore_errors=True)
            made.rename(directory)
    return demo


def _complete(demo: DemoImages) -> bool:
    copies = [demo.copies / query.stem / edit.file_name for query in demo.queries for edit in EDITS]
    return all(path.is_file() for path in (*demo.queries, *copies))


def _photographs() -> Path:
    # Found without an import: scikit-image would load SciPy for it.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise CommandError(
            "the demo images come with scikit-image, which is not installed: "
            "pip install 'lookalike[quickstart]', or give a folder of your own with --images"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _write(photograph: Path, directory: Path) -> None:
    copies, queries = directory / "copies" / _stem(photograph.name), directory / "queries"
    copies.mkdir(parents=True)
    queries.mkdir(exist_ok=True)
    with Image.open(photograph) as opened:
        original = opened.convert("RGB")
    original.thumbnail((_MAX_SIDE, _MAX_SIDE))
    original.save(queries / f"{copies.name}.jpg", quality=92)
    for edit in EDITS:
        edit.change(original).save(copies / edit.file_name, **edit.options)


def _stem(name: str) -> str:
    return Path(name).stem

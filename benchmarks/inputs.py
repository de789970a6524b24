"""What the programs measure with: their common flags, the images and the model bundle."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedder_service.model import bundle as bundles
from embedder_service.model.backbones import DEFAULT
from embedder_service.model.bundle import Bundle
from embedder_service.model.gate import Gate
from embedder_service.model.weights import WeightsUnavailable
from service_kit.errors import FailedPrecondition, ServiceError
from workbench.demo_images import make_demo_images
from workbench.errors import CommandError
from workbench.images import find_images
from workbench.progress import stages

FOLDER = Path("var/benchmarks")
PRECISIONS = ("f32", "bf16", "int8")

_CALTECH101 = "LOOKALIKE_CALTECH101"  # as in the tests: the folder 101_ObjectCategories
_MOST_IMAGES = 1024
_BUILD_IMAGES = 512
_DIMS = 150
_SEED = 101


@dataclass(frozen=True)
class Images:
    """The images of a measurement: at most 1,024, drawn at random, the same every time."""

    source: str
    paths: list[Path]

    def describe(self) -> dict[str, Any]:
        """Returns what a report says of them."""
        sizes = [path.stat().st_size for path in self.paths]
        return {"source": self.source, "count": len(sizes), "mean_bytes": sum(sizes) / len(sizes)}


def add_flags(parser: argparse.ArgumentParser, report: str) -> None:
    """Adds the flags for model, images, report and logs; `report` is the name of its file."""
    parser.add_argument(
        "--backbone", default=DEFAULT, choices=(DEFAULT, "efficientnet_lite0"), help="default: %(default)s"
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help=f"model bundle; built below {FOLDER} when not given, and kept there"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help=f"folder of images (default: what {_CALTECH101} names, else the demo photographs)",
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER / report, metavar="FILE", help="report (default: %(default)s)"
    )
    parser.add_argument(
        "--logs", type=Path, default=FOLDER / "logs", metavar="DIR", help="of the servers (default: %(default)s)"
    )


def find_inputs(args: argparse.Namespace) -> tuple[Images, Bundle]:
    """Returns the images and the bundle that the flags ask for, and says which they are.

    Raises:
        CommandError: there are no such images.
        ServiceError: the bundle cannot be read or built.
    """
    images = _images(args.images)
    bundle = bundles.load(args.bundle.resolve()) if args.bundle else _bundle(args.backbone, images.paths)
    manifest = bundle.manifest
    say(f"{len(images.paths)} images of {images.source}")
    say(f"{manifest.backbone} from {bundle.path}, {manifest.weights.source} weights, {manifest.dims} dimensions")
    if manifest.random:
        say("the weights are random: speed does not depend on the values of the weights")
    return images, bundle


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Returns what a report says of the model."""
    manifest = bundle.manifest
    return {
        "fingerprint": manifest.fingerprint,
        "backbone": manifest.backbone,
        "weights_source": manifest.weights.source,
        "dims": manifest.dims,
        "precisions": sorted(manifest.precisions),
    }


def say(text: str) -> None:
    """Tells how far the program is."""
    print(f"- {text}", flush=True)


def run(main: Callable[[Sequence[str]], int]) -> int:
    """Runs a program; what a user can cause ends it with one line, and a signal stops the servers it started."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        return main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except CommandError as error:
        print(error, file=sys.stderr)
    except ServiceError as error:
        print(error.message, file=sys.stderr)
    return 1


def _images(folder: Path | None) -> Images:
    chosen = folder or (Path(os.environ[_CALTECH101]) if os.environ.get(_CALTECH101) else None)
    source = str(chosen) if chosen else "the demo photographs"
    files = find_images(chosen or make_demo_images(FOLDER / "demo").copies, exclude=["BACKGROUND_Google"])
    paths = [file.path for file in files]
    return Images(source, random.Random(_SEED).sample(paths, min(_MOST_IMAGES, len(paths))))  # noqa: S311


def _bundle(backbone: str, images: Sequence[Path]) -> Bundle:
    folder = (FOLDER / f"{backbone}-bundle").resolve()
    try:
        return bundles.load(folder)
    except FailedPrecondition:  # none, or one of another version: built anew
        pass
    try:
        return _build(backbone, "imagenet", images, folder)
    except WeightsUnavailable as error:
        say(f"{error.message}. Taking random weights.")
        return _build(backbone, "random", images, folder)


def _build(backbone: str, weights: str, images: Sequence[Path], folder: Path) -> Bundle:
    from embedder_service.model.build import build  # with TensorFlow: only when there is something to build

    say(f"building {folder}")
    paths = images[:_BUILD_IMAGES]
    # The losses of random weights mean nothing, and no precision is to be missing for them.
    gate = Gate(max_accuracy_loss=100.0, min_cosine=-1.0) if weights == "random" else Gate()
    with stages() as show:
        return build(backbone, weights, paths, min(_DIMS, len(paths) - 1), folder, show, gate=gate).bundle

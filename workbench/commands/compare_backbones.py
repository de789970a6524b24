"""`lookalike compare-backbones`: what each backbone costs, and how good its features are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder_service.model.backbones import BACKBONES
from workbench.options import positive

if TYPE_CHECKING:
    from workbench.backbone_comparison import Compared

_SEED = 101


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "compare-backbones",
        help="compare networks: size, speed, accuracy",
        description="Runs the images of a folder, with a folder for each class, through each network, and measures "
        "speed and accuracy. A network whose ImageNet weights cannot be had here is listed as such.",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder with a folder per class")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="NAME", help="folder in DIR to leave out; may be repeated"
    )
    parser.add_argument(
        "--backbone",
        action="append",
        choices=BACKBONES,
        metavar="NAME",
        help=f"one to compare; may be repeated (default: {', '.join(BACKBONES)})",
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        type=_weights,
        metavar="NAME=FILE",
        help="weights file of a network without its classifier, instead of a download; may be repeated",
    )
    parser.add_argument(
        "--sample", type=positive, metavar="N", help="take only so many of the images, chosen at random"
    )
    parser.add_argument(
        "--dims", type=positive, default=150, metavar="N", help="dimensions after PCA (default: %(default)s)"
    )
    parser.add_argument(
        "--k", type=positive, default=5, metavar="K", help="neighbours, the image itself included (default: 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; its exit code is 1 if no network could be measured."""
    import dataclasses

    import numpy as np

    from workbench.backbone_comparison import compare
    from workbench.images import find_images

    files = find_images(args.images, exclude=args.exclude)
    if args.sample and args.sample < len(files):
        chosen = np.random.default_rng(_SEED).choice(len(files), args.sample, replace=False)
        files = [files[number] for number in sorted(chosen.tolist())]
    compared = compare(args.backbone or list(BACKBONES), dict(args.weights), files, dims=args.dims, k=args.k)
    _print(compared)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        figures = [dataclasses.asdict(each) for each in compared]
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if any(not each.left_out for each in compared) else 1


def _print(compared: Sequence[Compared]) -> None:
    from workbench.tables import table

    header = ("network", "parameters", "features", "images/s", "accuracy", "after PCA", "dims", "index MB", "after PCA")
    print(table(header, [_row(each) for each in compared]))
    measured = [each for each in compared if not each.left_out]
    if measured:
        print(f"\nOf {measured[0].images:,} images. Index: memory for the vectors and their HNSW graph, an estimate.")
    for each in compared:
        if each.left_out:
            print(f"{each.title} was left out: {each.left_out}")


def _row(each: Compared) -> tuple[str, ...]:
    return (
        each.title,
        f"{each.parameters:,}",
        f"{each.features:,}",
        "-" if each.images_per_second is None else f"{each.images_per_second:.1f}",
        "-" if each.accuracy is None else f"{each.accuracy:.2%}",
        "-" if each.accuracy_pca is None else f"{each.accuracy_pca:.2%}",
        "-" if each.dims is None else str(each.dims),
        "-" if each.index_bytes is None else f"{each.index_bytes / 1e6:.1f}",
        "-" if each.index_bytes_pca is None else f"{each.index_bytes_pca / 1e6:.1f}",
    )


def _weights(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not equals or not file or name not in BACKBONES:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE with a NAME of {', '.join(BACKBONES)}")
    return name, file

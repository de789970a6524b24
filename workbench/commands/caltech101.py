"""`lookalike caltech101`: fetches the images that the published figures are measured with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "caltech101",
        help="download Caltech-101",
        description="Downloads Caltech-101 (137 MB) from CaltechDATA, checks it, and unpacks its 8,677 images of 101 "
        "classes. BACKGROUND_Google, which is no class, is left out.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("var/caltech101"), metavar="DIR", help="where to (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from workbench.caltech101 import fetch_caltech101

    print(f"Caltech-101 is in {fetch_caltech101(args.out)}")
    return 0

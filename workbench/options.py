"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from embedder_service.model.backbones import BACKBONES, DEFAULT

if TYPE_CHECKING:
    from lookalike import Security

DEFAULT_TARGET = "127.0.0.1:50052"
DEFAULT_DATA_DIR = Path("var")
PRECISIONS = ("auto", "f32", "bf16", "int8")


def program() -> str:
    """Returns how the user can call this command again: by the path it was called by, if that is a path."""
    return sys.argv[0] if Path(sys.argv[0]).name == "lookalike" else "lookalike"


def positive(text: str) -> int:
    """Parses a positive integer."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Adds the address of the search service, and how to reach it."""
    parser.add_argument(
        "--target", default=DEFAULT_TARGET, metavar="HOST:PORT", help="the search service (default: %(default)s)"
    )
    add_security(parser)


def add_security(parser: argparse.ArgumentParser) -> None:
    """Adds TLS and the token; `security` reads them."""
    group = parser.add_argument_group(
        "security",
        "Also as variables: LOOKALIKE_TLS, LOOKALIKE_CA, LOOKALIKE_CLIENT_CERT, LOOKALIKE_CLIENT_KEY, ...",
    )
    group.add_argument("--tls", action="store_true", help="encrypt; implied by the next four")
    group.add_argument("--ca", type=Path, metavar="PEM", help="authorities to trust (default: those of gRPC)")
    group.add_argument("--cert", type=Path, metavar="PEM", help="certificate to show (mutual TLS), with --key")
    group.add_argument("--key", type=Path, metavar="PEM", help="its private key")
    group.add_argument("--server-name", default="", metavar="NAME", help="to expect in the server's certificate")
    group.add_argument(
        "--token-file", type=Path, metavar="FILE", help="bearer token to send (default: the variable LOOKALIKE_TOKEN)"
    )
    group.add_argument(
        "--plaintext-token", action="store_true", help="send the token without TLS to other machines, too"
    )


def security(args: argparse.Namespace) -> Security:
    """Returns what the flags of `add_security` and the environment say of how to reach the servers in `args`.

    Raises:
        CommandError: it does not go together, or a file is not what it should be.
    """
    from lookalike import Security
    from workbench.errors import CommandError

    found = Security.from_environment()
    if args.token_file:
        found = replace(found, token="", token_file=args.token_file)
    found = replace(
        found,
        tls=args.tls or found.tls,
        ca=args.ca or found.ca,
        client_cert=args.cert or found.client_cert,
        client_key=args.key or found.client_key,
        server_name=args.server_name or found.server_name,
        plaintext_token=args.plaintext_token or found.plaintext_token,
    )
    try:
        for name in {"target", "embedder"} & vars(args).keys():
            found.check(vars(args)[name])
        found.credentials()
        found.bearer()
    except ValueError as error:
        raise CommandError(str(error)) from None
    return found


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds the directory that commands keep their things in."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=DEFAULT_DATA_DIR,
        metavar="DIR",
        help="where bundles, databases, logs and reports go (default: %(default)s)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds what a model is built from."""
    parser.add_argument(
        "--backbone", default=DEFAULT, choices=BACKBONES, metavar="NAME", help=f"{', '.join(BACKBONES)} ({DEFAULT})"
    )
    parser.add_argument(
        "--weights",
        default="imagenet",
        metavar="WHICH",
        help="imagenet, or the path of a weights file (default: %(default)s)",
    )
    parser.add_argument(
        "--dims", type=positive, default=150, metavar="N", help="dimensions after PCA (default: %(default)s)"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Adds the precision in which the services that a command runs compute."""
    parser.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="arithmetic of the model: auto is the fastest that the bundle was measured in and the processor has "
        "(default: %(default)s)",
    )


def add_ingestion(parser: argparse.ArgumentParser, *, batch: int = 32, concurrency: int = 4) -> None:
    """Adds how images are sent."""
    parser.add_argument(
        "--batch", type=positive, default=batch, metavar="N", help="images in one call (default: %(default)s)"
    )
    parser.add_argument(
        "--concurrency",
        type=positive,
        default=concurrency,
        metavar="N",
        help="calls at the same time, at most (default: %(default)s)",
    )


def add_index(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the index of a collection; `default` says what there is without these flags."""
    parser.add_argument(
        "--index",
        choices=("flat", "hnsw", "hnsw_sq8"),
        help="flat is exact; hnsw is fast where there are many rows; hnsw_sq8 takes a quarter of its memory for "
        f"vectors (default: {default})",
    )
    parser.add_argument("--m", type=positive, metavar="N", help="HNSW: neighbours of a node")
    parser.add_argument(
        "--ef-construction", type=positive, metavar="N", help="HNSW: candidates looked at while building"
    )

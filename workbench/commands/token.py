"""`lookalike token`: makes a token and its entry for a server's file of tokens."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "token",
        help="make a token for a caller of the services",
        description="Makes a random token and prints it, to the standard error, and the entry that has a server "
        "accept it, to the standard output: `lookalike token NAME >> tokens.toml 2> NAME.token`. The file of entries "
        "is what a server is given with --tokens; it holds hashes, and is read again when it changes.",
    )
    parser.add_argument("name", metavar="NAME", help="what logs call the caller")
    parser.add_argument(
        "--role", default="read", choices=("read", "write", "admin"), help="the most it may do (default: %(default)s)"
    )
    parser.add_argument(
        "--tenant", action="append", default=[], metavar="NAME", help="bind it to a tenant; may be repeated"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from service_kit import tokens
    from service_kit.identity import Role

    token = tokens.new_token()
    print(tokens.entry(token, args.name, Role[args.role.upper()], args.tenant))
    print(token, file=sys.stderr)
    return 0

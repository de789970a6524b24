"""Runs all checks, or those that are named, and says what is wrong; exit code 1 if anything is."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from deploy.checks import linters, monitoring, policy, schemas
from deploy.checks.tree import Check, Tree

CHECKS: dict[str, Check] = {
    "schemas": schemas.check,
    **policy.CHECKS,
    **monitoring.CHECKS,
    **linters.CHECKS,
}


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="check-deploy", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(CHECKS)}")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: the current directory)")
    args = parser.parse_args()
    if unknown := set(args.names) - CHECKS.keys():
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    tree = Tree(args.root.resolve())
    failed = 0
    for name in args.names or CHECKS:
        started = time.monotonic()
        problems = list(CHECKS[name](tree))
        print(f"{'FAIL' if problems else 'ok  '} {name} ({time.monotonic() - started:.1f} s)", flush=True)
        for problem in problems:
            print(f"       {problem}")
        failed += bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

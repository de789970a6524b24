"""Runs all checks, or those that are named, and says what is wrong; exit code 1 if anything is."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

from deploy.checks.tree import Tree

# By the module that has them: what some of them import takes seconds.
_MODULES = {
    "schemas": ("schemas",),
    "policy": (
        "selectors", "ports", "probes", "termination", "security", "scaling", "network", "images", "settings", "jobs",
        "monitors",
    ),
    "monitoring": ("rules", "rule-tests", "runbooks", "alertmanager", "prometheus", "dashboards"),
    "milvus": ("milvus",),
    "linters": ("checkov", "hadolint", "yamllint", "shellcheck", "compose", "envoy", "buf"),
}  # fmt: skip
CHECKS = {name: module for module, names in _MODULES.items() for name in names}


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="check-deploy", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(CHECKS)}")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: the current directory)")
    parser.add_argument(
        "--in",
        dest="targets",
        action="append",
        metavar="TARGET",
        help="look at this overlay, job or component only, such as overlays/prod; may be repeated",
    )
    args = parser.parse_args()
    if unknown := set(args.names) - CHECKS.keys():
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    tree = Tree(args.root.resolve(), args.targets)
    failed = 0
    for name in args.names or CHECKS:
        started = time.monotonic()
        problems = list(import_module(f"deploy.checks.{CHECKS[name]}").CHECKS[name](tree))
        print(f"{'FAIL' if problems else 'ok  '} {name} ({time.monotonic() - started:.1f} s)", flush=True)
        for problem in problems:
            print(f"       {problem}")
        failed += bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

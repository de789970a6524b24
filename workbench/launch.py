"""The commands `lookalike-embedder` and `lookalike-search`, which say so where their packages are not installed."""

from __future__ import annotations

import sys
from importlib import import_module


def embedder() -> int:
    """Runs the embedding service."""
    return _launch("embedder_service.main", "embedder")


def search() -> int:
    """Runs the search service."""
    return _launch("search_service.main", "search")


def _launch(module: str, extra: str) -> int:
    try:
        server = import_module(module)
    except ModuleNotFoundError as error:
        print(f"the package {error.name} is not installed: pip install 'lookalike[{extra}]'", file=sys.stderr)
        return 1
    return int(server.main())

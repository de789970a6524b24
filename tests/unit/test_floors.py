"""The rooms of the house: each imports only from the floors below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Which of our packages each may import, beside itself.
MAY_IMPORT = {
    "lookalike": set(),
    "service_kit": {"lookalike"},
    "embedder_service": {"lookalike", "service_kit"},
    "search_service": {"lookalike", "service_kit"},
    "workbench": {"lookalike", "service_kit", "embedder_service", "search_service"},
    "benchmarks": {"lookalike", "service_kit", "embedder_service", "search_service", "workbench"},
}
# Files of the services that may know of gRPC; the cores may not.
TRANSPORT = {
    "rpc.py",
    "main.py",
    "embedder_client.py",
    "embedder_connection.py",
    "milvus_errors.py",
    "convert.py",
    "metrics.py",
}


def imports(file: Path) -> Iterator[str]:
    """Yields the top-level names of the packages that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_from_floors_below(room: str) -> None:
    forbidden = MAY_IMPORT.keys() - MAY_IMPORT[room] - {room}
    files = list((ROOT / room).rglob("*.py"))
    assert files
    assert [(file.name, name) for file in files for name in imports(file) if name in forbidden] == []


@pytest.mark.parametrize("room", ["embedder_service", "search_service"])
def test_the_cores_know_nothing_of_grpc(room: str) -> None:
    cores = [file for file in (ROOT / room).rglob("*.py") if file.name not in TRANSPORT]
    assert [file.name for file in cores if "grpc" in imports(file)] == []

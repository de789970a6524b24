"""How large a Milvus has to be for so many images: `python -m deploy.milvus.sizing --help`.

Vectors and indexes are counted by the formulas that the search service itself reports by
(`search_service/index_memory.py`, within 1 % of what Faiss takes); the rest are the assumptions below.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from search_service.index_memory import memory_bytes
from search_service.records import CollectionVersion, IndexSpec, VectorSpace

# Fields beside the vector, a row: id 40, source 80, two hashes of 64, time 8, attributes 100, and what Milvus adds.
ROW_BYTES = 400
# Query nodes hold the index in memory, and of the fields about so much: the rest is mapped from the disk (mmap).
RESIDENT_SHARE = 0.1
# What of a node's memory is used: growing segments, searches and the segments of a node that failed need some.
FILL = 0.7
SEGMENT_BYTES = 1 << 30  # of vectors, by Milvus' default; the service's searches visit every segment
BUILD_FACTOR = 4  # a data node takes this many times a segment to build its index
STORED_FACTOR = 2  # object storage: segments before and after a compaction, until the old ones are collected
NODES = (16, 32, 64, 128, 256)  # GiB of memory of a query node
_GIB = 1 << 30
_README = Path(__file__).with_name("README.md")
_BEGIN, _END = "<!-- sizes -->\n", "<!-- end of sizes -->\n"


@dataclass(frozen=True)
class Size:
    """A Milvus for `rows` images with vectors of `dimension`, all sizes in bytes.

    Attributes:
        replicas: of every segment in the memory of query nodes.
        memory: of one replica: vectors, index, and fields that are not mapped.
        node: of one query node.
    """

    rows: int
    dimension: int
    index: str
    replicas: int
    memory: int
    node: int
    nodes: int
    disk: int
    storage: int
    segments: int

    @property
    def mode(self) -> str:
        """Whether one process does."""
        return "standalone" if self.nodes == 1 else "cluster"


def size(rows: int, index: str, *, dimension: int = 150, m: int = 16, replicas: int = 2) -> Size:
    """Computes a size; a single small node that is restarted when it fails needs no second replica."""
    version = CollectionVersion(
        collection="",
        number=1,
        physical_name="",
        space=VectorSpace("", dimension),
        index=IndexSpec(type=index, m=m),
        multi_tenant=False,
        created_ms=0,
    )
    vectors = memory_bytes(version, rows)
    memory = round(vectors + rows * ROW_BYTES * RESIDENT_SHARE)
    if memory <= NODES[1] * _GIB * FILL / 2:
        replicas = 1
    # The smallest nodes of which four hold a replica; whole nodes, or one that fails would take two replicas along.
    node, each = next(
        ((gib, count) for gib in NODES if (count := math.ceil(memory / (gib * _GIB * FILL))) <= 4),
        (NODES[-1], math.ceil(memory / (NODES[-1] * _GIB * FILL))),
    )
    nodes = each * replicas
    return Size(
        rows=rows,
        dimension=dimension,
        index=index,
        replicas=replicas,
        memory=memory,
        node=node * _GIB,
        nodes=nodes,
        disk=math.ceil(rows * (ROW_BYTES + vectors / rows) * replicas / nodes),
        storage=round(STORED_FACTOR * (rows * (ROW_BYTES + 4 * dimension) + vectors)),
        segments=math.ceil(rows * 4 * dimension / SEGMENT_BYTES),
    )


def table(sizes: list[Size]) -> str:
    """The sizes as a Markdown table."""
    lines = [
        "| images | index | memory of a replica | replicas | query nodes | disk of each | object storage | segments |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in sizes:
        nodes = f"{each.nodes} x {_human(each.node)}" if each.nodes > 1 else f"standalone, {_human(each.node)}"
        cells = (f"{each.rows:,}", each.index, _human(each.memory), str(each.replicas), nodes, _human(each.disk))
        lines.append(f"| {' | '.join((*cells, _human(each.storage), f'{each.segments:,}'))} |")
    return "\n".join(lines) + "\n"


def _human(size: float) -> str:
    units = ("MiB", "GiB", "TiB")
    value, unit = size / (1 << 20), 0
    while value >= 1000 and unit < len(units) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {units[unit]}" if value >= 10 else f"{value:.1f} {units[unit]}"


DEFAULTS = [
    size(rows, index)
    for rows, index in (
        (1_000_000, "HNSW"),
        (10_000_000, "HNSW"),
        (100_000_000, "HNSW"),
        (100_000_000, "HNSW_SQ8"),
        (1_000_000_000, "HNSW"),
        (1_000_000_000, "HNSW_SQ8"),
    )
]


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m deploy.milvus.sizing", description=__doc__)
    parser.add_argument("--rows", type=int, help="images (default: the table of deploy/milvus/README.md)")
    parser.add_argument("--dimension", type=int, default=150, help="of the vectors (default: %(default)s)")
    parser.add_argument("--m", type=int, default=16, help="of HNSW (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=2, help="of each segment in memory (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into deploy/milvus/README.md")
    args = parser.parse_args()
    if args.rows:
        options = {"dimension": args.dimension, "m": args.m, "replicas": args.replicas}
        print(table([size(args.rows, index, **options) for index in ("FLAT", "HNSW", "HNSW_SQ8")]), end="")
    elif args.write:
        _README.write_text(with_table(_README.read_text()))
    else:
        print(table(DEFAULTS), end="")
    return 0


def with_table(page: str) -> str:
    """The page with the table as it is computed now."""
    before, rest = page.split(_BEGIN)
    return before + _BEGIN + "\n" + table(DEFAULTS) + "\n" + _END + rest.split(_END)[1]


if __name__ == "__main__":
    sys.exit(main())

"""How much memory a loaded index takes: an estimate, from the number of rows and the parameters of the index."""

from __future__ import annotations

from search_service.records import CollectionVersion

_LINK_BYTES = 4
# What HNSW keeps of a row beside its vector and links: its level (4), and where its links begin (8).
_NODE_BYTES = 12


def memory_bytes(version: CollectionVersion, rows: int) -> int:
    """About how many bytes the vectors and the index of so many rows take, once on each node that has them loaded.

    A vector takes 4 D bytes, with 8 bits a component D. A row of HNSW has 2 M links in the lowest layer. It is in the
    l-th layer above with probability M^-l (arXiv:1603.09320, 4.1), with M links in each: M / (M - 1) on average.
    """
    index, dimension = version.index, version.space.dimension
    vector = dimension if index.type == "HNSW_SQ8" else 4 * dimension
    graph = _LINK_BYTES * (2 * index.m + index.m / (index.m - 1)) + _NODE_BYTES if index.is_graph else 0
    return round(rows * (vector + graph))

"""Tables of plain text, for terminals and pipes alike."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lookalike import Hit


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> str:
    """Returns the rows in aligned columns: the first one to the left, the others to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"{indent}{'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def hits_table(hits: Sequence[Hit], *, indent: str = "") -> str:
    """Returns ids, similarities (cosine) and distances (Euclidean) of hits."""
    rows = [(_shown(hit.id), f"{hit.similarity:.4f}", f"{hit.distance:.4f}") for hit in hits]
    return table(("id", "similarity", "distance"), rows, indent=indent)


def _shown(id: str) -> str:
    """An id may hold any characters, those too that would break a table or steer a terminal."""
    return id if id.isprintable() else json.dumps(id)

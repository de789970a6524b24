"""The parts of the quick start: what is stored, what is searched by, and what the answers say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from lookalike import Client
from lookalike.security import PLAINTEXT
from workbench.demo_images import make_demo_images
from workbench.errors import CommandError
from workbench.images import ImageFile, classes, find_images
from workbench.report import QueryResult
from workbench.tables import hits_table

_SEED = 101


@dataclass(frozen=True)
class QueryImage:
    """An image to search by.

    Attributes:
        name: how it is called in what the user sees.
        path: its file.
        label: the class that hits should have, or None if there are no classes.
        stored_id: the row that holds this very image, which is no finding; None if it is not stored.
    """

    name: str
    path: Path
    label: str | None
    stored_id: str | None = None


@dataclass(frozen=True)
class Choice:
    """The images to store and those to search by."""

    files: Sequence[ImageFile]
    queries: Sequence[QueryImage]


def choose_images(folder: Path | None, data_dir: Path, count: int) -> Choice:
    """Takes the images of a folder and a random sample of them as queries, or, without a folder, the demo images.

    Raises:
        CommandError: there are no images to take.
    """
    if folder is None:
        demo = make_demo_images(data_dir / "demo")
        queries = [QueryImage(path.stem, path, path.stem) for path in demo.queries[:count]]
        return Choice(find_images(demo.copies), queries)
    files = find_images(folder)
    sample = np.random.default_rng(_SEED).choice(len(files), size=min(count, len(files)), replace=False)
    has_classes = classes(files) is not None
    return Choice(
        files,
        [
            QueryImage(file.id, file.path, file.label if has_classes else None, stored_id=file.id)
            for file in (files[index] for index in sorted(sample))
        ],
    )


def search_all(
    target: str, collection: str, queries: Sequence[QueryImage], *, top_k: int, shown: int
) -> list[QueryResult]:
    """Searches by each query image, leaves the image itself out of its hits, and prints the first `shown` of them.

    Raises:
        LookalikeError: a search failed.
    """
    results, latencies = [], []
    with Client(target, security=PLAINTEXT) as client:
        for query in queries:
            image = query.path.read_bytes()
            begun = time.perf_counter()
            # One more than wanted, for the image itself. The rows have been stored just now: insist on seeing them.
            found = client.search(collection, image=image, top_k=top_k + 1, read_your_writes=True)
            latencies.append(time.perf_counter() - begun)
            hits = [hit for hit in found.hits if hit.id != query.stored_id][:top_k]
            results.append(QueryResult(query.name, query.path, hits, query.label))
            print(f"\n  {query.name}\n{hits_table(hits[:shown], indent='    ')}")
    print(f"\n  A search took {median(latencies) * 1000:.0f} ms (median), from image bytes to hits.")
    return results


def count_right(results: Sequence[QueryResult], first: int) -> int:
    """Returns for how many queries all of the first hits, as many as `first`, have the query's class."""
    return sum(
        len(result.hits) >= first and all(result.matches(hit) for hit in result.hits[:first]) for result in results
    )


def require_stored(found: int, reasons: Sequence[str]) -> None:
    """Raises CommandError if none of the images could be stored."""
    if found == len(reasons):
        raise CommandError(f"none of the {found} images could be stored; the first one: {reasons[0]}")

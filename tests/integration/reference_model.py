"""What a collection should hold: a dict, and sets where a write that failed may or may not have been carried out."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from embedding_server import vector_of

from lookalike import IndexSpec
from search_service.records import VectorSpace

# Of vectors: some are alike, two are equal but for their length.
VECTORS = np.random.default_rng(5).standard_normal((12, 4)).astype(np.float32)
VECTORS[1] = 3 * VECTORS[0]
VECTORS[2] = VECTORS[0] + 1e-3
IMAGES = [f"image {n}".encode() for n in range(len(VECTORS))]

Key = tuple[str, str]  # tenant and id


@dataclass(frozen=True)
class Row:
    """Which of the images or vectors, and two attributes."""

    content: int
    n: int
    kind: str

    @property
    def attributes(self) -> dict[str, Any]:
        return {"n": self.n, "kind": self.kind}


@dataclass(frozen=True)
class Where:
    """A filter: a field, a comparison and a value."""

    field: str
    comparison: str
    value: Any

    @property
    def options(self) -> dict[str, Any]:
        name = self.field if self.field == "id" else f'attributes["{self.field}"]'
        return {"filter": f"{name} {self.comparison} {{value}}", "filter_values": {"value": self.value}}

    def __call__(self, row_id: str, row: Row) -> bool:
        value = row_id if self.field == "id" else row.attributes[self.field]
        if self.comparison == "in":
            return value in self.value
        compare = {"==": operator.eq, "!=": operator.ne, ">": operator.gt, "<=": operator.le}[self.comparison]
        return bool(compare(value, self.value))


def everything(row_id: str, row: Row) -> bool:
    return True


@dataclass
class Version:
    """What the rows of a version may be; None is no row. A version that is not complete is still to be filled."""

    space: VectorSpace
    index: IndexSpec
    complete: bool
    rows: dict[Key, set[Row | None]] = field(default_factory=dict)

    def may_be(self, key: Key) -> set[Row | None]:
        return self.rows.get(key, {None})

    def learn(self, key: Key, row: Row | None) -> None:
        """Somebody has read it."""
        assert row in self.may_be(key), f"{key} is {row}, and should be one of {self.may_be(key)}"
        self.rows[key] = {row}

    def known(self, tenant: str, where: Any = everything) -> dict[str, Row]:
        """The rows of a tenant, by id, all of which have been read since the last failure."""
        rows = {key: row for key, [row] in self.rows.items() if key[0] == tenant}
        return {row_id: row for (_, row_id), row in rows.items() if row is not None and where(row_id, row)}

    def count(self, tenant: str | None, where: Any = everything) -> tuple[int, int]:
        """How many rows there are at least, and at most."""
        matching = [
            [row is not None and where(key[1], row) for row in may_be]
            for key, may_be in self.rows.items()
            if tenant in (None, key[0])
        ]
        return sum(map(all, matching)), sum(map(any, matching))

    def vector(self, content: int) -> Any:
        """The vector, of length 1, that an image or a vector is here."""
        if self.space.fingerprint == "mine":
            return VECTORS[content] / np.linalg.norm(VECTORS[content])
        return vector_of(IMAGES[content], self.space)

    def similarities(self, content: int, rows: Mapping[str, Row]) -> dict[str, float]:
        query = self.vector(content).astype(np.float64)
        return {row_id: float(query @ self.vector(row.content)) for row_id, row in rows.items()}


@dataclass
class Reference:
    """A collection: its versions by number, and the number of the one that serves."""

    versions: dict[int, Version]
    serving_number: int = 1

    @property
    def serving(self) -> Version:
        return self.versions[self.serving_number]

    @property
    def filling(self) -> int | None:
        return next((number for number, version in self.versions.items() if not version.complete), None)

    def has(self, key: Key, row: Row) -> bool:
        """Whether a row is known to be in every version."""
        return all(version.complete and version.may_be(key) == {row} for version in self.versions.values())

    def wrote(self, key: Key, row: Row | None) -> None:
        """A write, or with None a deletion, was acknowledged."""
        for version in self.versions.values():
            version.rows[key] = {row}

    def may_have_written(self, key: Key, rows: Iterable[Row | None]) -> None:
        """A write failed; of several with one id any may have been carried out."""
        for version in self.versions.values():
            # What is to be copied into a version may be there or not.
            version.rows[key] = version.may_be(key) | self.serving.may_be(key) | set(rows)

    def deleted(self, tenant: str, where: Where, *, acknowledged: bool) -> None:
        """Deletes by filter: what every row may be, each version chooses by its own."""
        for version in self.versions.values():
            for key, may_be in version.rows.items():
                gone = {row for row in may_be if row is not None and key[0] == tenant and where(key[1], row)}
                if gone:
                    version.rows[key] = ((may_be - gone) if acknowledged else may_be) | {None}

    def filled(self, number: int) -> None:
        """A version got all rows of the serving one; where a write failed meanwhile it may keep a newer one."""
        version = self.versions[number]
        for key, may_be in self.serving.rows.items():
            own = version.rows.get(key, set())
            version.rows[key] = may_be | (own if len(own) > 1 else set())
        version.complete = True

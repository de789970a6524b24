"""What goes into the store and what comes out: plain, typed, immutable records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
IndexType = Literal["HNSW", "HNSW_SQ8", "FLAT"]
Role = Literal["serving", "filling", "retired"]
# The fields of a stored row a caller may ask for. The id always comes back.
OutputField = Literal["attributes", "source", "content_sha256", "model_fingerprint", "updated_ms", "vector"]
OUTPUT_FIELDS: tuple[OutputField, ...] = (
    "attributes",
    "source",
    "content_sha256",
    "model_fingerprint",
    "updated_ms",
    "vector",
)
ALL_BUT_VECTOR: tuple[OutputField, ...] = OUTPUT_FIELDS[:-1]


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """What makes two vectors comparable: the model that made them, by its full fingerprint, and their length D."""

    fingerprint: str
    dimension: int


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A vector, float32 [D] of any length but zero, and the fingerprint of the model that made it."""

    vector: Vector
    fingerprint: str

    @property
    def space(self) -> VectorSpace:
        """The space that the vector says it lives in."""
        return VectorSpace(self.fingerprint, len(self.vector))


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """The vector index of a version.

    HNSW (Malkov and Yashunin, arXiv:1603.09320) is approximate: `m` is the degree of its graph, `ef_construction` the
    breadth of the search while building. HNSW_SQ8 is the same over vectors of 8 bits a component, so that the
    similarities of its hits are rounded, too. FLAT compares with every row, is exact, and best below about 10,000 rows.
    """

    type: IndexType = "HNSW"
    m: int = 16
    ef_construction: int = 200

    @property
    def is_graph(self) -> bool:
        """Whether it is approximate, has `m` and `ef_construction`, and is searched with an `ef`."""
        return self.type != "FLAT"


@dataclass(frozen=True, slots=True)
class CollectionVersion:
    """One physical Milvus collection: vectors of exactly one space, under one name and number."""

    collection: str
    number: int
    physical_name: str
    space: VectorSpace
    index: IndexSpec
    multi_tenant: bool
    created_ms: int  # Unix time in milliseconds


def role_of(number: int, serving: int | None) -> Role:
    """What the version `number` is for while the version `serving` serves: a newer one fills, an older one is kept."""
    if number == serving:
        return "serving"
    return "retired" if serving is not None and number < serving else "filling"


@dataclass(frozen=True, slots=True)
class LiveVersions:
    """All versions of a collection at one moment: what a write has to reach."""

    serving: CollectionVersion
    others: tuple[CollectionVersion, ...]  # the oldest first

    @property
    def all(self) -> tuple[CollectionVersion, ...]:
        """Every version, the serving one first."""
        return self.serving, *self.others

    def role(self, version: CollectionVersion) -> Role:
        """What one of these versions is for."""
        return role_of(version.number, self.serving.number)


@dataclass(frozen=True, slots=True)
class VersionState:
    """A version and how it is doing now."""

    version: CollectionVersion
    serving: bool
    loaded: bool
    rows: int  # on a server some seconds old; 0 while not loaded
    index_state: str  # Milvus' word: "Finished", "InProgress", "Failed", ...
    indexed_rows: int  # of `rows`, those that the index covers, or more
    memory_bytes: int  # of the loaded vectors and index, as `search_service.index_memory` estimates


@dataclass(frozen=True, slots=True)
class CollectionState:
    """A collection: its versions, oldest first, of which at most one serves."""

    name: str
    versions: tuple[VersionState, ...]

    @property
    def serving(self) -> VersionState | None:
        return next((state for state in self.versions if state.serving), None)

    def role(self, state: VersionState) -> Role:
        """What one of these versions is for."""
        return role_of(state.version.number, self.serving.version.number if self.serving else None)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A row to be written. `vector` is float32 [D], of any length but zero: it is stored scaled to length 1."""

    id: str
    vector: Vector
    attributes: Mapping[str, Any] = field(default_factory=dict)  # a JSON object, 64 KiB at most
    source: str = ""
    content_sha256: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class StoredRow:
    """A row as it is stored. Fields that were not asked for are None."""

    id: str
    attributes: dict[str, Any] | None = None
    source: str | None = None
    content_sha256: str | None = None
    model_fingerprint: str | None = None
    updated_ms: int | None = None  # Unix time in milliseconds
    vector: Vector | None = None  # float32 [D]
    tenant: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A neighbour: its cosine similarity to the query, in [-1, 1], and the fields of its row that were asked for."""

    similarity: float
    row: StoredRow
    folded_ids: tuple[str, ...] = ()  # of hits nearly the same as this one, the best first

"""The values that go into calls and come out of them."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from lookalike.errors import LookalikeError

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
"""A value of an attribute or a filter. Integers stay integers, of 64 bits; numbers are finite."""

Attributes: TypeAlias = Mapping[str, JsonValue]


class _WireEnum(enum.IntEnum):
    """An enumeration with the contract's numbers, in which numbers of a newer contract read as UNSPECIFIED."""

    @classmethod
    def _missing_(cls, value: object) -> _WireEnum:
        return cls(0)


class Precision(_WireEnum):
    """Arithmetic in which a model is run."""

    UNSPECIFIED = 0
    F32 = 1
    BF16 = 2
    F16 = 3
    INT8 = 4


class Priority(_WireEnum):
    """Which images are embedded first; UNSPECIFIED is the service's choice, INTERACTIVE for `embed` alone."""

    UNSPECIFIED = 0
    INTERACTIVE = 1
    BULK = 2


class IndexType(_WireEnum):
    """Kind of index; UNSPECIFIED is the service's choice: FLAT on Milvus Lite, HNSW on a Milvus server.

    FLAT is exact. HNSW is fast where there are many rows. HNSW_SQ8 is HNSW over vectors of 8 bits a component, in a
    quarter of the memory for vectors: similarities of its hits are off by some thousandths, unless a search is exact.
    """

    UNSPECIFIED = 0
    FLAT = 1
    HNSW = 2
    HNSW_SQ8 = 3


class VersionState(_WireEnum):
    """What a version of a collection is used for."""

    UNSPECIFIED = 0
    SERVING = 1
    FILLING = 2
    RETIRED = 3


class UpsertOutcome(_WireEnum):
    """What became of one row: UNCHANGED was left alone, SUPERSEDED has a later item with the same id."""

    UNSPECIFIED = 0
    STORED = 1
    UNCHANGED = 2
    SUPERSEDED = 3
    FAILED = 4


class Consistency(_WireEnum):
    """How fresh the data of a search is: BOUNDED may miss the writes of the last seconds, STRONG misses none."""

    UNSPECIFIED = 0
    BOUNDED = 1
    STRONG = 2


@dataclass(frozen=True, eq=False)
class Embedding:
    """A point in the vector space of one model.

    Attributes:
        vector: float32 [D]; any one-dimensional sequence of numbers is accepted and converted. Those that the embedder
            returns have Euclidean length 1.
        fingerprint: names the model, and so the space. Vectors are comparable only if their fingerprints are equal.

    Raises:
        ValueError: the vector is not one-dimensional, is empty, or has components that are not finite.

    >>> Embedding([0.6, 0.8], "my-model-1").vector
    array([0.6, 0.8], dtype=float32)
    """

    vector: npt.NDArray[np.float32]
    fingerprint: str

    def __init__(self, vector: npt.ArrayLike, fingerprint: str) -> None:
        array = np.asarray(vector, dtype=np.float32)
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"a vector must be one-dimensional and not empty; this one has shape {list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError("a vector must have finite components; this one has some that are NaN or infinite")
        object.__setattr__(self, "vector", array)
        object.__setattr__(self, "fingerprint", fingerprint)


# ---- The embedder


@dataclass(frozen=True)
class PrecisionLoss:
    """What a precision costs against float32; the figures are None where they were not measured."""

    precision: Precision
    mean_cosine: float | None
    accuracy_loss_points: float | None


@dataclass(frozen=True)
class Model:
    """A model and how it is run. Sizes are in pixels; `explained_variance_ratio` lies between 0 and 1."""

    fingerprint: str
    dimension: int
    backbone: str
    weights_source: str
    weights_sha256: str
    input_height: int
    input_width: int
    feature_length: int
    pca_images: int
    explained_variance_ratio: float
    runtime: str
    device: str
    precision: Precision
    precision_losses: tuple[PrecisionLoss, ...]


@dataclass(frozen=True)
class EmbedderLimits:
    """What a request to the embedder may ask for at most."""

    max_image_bytes: int
    max_image_pixels: int
    max_batch_images: int
    max_message_bytes: int
    max_stream_in_flight: int
    max_metadata_bytes: int
    max_caller_calls: int
    request_seconds: float
    stream_idle_seconds: float


@dataclass(frozen=True)
class ModelDescription:
    """The model that an embedder serves, and its limits."""

    model: Model
    limits: EmbedderLimits


# ---- Collections


@dataclass(frozen=True)
class IndexSpec:
    """How vectors are indexed; 0 means the service's default.

    Attributes:
        type: the kind of index.
        m: neighbours of a node of HNSW.
        ef_construction: candidates that HNSW looks at while building.
    """

    type: IndexType = IndexType.UNSPECIFIED
    m: int = 0
    ef_construction: int = 0


@dataclass(frozen=True)
class VectorSpace:
    """The space that a model's vectors live in: its name, and the number of components."""

    fingerprint: str
    dimension: int


@dataclass(frozen=True)
class CollectionVersion:
    """One generation of a collection: the rows in one vector space. What the database does not tell is None.

    `row_count` is some seconds old on a Milvus server. `memory_bytes` is an estimate for the vectors and their index.
    """

    version: int
    physical_name: str
    space: VectorSpace
    index: IndexSpec
    state: VersionState
    row_count: int
    indexed_row_count: int | None
    memory_bytes: int | None
    create_time: datetime


@dataclass(frozen=True)
class Collection:
    """A named set of rows, with its versions, the oldest first."""

    name: str
    multi_tenant: bool
    serving_version: int
    versions: tuple[CollectionVersion, ...]

    @property
    def serving(self) -> CollectionVersion | None:
        """The version that answers searches; None while there is none, as when its creation was cut short."""
        return next((version for version in self.versions if version.version == self.serving_version), None)


@dataclass(frozen=True)
class SearchLimits:
    """What a request to the search service may ask for at most."""

    max_image_bytes: int
    max_batch_items: int
    max_batch_queries: int
    max_top_k: int
    max_ef: int
    max_id_bytes: int
    max_attributes_bytes: int
    max_source_bytes: int
    max_filter_bytes: int
    max_message_bytes: int
    max_filter_depth: int
    max_attributes_depth: int
    max_output_attributes: int
    max_name_bytes: int
    max_tenant_bytes: int
    max_metadata_bytes: int
    max_caller_calls: int
    request_seconds: float
    stream_idle_seconds: float


@dataclass(frozen=True)
class CollectionDescription:
    """A collection, the limits on requests, and the database behind it."""

    collection: Collection
    limits: SearchLimits
    backend: str


# ---- Rows


@dataclass(frozen=True)
class Item:
    """A row to be stored: an id, and either the bytes of an image file or a vector.

    Attributes:
        id: the caller's name for the row; an existing row of that name is replaced.
        image: the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file, which the service embeds.
        vector: a vector, where the caller has one.
        attributes: for filters and replies.
        source: path or URI where the image can be read again.

    Raises:
        ValueError: not exactly one of `image` and `vector` is given.

    >>> Item("cat.jpg", image=Path("cat.jpg").read_bytes(), attributes={"year": 1991})
    Item(id='cat.jpg', vector=None, attributes={'year': 1991}, source='')
    """

    id: str
    image: bytes | None = field(default=None, repr=False)
    vector: Embedding | None = None
    attributes: Attributes = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if (self.image is None) == (self.vector is None):
            raise ValueError(f"item {self.id!r} needs either an image or a vector")


@dataclass(frozen=True)
class UpsertResult:
    """What became of one row; `error` says why it is FAILED, and is None unless it is."""

    id: str
    outcome: UpsertOutcome
    error: LookalikeError | None = None


@dataclass(frozen=True)
class FillItem:
    """A row of the serving version, for another one.

    Attributes:
        item: the row's id, and the image it was made from, or a vector of the other version's space. Its attributes and
            source need not be given: those of the serving row are copied.
        update_time: that of the serving row, as `Record.update_time` has it.
    """

    item: Item
    update_time: datetime


@dataclass(frozen=True)
class FillResult:
    """What became of each row, in order, and how many were deleted because the serving version lacks them.

    Attributes:
        results: UNCHANGED are rows that the other version has already, and those written or deleted meanwhile.
        index_built: whether the index that was to be built covers the rows by now; otherwise
            `CollectionVersion.indexed_row_count` tells when it does.
    """

    results: tuple[UpsertResult, ...]
    deleted_count: int
    index_built: bool


@dataclass(frozen=True)
class Record:
    """A stored row, with those of its parts that were asked for.

    Attributes:
        id: the caller's id.
        attributes: as given with the upsert; integers are integers.
        source: path or URI of the image, as given with the upsert.
        content_sha256: SHA-256 of the image's bytes in hex; empty for rows stored as vectors.
        update_time: when the row was last written, in UTC.
        vector: the stored vector, of length 1, if it was asked for.
        tenant: whose row it is, in a multi-tenant collection.
    """

    id: str
    attributes: dict[str, JsonValue]
    source: str
    content_sha256: str
    update_time: datetime
    vector: Embedding | None = None
    tenant: str = ""


@dataclass(frozen=True)
class GetResult:
    """The rows found, in the order of the ids, and the ids that have no row."""

    records: tuple[Record, ...]
    missing_ids: tuple[str, ...]


# ---- Searches


class OutputOptions(TypedDict, total=False):
    """Which parts of a row a reply carries beside its id, source, hash and time. The default is all attributes."""

    attributes: Sequence[str]
    """Names of the attributes; none at all if empty."""
    include_vector: bool
    """Adds the vector."""


class GetOptions(OutputOptions, total=False):
    """How to fetch or scan rows. Everything may be left out."""

    read_your_writes: bool
    """Sees every write acknowledged before the call, at the price of time."""


class SearchOptions(OutputOptions, total=False):
    """How to search. Everything may be left out."""

    top_k: int
    """Number of hits wanted; default 10."""
    offset: int
    """Number of best hits to leave out, for paging."""
    filter: str
    """Which rows may be hits: a filter expression, with names of `filter_values` in braces."""
    filter_values: Attributes
    """The values that `filter` names."""
    min_similarity: float
    """Lowest cosine similarity of a hit, -1 to 1."""
    max_similarity: float
    """Highest cosine similarity of a hit, -1 to 1. Only the `SearchLimits.max_top_k` best rows are looked at."""
    fold_similarity: float
    """Folds hits whose similarity to a better hit is at least this into that hit, which names them in `folded_ids`.
    Only the `SearchLimits.max_top_k` best rows are looked at."""
    ef: int
    """Candidates that HNSW looks at: more is slower and finds more."""
    version: int
    """The version of the collection to search, to try one before it serves; by default the serving one."""
    exact: bool
    """Compares with every row instead of using the index."""
    read_your_writes: bool
    """Sees every write acknowledged before the search, at the price of time."""


@dataclass(frozen=True)
class Query:
    """What to search by: the bytes of an image file, a vector, or the id of a stored row.

    Raises:
        ValueError: not exactly one of them is given.

    >>> Query(id="cat.jpg")
    Query(vector=None, id='cat.jpg')
    """

    image: bytes | None = field(default=None, repr=False)
    vector: Embedding | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.image, self.vector, self.id)) != 1:
            raise ValueError("a search needs exactly one of image, vector and id")


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        record: the row.
        similarity: cosine similarity to the query, -1 to 1.
        distance: Euclidean distance to the query, of vectors of length 1: 0 to 2.
        folded_ids: ids of the hits that `fold_similarity` folded into this one, the best first.
    """

    record: Record
    similarity: float
    distance: float
    folded_ids: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The row's id."""
        return self.record.id


class Hits(tuple[Hit, ...]):
    """The hits of one search, the most similar first: a tuple of `Hit`, with their figures as arrays.

    >>> hits = client.search("photos", id="cat.jpg").hits
    >>> hits.ids
    ['mirrored.jpg', 'rocket.jpg']
    >>> hits.similarities > 0.9
    array([ True, False])
    """

    __slots__ = ()

    @property
    def ids(self) -> list[str]:
        """The ids."""
        return [hit.id for hit in self]

    @property
    def similarities(self) -> npt.NDArray[np.float32]:
        """Cosine similarities to the query, float32 [N], falling."""
        return np.array([hit.similarity for hit in self], np.float32)

    @property
    def distances(self) -> npt.NDArray[np.float32]:
        """Euclidean distances to the query, float32 [N], rising."""
        return np.array([hit.distance for hit in self], np.float32)


@dataclass(frozen=True)
class ServedBy:
    """What answered a search: the version, its index and the `ef` used (None without HNSW)."""

    version: int
    physical_name: str
    space: VectorSpace
    index_type: IndexType
    ef: int | None
    consistency: Consistency


@dataclass(frozen=True)
class SearchResult:
    """The hits, the most similar first; what answered; and the seconds spent in each stage, by its name."""

    hits: Hits
    served_by: ServedBy
    timings: Mapping[str, float]


@dataclass(frozen=True)
class SearchBatchResult:
    """What became of each query, in order; what answered; and the seconds that each stage took for all of them.

    Attributes:
        results: the hits of a query, the most similar first; or why it failed.
    """

    results: tuple[Hits | LookalikeError, ...]
    served_by: ServedBy
    timings: Mapping[str, float]

"""The calls that are made: how each request is put together, and what its reply says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import grpc
import numpy as np
from google.rpc import status_pb2
from numpy.typing import NDArray

from lookalike.embedder.v1 import embedder_pb2
from lookalike.search.v1 import search_pb2
from search_service.recall import Ranked
from workbench.loadtest.connection import Service
from workbench.loadtest.payloads import Images

OK = 0
CUT_OFF = 17
CODES = (*sorted((code.name for code in grpc.StatusCode), key=lambda name: grpc.StatusCode[name].value[0]), "CUT_OFF")
"""Names of what a call can end with, by number: gRPC's status codes, and calls that this client gave up."""

_EMBEDDER = "/lookalike.embedder.v1.EmbedderService"
_SEARCH = "/lookalike.search.v1.SearchService"
_TRAILER = 8
_CHUNK = 4096
_TIMING = "lookalike-timing-"


@dataclass(frozen=True)
class Workload:
    """What to send, from which each call's choice is made by its number and the seed alone.

    Attributes:
        operations: name and weight of each kind of call.
        images: what operations on images send.
        vectors: float32 [N, D], what operations on vectors send.
        fingerprint: the model of the vectors.
        collections: of searches and upserts.
        tenants: likewise; one empty name means none.
        filters: expressions of searches; an empty one is none.
        top_k: hits wanted.
        ef: breadth of searches on HNSW; None is the service's choice.
        batch: images of an embed-batch, rows of an upsert.
        rows: upserts go through so many ids, and then replace them.
        id_prefix: what those ids begin with.
        seed: of all choices.
        stage_share: share of the calls that ask for the time spent in each stage.
        recall_share: share of the searches whose hits are kept, to be compared with the exact answer.
    """

    operations: tuple[tuple[str, float], ...]
    images: Images | None = None
    vectors: NDArray[np.float32] | None = None
    fingerprint: str = ""
    collections: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ("",)
    filters: tuple[str, ...] = ("",)
    top_k: tuple[int, ...] = (10,)
    ef: int | None = None
    batch: int = 8
    rows: int = 10_000
    id_prefix: str = "loadtest-"
    seed: int = 0
    stage_share: float = 0.1
    recall_share: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The operations by name."""
        return tuple(name for name, _ in self.operations)


class Choice(NamedTuple):
    """What one call is: the number of its operation, what it sends where, and what is looked at afterwards."""

    number: int
    operation: int
    image: int
    vector: int
    collection: str
    tenant: str
    filter: str
    top_k: int
    stages: bool
    recall: bool


class Chooser:
    """Makes the choice of each call. The same workload and number give the same choice in every process."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._chunk = lru_cache(maxsize=4)(self._draw)

    def __call__(self, number: int) -> Choice:
        """Returns the choice of a call."""
        workload, drawn, at = self._workload, self._chunk(number // _CHUNK), number % _CHUNK
        return Choice(
            number,
            drawn["operation"][at],
            drawn["image"][at],
            drawn["vector"][at],
            workload.collections[drawn["collection"][at]] if workload.collections else "",
            workload.tenants[drawn["tenant"][at]],
            workload.filters[drawn["filter"][at]],
            workload.top_k[drawn["top_k"][at]],
            drawn["stages"][at] < workload.stage_share,
            drawn["recall"][at] < workload.recall_share,
        )

    def _draw(self, chunk: int) -> dict[str, list[int]]:
        workload = self._workload
        random = np.random.default_rng([workload.seed, chunk])

        def weighted(weights: Iterable[float]) -> list[int]:
            array = np.fromiter(weights, float)
            drawn: list[int] = random.choice(len(array), _CHUNK, p=array / array.sum()).tolist()
            return drawn

        def even(count: int) -> list[int]:
            drawn: list[int] = random.integers(0, max(1, count), _CHUNK).tolist()
            return drawn

        return {
            "operation": weighted(weight for _, weight in workload.operations),
            "image": weighted(workload.images.weights if workload.images else [1.0]),
            "vector": even(0 if workload.vectors is None else len(workload.vectors)),
            "collection": even(len(workload.collections)),
            "tenant": even(len(workload.tenants)),
            "filter": even(len(workload.filters)),
            "top_k": even(len(workload.top_k)),
            "stages": random.random(_CHUNK).tolist(),
            "recall": random.random(_CHUNK).tolist(),
        }


class Operation(ABC):
    """A kind of call.

    Attributes:
        service: whom it calls.
        path: the RPC's full name.
        items: images, rows or searches of one call.
    """

    service: Service
    path: str
    items = 1

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    @abstractmethod
    def request(self, choice: Choice) -> bytes:
        """Returns the request's message."""

    def outcome(self, reply: bytes) -> int:
        """Returns the number, in `CODES`, of what a reply says: that of its first bad item if it has any."""
        return OK

    def stages(self, reply: bytes, trailing: grpc.aio.Metadata | None) -> dict[str, float]:
        """Returns the seconds in each stage of the server, as far as it says."""
        return {}

    def ranked(self, reply: bytes) -> Ranked:
        """Returns the hits of a search."""
        return ()


class _Images:
    """Messages that end with an image, whose last bytes are put in when it is sent.

    No two images are equal, or a server could spare itself the work: each ends with some bytes of its own, after the
    end of the picture, where decoders do not look.
    """

    def __init__(self, messages: Iterable[bytes]) -> None:
        self._heads = [message[:-_TRAILER] for message in messages]

    def message(self, image: int, number: int) -> bytes:
        return self._heads[image] + number.to_bytes(_TRAILER)


def _longer(workload: Workload) -> Iterable[bytes]:
    assert workload.images is not None
    return (file + bytes(_TRAILER) for file in workload.images.files)


class Embed(Operation):
    """Embeds one image."""

    service, path = "embedder", f"{_EMBEDDER}/Embed"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._images = _Images(embedder_pb2.EmbedRequest(image=file).SerializeToString() for file in _longer(workload))

    def request(self, choice: Choice) -> bytes:
        return self._images.message(choice.image, choice.number)

    def stages(self, reply: bytes, trailing: grpc.aio.Metadata | None) -> dict[str, float]:
        return {key.removeprefix(_TIMING): float(value) for key, value in trailing or () if key.startswith(_TIMING)}


class EmbedBatch(Embed):
    """Embeds `Workload.batch` images in one call."""

    path = f"{_EMBEDDER}/EmbedBatch"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.items = workload.batch

    def request(self, choice: Choice) -> bytes:
        assert self.workload.images is not None
        files = self.workload.images.files
        first = choice.number * self.items
        images = [files[(choice.image + n) % len(files)] + (first + n).to_bytes(_TRAILER) for n in range(self.items)]
        return embedder_pb2.EmbedBatchRequest(images=images).SerializeToString()

    def outcome(self, reply: bytes) -> int:
        return _first_error(
            result.error
            for result in embedder_pb2.EmbedBatchResponse.FromString(reply).results
            if result.HasField("error")
        )


class _Search(Operation):
    """Common to searches. A message put together from two serialized parts is both parts in one."""

    service, path = "search", f"{_SEARCH}/Search"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._parameters = lru_cache(maxsize=1024)(self._serialized)

    def parameters(self, choice: Choice) -> bytes:
        return self._parameters(choice.collection, choice.tenant, choice.filter, choice.top_k)

    def stages(self, reply: bytes, trailing: grpc.aio.Metadata | None) -> dict[str, float]:
        timings = search_pb2.SearchResponse.FromString(reply).timings
        return {timing.stage: timing.duration.seconds + timing.duration.nanos / 1e9 for timing in timings}

    def ranked(self, reply: bytes) -> Ranked:
        return [(hit.record.id, hit.similarity) for hit in search_pb2.SearchResponse.FromString(reply).hits]

    def _serialized(self, collection: str, tenant: str, expression: str, top_k: int) -> bytes:
        params = search_pb2.SearchParams(
            top_k=top_k, ef=self.workload.ef, filter=search_pb2.Filter(expression=expression) if expression else None
        )
        return search_pb2.SearchRequest(collection=collection, tenant=tenant, params=params).SerializeToString()


class SearchImage(_Search):
    """Searches by an image."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._images = _Images(
            search_pb2.SearchRequest(query=search_pb2.Query(image=file)).SerializeToString()
            for file in _longer(workload)
        )

    def request(self, choice: Choice) -> bytes:
        return self.parameters(choice) + self._images.message(choice.image, choice.number)


class SearchVector(_Search):
    """Searches by a vector."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        assert workload.vectors is not None
        self._vectors = [
            search_pb2.SearchRequest(query=search_pb2.Query(vector=_vector(workload, row))).SerializeToString()
            for row in range(len(workload.vectors))
        ]

    def request(self, choice: Choice) -> bytes:
        return self.parameters(choice) + self._vectors[choice.vector]


class _Upsert(Operation):
    """Stores `Workload.batch` rows in one call."""

    service, path = "search", f"{_SEARCH}/Upsert"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.items = workload.batch

    def request(self, choice: Choice) -> bytes:
        first = choice.number * self.items
        items = [
            self.item(choice, row, f"{self.workload.id_prefix}{(first + row) % self.workload.rows}")
            for row in range(self.items)
        ]
        return search_pb2.UpsertRequest(
            collection=choice.collection, tenant=choice.tenant, items=items
        ).SerializeToString()

    def outcome(self, reply: bytes) -> int:
        results = search_pb2.UpsertResponse.FromString(reply).results
        return _first_error(result.error for result in results if result.HasField("error"))

    @abstractmethod
    def item(self, choice: Choice, row: int, row_id: str) -> search_pb2.UpsertItem: ...


class UpsertImage(_Upsert):
    """Stores images."""

    def item(self, choice: Choice, row: int, row_id: str) -> search_pb2.UpsertItem:
        assert self.workload.images is not None
        files = self.workload.images.files
        trailer = (choice.number * self.items + row).to_bytes(_TRAILER)
        return search_pb2.UpsertItem(id=row_id, image=files[(choice.image + row) % len(files)] + trailer)


class UpsertVector(_Upsert):
    """Stores vectors."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        assert workload.vectors is not None
        self._vectors = [_vector(workload, row) for row in range(len(workload.vectors))]

    def item(self, choice: Choice, row: int, row_id: str) -> search_pb2.UpsertItem:
        return search_pb2.UpsertItem(id=row_id, vector=self._vectors[(choice.vector + row) % len(self._vectors)])


OPERATIONS: dict[str, type[Operation]] = {
    "embed": Embed,
    "embed-batch": EmbedBatch,
    "search-image": SearchImage,
    "search-vector": SearchVector,
    "upsert-image": UpsertImage,
    "upsert-vector": UpsertVector,
}
ON_IMAGES = frozenset({"embed", "embed-batch", "search-image", "upsert-image"})
SEARCHES = frozenset({"search-image", "search-vector"})


def build(workload: Workload) -> list[Operation]:
    """Returns the operations of a workload, in its order."""
    return [OPERATIONS[name](workload) for name in workload.names]


def _vector(workload: Workload, row: int) -> search_pb2.Vector:
    assert workload.vectors is not None
    return search_pb2.Vector(values=workload.vectors[row].tolist(), model_fingerprint=workload.fingerprint)


def _first_error(errors: Iterable[status_pb2.Status]) -> int:
    return next((error.code for error in errors), OK)

"""Client of Lookalike: image bytes go in, the most similar stored images come out.

    from pathlib import Path
    from lookalike import Client, Item

    with Client("127.0.0.1:50052") as client:
        client.create_collection("photos", if_not_exists=True)
        client.upsert("photos", [Item("cat.jpg", image=Path("cat.jpg").read_bytes(), attributes={"year": 1991})])
        for hit in client.search("photos", image=Path("query.jpg").read_bytes(), top_k=5).hits:
            print(hit.id, hit.similarity, hit.distance)

`AsyncClient` is the same for asyncio; `EmbedderClient` and `AsyncEmbedderClient` turn images into vectors.
"""

from lookalike.aio_client import AsyncClient
from lookalike.aio_embedder_client import AsyncEmbedderClient
from lookalike.client import Client
from lookalike.embedder_client import EmbedderClient
from lookalike.errors import LookalikeError
from lookalike.types import (
    Attributes,
    Collection,
    CollectionDescription,
    CollectionVersion,
    Consistency,
    EmbedderLimits,
    Embedding,
    FillItem,
    FillResult,
    GetOptions,
    GetResult,
    Hit,
    IndexSpec,
    IndexType,
    Item,
    JsonValue,
    Model,
    ModelDescription,
    OutputOptions,
    Precision,
    PrecisionLoss,
    Priority,
    Query,
    Record,
    SearchBatchResult,
    SearchLimits,
    SearchOptions,
    SearchResult,
    ServedBy,
    UpsertOutcome,
    UpsertResult,
    VectorSpace,
    VersionState,
)

__all__ = [
    "AsyncClient",
    "AsyncEmbedderClient",
    "Attributes",
    "Client",
    "Collection",
    "CollectionDescription",
    "CollectionVersion",
    "Consistency",
    "EmbedderClient",
    "EmbedderLimits",
    "Embedding",
    "FillItem",
    "FillResult",
    "GetOptions",
    "GetResult",
    "Hit",
    "IndexSpec",
    "IndexType",
    "Item",
    "JsonValue",
    "LookalikeError",
    "Model",
    "ModelDescription",
    "OutputOptions",
    "Precision",
    "PrecisionLoss",
    "Priority",
    "Query",
    "Record",
    "SearchBatchResult",
    "SearchLimits",
    "SearchOptions",
    "SearchResult",
    "ServedBy",
    "UpsertOutcome",
    "UpsertResult",
    "VectorSpace",
    "VersionState",
]

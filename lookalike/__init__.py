"""Client of Lookalike: image bytes go in, the most similar stored images come out.

>>> from pathlib import Path
>>> from lookalike import Client, Item
>>> with Client("127.0.0.1:50052") as client:
...     collection = client.create_collection("photos", if_not_exists=True)
...     cat = Item("cat.jpg", image=Path("cat.jpg").read_bytes(), attributes={"year": 1991})
...     for result in client.upsert("photos", [cat]):
...         print(result.id, result.outcome.name)
...     for hit in client.search("photos", image=Path("query.jpg").read_bytes(), top_k=1, read_your_writes=True).hits:
...         print(hit.id, hit.record.attributes, hit.similarity > 0.9)
cat.jpg STORED
cat.jpg {'year': 1991} True

`AsyncClient` is the same for asyncio; `EmbedderClient` and `AsyncEmbedderClient` turn images into vectors; `to_numpy`
and `to_pandas` make arrays and tables of results. The examples of asyncio run in `python -m asyncio` and in notebooks.
"""

from lookalike.aio_client import AsyncClient
from lookalike.aio_embedder_client import AsyncEmbedderClient
from lookalike.client import Client
from lookalike.embedder_client import EmbedderClient
from lookalike.errors import LookalikeError
from lookalike.security import Security
from lookalike.tables import to_numpy, to_pandas
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
    Hits,
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
    "Hits",
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
    "Security",
    "ServedBy",
    "UpsertOutcome",
    "UpsertResult",
    "VectorSpace",
    "VersionState",
    "to_numpy",
    "to_pandas",
]

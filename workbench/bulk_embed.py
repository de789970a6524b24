"""Images, embedded and written to files of rows: the first half of the first load of millions."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

import grpc
import numpy as np

from lookalike import AsyncEmbedderClient, Item, LookalikeError, Priority, UpsertOutcome, UpsertResult
from search_service.milvus_rows import EncodedRow, encode_rows
from search_service.naming import row_id_of
from search_service.records import CollectionVersion, IndexSpec, Row, VectorSpace
from service_kit.errors import InvalidArgument
from workbench.checkpoint import Outcome
from workbench.destinations import Limits
from workbench.errors import CommandError
from workbench.id_set import IdSet, id_hash
from workbench.row_files import Folder, Origin, RowWriter
from workbench.shards import Shard


class EmbeddedRows:
    """A destination of images: the files of a shard.

    Attributes:
        origin: what all rows have in common.

    Args:
        embedder: makes the vectors.
        tenant: whose rows they become, for a multi-tenant collection.
    """

    def __init__(self, embedder: AsyncEmbedderClient, writer: RowWriter, origin: Origin, tenant: str) -> None:
        self._embedder = embedder
        self._writer = writer
        self._writing = asyncio.Lock()
        self._tenant = tenant
        # Rows are encoded for a version of a collection, which there is not yet.
        self._version = CollectionVersion("", 0, "", origin.space, IndexSpec(), origin.multi_tenant, 0)

    async def limits(self) -> Limits:
        """What the embedder takes at once."""
        limits = (await self._embedder.get_model()).limits
        return Limits(limits.max_batch_images, limits.max_image_bytes, limits.max_message_bytes)

    async def store(self, items: Sequence[Item]) -> Sequence[UpsertResult]:
        """Embeds and writes items. A model other than the one of the files is refused."""
        images = [item.image or b"" for item in items]
        embeddings = await self._embedder.embed_batch(
            images, priority=Priority.BULK, expected_fingerprint=self._version.space.fingerprint
        )
        rows = [
            Row(item.id, embedding.vector, item.attributes, item.source, hashlib.sha256(image).hexdigest())
            for item, image, embedding in zip(items, images, embeddings, strict=True)
            if not isinstance(embedding, LookalikeError)
        ]
        encoded = iter(
            await asyncio.to_thread(encode_rows, self._version, self._tenant, rows, time.time_ns() // 1_000_000)
        )
        outcomes = [each if isinstance(each, LookalikeError) else next(encoded) for each in embeddings]
        good: list[EncodedRow] = []
        results: list[UpsertResult] = []
        for item, outcome in zip(items, outcomes, strict=True):
            match outcome:
                case InvalidArgument():
                    error = LookalikeError(grpc.StatusCode.INVALID_ARGUMENT, outcome.message)
                    results.append(UpsertResult(item.id, UpsertOutcome.FAILED, error))
                case LookalikeError():
                    results.append(UpsertResult(item.id, UpsertOutcome.FAILED, outcome))
                case _:
                    good.append(outcome)
                    results.append(UpsertResult(item.id, UpsertOutcome.STORED))
        if good:
            async with self._writing:
                await asyncio.to_thread(self._writer.write, good)
        return results


class Written:
    """The ids that are in whole files already: what `Ingestion` takes for acknowledged."""

    def __init__(self, ids: IdSet) -> None:
        self._ids = ids

    def outcome(self, id: str) -> Outcome | None:
        """Returns that an image is stored, where it is."""
        return "stored" if id_hash(id) in self._ids else None

    def add(self, outcome: Outcome, ids: Sequence[str]) -> None:
        """Does nothing: the files tell."""

    def sync(self) -> None:
        """Does nothing, likewise."""


async def origin_of(embedder: AsyncEmbedderClient, tenant: str) -> Origin:
    """Returns what rows have in common that this embedder makes. Raises LookalikeError."""
    model = (await embedder.get_model()).model
    return Origin(VectorSpace(model.fingerprint, model.dimension), multi_tenant=bool(tenant))


def written(folder: Folder, shard: Shard, origin: Origin) -> tuple[Written, int, int]:
    """Looks at what an earlier run has written.

    Returns:
        the ids, the number of rows, and the number of the next file.

    Raises:
        CommandError: the files there are of another kind, or of another division into shards.
    """
    files = folder.files()
    for file in files:
        if file.origin != origin or file.shard.count != shard.count:
            raise CommandError(
                f"{folder.path} has rows of shard {file.shard} and model {file.origin.space.fingerprint[:12]}, and not "
                f"of shard {shard} and model {origin.space.fingerprint[:12]}: use another folder"
            )
    mine = [file for file in files if file.shard == shard]
    hashes = [
        id_hash(row_id_of(key, multi_tenant=origin.multi_tenant))
        for file in mine
        for key in folder.ids(file).to_pylist()
    ]
    return Written(IdSet(np.array(hashes, np.uint64))), sum(file.rows for file in mine), len(mine)

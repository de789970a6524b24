"""Where images go: a collection of the search service, or whatever else takes items and says what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lookalike import AsyncClient, Item, UpsertResult


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be stored at once, at most."""

    max_items: int
    max_image_bytes: int
    max_message_bytes: int


class Destination(Protocol):
    """Takes images; may be asked by several at the same time."""

    async def limits(self) -> Limits:
        """What it takes at once. Raises LookalikeError."""
        ...

    async def store(self, items: Sequence[Item]) -> Sequence[UpsertResult]:
        """Stores items, and returns what became of each, in their order. Raises LookalikeError if that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class StoredCollection:
    """A collection that exists. Rows that hold the same image already are left alone."""

    client: AsyncClient
    name: str
    tenant: str = ""

    async def limits(self) -> Limits:
        limits = (await self.client.describe_collection(self.name)).limits
        return Limits(limits.max_batch_items, limits.max_image_bytes, limits.max_message_bytes)

    async def store(self, items: Sequence[Item]) -> Sequence[UpsertResult]:
        return await self.client.upsert(self.name, items, if_content_changed=True, tenant=self.tenant)

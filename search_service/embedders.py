"""The embedding services behind this one, each with one model: which of them makes the vectors of a space."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence

from search_service.embedder_client import EmbedderClient
from search_service.records import CollectionVersion, Embedding, VectorSpace
from service_kit.errors import FailedPrecondition, ServiceError

# How soon an embedder is asked again for its model, where no model fits: it may have been started with another one.
_ASK_AGAIN_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
_LISTS = ("ipv4:", "ipv6:")


def targets(setting: str) -> list[str]:
    """The gRPC names of the embedders that the setting `embedder` tells of, one for each model.

    They are set apart by spaces or semicolons, or by commas; a comma within a list of addresses ("ipv4:a:1,b:2")
    belongs to that, so beside such a list only spaces and semicolons set apart.

    Raises:
        FailedPrecondition: there is none, or it cannot be told what a comma stands for.
    """
    found: list[str] = []
    for part in re.split(r"[\s;]+", setting):
        found += [part] if part.startswith(_LISTS) else filter(None, part.split(","))
    if not found or re.search(r"[^\s;,],ipv[46]:", setting):
        raise FailedPrecondition(
            f"cannot tell the embedders in {setting!r} apart: separate them by spaces, and addresses of replicas of "
            "one model by commas, as in 'dns:///one:50051 ipv4:10.0.0.1:50051,10.0.0.2:50051'"
        )
    return found


class Embedders:
    """Finds the embedder for a vector space. Each is asked for its model once, and again where none fits.

    An embedder that could never be reached might be the one that is looked for: that is an error, and not the same as
    none.
    """

    def __init__(self, clients: Sequence[EmbedderClient]) -> None:
        self._clients = clients
        self._spaces: dict[EmbedderClient, tuple[VectorSpace, float]] = {}

    async def aclose(self) -> None:
        """Closes all connections."""
        await asyncio.gather(*(client.aclose() for client in self._clients))

    async def default_space(self, deadline: float) -> VectorSpace:
        """Returns the space of the first embedder's vectors as it is now."""
        return await self._ask(self._clients[0], deadline)

    async def serve(self, space: VectorSpace, deadline: float) -> bool:
        """Whether there is an embedder for a space. Raises a service error where that cannot be known."""
        return await self._find(space, deadline) is not None

    async def require(self, space: VectorSpace, deadline: float) -> None:
        """Raises FailedPrecondition unless there is an embedder for a space."""
        if not await self.serve(space, deadline):
            raise self._missing("the new version", space)

    async def embed(
        self,
        version: CollectionVersion,
        images: Sequence[bytes],
        *,
        interactive: bool,
        patient: bool = False,
        deadline: float,
    ) -> list[Embedding | ServiceError]:
        """Embeds encoded images for a version of a collection, as `EmbedderClient.embed` does.

        Raises:
            FailedPrecondition: no embedder has the model of the version.
        """
        client = await self._find(version.space, deadline)
        if client is None:
            raise self._missing(f"collection {version.collection!r} version {version.number}", version.space)
        vectors = await client.embed(images, interactive=interactive, patient=patient, deadline=deadline)
        if any(isinstance(vector, Embedding) and vector.space != version.space for vector in vectors):
            # It was started again with another model. Whoever compares the spaces refuses these vectors.
            self._spaces.pop(client, None)
        return vectors

    async def _find(self, space: VectorSpace, deadline: float) -> EmbedderClient | None:
        if (client := self._known(space)) is not None:
            return client
        now = time.monotonic()
        until = min(deadline, now + _ANSWER_SECONDS)
        due = [each for each in self._clients if each not in self._spaces or now > self._spaces[each][1]]
        answers = await asyncio.gather(*(self._ask(each, until) for each in due), return_exceptions=True)
        if (client := self._known(space)) is not None:
            return client
        for each, answer in zip(due, answers, strict=True):
            if isinstance(answer, BaseException) and each not in self._spaces:
                raise answer
        return None

    def _known(self, space: VectorSpace) -> EmbedderClient | None:
        return next((each for each in self._clients if each in self._spaces and self._spaces[each][0] == space), None)

    async def _ask(self, client: EmbedderClient, deadline: float) -> VectorSpace:
        space = await client.space(deadline)
        self._spaces[client] = (space, time.monotonic() + _ASK_AGAIN_SECONDS)
        return space

    def _missing(self, what: str, space: VectorSpace) -> FailedPrecondition:
        served = ", ".join(sorted({space.fingerprint for space, _ in self._spaces.values()}))
        return FailedPrecondition(
            f"{what} holds vectors of model {space.fingerprint} ({space.dimension} dimensions), but embedders here "
            f"serve {served}: start the search service with that model's embedder too (--embedder takes several, "
            "separated by spaces)"
        )

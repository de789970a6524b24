"""Which embedder is asked for the vectors of a version."""

from __future__ import annotations

import numpy as np
import pytest
from embedding_server import BAD, serving, vector_of
from milvus_samples import free_port, within

from search_service.embedder_client import EmbedderClient
from search_service.embedders import Embedders
from search_service.records import CollectionVersion, Embedding, IndexSpec, VectorSpace
from service_kit.errors import FailedPrecondition, InvalidArgument, Unavailable

OLD, NEW, OTHER = VectorSpace("old-model", 8), VectorSpace("new-model", 6), VectorSpace("other-model", 8)


def version_of(space: VectorSpace) -> CollectionVersion:
    return CollectionVersion("photos", 1, "photos__x__v1", space, IndexSpec(), multi_tenant=False, created_ms=0)


async def test_each_version_is_embedded_by_its_model_and_the_models_are_asked_for_once() -> None:
    async with serving(NEW, OLD) as (servers, clients):
        embedders = Embedders(clients)
        assert await embedders.default_space(within()) == NEW
        for space in (OLD, NEW, OLD):
            vector, error = await embedders.embed(version_of(space), [b"cat", BAD], interactive=True, deadline=within())
            assert isinstance(vector, Embedding)
            assert vector.space == space
            np.testing.assert_allclose(vector.vector, vector_of(b"cat", space), atol=1e-6)
            assert isinstance(error, InvalidArgument)
        # Once for the model, and once by each client for the limit of a batch.
        assert [server.asked for server in servers] == [2, 2]


async def test_a_model_that_no_embedder_has_is_refused_naming_those_there_are() -> None:
    async with serving(OLD, NEW) as (_, clients):
        embedders = Embedders(clients)
        assert not await embedders.serve(OTHER, within())
        with pytest.raises(FailedPrecondition, match=r"other-model.*new-model, old-model.*--embedder") as caught:
            await embedders.embed(version_of(OTHER), [b"cat"], interactive=True, deadline=within())
        assert "version 1" in caught.value.message


async def test_the_same_model_of_another_length_is_another_space() -> None:
    async with serving(OLD) as (_, clients):
        assert not await Embedders(clients).serve(VectorSpace("old-model", 9), within())


async def test_an_embedder_that_was_started_with_another_model_is_noticed() -> None:
    async with serving(OLD) as ([server], clients):
        embedders = Embedders(clients)
        await embedders.embed(version_of(OLD), [b"cat"], interactive=True, deadline=within())
        server.space = NEW
        [vector] = await embedders.embed(version_of(OLD), [b"cat"], interactive=True, deadline=within())
        assert isinstance(vector, Embedding)
        assert vector.space == NEW, "for the store to refuse"
        assert await embedders.serve(NEW, within())
        assert not await embedders.serve(OLD, within())


async def test_an_embedder_that_was_never_reached_might_be_the_one() -> None:
    async with serving(OLD) as (_, clients):
        nobody = EmbedderClient(f"127.0.0.1:{free_port()}", 1 << 20)
        embedders = Embedders([*clients, nobody])
        assert await embedders.serve(OLD, within())
        with pytest.raises(Unavailable, match="embedder at"):
            await embedders.serve(NEW, within())
        await nobody.aclose()

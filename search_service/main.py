"""The search service's process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import aclosing

from lookalike.search.v1 import search_pb2_grpc
from lookalike.security import Security
from search_service import milvus_local
from search_service.embedder_client import EmbedderClient
from search_service.embedders import Embedders, targets
from search_service.milvus_security import Security as MilvusSecurity
from search_service.rpc import ACCESS, SERVICE_NAME, SearchRpc
from search_service.service import SearchService
from search_service.settings import PREFIX, SearchSettings
from search_service.store import MilvusStore
from service_kit import process
from service_kit.cores import available_cores
from service_kit.server import Server


def store_of(settings: SearchSettings) -> MilvusStore:
    """The store that the settings name, to be opened."""
    security = MilvusSecurity.of(
        token=settings.milvus_token,
        token_file=settings.milvus_token_file,
        ca=settings.milvus_ca,
        client_cert=settings.milvus_client_cert,
        client_key=settings.milvus_client_key,
        server_name=settings.milvus_server_name,
    )
    return MilvusStore(
        settings.milvus_uri,
        security=security,
        db_name=settings.milvus_database,
        joined_queries=settings.max_joined_queries,
        max_filter_bytes=settings.max_filter_bytes,
        max_filter_depth=settings.max_filter_depth,
        max_collections=settings.max_collections,
    )


async def serve(settings: SearchSettings) -> int:
    """Serves until a signal comes; returns the exit code."""
    security = Security(
        tls=settings.embedder_tls,
        ca=settings.embedder_ca,
        client_cert=settings.embedder_client_cert,
        client_key=settings.embedder_client_key,
        server_name=settings.embedder_server_name,
        token_file=settings.embedder_token_file,
        plaintext_token=settings.embedder_plaintext_token,
    )
    clients = [EmbedderClient(target, settings.max_message_bytes, security) for target in targets(settings.embedder)]
    async with (
        store_of(settings) as store,
        aclosing(Embedders(clients)) as embedders,
        aclosing(SearchService(store, embedders, settings)) as service,
    ):
        # Milvus Lite works in this process, and the turns of two callers fill it. With a server, calls mostly wait.
        turns = max(1, available_cores() // 2) if milvus_local.is_local(settings.milvus_uri) else 4
        server = Server(settings, ACCESS, turns=turns)
        service.start(server.draining)
        rpc = SearchRpc(service, settings, str(store.backend), server.draining)
        search_pb2_grpc.add_SearchServiceServicer_to_server(rpc, server.grpc)
        return await server.run((SERVICE_NAME,), service.check)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service with flags, by default those of the command line; returns the exit code."""
    return process.run(SearchSettings, PREFIX, serve, argv)


if __name__ == "__main__":
    sys.exit(main())

"""The search service's process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing

from lookalike.search.v1 import search_pb2_grpc
from search_service.embedder_client import EmbedderClient
from search_service.embedders import Embedders, targets
from search_service.rpc import SERVICE_NAME, SearchRpc
from search_service.service import SearchService
from search_service.settings import PREFIX, SearchSettings
from search_service.store import MilvusStore
from service_kit import process
from service_kit.server import Server


async def serve(settings: SearchSettings) -> int:
    """Serves until a signal comes; returns the exit code."""
    store = MilvusStore(
        settings.milvus_uri,
        token=settings.milvus_token,
        db_name=settings.milvus_database,
        max_filter_bytes=settings.max_filter_bytes,
        max_filter_depth=settings.max_filter_depth,
    )
    clients = [EmbedderClient(target, settings.max_message_bytes) for target in targets(settings.embedder)]
    async with store, aclosing(Embedders(clients)) as embedders:
        service = SearchService(store, embedders, settings)
        server = Server(settings)
        rpc = SearchRpc(service, settings, str(store.backend), server.draining)
        search_pb2_grpc.add_SearchServiceServicer_to_server(rpc, server.grpc)
        gauges = asyncio.create_task(service.keep_gauges())
        try:
            return await server.run((SERVICE_NAME,), service.check)
        finally:
            gauges.cancel()
            await asyncio.wait([gauges])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service with flags, by default those of the command line; returns the exit code."""
    return process.run(SearchSettings, PREFIX, serve, argv)


if __name__ == "__main__":
    sys.exit(main())

"""How the load-test client connects: channels, load balancing, compression."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import grpc
import grpc.aio

from lookalike.channel import open_aio
from lookalike.security import PLAINTEXT, Security

LOAD_BALANCING = ("round_robin", "pick_first")
COMPRESSION = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
Service = Literal["embedder", "search"]


@dataclass(frozen=True)
class Connection:
    """How to reach the services. What is secret is not shown.

    Attributes:
        embedder: gRPC name of the embedder, such as HOST:PORT or dns:///NAME:PORT.
        search: likewise of the search service.
        channels: connections of each process to each service.
        load_balancing: which of several addresses of a name gets a call.
        security: TLS and token.
        compression: of requests.
        max_message_bytes: of requests and replies.
    """

    embedder: str = "127.0.0.1:50051"
    search: str = "127.0.0.1:50052"
    channels: int = 2
    load_balancing: str = "round_robin"
    security: Security = PLAINTEXT
    compression: str = "none"
    max_message_bytes: int = 64 << 20

    def address(self, service: Service) -> str:
        """Returns the name of a service."""
        return self.embedder if service == "embedder" else self.search

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what every call carries."""
        return self.security.bearer().metadata()

    def open(self, service: Service) -> grpc.aio.Channel:
        """Opens a channel; it belongs to the event loop that runs."""
        return open_aio(self.address(service), self.security, self._options(), COMPRESSION[self.compression])

    def _options(self) -> list[tuple[str, str | int]]:
        return [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.service_config", json.dumps({"loadBalancingConfig": [{self.load_balancing: {}}]})),
            ("grpc.service_config_disable_resolution", 1),
            # A call that fails is to be counted, not made again.
            ("grpc.enable_retries", 0),
            # A server that comes back is to be found soon.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),  # what an attempt to connect may take
            ("grpc.max_reconnect_backoff_ms", 500),
            # Two channels with the same options would share one connection.
            ("grpc.use_local_subchannel_pool", 1),
        ]

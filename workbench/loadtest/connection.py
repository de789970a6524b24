"""How the load-test client connects: channels, load balancing, TLS, token, compression."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import grpc
import grpc.aio

from workbench.errors import CommandError

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
        tls: whether to encrypt; certificates (PEM) mean the same as in `grpc.ssl_channel_credentials`.
        server_name: the name to expect in the server's certificate, where it is not that of the address.
        token: sent with every call as "authorization: Bearer ...".
        compression: of requests.
        max_message_bytes: of requests and replies.
    """

    embedder: str = "127.0.0.1:50051"
    search: str = "127.0.0.1:50052"
    channels: int = 2
    load_balancing: str = "round_robin"
    tls: bool = False
    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str = ""
    token: str = field(default="", repr=False)
    compression: str = "none"
    max_message_bytes: int = 64 << 20

    def address(self, service: Service) -> str:
        """Returns the name of a service."""
        return self.embedder if service == "embedder" else self.search

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def open(self, service: Service) -> grpc.aio.Channel:
        """Opens a channel; it belongs to the event loop that runs."""
        name, options = self.address(service), self._options()
        compression = COMPRESSION[self.compression]
        if not self.tls:
            return grpc.aio.insecure_channel(name, options=options, compression=compression)
        credentials = grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)
        return grpc.aio.secure_channel(name, credentials, options=options, compression=compression)

    def _options(self) -> list[tuple[str, str | int]]:
        options: list[tuple[str, str | int]] = [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.service_config", json.dumps({"loadBalancingConfig": [{self.load_balancing: {}}]})),
            ("grpc.service_config_disable_resolution", 1),
            # A call that fails is to be counted, not made again.
            ("grpc.enable_retries", 0),
            # A server that comes back is to be found soon.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            # Two channels with the same options would share one connection.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        return options


def read_pem(path: Path | None) -> bytes | None:
    """Returns the content of a PEM file.

    Raises:
        CommandError: it is not one.
    """
    if path is None:
        return None
    content = path.read_bytes()
    if b"-----BEGIN" not in content:
        raise CommandError(f"{path} is not a PEM file: it has no -----BEGIN line")
    return content

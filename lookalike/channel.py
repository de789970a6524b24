"""How this package connects: TLS, message size, keepalive, load balancing and retries."""

from __future__ import annotations

import json
from collections.abc import Sequence

import grpc
import grpc.aio

from lookalike.addresses import is_local
from lookalike.security import PLAINTEXT, Security

MAX_MESSAGE_BYTES = 64 << 20
KEEPALIVE_SECONDS = 20  # servers of this package accept it; by default they would close the connection after a while
# How long a ping may go without an answer. With gRPC 1.85 the keepalive timeout alone does not end a connection (its
# chttp2/transport/writing.cc never starts that timer): it would take a minute.
PING_TIMEOUT_OPTION = "grpc.http2.ping_timeout_ms"
_PING_TIMEOUT_SECONDS = 10  # a ping waits behind what a slow network has yet to take of a large message

_EMBEDDER = "lookalike.embedder.v1.EmbedderService"
_SEARCH = "lookalike.search.v1.SearchService"
# Sent twice, these fail the second time, and a retry would report a failure of what has been done; or they do it twice.
NOT_IDEMPOTENT = ("CreateCollection", "CreateCollectionVersion", "DeleteCollection")

_SERVICE_CONFIG = {
    # One connection to every address behind the name: a single one would pin a client to one server.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {"name": [{"service": _SEARCH, "method": method} for method in NOT_IDEMPOTENT]},
        {
            "name": [{"service": _EMBEDDER}, {"service": _SEARCH}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # The latter is for a call that reaches a server just when it stops.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        },
    ],
}


def connect(target: str, *, security: Security = PLAINTEXT, retry: bool = True) -> grpc.Channel:
    """Opens a channel to `target`, a gRPC name such as "127.0.0.1:50052" or "dns:///search:50052".

    Without `retry`, calls are left to their caller. What `security` says of a token is left to whoever makes calls.

    Raises:
        ValueError, OSError: see `Security`.
    """
    security.check(target)
    options = _options(MAX_MESSAGE_BYTES, retry=retry) + _security_options(target, security)
    credentials = security.credentials()
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def connect_aio(
    target: str,
    *,
    security: Security = PLAINTEXT,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    retry: bool = True,
) -> grpc.aio.Channel:
    """Opens a channel for asyncio to `target`, as `connect` does."""
    return open_aio(target, security, _options(max_message_bytes, retry=retry))


def open_aio(
    target: str,
    security: Security,
    options: Sequence[tuple[str, str | int]],
    compression: grpc.Compression | None = None,
) -> grpc.aio.Channel:
    """Opens a channel for asyncio with options of the caller's; raises as `connect` does."""
    security.check(target)
    options = [*options, *_security_options(target, security)]
    credentials = security.credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options, compression=compression)
    return grpc.aio.secure_channel(target, credentials, options=options, compression=compression)


def _options(max_message_bytes: int, *, retry: bool) -> list[tuple[str, str | int]]:
    config = _SERVICE_CONFIG if retry else {"loadBalancingConfig": _SERVICE_CONFIG["loadBalancingConfig"]}
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.service_config", json.dumps(config)),
        # The configuration above is the client's own; do not ask the DNS for another.
        ("grpc.service_config_disable_resolution", 1),
        # A call is retried only while its request fits in this buffer; batches of images exceed the default, 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
        # The default backs off to two minutes: calls would fail that long after a service is back.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A name is looked up again when a connection ends, but by default at most every 30 s.
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        # Notices a peer that is gone or hangs while calls wait for it: they fail, and others go to another address.
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", 5_000),
        (PING_TIMEOUT_OPTION, _PING_TIMEOUT_SECONDS * 1000),
    ]


def _security_options(target: str, security: Security) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = []
    if security.server_name:
        options.append(("grpc.ssl_target_name_override", security.server_name))
    if is_local(target):
        # What stays on this machine does not go through the proxy of the environment.
        options.append(("grpc.enable_http_proxy", 0))
    return options

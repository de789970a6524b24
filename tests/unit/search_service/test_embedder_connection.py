"""The search service's way to an embedder with mutual TLS and a token, whose files change."""

from __future__ import annotations

import os
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificate_authority import Authority
from embedding_server import EmbeddingServer

from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from lookalike.security import Security
from search_service.embedder_client import EmbedderClient
from search_service.records import VectorSpace
from service_kit.certificates import ServerCertificate
from service_kit.errors import FailedPrecondition


class Recording(EmbeddingServer):
    """Notes who calls, and answers no one without a token."""

    def __init__(self) -> None:
        super().__init__(VectorSpace("model", 4))
        self.callers: set[tuple[str, str]] = set()

    async def GetModel(self, request: Any, context: Any) -> embedder_pb2.GetModelResponse:  # noqa: N802
        token = dict(context.invocation_metadata()).get("authorization", "")
        if not token:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "show a token")
        [name] = context.auth_context()["x509_common_name"]
        self.callers.add((name.decode(), token))
        return await super().GetModel(request, context)


async def test_a_client_certificate_and_a_token_change_without_a_failed_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service_kit.reloading._SECONDS", 0.02)
    monkeypatch.setattr("lookalike.security._LOOK_SECONDS", 0.0)
    authority = Authority(tmp_path / "ca")
    own = authority.issue("server")
    one, two = authority.issue("one"), authority.issue("two")
    servicer, server = Recording(), grpc.aio.server()
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server)
    credentials = ServerCertificate(own.cert, own.key, authority.cert).credentials()
    target = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    await server.start()

    def put(name: str, content: bytes) -> None:
        (tmp_path / "next").write_bytes(content)
        os.replace(tmp_path / "next", tmp_path / name)

    put("cert", one.cert.read_bytes())
    put("key", one.key.read_bytes())
    put("token", b"first")
    security = Security(
        ca=authority.cert,
        client_cert=tmp_path / "cert",
        client_key=tmp_path / "key",
        token_file=tmp_path / "token",
    )
    deadline = time.monotonic() + 60
    async with aclosing(EmbedderClient(target, 1 << 20, security)) as client:
        await client.space(deadline)
        put("cert", two.cert.read_bytes())  # without its key for a moment, in which the old pair holds
        await client.space(deadline)
        put("key", two.key.read_bytes())
        put("token", b"second")
        while ("two", "Bearer second") not in servicer.callers:
            await client.space(deadline)
        assert {name for name, _ in servicer.callers} == {"one", "two"}

    nobody = Security(ca=authority.cert, client_cert=two.cert, client_key=two.key)
    async with aclosing(EmbedderClient(target, 1 << 20, nobody)) as client:
        # Not UNAUTHENTICATED: the caller of the search service has done nothing wrong.
        with pytest.raises(FailedPrecondition, match=r"embedder at .*: show a token"):
            await client.space(deadline)
    await server.stop(None)


async def test_files_and_addresses_that_are_not_what_they_should_be_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    for security, reason in (
        (Security(token_file=tmp_path / "none"), "No such file"),
        (Security(ca=tmp_path / "none"), "No such file"),
        (Security(ca=tmp_path / "token"), "not a PEM file"),
        (Security(token_file=tmp_path / "token"), "unencrypted"),
    ):
        with pytest.raises(FailedPrecondition, match=reason):
            EmbedderClient("embedder:50051", 1 << 20, security)

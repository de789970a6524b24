"""TLS of a real server on loopback: who is let in, where plaintext is served, and certificates that change."""

import asyncio
import ssl

import grpc
import pytest
from certificate_authority import Authority
from prometheus_client import REGISTRY
from running_server import free_port, ready
from small_server import ACCESS, SERVICE, SmallServicer

from lookalike.channel import connect_aio
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from lookalike.security import Security
from service_kit.certificates import expiry
from service_kit.errors import FailedPrecondition
from service_kit.server import Server
from service_kit.settings import ServerSettings

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="module")
def server(authority):
    return authority.issue("server")


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr("service_kit.reloading._SECONDS", 0.02)


def showing(authority, pair=None):
    return Security(ca=authority.cert, client_cert=pair and pair.cert, client_key=pair and pair.key)


async def answer(address, security):
    """Returns the code of one call on a connection of its own."""
    async with connect_aio(address, security=security, retry=False) as channel:
        try:
            await embedder_pb2_grpc.EmbedderServiceStub(channel).GetModel(embedder_pb2.GetModelRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def plaintext(address, **settings):
    return Server(ServerSettings(address=address, **settings), ACCESS)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", ":0", "10.0.0.1:0", "host:0", "dns:///host:0"])
async def test_without_tls_only_this_machine_is_served(address):
    with pytest.raises(FailedPrecondition, match=r"without TLS: .* --tls-cert .* --insecure"):
        plaintext(address)
    await plaintext(address, insecure=True).grpc.stop(None)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0", "127.9.9.9:0", "unix:/run/some.sock"])
async def test_without_tls_this_machine_is_served(address):
    await plaintext(address).grpc.stop(None)


async def test_a_unix_socket_is_served(tmp_path):
    address = f"unix:{tmp_path}/small.sock"
    server = plaintext(address, address_file=tmp_path / "addresses", drain_delay=0.0)
    servicer = SmallServicer(asyncio.Event().wait, server.fail)
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server.grpc)
    running = asyncio.create_task(server.run([SERVICE], ready))
    async with connect_aio(address, retry=False) as channel:
        await embedder_pb2_grpc.EmbedderServiceStub(channel).GetModel(
            embedder_pb2.GetModelRequest(), wait_for_ready=True, timeout=10
        )
    server._stopping.set()
    assert await running == 0


async def test_with_tls_a_client_checks_the_server_and_plaintext_gets_nowhere(start, authority, other, server):
    async with start(security=showing(authority), tls_cert=server.cert, tls_key=server.key) as running:
        await running.embed(b"ok")
        port = running.address.rpartition(":")[2]
        assert await answer(f"localhost:{port}", showing(authority)) is grpc.StatusCode.OK
        named = Security(ca=authority.cert, server_name="another.test")
        for wrong in (Security(), showing(other), named, Security(tls=True)):
            assert await answer(running.address, wrong) is UNAVAILABLE
        for right in (Security(ca=authority.cert, server_name="localhost"),):
            assert await answer(running.address, right) is grpc.StatusCode.OK


async def test_with_mutual_tls_a_client_shows_a_certificate_of_the_authority(start, authority, other, server):
    client = authority.issue("client")
    settings = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": authority.cert}
    async with start(security=showing(authority, client), **settings) as running:
        await running.embed(b"ok")
        for wrong in (None, other.issue("stranger"), authority.issue("expired", days=-1)):
            assert await answer(running.address, showing(authority, wrong)) is UNAVAILABLE


def test_files_that_cannot_be_served_are_told_what_is_wrong(authority, server, tmp_path):
    expired = authority.issue("old", days=-1)
    for settings, reason in (
        ({"tls_cert": server.cert}, "give --tls-cert and --tls-key"),
        ({"tls_client_ca": authority.cert}, "give --tls-cert and --tls-key"),
        ({"tls_cert": server.cert, "tls_key": tmp_path / "none"}, "none, cannot be read: No such file"),
        ({"tls_cert": server.cert, "tls_key": expired.key}, "belong together"),
        ({"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": server.key}, "cannot be used"),
        ({"tls_cert": expired.cert, "tls_key": expired.key}, "the certificate expired on"),
    ):
        with pytest.raises(FailedPrecondition, match=reason):
            plaintext("127.0.0.1:0", **settings)


def gauge(name, **labels):
    return REGISTRY.get_sample_value(name, labels)


async def shown(address):
    """Returns the certificate that a server shows now."""
    host, _, port = address.rpartition(":")
    return (await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))).strip()


async def test_a_certificate_changes_under_load_without_a_failed_call(start, authority, tmp_path, caplog):
    # As Kubernetes mounts a secret: the files are links through a directory that is replaced as a whole.
    issued = [authority.issue(f"server-{number}", days=number + 2) for number in range(3)]
    for number, pair in enumerate(issued):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "tls.crt").write_bytes(pair.cert.read_bytes())
        (tmp_path / str(number) / "tls.key").write_bytes(pair.key.read_bytes())
    current = tmp_path / "current"
    current.symlink_to("0")

    def switch(number):
        (tmp_path / "next").symlink_to(str(number))
        (tmp_path / "next").replace(current)

    settings = {"tls_cert": current / "tls.crt", "tls_key": current / "tls.key"}
    async with start(security=showing(authority), **settings) as running:
        ended, codes = asyncio.Event(), []

        async def load():
            while not ended.is_set():
                codes.append(await answer(running.address, showing(authority)))
                await running.embed(b"ok")

        callers = [asyncio.create_task(load()) for _ in range(2)]
        for number in (1, 2, 0):
            switch(number)
            async with asyncio.timeout(30):
                while await shown(running.address) != issued[number].cert.read_text().strip():
                    pass
            end = gauge("tls_certificate_expiry_timestamp_seconds", certificate="server")
            assert end == expiry(issued[number].cert.read_bytes())
        (tmp_path / "1" / "tls.key").write_text("broken")
        switch(1)
        while gauge("server_reload_successful", files="certificate"):
            assert await answer(running.address, showing(authority)) is grpc.StatusCode.OK  # the old one holds
        assert "files are broken" in caplog.text
        switch(2)
        while not gauge("server_reload_successful", files="certificate"):
            assert await answer(running.address, showing(authority)) is grpc.StatusCode.OK
        ended.set()
        await asyncio.gather(*callers)
        assert set(codes) == {grpc.StatusCode.OK}


async def test_health_checks_have_a_port_without_tls(start, authority, server):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    apart = f"127.0.0.1:{free_port()}"
    settings = {"tls_cert": server.cert, "tls_key": server.key, "health_address": apart}
    async with start(security=showing(authority), **settings), grpc.aio.insecure_channel(apart) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING

"""Who may call a real server on loopback: tokens, roles, and tenants in every message."""

import hashlib
import logging

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import REGISTRY
from running_server import code_of
from small_server import SERVICE

from lookalike.embedder.v1 import embedder_pb2
from lookalike.search.v1 import search_pb2
from service_kit import tokens
from service_kit.access import MethodAccess, Needs
from service_kit.errors import FailedPrecondition, PermissionDenied
from service_kit.identity import Identity, Role
from service_kit.tokens import Tokens

SEARCH = "lookalike.search.v1.SearchService"
ACCESS = {
    SERVICE: {
        "GetModel": Needs(Role.READ, shared=True),
        "Embed": Needs(Role.WRITE, shared=True),
        "EmbedBatch": Needs(Role.READ),
    }
}
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr("service_kit.reloading._SECONDS", 0.02)


@pytest.fixture
def file(tmp_path):
    """A file of the tokens "secret-NAME" of a reader, a writer, an admin, and a writer of the tenant acme."""
    path = tmp_path / "tokens.toml"
    path.write_text(
        tokens.entry("secret-reader", "reader", Role.READ)
        + tokens.entry("secret-writer", "writer", Role.WRITE)
        + tokens.entry("secret-admin", "admin", Role.ADMIN)
        + tokens.entry("secret-acme", "acme", Role.WRITE, ["acme"])
    )
    return path


def shown(token):
    return (("authorization", f"Bearer {token}"),)


def sample(method, code):
    labels = {"grpc_service": SERVICE, "grpc_method": method, "grpc_code": code}
    return REGISTRY.get_sample_value("grpc_server_handled_total", labels) or 0.0


async def test_a_call_takes_a_token_that_the_server_knows_and_refused_ones_are_counted(start, file):
    before = sample("GetModel", "Unauthenticated")
    async with start(tokens=file, access=ACCESS) as running:
        ask = running.stub.GetModel
        request = embedder_pb2.GetModelRequest()
        for metadata in (None, shown("wrong"), shown(""), (("authorization", "Basic secret-reader"),)):
            error = await code_of(ask(request, metadata=metadata))
            assert error.code() is UNAUTHENTICATED
            assert "secret" not in error.details()
        for name in ("reader", "writer", "admin", "acme"):
            await ask(request, metadata=shown(f"secret-{name}"))
        await ask(request, metadata=(("authorization", "bearer secret-reader"),))
    assert sample("GetModel", "Unauthenticated") == before + 4


async def test_a_call_takes_the_role_of_its_method(start, file):
    before = sample("Embed", "PermissionDenied")
    async with start(tokens=file, access=ACCESS) as running:
        error = await code_of(running.call(b"ok", metadata=shown("secret-reader")))
        assert error.code() is DENIED
        assert error.details() == "Embed takes the role write, and 'reader' has the role read"
        for name in ("writer", "admin", "acme"):
            await running.call(b"ok", metadata=shown(f"secret-{name}"))
    assert sample("Embed", "PermissionDenied") == before + 1


async def test_a_method_without_a_tenant_is_closed_to_those_bound_to_some_unless_it_is_shared(start, file):
    async with start(tokens=file, access=ACCESS) as running:
        request = embedder_pb2.EmbedBatchRequest()
        error = await code_of(running.stub.EmbedBatch(request, metadata=shown("secret-acme")))
        assert error.code() is DENIED
        assert "concerns all tenants" in error.details()
        await running.stub.EmbedBatch(request, metadata=shown("secret-reader"))


@pytest.mark.parametrize("asking", [True, False])
async def test_a_method_without_a_role_is_refused_to_everybody(start, file, asking):
    async with start(tokens=file if asking else None, access=ACCESS) as running:
        stream = running.stub.EmbedStream(iter([]), metadata=shown("secret-admin"))
        error = await code_of(stream.read())
        assert error.code() is DENIED
        assert "no role is declared" in error.details()


async def test_health_is_open_and_reflection_takes_any_token(start, file):
    async with start(tokens=file, access=ACCESS) as running:
        await running.health.Check(health_pb2.HealthCheckRequest())
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        error = await code_of(running.reflection.ServerReflectionInfo(iter([request])).read())
        assert error.code() is UNAUTHENTICATED
        reply = await running.reflection.ServerReflectionInfo(iter([request]), metadata=shown("secret-acme")).read()
        assert reply.list_services_response.service


async def test_refused_calls_take_no_place(start, file):
    async with start(tokens=file, access=ACCESS, max_concurrent_rpcs=1) as running:
        held = running.call(b"hold", metadata=shown("secret-writer"))
        await running.servicer.holding.wait()
        assert (await code_of(running.call(b"ok"))).code() is UNAUTHENTICATED
        running.release.set()
        await held


async def test_the_log_names_who_calls_and_never_a_token(start, file, caplog):
    caplog.set_level(logging.DEBUG)
    async with start(tokens=file, access=ACCESS, slow_call=0.0, log_level="DEBUG") as running:
        await running.call(b"ok", metadata=shown("secret-writer"))
        await code_of(running.call(b"ok", metadata=shown("secret-wrong")))
    named = [record.fields["identity"] for record in caplog.records if record.getMessage() == "call ended"]
    assert {"writer", "unknown"} <= set(named)
    assert not [
        record for record in caplog.records if record.name.startswith("service_kit") and "secret" in str(vars(record))
    ]


def reloaded(files):
    return REGISTRY.get_sample_value("server_reload_successful", {"files": files}) == 1


async def test_tokens_are_added_and_withdrawn_while_the_server_runs(start, file, caplog):
    async with start(tokens=file, access=ACCESS) as running:

        async def until(code, token):
            while True:
                try:
                    await running.call(b"ok", metadata=shown(token))
                    found = grpc.StatusCode.OK
                except grpc.aio.AioRpcError as error:
                    found = error.code()
                if found is code:
                    return

        await until(UNAUTHENTICATED, "secret-new")
        whole = file.read_text()
        file.write_text(whole + tokens.entry("secret-new", "new", Role.WRITE))
        await until(grpc.StatusCode.OK, "secret-new")
        file.write_text("[[token]]\nname = 'broken'\n")
        while reloaded("tokens"):
            await running.call(b"ok", metadata=shown("secret-new"))  # the old ones hold
        assert "files are broken" in caplog.text
        file.write_text(whole)
        await until(UNAUTHENTICATED, "secret-new")
        await until(grpc.StatusCode.OK, "secret-writer")
    assert reloaded("tokens")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "at least one"),
        ("[[token]", "no TOML"),
        ("[token]", "at least one"),
        ("other = 1", "at least one"),
        ("[[token]]\nrole='read'", "entry 1 has no name"),
        ("[[token]]\nname='a b'", "entry 1 has no name"),
        ("[[token]]\nname='a'\nsha256='1'", "no sha256"),
        (f"[[token]]\nname='a'\nsha256='{'0' * 64}'\nrole='root'", "'root', which is none of read, write, admin"),
        (f"[[token]]\nname='a'\nsha256='{'0' * 64}'\nrole='read'\ntenants=[]", "leave them out"),
        (f"[[token]]\nname='a'\nsha256='{'0' * 64}'\nrole='read'\ntenants=['']", "leave them out"),
        (f"[[token]]\nname='a'\nsha256='{'0' * 64}'\nrole='admin'\ntenants=['b']", "concerns all"),
        (f"[[token]]\nname='a'\nsha256='{'0' * 64}'\nrole='read'\ntenant=['b']", "unknown fields tenant"),
    ],
)
def test_a_file_of_tokens_that_is_none_is_told_what_is_wrong(text, reason):
    with pytest.raises(FailedPrecondition, match=reason):
        Tokens.parse(text.encode())


def test_a_file_of_tokens_holds_hashes():
    token = tokens.new_token()
    entry = tokens.entry(token, "reader", Role.READ)
    assert token not in entry
    assert hashlib.sha256(token.encode()).hexdigest() in entry
    assert Tokens.parse(entry.encode()).identify(shown(token)) == Identity("reader", Role.READ)
    assert tokens.new_token() != token


def checks(method, tenants=("acme",)):
    access = MethodAccess(SEARCH, method, Needs(Role.READ))
    caller = Identity("somebody", Role.WRITE, None if tenants is None else frozenset(tenants))
    return lambda message, **begun: access.check(message, caller, **begun)


def test_a_message_may_name_a_tenant_of_the_callers_alone():
    check = checks("Count")
    check(search_pb2.CountRequest(tenant="acme"))
    for tenant in ("", "other", "ACME", "acme "):
        with pytest.raises(PermissionDenied):
            check(search_pb2.CountRequest(tenant=tenant))
    for tenant in ("", "other"):
        checks("Count", None)(search_pb2.CountRequest(tenant=tenant))


def test_all_tenants_are_for_those_who_are_bound_to_none():
    for tenant in ("", "acme"):
        with pytest.raises(PermissionDenied, match="all tenants"):
            checks("Scan")(search_pb2.ScanRequest(all_tenants=True, tenant=tenant))
    checks("Scan", None)(search_pb2.ScanRequest(all_tenants=True))


def test_a_stream_that_has_begun_may_leave_the_tenant_out_and_not_change_to_another_one():
    check = checks("UpsertStream")
    with pytest.raises(PermissionDenied):
        check(search_pb2.UpsertStreamRequest())
    check(search_pb2.UpsertStreamRequest(), begun=True)
    with pytest.raises(PermissionDenied):
        check(search_pb2.UpsertStreamRequest(tenant="other"), begun=True)


def test_the_tenant_of_a_request_is_a_field_of_its_own():
    """The check looks nowhere else: a tenant deeper in a request would go unseen."""

    def deeper(message, seen):
        for field in message.fields:
            if field.message_type and field.message_type.full_name not in seen:
                seen.add(field.message_type.full_name)
                assert {"tenant", "tenants", "all_tenants"}.isdisjoint(field.message_type.fields_by_name)
                deeper(field.message_type, seen)

    methods = descriptor_pool.Default().FindServiceByName(SEARCH).methods
    for method in methods:
        deeper(method.input_type, set())
    assert methods

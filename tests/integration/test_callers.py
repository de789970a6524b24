"""Both services as processes with TLS, mutual TLS between them, and tokens: who may do what, and what is rotated."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificate_authority import Authority, Pair
from deploy_tools import ROOT, tool
from google.protobuf.message_factory import GetMessageClass
from waiting import until

from embedder_service.rpc import ACCESS as EMBEDDER_ACCESS
from lookalike import Client, EmbedderClient, Embedding, Item, LookalikeError, Security, VectorSpace
from lookalike.channel import connect
from lookalike.embedder.v1 import embedder_pb2
from lookalike.search.v1 import search_pb2
from search_service.rpc import ACCESS as SEARCH_ACCESS
from service_kit import tokens
from service_kit.identity import Role
from workbench.demo_images import DemoImages
from workbench.services import ANY_PORT, ServerProcess

SERVICES = [
    embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"],
    search_pb2.DESCRIPTOR.services_by_name["SearchService"],
]
METHODS = [pytest.param(method, id=method.full_name) for service in SERVICES for method in service.methods]
ACCESS = {**EMBEDDER_ACCESS, **SEARCH_ACCESS}
HERE = "DNS:localhost,IP:127.0.0.1"
GATEWAY = ROOT / "deploy" / "k8s" / "components" / "tls"
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
ENTRIES = (
    tokens.entry("token-of-read", "reader", Role.READ)
    + tokens.entry("token-of-write", "writer", Role.WRITE)
    + tokens.entry("token-of-admin", "admin", Role.ADMIN)
    + tokens.entry("token-of-acme", "acme", Role.WRITE, ["acme"])
    + tokens.entry("token-of-search", "search-service", Role.READ)
)


def put(file: Path, content: bytes | str) -> None:
    """Replaces a file at once."""
    new = file.with_name(f"{file.name}.new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(new, file)


@dataclass(frozen=True)
class Secured:
    """Both services, and where their secrets are."""

    folder: Path
    authority: Authority
    client: Pair
    embedder: str
    search: str
    search_health: str

    def security(self, token: str = "", **options: Any) -> Security:
        """What a caller with a token shows; to the embedder it has to show a certificate, too."""
        shown = Security(ca=self.authority.cert, client_cert=self.client.cert, client_key=self.client.key, token=token)
        return replace(shown, **options)

    def caller(self, role: str) -> Client:
        return Client(self.search, security=self.security(f"token-of-{role}"), retry=False)

    def address(self, method: Any) -> str:
        return self.embedder if method.containing_service.name == "EmbedderService" else self.search


@pytest.fixture(scope="module")
def secured(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "ca")
    own = authority.issue("server", names=f"{HERE},DNS:search-headless")
    client = authority.issue("client")
    for name in ("embedder", "search"):
        put(folder / f"{name}.crt", own.cert.read_bytes())
        put(folder / f"{name}.key", own.key.read_bytes())
        put(folder / f"{name}.tokens", ENTRIES)
    put(folder / "embedder-token", "token-of-search")

    def flags(name: str) -> list[str]:
        return [
            *("--address", ANY_PORT, "--metrics-address", ANY_PORT, "--health-address", ANY_PORT),
            *("--tls-cert", f"{folder}/{name}.crt", "--tls-key", f"{folder}/{name}.key"),
            *("--tokens", f"{folder}/{name}.tokens", "--log-level", "DEBUG"),
        ]

    with ExitStack() as stack:
        embedder_flags = [*flags("embedder"), "--bundle", str(bundle), "--tls-client-ca", str(authority.cert)]
        embedder = stack.enter_context(ServerProcess("embedder", "embedder_service.main", embedder_flags, folder))
        search_flags = [
            *flags("search"),
            *("--milvus-uri", str(folder / "milvus.db"), "--embedder", embedder.addresses.grpc),
            *("--embedder-ca", str(authority.cert), "--embedder-token-file", f"{folder}/embedder-token"),
            *("--embedder-client-cert", str(client.cert), "--embedder-client-key", str(client.key)),
        ]
        search = stack.enter_context(ServerProcess("search", "search_service.main", search_flags, folder))
        addresses = search.addresses
        assert addresses.health
        yield Secured(folder, authority, client, embedder.addresses.grpc, addresses.grpc, addresses.health)


Ask = Callable[..., grpc.StatusCode]


@pytest.fixture(scope="module")
def ask(secured: Secured) -> Iterator[Ask]:
    """Calls any method with a message and returns the code."""
    with ExitStack() as stack:
        channels = {
            address: stack.enter_context(connect(address, security=secured.security(), retry=False))
            for address in (secured.embedder, secured.search)
        }

        def call(method: Any, message: Any, token: str | None) -> grpc.StatusCode:
            kinds = [
                "stream" if streaming else "unary" for streaming in (method.client_streaming, method.server_streaming)
            ]
            path = f"/{method.containing_service.full_name}/{method.name}"
            serialize = GetMessageClass(method.input_type).SerializeToString
            rpc = getattr(channels[secured.address(method)], "_".join(kinds))(path, request_serializer=serialize)
            metadata = None if token is None else (("authorization", f"Bearer {token}"),)
            try:
                reply = rpc(iter([message]) if method.client_streaming else message, metadata=metadata, timeout=60)
                if method.server_streaming:
                    list(reply)
            except grpc.RpcError as error:
                code: grpc.StatusCode = error.code()
                return code
            return grpc.StatusCode.OK

        yield call


def request(method: Any, **fields: Any) -> Any:
    """A request that names no collection there could be, so that whoever may send it harms nothing."""
    message = GetMessageClass(method.input_type)
    names = {name: "not__there" for name in ("name", "collection") if name in method.input_type.fields_by_name}
    return message(**names, **fields)


@pytest.mark.parametrize("method", METHODS)
def test_every_call_takes_a_token_and_the_role_of_its_method(ask: Ask, method: Any) -> None:
    needs = ACCESS[method.containing_service.full_name][method.name]  # each has one, or nobody could call it
    for token in (None, "", "wrong", "token-of-rea"):
        assert ask(method, request(method), token) is UNAUTHENTICATED
    for role in Role:
        code = ask(method, request(method), f"token-of-{role.name.lower()}")
        if role < needs.role:
            assert code is DENIED
        else:
            assert code not in (DENIED, UNAUTHENTICATED)


@pytest.mark.parametrize("method", METHODS)
def test_every_call_keeps_those_bound_to_a_tenant_to_it(ask: Ask, method: Any) -> None:
    needs = ACCESS[method.containing_service.full_name][method.name]
    fields = method.input_type.fields_by_name
    may = needs.role <= Role.WRITE and ("tenant" in fields or needs.shared)
    own = {"tenant": "acme"} if "tenant" in fields else {}
    assert (ask(method, request(method, **own), "token-of-acme") is DENIED) is not may
    if "tenant" in fields:
        for tenant in ("", "other"):
            assert ask(method, request(method, tenant=tenant), "token-of-acme") is DENIED
    if "all_tenants" in fields:
        assert ask(method, request(method, all_tenants=True), "token-of-acme") is DENIED


def test_the_roles_are_these() -> None:
    """Written down a second time, so that a role is not widened by the way."""
    roles = {name: needs.role for access in ACCESS.values() for name, needs in access.items()}
    writes = {"Upsert", "UpsertStream", "Delete"}
    admins = {name for name in roles if name.endswith(("Collection", "Version"))} - {"DescribeCollection"}
    assert {name for name, role in roles.items() if role is Role.WRITE} == writes
    assert {name for name, role in roles.items() if role is Role.ADMIN} == admins
    assert len(admins) == 5
    methods = {method.values[0].name for method in METHODS}
    assert methods == roles.keys()


def point(*values: float) -> Embedding:
    return Embedding(values, "mine")


def refused(call: Callable[[], Any], code: grpc.StatusCode = DENIED) -> None:
    with pytest.raises(LookalikeError) as caught:
        call()
    assert caught.value.code is code, caught.value
    assert "token-of" not in caught.value.message


def test_one_bound_to_a_tenant_works_on_its_rows_and_learns_nothing_of_others(secured: Secured) -> None:
    space = VectorSpace("mine", 4)
    with secured.caller("admin") as admin, secured.caller("acme") as acme:
        admin.create_collection("shared", space=space, multi_tenant=True)
        admin.create_collection("plain", space=space)
        admin.upsert("plain", [Item("a", vector=point(1, 0, 0, 0))])
        for tenant in ("acme", "other"):
            admin.upsert("shared", [Item(f"of-{tenant}", vector=point(1, 0, 0, 0))], tenant=tenant)
        acme.upsert("shared", [Item("mine", vector=point(1, 1, 0, 0))], tenant="acme")
        assert sorted(record.id for record in acme.scan("shared", tenant="acme")) == ["mine", "of-acme"]
        found = acme.search("shared", vector=point(1, 0, 0, 0), tenant="acme", read_your_writes=True)
        assert sorted(found.hits.ids) == ["mine", "of-acme"]
        for tenant in ("other", ""):
            refused(lambda tenant=tenant: acme.search("shared", vector=point(1, 0, 0, 0), tenant=tenant))
            refused(lambda tenant=tenant: acme.delete("shared", ids=["of-other"], tenant=tenant))
        refused(lambda: list(acme.scan("shared", all_tenants=True)))
        refused(lambda: acme.create_collection("another"))
        assert acme.create_collection("shared", if_not_exists=True).name == "shared"
        refused(lambda: acme.create_collection("another", if_not_exists=True), grpc.StatusCode.NOT_FOUND)
        refused(lambda: acme.delete_collection("shared"))
        refused(lambda: acme.count("plain"))
        refused(lambda: acme.describe_collection("plain"))
        assert [each.name for each in acme.list_collections()] == ["shared"]
        [version] = acme.describe_collection("shared").collection.versions
        assert (version.row_count, version.indexed_row_count, version.memory_bytes) == (0, None, None)
        assert version.space == space
        assert {each.name for each in admin.list_collections()} == {"shared", "plain"}
        assert admin.count("shared", tenant="other") == 1

        # A stream that turns to another tenant on its way.
        stub = acme._stub
        items = [
            search_pb2.UpsertItem(id=name, vector=search_pb2.Vector(values=[1, 0, 0, 0], model_fingerprint="mine"))
            for name in "xyz"
        ]
        messages = [
            search_pb2.UpsertStreamRequest(collection="shared", tenant="acme", sequence=0, item=items[0]),
            search_pb2.UpsertStreamRequest(sequence=1, item=items[1]),
            search_pb2.UpsertStreamRequest(tenant="other", sequence=2, item=items[2]),
        ]
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.UpsertStream(iter(messages), metadata=acme._metadata(), timeout=60))
        assert caught.value.code() is DENIED
        assert admin.count("shared", tenant="other") == 1
        assert len(list(stub.UpsertStream(iter(messages[:2]), metadata=acme._metadata(), timeout=60))) == 2
        for name in ("shared", "plain"):
            admin.delete_collection(name)


def test_without_tls_or_the_right_certificate_nobody_gets_in(secured: Secured, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger").issue("client")
    nothing = Security(ca=secured.authority.cert)
    for address, security in (
        (secured.search, Security()),
        (secured.embedder, Security()),
        (secured.embedder, nothing),
        (secured.embedder, replace(nothing, client_cert=stranger.cert, client_key=stranger.key)),
    ):
        with EmbedderClient(address, security=security, retry=False, timeout=20) as client:
            refused(client.get_model, grpc.StatusCode.UNAVAILABLE)


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment)


def test_commands_take_tls_and_a_token_by_flags_and_variables(secured: Secured, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token-of-read\n")
    ca = str(secured.authority.cert)
    listing = ["workbench.main", "collections", "list", "--target", secured.search]
    done = command(*listing, "--ca", ca, "--token-file", str(tmp_path / "token"))
    assert done.returncode == 0, done.stderr
    done = command(*listing, LOOKALIKE_CA=ca, LOOKALIKE_TOKEN="token-of-read")
    assert done.returncode == 0, done.stderr
    done = command(*listing, "--ca", ca)
    assert (done.returncode, "UNAUTHENTICATED" in done.stderr) == (1, True)
    done = command(*listing[:-1], "search.test:50052", LOOKALIKE_TOKEN="token-of-read")
    assert (done.returncode, "would go to search.test:50052 unencrypted" in done.stderr) == (1, True)
    assert "token-of" not in done.stdout + done.stderr


def test_an_ingest_takes_no_more_than_the_role_write_and_its_tenant(
    secured: Secured, demo_images: DemoImages, tmp_path: Path
) -> None:
    (tmp_path / "cat.jpg").write_bytes(demo_images.queries[0].read_bytes())
    with secured.caller("admin") as admin:
        admin.create_collection("albums", multi_tenant=True)
        ingest = ["workbench.main", "ingest", str(tmp_path), "--collection", "albums", "--target", secured.search]
        variables = {"LOOKALIKE_CA": str(secured.authority.cert), "LOOKALIKE_TOKEN": "token-of-acme"}
        done = command(*ingest, "--tenant", "acme", **variables)
        assert done.returncode == 0, done.stderr
        assert admin.count("albums", tenant="acme") == 1
        done = command(*ingest, "--tenant", "other", **variables)
        assert (done.returncode, "PERMISSION_DENIED" in done.stdout + done.stderr) == (1, True)
        admin.delete_collection("albums")


def test_a_server_does_not_serve_others_in_plaintext(tmp_path: Path) -> None:
    database = ["--milvus-uri", str(tmp_path / "milvus.db")]
    done = command("search_service.main", "--address", "0.0.0.0:0", "--metrics-address", ANY_PORT, *database)
    assert done.returncode == 1
    assert "cannot serve on 0.0.0.0:0 without TLS" in done.stderr


def test_the_gateway_of_kubernetes_goes_on_by_tls_and_asks_for_health_in_plaintext(
    secured: Secured, tmp_path: Path
) -> None:
    search, health = (address.rpartition(":")[2] for address in (secured.search, secured.search_health))
    pair = secured.authority.issue("gateway", names=HERE)
    (tmp_path / "tls.crt").write_bytes(pair.cert.read_bytes())
    (tmp_path / "tls.key").write_bytes(pair.key.read_bytes())
    (tmp_path / "ca.crt").write_bytes(secured.authority.cert.read_bytes())
    for file in ("envoy.yaml", "sds.yaml", "sds-internal.yaml"):
        text = (GATEWAY / file).read_text()
        for old in ("/etc/envoy", "/run/secrets/tls", "/run/secrets/internal"):
            text = text.replace(old, str(tmp_path))
        text = re.sub(r"port_value: (?:8443|9103|9901)\n", "port_value: 0\n", text)  # any free ones
        text = text.replace("address: search-headless", "address: 127.0.0.1").replace("50052", search)
        (tmp_path / file).write_text(text.replace("50062", health))
    admin = tmp_path / "admin"
    flags = ["--config-path", tmp_path / "envoy.yaml", "--admin-address-path", admin, "--use-dynamic-base-id"]
    with (tmp_path / "log").open("wb") as log:
        envoy = subprocess.Popen([tool("envoy"), *flags], stderr=log, cwd=tmp_path)

    def asked(path: str) -> str:
        return urllib.request.urlopen(f"http://{admin.read_text()}{path}", timeout=10).read().decode()

    try:
        until(lambda: admin.exists() and admin.read_text())
        until(lambda: asked("/stats?filter=^cluster.search.membership_healthy$").strip().endswith(" 1"))
        [port] = re.findall(r"^search::\S+:(\d+)$", asked("/listeners"), re.MULTILINE)
        security = Security(ca=secured.authority.cert, token="token-of-read")
        with Client(f"127.0.0.1:{port}", security=security) as client:
            assert client.list_collections() == []
        with Client(f"127.0.0.1:{port}", security=replace(security, token="")) as nobody:
            refused(nobody.list_collections, UNAUTHENTICATED)
    finally:
        envoy.terminate()
        envoy.wait()


def test_everything_is_rotated_under_load_without_a_failed_call(secured: Secured, demo_images: DemoImages) -> None:
    folder, image = secured.folder, demo_images.queries[0].read_bytes()
    put(folder / "caller-token", "token-of-write")
    security = secured.security(token_file=folder / "caller-token")
    ended = threading.Event()
    failures: list[Exception] = []
    calls: list[int] = []
    with secured.caller("admin") as admin:
        admin.create_collection("photos")
        admin.upsert("photos", [Item("a", image=image)])

    def load(steady: Client | None) -> None:
        """Searches by an image, which takes the embedder; on one connection, or each time on a new one."""
        done = 0
        while not ended.is_set() and not failures:
            try:
                if steady is not None:
                    steady.search("photos", image=image)
                else:
                    with Client(secured.search, security=security, retry=False) as client:
                        client.search("photos", image=image)
                done += 1
            except Exception as error:
                failures.append(error)
        calls.append(done)

    def shown(address: str) -> str:
        host, _, port = address.rpartition(":")
        return ssl.get_server_certificate((host, int(port))).strip()

    def is_refused(name: str, token: str) -> bool:
        options: Any = {"security": secured.security(token), "retry": False}
        try:
            if name == "search":
                with Client(secured.search, **options) as client:
                    client.list_collections()
            else:
                with EmbedderClient(secured.embedder, **options) as embedder:
                    embedder.get_model()
        except LookalikeError as error:
            return error.code is UNAUTHENTICATED
        return False

    new = secured.authority.issue("new-server", names=HERE)
    with Client(secured.search, security=security, retry=False) as steady:
        threads = [threading.Thread(target=load, args=(client,)) for client in (steady, None)]
        for thread in threads:
            thread.start()
        try:
            for name, address in (("search", secured.search), ("embedder", secured.embedder)):
                put(folder / f"{name}.crt", new.cert.read_bytes())
                put(folder / f"{name}.key", new.key.read_bytes())
                while shown(address) != new.cert.read_text().strip():
                    assert not failures, failures
            # A token: the new one is let in, then shown, and then the old one is withdrawn.
            for name in ("embedder", "search"):
                more = tokens.entry(f"new-of-{name}", f"new-{name}", Role.READ)
                put(folder / f"{name}.tokens", ENTRIES + more)
                while is_refused(name, f"new-of-{name}"):
                    assert not failures, failures
            put(folder / "embedder-token", "new-of-embedder")
            put(folder / "caller-token", "new-of-search")
            log = folder / "embedder.log"
            while "method=EmbedBatch code=OK identity=new-embedder" not in log.read_text():
                assert not failures, failures
            while "new-of-search" not in str(steady._metadata()):
                assert not failures, failures
            for name, old in (("embedder", "token-of-search"), ("search", "token-of-write")):
                put(folder / f"{name}.tokens", tokens.entry(f"new-of-{name}", f"new-{name}", Role.READ))
                while not is_refused(name, old):
                    assert not failures, failures
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        steady.search("photos", image=image)
    assert not failures
    assert min(calls) > 3
    for name in ("embedder", "search"):
        text = (folder / f"{name}.log").read_text()
        assert "identity=" in text
        assert "token-of" not in text
        assert "new-of" not in text

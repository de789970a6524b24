"""Tokens and TLS: what is refused before connecting, and what a real Milvus with users and mutual TLS takes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from milvus_samples import SPACE, make_rows, within

from benchmarks.milvus_server import MilvusServer, why_not
from search_service.milvus_security import Security
from search_service.store import MilvusStore
from service_kit.errors import FailedPrecondition

HTTPS = "https://milvus.test:19530"
TOKEN = "root:Milvus"  # that of a new server


def refused(options: dict[str, Any], uri: str = HTTPS) -> str:
    with pytest.raises(FailedPrecondition) as caught:
        Security(**options).options(uri)
    return caught.value.message


def loaded(**options: Any) -> Security:
    nothing = {"token": "", "token_file": None, "ca": None, "client_cert": None, "client_key": None}
    return Security.of(**{**nothing, "server_name": "", **options})


def test_a_token_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("user:secret\n")
    security = loaded(token_file=file)
    assert security.options(HTTPS) == {"token": "user:secret"}
    assert "secret" not in repr(security)


def test_a_token_that_cannot_be_had_is_said_so(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(FailedPrecondition, match="cannot be read: No such file"):
        loaded(token_file=file)
    file.write_text("\n")
    with pytest.raises(FailedPrecondition, match="is empty"):
        loaded(token_file=file)
    with pytest.raises(FailedPrecondition, match="give one of them"):
        loaded(token_file=file, token="user:secret")


def test_options_that_would_have_no_effect_are_refused(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.touch()
    assert "https" in refused({"ca": pem}, "http://127.0.0.1:19530")
    assert "https" in refused({"server_name": "milvus"}, "var/milvus.db")
    assert "give both" in refused({"ca": pem, "client_cert": pem})
    assert "no CA" in refused({"client_cert": pem, "client_key": pem})
    assert "cannot be read" in refused({"ca": tmp_path / "none.pem"})
    assert "give a token" in refused({}, "https://user:secret@milvus.test:19530")


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, another CA, and certificates of the first one, for the name milvus.test and for a client."""
    folder = tmp_path_factory.mktemp("pems")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")
    for name in ("ca", "other"):
        openssl(folder, *new, f"{name}.key", "-x509", "-days", "2", "-subj", f"/CN={name}", "-out", f"{name}.pem")
    for name in ("milvus.test", "client"):
        openssl(folder, *new, f"{name}.key", "-subj", f"/CN={name}", "-out", "request")
        (folder / "names").write_text(f"subjectAltName=DNS:{name}\n")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl(folder, "x509", "-req", "-in", "request", *signing, "-out", f"{name}.pem")
    return folder


@pytest.fixture(scope="module")
def secured(pems: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """A server with users and mutual TLS."""
    if reason := why_not():
        pytest.skip(reason)
    configuration = {
        "COMMON_SECURITY_AUTHORIZATIONENABLED": "true",
        "COMMON_SECURITY_TLSMODE": "2",
        "TLS_SERVERPEMPATH": str(pems / "milvus.test.pem"),
        "TLS_SERVERKEYPATH": str(pems / "milvus.test.key"),
        "TLS_CAPEMPATH": str(pems / "ca.pem"),
    }
    server = MilvusServer(tmp_path_factory.mktemp("secured"), configuration=configuration)
    yield server
    server.kill()


@pytest.mark.milvus_server
async def test_a_server_with_users_and_mutual_tls_serves_who_shows_all_and_tells_others_what_is_wrong(
    secured: MilvusServer, pems: Path
) -> None:
    uri = secured.uri.replace("http:", "https:")
    good = Security(TOKEN, pems / "ca.pem", pems / "client.pem", pems / "client.key", "milvus.test")
    async with MilvusStore(uri, security=good) as store:
        version = await store.create_collection("photos", SPACE, deadline=within())
        [row] = make_rows(1)
        await store.upsert(version, SPACE, [row], deadline=within())
        assert await store.count(version, read_your_writes=True, deadline=within()) == 1

    for changes, part in (
        ({"token": "root:wrong"}, "token"),
        ({"token": ""}, "token"),
        ({"ca": pems / "other.pem"}, "TLS"),
        ({"server_name": "another.test"}, "TLS"),
        ({"client_cert": None, "client_key": None}, "TLS"),
    ):
        with pytest.raises(FailedPrecondition, match=f"check the .*{part}"):
            await MilvusStore(uri, security=replace(good, **changes)).open(deadline=within(10))

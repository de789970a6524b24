"""What a client shows and wants to see, before it connects."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from certificate_authority import Authority

from lookalike import AsyncClient, Client, EmbedderClient, Security
from lookalike.addresses import is_local
from lookalike.security import PLAINTEXT

HERE = [
    "127.0.0.1:50052",
    "127.1.2.3:1",
    "localhost:50052",
    "localhost",
    "[::1]:50052",
    "dns:///localhost:50052",
    "dns:localhost:50052",
    "ipv4:127.0.0.1:1,127.0.0.1:2",
    "ipv6:[::1]:1",
    "unix:/run/search.sock",
    "unix:///run/search.sock",
    "unix-abstract:search",
]
ELSEWHERE = [
    "0.0.0.0:50052",
    "[::]:50052",
    ":50052",
    "",
    "search:50052",
    "localhost.example:50052",
    "10.0.0.1:50052",
    "dns:///search:50052",
    "dns://8.8.8.8/localhost:50052",
    "ipv4:127.0.0.1:1,10.0.0.1:2",
    "127.0.0.1.example:1",
    "xds:///localhost",
]


@pytest.mark.parametrize("target", HERE)
def test_names_that_stay_on_this_machine(target: str) -> None:
    assert is_local(target)


@pytest.mark.parametrize("target", ELSEWHERE)
def test_names_that_may_not(target: str) -> None:
    assert not is_local(target)


def test_a_token_goes_over_plaintext_to_this_machine_alone_unless_the_caller_insists(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    for security in (Security(token="secret"), Security(token_file=tmp_path / "token")):
        for kind in (Client, EmbedderClient):
            with pytest.raises(ValueError, match="the token would go to search:50052 unencrypted") as caught:
                kind("search:50052", security=security)
            assert "secret" not in str(caught.value)
            kind("127.0.0.1:1", security=security).close()
            kind("search:50052", security=replace(security, tls=True)).close()
            kind("search:50052", security=replace(security, plaintext_token=True)).close()


async def test_asyncio_clients_are_as_careful() -> None:
    with pytest.raises(ValueError, match="unencrypted"):
        AsyncClient("search:50052", security=Security(token="secret"))


def test_security_comes_from_the_environment_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_TOKEN", "secret")
    with pytest.raises(ValueError, match="unencrypted"):
        Client("search:50052")
    Client("search:50052", security=PLAINTEXT).close()
    environment = {
        "LOOKALIKE_TLS": "1",
        "LOOKALIKE_CA": "ca.pem",
        "LOOKALIKE_TOKEN_FILE": "t",
        "LOOKALIKE_SERVER_NAME": "n",
    }
    found = Security.from_environment(environment)
    assert found == Security(tls=True, ca=Path("ca.pem"), token_file=Path("t"), server_name="n")
    assert Security.from_environment({}) == PLAINTEXT
    assert not PLAINTEXT.encrypted


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        Security(token="secret", token_file=Path("token")).check("127.0.0.1:1")
    for half in ({"client_cert": Path("a")}, {"client_key": Path("a")}):
        with pytest.raises(ValueError, match="give both"):
            Security(**half).check("127.0.0.1:1")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="is empty"):
        Security(token_file=tmp_path / "empty").bearer()
    with pytest.raises(ValueError, match="not printable") as caught:
        Security(token="secret\nthing").bearer()
    assert "secret" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        Security(token_file=tmp_path / "none").bearer()
    with pytest.raises(ValueError, match="not a PEM file"):
        Security(ca=tmp_path / "empty").credentials()


def test_a_certificate_and_a_key_belong_together(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, two = authority.issue("one"), authority.issue("two")
    assert Security(client_cert=one.cert, client_key=one.key).credentials()
    with pytest.raises(ValueError, match="belong together"):
        Security(client_cert=one.cert, client_key=two.key).credentials()


def test_a_secret_is_not_shown() -> None:
    assert "secret" not in repr(Security(token="secret"))


def test_a_tokens_file_is_read_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.security._LOOK_SECONDS", 0.0)
    file = tmp_path / "token"
    file.write_text("one\n")
    bearer = Security(token_file=file).bearer()
    assert bearer.metadata() == (("authorization", "Bearer one"),)
    (tmp_path / "next").write_text("two\n")
    os.replace(tmp_path / "next", file)
    assert bearer.metadata() == (("authorization", "Bearer two"),)
    file.unlink()
    assert bearer.metadata() == (("authorization", "Bearer two"),)  # the old one holds
    file.touch()
    assert bearer.metadata() == (("authorization", "Bearer two"),)
    file.write_text("three\n")
    assert bearer.metadata() == (("authorization", "Bearer three"),)

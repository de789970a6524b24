"""Certificates that expire under load, and new ones that are put in their place, without a restart."""

from __future__ import annotations

import ssl
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread

import grpc
from certificate_authority import Authority, Pair
from waiting import until

from lookalike import Client, LookalikeError, Security, VectorSpace
from workbench.services import ANY_PORT, ServerProcess

_CONFIGURATION = """\
[ca]
default_ca = here
[here]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""


def issue(authority: Authority, folder: Path, name: str, seconds: int) -> Pair:
    """Issues a certificate for loopback that expires so soon."""
    pair = authority.issue(name)
    (folder / "ca.conf").write_text(_CONFIGURATION)
    (folder / "index.txt").touch()
    now = datetime.now(UTC)
    command = ["openssl", "ca", "-batch", "-notext", "-config", "ca.conf", "-cert", "ca.pem", "-keyfile", "ca.key"]
    command += ["-in", f"{name}.csr", "-extfile", f"{name}.ext", "-out", str(pair.cert)]
    command += ["-startdate", f"{now - timedelta(minutes=1):%Y%m%d%H%M%SZ}"]
    command += ["-enddate", f"{now + timedelta(seconds=seconds):%Y%m%d%H%M%SZ}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return pair


class Callers:
    """One who stays connected and one who connects anew for each call, until the context ends."""

    def __init__(self, target: str, security: Security) -> None:
        self._target = target
        self._security = security
        self._stopped = Event()
        self.connected: Counter[grpc.StatusCode] = Counter()
        self.connecting: Counter[grpc.StatusCode] = Counter()

    def __enter__(self) -> Callers:
        self._threads = [Thread(target=self._stay), Thread(target=self._come_anew)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _client(self) -> Client:
        return Client(self._target, security=self._security, timeout=10, retry=False)

    def _stay(self) -> None:
        with self._client() as client:
            while not self._stopped.wait(0.02):
                self.connected[_code(client)] += 1

    def _come_anew(self) -> None:
        while not self._stopped.wait(0.02):
            with self._client() as client:
                self.connecting[_code(client)] += 1


def _code(client: Client) -> grpc.StatusCode:
    try:
        client.count("points")
    except LookalikeError as error:
        return error.code
    return grpc.StatusCode.OK


def test_certificates_are_changed_under_load_and_one_that_expired_keeps_new_connections_out_alone(
    tmp_path: Path,
) -> None:
    """No call fails if the new file comes in time; if it comes late, those who are connected do not notice."""
    folder = tmp_path / "certificates"
    authority = Authority(folder)
    first = authority.issue("first")
    served = Pair(folder / "served.pem", folder / "served.key")

    def put(pair: Pair) -> None:
        served.key.write_bytes(pair.key.read_bytes())
        served.cert.write_bytes(pair.cert.read_bytes())
        host, _, port = process.addresses.grpc.rpartition(":")
        until(lambda: ssl.get_server_certificate((host, int(port))) in pair.cert.read_text())

    served.key.write_bytes(first.key.read_bytes())
    served.cert.write_bytes(first.cert.read_bytes())
    flags = ["--milvus-uri", str(tmp_path / "milvus.db"), "--embedder", "127.0.0.1:1", "--metrics-address", ANY_PORT]
    flags += ["--address", ANY_PORT, "--health-address", ANY_PORT]
    flags += ["--tls-cert", str(served.cert), "--tls-key", str(served.key)]
    ok, unavailable = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
    security = Security(ca=authority.cert)
    with (
        ServerProcess("search-service", "search_service.main", flags, tmp_path) as process,
        Client(process.addresses.grpc, security=security) as client,
    ):
        client.create_collection("points", space=VectorSpace("mine", 4))
        with Callers(process.addresses.grpc, security) as callers:
            # In time.
            put(authority.issue("second"))
            seen = callers.connecting[ok]
            until(lambda: callers.connecting[ok] > seen + 3)
            assert callers.connecting.keys() == callers.connected.keys() == {ok}
            # Too late.
            put(issue(authority, folder, "late", 6))
            until(lambda: callers.connecting[unavailable] > 3)
            put(authority.issue("third"))
            seen = callers.connecting[ok]
            until(lambda: callers.connecting[ok] > seen + 3)
            assert callers.connecting.keys() == {ok, unavailable}
            assert callers.connected.keys() == {ok}

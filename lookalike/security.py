"""How a client shows who it is, and makes sure of the server: TLS, and a bearer token."""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc

from lookalike.addresses import is_local

_LOOK_SECONDS = 1.0  # between two looks whether a token's file has changed
_PREFIX = "LOOKALIKE_"
_TOKEN = re.compile(r"[ -~]+")  # what metadata may be


@dataclass(frozen=True, slots=True)
class Security:
    """What a client shows to a server, and what it wants to see. Files are PEM; what is secret is not shown.

    With nothing set, connections are plaintext: for servers on this machine. Each of `tls`, `ca`, `client_cert` and
    `server_name` switches TLS on.

    A token is sent with every call, as "authorization: Bearer ..."; over plaintext it only goes to this machine, unless
    `plaintext_token` insists. A token's file is read again when it changes.

    Attributes:
        tls: encrypts, and checks the server's certificate.
        ca: authorities of the server's certificate; None means those that gRPC brings along.
        client_cert: certificate to show (mutual TLS), with `client_key`.
        server_name: the name in the server's certificate, where it is not that of the address.
        token: a bearer token; or
        token_file: a file that holds one.
        plaintext_token: sends the token to other machines unencrypted: whoever sees the traffic can use it.
    """

    tls: bool = False
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    server_name: str = ""
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    plaintext_token: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Returns what the variables LOOKALIKE_TLS, LOOKALIKE_CA, LOOKALIKE_CLIENT_CERT, ... say; flags are 1 or 0."""
        values = {name: environ.get(f"{_PREFIX}{name.upper()}", "") for name in cls.__slots__}
        return cls(
            tls=_flag(values["tls"]),
            ca=_path(values["ca"]),
            client_cert=_path(values["client_cert"]),
            client_key=_path(values["client_key"]),
            server_name=values["server_name"],
            token=values["token"],
            token_file=_path(values["token_file"]),
            plaintext_token=_flag(values["plaintext_token"]),
        )

    @property
    def encrypted(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls or bool(self.ca or self.client_cert or self.client_key or self.server_name)

    def check(self, target: str) -> None:
        """Makes sure that all this goes together, and with a server.

        Raises:
            ValueError: it does not; or the token would go over the net in plaintext.
        """
        if self.token and self.token_file:
            raise ValueError("both a token and a file with one are given: give one of them")
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("of client certificate and client key only one is given: give both")
        secret = self.token or self.token_file
        if secret and not (self.encrypted or self.plaintext_token or is_local(target)):
            raise ValueError(
                f"the token would go to {target} unencrypted: switch TLS on, or insist on a plaintext token where "
                "nobody else sees the traffic"
            )

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Reads the files anew, and returns credentials; None for plaintext.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is not what it should be.
        """
        if not self.encrypted:
            return None
        if self.client_cert and self.client_key:
            check_pair(self.client_cert, self.client_key)
        ca = self.ca.read_bytes() if self.ca else None
        if ca is not None and b"-----BEGIN CERTIFICATE-----" not in ca:
            raise ValueError(f"{self.ca} is not a PEM file of certificates")
        key = self.client_key.read_bytes() if self.client_key else None
        cert = self.client_cert.read_bytes() if self.client_cert else None
        return grpc.ssl_channel_credentials(ca, key, cert)

    def bearer(self) -> Bearer:
        """Returns what gives each call its token.

        Raises:
            OSError: the token's file cannot be read.
            ValueError: it is empty, or holds no token.
        """
        return Bearer(self.token, self.token_file)


# Connections on this machine.
PLAINTEXT = Security()


class Bearer:
    """The metadata that a token makes; its file is read again when it changes."""

    def __init__(self, token: str, file: Path | None) -> None:
        self._file = file
        self._stamp: object = None
        self._next_look = 0.0
        self._metadata = _metadata(token)
        if file is not None:
            self._read(file)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what a call brings along; nothing without a token."""
        if self._file is not None and time.monotonic() >= self._next_look:
            try:
                self._read(self._file)
            except (OSError, ValueError):
                self._next_look = time.monotonic() + _LOOK_SECONDS  # it is being replaced: the old one holds
        return self._metadata

    def _read(self, file: Path) -> None:
        self._next_look = time.monotonic() + _LOOK_SECONDS
        if (stamp := _stamp(file)) != self._stamp:
            token = file.read_text().strip()
            if not token:
                raise ValueError(f"the file of the token, {file}, is empty: write the token into it")
            self._metadata, self._stamp = _metadata(token), stamp


def check_pair(cert: Path, key: Path) -> None:
    """Makes sure that a certificate and a private key are those, and belong together.

    Raises:
        OSError: a file cannot be read.
        ValueError: they are not, or do not.
    """
    try:
        # The key must not be asked for a password on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=bytes)
    except ssl.SSLError as error:
        raise ValueError(
            f"{cert} and {key} are no certificate and private key that belong together (PEM, key unencrypted): {error}"
        ) from None


def _stamp(file: Path) -> object:
    """Returns what changes whenever a file does, links followed."""
    found = file.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    if not token:
        return ()
    if not _TOKEN.fullmatch(token):  # gRPC would refuse the call, and show the token
        raise ValueError("the token has characters that are not printable ASCII")
    return (("authorization", f"Bearer {token}"),)


def _flag(text: str) -> bool:
    return text.lower() in ("1", "true", "yes", "on")


def _path(text: str) -> Path | None:
    return Path(text) if text else None

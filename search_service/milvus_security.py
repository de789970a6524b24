"""How the connection to a Milvus server is secured: the token, and TLS."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from search_service import milvus_local
from service_kit.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class Security:
    """What a client shows to a Milvus server, and what it wants to see. Files are PEM; a token is never logged.

    A server at an https address is checked against `ca`, by default against the certificate authorities that gRPC
    brings along, and against its host name, or `server_name` where the address has another. With `client_cert` and
    `client_key` the client is authenticated too (mutual TLS).
    """

    token: str = field(default="", repr=False)
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    server_name: str = ""

    @classmethod
    def of(
        cls,
        *,
        token: str,
        token_file: Path | None,
        ca: Path | None,
        client_cert: Path | None,
        client_key: Path | None,
        server_name: str,
    ) -> Security:
        """With the token itself, or a file that holds it.

        Raises:
            FailedPrecondition: with both, or a file that cannot be read, or is empty.
        """
        if token_file is not None:
            if token:
                raise FailedPrecondition("both a Milvus token and a file with one are given: give one of them")
            token = _read(token_file, "Milvus token").decode().strip()
            if not token:
                raise FailedPrecondition(
                    f"the file of the Milvus token, {token_file}, is empty: write the token into it"
                )
        return cls(token, ca, client_cert, client_key, server_name)

    def options(self, uri: str) -> dict[str, Any]:
        """What `MilvusClient` takes for it.

        Raises:
            FailedPrecondition: options that do not go with the address or each other, or a file that cannot be read.
        """
        parts = urlsplit(uri)
        if parts.username is not None or parts.password is not None:
            raise FailedPrecondition("the Milvus address holds a user or password, and is logged: give a token instead")
        files = {"CA": self.ca, "client certificate": self.client_cert, "client key": self.client_key}
        given = {name: path for name, path in files.items() if path is not None}
        if (given or self.server_name) and (milvus_local.is_local(uri) or parts.scheme != "https"):
            what = ", ".join(given) or "server name"
            raise FailedPrecondition(f"TLS options ({what}) are given, but {uri} is no https:// address: use one")
        if (self.client_cert is None) != (self.client_key is None):
            raise FailedPrecondition("of client certificate and client key for Milvus only one is given: give both")
        if self.client_cert is not None and self.ca is None:
            raise FailedPrecondition(
                "a client certificate for Milvus is given, but no CA to check the server: give both"
            )
        for name, path in given.items():
            _read(path, f"{name} for Milvus")
        options: dict[str, Any] = {"token": self.token}
        if self.server_name:
            options["server_name"] = self.server_name
        if self.client_cert is not None:
            options["ca_pem_path"] = str(self.ca)
            options["client_pem_path"] = str(self.client_cert)
            options["client_key_path"] = str(self.client_key)
        elif self.ca is not None:
            # pymilvus takes the root certificates from here if the client shows none of its own.
            options["server_pem_path"] = str(self.ca)
        return options


NO_SECURITY = Security()


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"the file of the {what}, {path}, cannot be read: {error.strerror}") from error

"""A server's TLS certificate, and when it expires."""

from __future__ import annotations

import base64
import re
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
from prometheus_client import Gauge

from lookalike.security import check_pair
from service_kit.errors import FailedPrecondition
from service_kit.reloading import Reloaded

EXPIRY = Gauge(
    "tls_certificate_expiry_timestamp_seconds", "When the certificate that is used expires.", ["certificate"]
)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}  # UTCTime, GeneralizedTime
_VERSION = 0xA0


class ServerCertificate(Reloaded[grpc.ServerCertificateConfiguration]):
    """A server's certificate and key, and the authorities of its clients' certificates if they must show one."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """
        Args:
            cert: PEM file of the certificate and those between it and its authority.
            key: PEM file of its private key.
            client_ca: PEM file of authorities; with it every client has to show a certificate of one of them.

        Raises:
            FailedPrecondition: they cannot be read, do not belong together, or have expired.
        """

        def parse(contents: Sequence[bytes]) -> grpc.ServerCertificateConfiguration:
            try:
                check_pair(cert, key)
                if client_ca is not None:
                    ssl.create_default_context(cadata=contents[2].decode())
            except (ValueError, OSError) as error:  # ssl.SSLError is an OSError
                raise FailedPrecondition(str(error)) from None
            check_expiry(contents[0], "server")
            return grpc.ssl_server_certificate_configuration([(contents[1], contents[0])], *contents[2:])

        super().__init__("certificate", [cert, key] if client_ca is None else [cert, key, client_ca], parse)
        self._served = self.value
        self._mutual = client_ca is not None

    def credentials(self) -> grpc.ServerCredentials:
        """Returns credentials whose every new connection gets the certificate that holds then."""
        return grpc.dynamic_ssl_server_credentials(self.value, cast(Any, self._news), self._mutual)

    def _news(self) -> grpc.ServerCertificateConfiguration | None:
        value = self.value
        if value is self._served:
            return None
        self._served = value
        return value


def check_expiry(pem: bytes, which: str) -> None:
    """Notes when a certificate expires, for alerts.

    Raises:
        FailedPrecondition: it has expired.
    """
    end = expiry(pem)
    if end <= time.time():
        raise FailedPrecondition(f"the certificate expired on {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC")
    EXPIRY.labels(which).set(end)


def expiry(pem: bytes) -> float:
    """Returns when the first certificate of a PEM file expires, in seconds since 1970 (RFC 5280, 4.1.2.5)."""
    found = _PEM.search(pem)
    if found is None:
        raise FailedPrecondition("there is no certificate in it")
    [(_, certificate)] = _values(base64.b64decode(found[1]))
    _, signed = _values(certificate)[0]
    # The serial number, signature algorithm, issuer and validity.
    fields = [content for tag, content in _values(signed) if tag != _VERSION]
    tag, end = _values(fields[3])[1]
    return datetime.strptime(end.decode(), _TIMES[tag]).replace(tzinfo=UTC).timestamp()


def _values(der: bytes) -> list[tuple[int, bytes]]:
    """Returns tag and content of each of the values that stand one after the other in DER."""
    values = []
    while der:
        tag, length, start = der[0], der[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[2:start], "big")
        values.append((tag, der[start : start + length]))
        der = der[start + length :]
    return values

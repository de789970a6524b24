"""Certificates for tests, made with the openssl command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """Issues certificates for loopback."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        folder.mkdir(parents=True, exist_ok=True)
        self.cert = folder / f"{name}.pem"
        self._openssl("req", *_NEW_KEY, f"{name}.key", "-x509", "-days", "2", "-subj", f"/CN={name}", "-out", self.cert)

    def issue(self, name: str, *, days: int = 2, names: str = "DNS:localhost,IP:127.0.0.1") -> Pair:
        """Issues a certificate for some names; with negative `days` one that has expired."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        self._openssl("req", *_NEW_KEY, pair.key, "-subj", f"/CN={name}", "-out", f"{name}.csr")
        (self._folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        signing = ("-CA", self.cert, "-CAkey", f"{self._name}.key", "-CAcreateserial", "-extfile", f"{name}.ext")
        self._openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-days", str(days), "-out", pair.cert)
        return pair

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)

"""Reads stored images again from where their rows say they are: files, or files on a web server."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 18
_PORTS = {"http": 80, "https": 443}


class SourceError(Exception):
    """A source cannot be read. The message says why."""


@dataclass(frozen=True)
class Sources:
    """What may be read. Whoever may write rows chooses what their sources say, and this machine reads it.

    Attributes:
        folders: those that files have to be in, after all links; any file if there are none.
        servers: the web servers that may be asked, as `server` returns them; there are none by default.
        timeout: seconds that a web server may take for all of an image.
    """

    folders: tuple[Path, ...] = ()
    servers: frozenset[str] = frozenset()
    timeout: float = 20.0

    def read(self, source: str, *, max_bytes: int) -> bytes:
        """Returns the bytes behind a path, a file:// or an http(s):// URL, of which at most `max_bytes` are read.

        Raises:
            SourceError: it may not be read, there is nothing to read, it is too large, or it cannot be had in time.
        """
        if not source:
            raise SourceError("the row has no source to read the image from")
        try:
            parts = urllib.parse.urlsplit(source)
            if parts.scheme in ("http", "https"):
                data = self._fetch(source, max_bytes)
            else:
                data = self._read(_path(source, parts), max_bytes)
        except urllib.error.HTTPError as error:
            raise SourceError(f"cannot be read: HTTP {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise SourceError(f"cannot be read: {error.reason}") from error
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror or error}") from error
        except (http.client.HTTPException, ValueError) as error:
            raise SourceError(f"cannot be read: {error}") from error
        if len(data) > max_bytes:
            raise SourceError(f"has more than {max_bytes:,} bytes, the most that the service takes")
        return data

    def _read(self, path: Path, max_bytes: int) -> bytes:
        path = path.resolve()
        if self.folders and not any(path.is_relative_to(folder.resolve()) for folder in self.folders):
            raise SourceError("is in none of the folders that --source-folder names")
        if path.exists() and not path.is_file():  # a pipe would never end
            raise SourceError("is not a file")
        with path.open("rb") as file:
            return file.read(max_bytes + 1)

    def _fetch(self, url: str, max_bytes: int) -> bytes:
        self._check(url)
        opener = urllib.request.build_opener(_Redirects(self._check))
        end = time.monotonic() + self.timeout
        data = bytearray()
        with opener.open(url, timeout=self.timeout) as response:
            # Part by part: the timeout of a socket is only that of its next sign of life.
            while len(data) <= max_bytes and (chunk := response.read1(_CHUNK_BYTES)):
                data += chunk
                if time.monotonic() > end:
                    raise SourceError(f"cannot be read: it took more than {self.timeout:g} s")
            missing = response.length
        if missing and len(data) <= max_bytes:
            raise SourceError(f"cannot be read: the connection ended {missing:,} bytes before the end")
        return bytes(data)

    def _check(self, url: str) -> None:
        if (asked := server(url)) not in self.servers:
            raise SourceError(f"lies on {asked}, which --source-server does not name")


def server(url: str) -> str:
    """Returns the scheme, host and port of a web address, in one way of writing.

    Raises:
        ValueError: it is none of http or https.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is no web address: give it as https://HOST or http://HOST:PORT")
    return f"{parts.scheme}://{parts.hostname}:{parts.port or _PORTS[parts.scheme]}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect if `check` lets its target pass."""

    def __init__(self, check: Callable[[str], None]) -> None:
        self._check = check

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self._check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _path(source: str, parts: urllib.parse.SplitResult) -> Path:
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise SourceError(f"lies on another machine, {parts.netloc}")
        return Path(urllib.request.url2pathname(parts.path))
    if "://" in source:
        raise SourceError(f"begins with {parts.scheme}://: only files and http(s) can be read")
    return Path(source)

"""Reads stored images again from where their rows say they are: files, or files on a web server."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

_CHUNK_BYTES = 1 << 18


class SourceError(Exception):
    """A source cannot be read. The message says why."""


def read_source(source: str, *, max_bytes: int, timeout: float) -> bytes:
    """Returns the bytes behind a path, a file:// or an http(s):// URL.

    Args:
        max_bytes: the most that are read.
        timeout: seconds that a web server may take for all of it.

    Raises:
        SourceError: there is nothing to read, it is too large, or it cannot be had in time.
    """
    if not source:
        raise SourceError("the row has no source to read the image from")
    try:
        parts = urllib.parse.urlsplit(source)
        if parts.scheme in ("http", "https"):
            data = _fetch(source, max_bytes, timeout)
        else:
            data = _read(_path(source, parts), max_bytes)
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


def _path(source: str, parts: urllib.parse.SplitResult) -> Path:
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise SourceError(f"lies on another machine, {parts.netloc}")
        return Path(urllib.request.url2pathname(parts.path))
    if "://" in source:
        raise SourceError(f"begins with {parts.scheme}://: only files and http(s) can be read")
    return Path(source)


def _read(path: Path, max_bytes: int) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would never end
        raise SourceError("is not a file")
    with path.open("rb") as file:
        return file.read(max_bytes + 1)


def _fetch(url: str, max_bytes: int, timeout: float) -> bytes:
    end = time.monotonic() + timeout
    data = bytearray()
    with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310 - http or https; redirects keep to them
        # Part by part: the timeout of a socket is only that of its next sign of life.
        while len(data) <= max_bytes and (chunk := response.read1(_CHUNK_BYTES)):
            data += chunk
            if time.monotonic() > end:
                raise SourceError(f"cannot be read: it took more than {timeout:g} s")
        missing = response.length
    if missing and len(data) <= max_bytes:
        raise SourceError(f"cannot be read: the connection ended {missing:,} bytes before the end")
    return bytes(data)

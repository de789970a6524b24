"""Downloads a file over HTTP: continues where an earlier attempt stopped, and trusts nothing but the checksum."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from workbench.errors import CommandError
from workbench.progress import progress

_TIMEOUT_SECONDS = 20.0
_CHUNK_BYTES = 1 << 18


def download(url: str, path: Path, *, md5: str, timeout: float = _TIMEOUT_SECONDS) -> None:
    """Downloads `url` to `path`. What has arrived is kept beside it, in a .part file, until it is complete.

    Args:
        md5: the checksum that the publisher states, in hex.
        timeout: seconds without any answer after which the attempt is given up.

    Raises:
        CommandError: the host cannot be reached, the transfer broke off, or the checksum differs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part, timeout)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CommandError(
            f"cannot download {url}: {reason}. Run the command again to continue, "
            f"or fetch the file by other means and put it at {path}"
        ) from error
    require_md5(part, md5)
    part.replace(path)


def require_md5(path: Path, md5: str) -> None:
    """Removes the file and raises CommandError unless it has this checksum."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != md5:
        path.unlink()
        raise CommandError(
            f"{path} had the MD5 checksum {actual} instead of {md5} and was removed: run the command again"
        )


def _fetch(url: str, part: Path, timeout: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=timeout)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # there is nothing beyond what we have: the checksum tells whether it is the file
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends the whole file
        length = int(response.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as file, progress("Downloading", (have + length) / 1e6, "MB") as bar:
            bar.advance(have / 1e6)
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.advance(len(chunk) / 1e6)
                length -= len(chunk)
    if length > 0:
        raise OSError(f"the connection ended {length:,} bytes before the end")

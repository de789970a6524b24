"""Downloads, against a server that can break off and continue."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from workbench.download import download
from workbench.errors import CommandError

_CONTENT = bytes(range(256)) * 4096  # 1 MiB
_MD5 = hashlib.md5(_CONTENT).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    """Serves the content; /broken breaks off half-way, /plain ignores ranges."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.path != "/plain" else 0
        if start >= len(_CONTENT):
            self.send_error(416)
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        body = _CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/broken" else body)

    def log_message(self, *args):
        pass


@contextmanager
def _serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.ranges = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.ranges
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "file.zip"


def _part(target):
    return target.with_name("file.zip.part")


def test_a_file_arrives_whole(target):
    with _serving() as (url, _):
        download(f"{url}/file", target, md5=_MD5)
    assert target.read_bytes() == _CONTENT
    assert not _part(target).exists()


def test_a_wrong_checksum_leaves_nothing_behind(target):
    with _serving() as (url, _), pytest.raises(CommandError, match=f"MD5 checksum {_MD5} instead of {'0' * 32}"):
        download(f"{url}/file", target, md5="0" * 32)
    assert not target.exists()
    assert not _part(target).exists()


def test_a_broken_transfer_is_continued_the_next_time(target):
    with _serving() as (url, ranges):
        with pytest.raises(CommandError, match="Run the command again to continue"):
            download(f"{url}/broken", target, md5=_MD5)
        assert not target.exists()
        assert _part(target).stat().st_size == len(_CONTENT) // 2
        download(f"{url}/file", target, md5=_MD5)
        assert ranges == [None, f"bytes={len(_CONTENT) // 2}-"]
    assert target.read_bytes() == _CONTENT


def test_a_server_without_ranges_sends_everything_again(target):
    target.parent.mkdir()
    _part(target).write_bytes(b"something else")
    with _serving() as (url, _):
        download(f"{url}/plain", target, md5=_MD5)
    assert target.read_bytes() == _CONTENT


def test_what_has_arrived_completely_already_is_only_checked(target):
    target.parent.mkdir()
    _part(target).write_bytes(_CONTENT)
    with _serving() as (url, _):
        download(f"{url}/file", target, md5=_MD5)
    assert target.read_bytes() == _CONTENT


def test_a_missing_file_is_one_clear_line(target):
    with _serving() as (url, _), pytest.raises(CommandError) as caught:
        download(f"{url}/missing", target, md5=_MD5)
    assert f"{url}/missing" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_host_that_cannot_be_reached_is_one_clear_line_with_what_to_do(target):
    with pytest.raises(CommandError) as caught:
        download("http://127.0.0.1:1/file", target, md5=_MD5)
    assert "Connection refused" in str(caught.value)
    assert f"put it at {target}" in str(caught.value)

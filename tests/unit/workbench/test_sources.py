"""Images are read again from files and web servers, in bounded time and size."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from workbench.sources import SourceError, read_source

_IMAGE = b"an image" * 1000


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved.jpg":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        if self.path == "/gone.jpg":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/cut.jpg":
            self.send_header("Content-Length", str(len(_IMAGE) + 1))
        self.end_headers()
        if self.path == "/slow.jpg":
            try:
                while not self.server.done.wait(0.05):
                    self.wfile.write(b"x")
            except OSError:
                return
        self.wfile.write(_IMAGE)

    def log_message(self, *args):
        pass


@contextmanager
def _serving():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.done = threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.done.set()
            server.shutdown()
            thread.join()


def _read(source, max_bytes=100_000, timeout=5.0):
    return read_source(str(source), max_bytes=max_bytes, timeout=timeout)


def test_a_path_a_file_url_and_a_web_address_give_the_same_bytes(tmp_path):
    path = tmp_path / "a b#é.jpg"
    path.write_bytes(_IMAGE)
    with _serving() as url:
        assert _read(path) == _read(path.as_uri()) == _read(f"{url}/a.jpg") == _IMAGE


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "no source"),
        ("{folder}/gone.jpg", "No such file"),
        ("{folder}", "is not a file"),
        ("file://elsewhere/a.jpg", "another machine, elsewhere"),
        ("s3://bucket/a.jpg", "begins with s3://"),
        ("{url}/gone.jpg", "HTTP 404"),
        ("{url}/cut.jpg", "1 bytes before the end"),
        ("{url}/moved.jpg", "HTTP 302"),
        ("http://127.0.0.1:{free}/a.jpg", "Connection refused"),
        ("http://[/a.jpg", "cannot be read"),
        ("\0", "cannot be read"),
    ],
)
def test_what_cannot_be_read_has_a_reason(tmp_path, source, reason):
    with socket.socket() as bound, _serving() as url:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        source = source.format(folder=tmp_path, url=url, free=bound.getsockname()[1])
        with pytest.raises(SourceError, match=reason):
            _read(source)


def test_what_is_too_large_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "large.jpg"
    path.write_bytes(_IMAGE)
    with _serving() as url:
        for source in (path, f"{url}/a.jpg"):
            with pytest.raises(SourceError, match="more than 7,999 bytes"):
                _read(source, max_bytes=7_999)
            assert _read(source, max_bytes=8_000) == _IMAGE


def test_a_web_server_that_never_ends_is_given_up():
    with _serving() as url, pytest.raises(SourceError, match=r"more than 0\.3 s"):
        _read(f"{url}/slow.jpg", timeout=0.3)

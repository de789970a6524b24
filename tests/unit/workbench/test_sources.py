"""Images are read again from files and web servers, in bounded time and size."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from workbench.sources import SourceError, Sources, server

_IMAGE = b"an image" * 1000


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved.jpg":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        if self.path == "/elsewhere.jpg":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/a.jpg")
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
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.done.set()
            server.shutdown()
            thread.join()


def _read(source, max_bytes=100_000, **allowed):
    source = str(source)
    if source.startswith("http://127"):
        allowed = {"servers": frozenset({server(source)})} | allowed
    return Sources(timeout=allowed.pop("timeout", 5.0), **allowed).read(source, max_bytes=max_bytes)


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
        ("{url}/elsewhere.jpg", r"lies on http://localhost:\d+, which --source-server does not name"),
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


def test_no_web_server_is_asked_that_is_not_named():
    with _serving() as url:
        for servers in ((), ("http://127.0.0.1:80",), (url.replace("http", "https"),)):
            with pytest.raises(SourceError, match="which --source-server does not name"):
                _read(f"{url}/a.jpg", servers=frozenset(servers))
        with pytest.raises(SourceError, match="lies on http://evil:80,"):
            _read(url.replace("//", "//127.0.0.1@evil/?"), servers=frozenset({url}))
        assert _read(f"{url}/elsewhere.jpg", servers=frozenset({url, url.replace("127.0.0.1", "localhost")})) == _IMAGE


def test_a_file_outside_of_the_named_folders_is_not_read_whatever_way_leads_to_it(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(_IMAGE)
    (inside / "link.jpg").symlink_to(outside / "a.jpg")
    assert _read(inside / "a.jpg", folders=(inside,)) == _read(outside / "a.jpg", folders=(inside, outside)) == _IMAGE
    for path in (outside / "a.jpg", f"{inside}/../out/a.jpg", inside / "link.jpg", (outside / "a.jpg").as_uri()):
        with pytest.raises(SourceError, match="none of the folders"):
            _read(path, folders=(inside,))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://images.example", "https://images.example:443"),
        ("HTTP://Images.Example/", "http://images.example:80"),
        ("http://[::1]:8080", "http://::1:8080"),
    ],
)
def test_a_server_is_written_in_one_way(text, address):
    assert server(text) == address


@pytest.mark.parametrize("text", ["images.example", "ftp://images.example", "https://", "http://host:port"])
def test_what_is_no_web_address_is_refused(text):
    with pytest.raises(ValueError, match=r"no web address|Port"):
        server(text)

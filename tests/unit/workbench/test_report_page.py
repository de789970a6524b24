"""The report: complete in itself, and safe against names that are markup."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from PIL import Image

from lookalike import Hit, Record
from workbench.report import QueryResult, render, write_report

_NASTY = '<script>alert("1")</script> & "quoted"'


def _hit(source, id="cats/a.jpg", label="cats"):
    return Hit(Record(id, {"class": label}, str(source), "", datetime.now(UTC)), similarity=0.9876, distance=0.1575)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGBA", (900, 300), (200, 30, 30, 128)).save(path)
    return path


def _render(results, title="Results", facts=None):
    return render(title=title, lead="Look.", facts=facts or {}, results=results)


class _Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_names_are_escaped_wherever_they_appear(picture):
    results = [QueryResult(_NASTY, picture, [_hit(picture, id=_NASTY), _hit("missing", id=_NASTY)], _NASTY)]
    page = _render(results, title=_NASTY, facts={_NASTY: _NASTY})
    assert "<script" not in page
    descriptions = [attributes["alt"] for _, attributes in _Elements(page).found if "alt" in attributes]
    assert descriptions == [_NASTY, _NASTY]


def test_the_page_asks_nobody_for_anything(picture):
    page = _render([QueryResult("q", picture, [_hit(picture)])])
    sources = [attributes["src"] for _, attributes in _Elements(page).found if "src" in attributes]
    assert len(sources) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?:|url\(|@import", page)
    assert not {tag for tag, _ in _Elements(page).found} & {"link", "script", "iframe"}


def test_hits_are_marked_as_right_or_wrong_where_there_are_classes(picture):
    hits = [_hit(picture), _hit(picture, label="dogs")]
    page = _render([QueryResult("q", picture, hits, "cats")])
    assert (page.count('class="match"'), page.count('class="other"')) == (1, 1)
    page = _render([QueryResult("q", picture, hits)])
    assert "✓" not in page
    assert "✗" not in page


def test_numbers_and_ranks_are_shown(picture):
    page = _render([QueryResult("q", picture, [_hit(picture)])])
    assert "1.&nbsp;cats/<wbr>a.jpg" in page
    assert "similarity 0.9876" in page
    assert "distance 0.1575" in page


def test_a_picture_that_is_gone_or_broken_does_not_spoil_the_page(picture, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    page = _render([QueryResult("q", picture, [_hit(tmp_path / "gone.jpg"), _hit(broken)])])
    assert page.count("no picture here") == 2


def test_no_hits_are_said(picture):
    assert "nothing found" in _render([QueryResult("q", picture, [])])


def test_thumbnails_are_small(picture, tmp_path):
    write_report(tmp_path / "new" / "page.html", title="t", lead="l", facts={}, results=[QueryResult("q", picture, [])])
    assert (tmp_path / "new" / "page.html").stat().st_size < 16_000

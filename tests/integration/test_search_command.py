"""`lookalike search` against the real services: as a table, as JSON, and as a page that a browser is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lookalike import Client, Item
from workbench.demo_images import DemoImages
from workbench.services import Services

_SECONDS = 120


def _search(services: Services, *flags: str, **environment: str) -> str:
    command = [sys.executable, "-m", "workbench.main", "search", "--target", services.search.addresses.grpc]
    done = subprocess.run(
        [*command, "--collection", "photos", *flags],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env=os.environ | environment,
        check=True,
    )
    return done.stdout


def test_hits_are_a_table_json_or_a_page_that_the_browser_opens(
    services: Services, client: Client, photos: str, demo_images: DemoImages, tmp_path: Path
) -> None:
    items = [Item(path.stem, image=path.read_bytes(), source=str(path)) for path in demo_images.queries[:3]]
    assert all(result.error is None for result in client.upsert(photos, items))
    query = str(demo_images.queries[1])

    shown = _search(services, query, COLORTERM="truecolor", TERM="xterm-256color")
    assert shown.splitlines()[1].split() == ["id", "similarity", "distance"]
    assert shown.splitlines()[2].split()[0] == demo_images.queries[1].stem
    assert "\x1b" not in shown  # a pipe shows no pictures

    found = json.loads(_search(services, query, "--json"))
    assert found["query"] == query
    assert found["hits"][0]["id"] == demo_images.queries[1].stem

    # Python's webbrowser runs what BROWSER says.
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > "{opened}"\n')
    browser.chmod(0o755)
    _search(services, query, "--open", BROWSER=f"{browser} %s", TMPDIR=str(tmp_path))
    page = Path(url2pathname(urlsplit(opened.read_text()).path)).read_text()
    assert page.count("data:image/jpeg;base64,") == 1 + 3

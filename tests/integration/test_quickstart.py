"""What a newcomer runs: the quick start, as a process of its own, with an empty home."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from workbench.demo_images import DemoImages


def quickstart(home: Path, *flags: str) -> str:
    environment = {**os.environ, "HOME": str(home)}
    command = [sys.executable, "-m", "workbench.main", "quickstart", "--data-dir", str(home / "var"), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_quick_start_finds_the_copies_of_its_sample_photographs(tmp_path: Path) -> None:
    output = quickstart(tmp_path)
    found = re.search(r"For (\d+) of (\d+) queries the first 5 hits are all copies", output)
    assert found
    assert int(found[1]) >= 9
    assert int(found[2]) == 10
    page = (tmp_path / "var" / "quickstart" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 60
    assert "http://" not in page
    assert "https://" not in page


def test_the_quick_start_takes_a_folder_of_ones_own_however_small(tmp_path: Path, demo_images: DemoImages) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for index, query in enumerate(demo_images.queries[:6]):
        (mine / f"{index}.jpg").write_bytes(query.read_bytes())
    for name, content in (("broken.jpg", b"not an image"), ("empty.png", b""), ("short.gif", b"GIF89a")):
        (mine / name).write_bytes(content)
    output = quickstart(tmp_path, "--images", str(mine))
    assert "6 readable images are too few to fit 8 dimensions" in output
    assert "9 images found = 6 stored + 0 unchanged + 3 failed" in output
    assert (tmp_path / "var" / "quickstart" / "report.html").exists()

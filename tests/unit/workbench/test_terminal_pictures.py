"""Pictures in a terminal: only where it can show them, and as they are."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from workbench.terminal_pictures import CELL_COLUMNS, protocol, strip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "tmux-256color", "TMUX": "x", "KITTY_WINDOW_ID": "1", "COLORTERM": "24bit"}, "blocks"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
        ({}, None),
    ],
)
def test_the_terminal_tells_what_it_can(environment, expected):
    assert protocol(environment, is_terminal=True) == expected
    assert protocol(environment, is_terminal=False) is None


@pytest.fixture
def paths(tmp_path):
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (140, 140), color).save(tmp_path / f"{name}.png")
    return [tmp_path / "red.png", tmp_path / "gone.png", tmp_path / "blue.png"]


def test_blocks_have_the_colours_of_the_pictures_and_captions_below_them(paths):
    *rows, captions = strip(paths, ["one", "two", "three"], "blocks", 80).split("\n")
    assert [captions.index(name) for name in ("one", "two", "three")] == [0, CELL_COLUMNS, 2 * CELL_COLUMNS]
    for row in rows:
        assert row.endswith("\x1b[0m")
        assert len(re.sub(r"\x1b\[[0-9;]*m", "", row)) == 3 * CELL_COLUMNS
    middle = rows[len(rows) // 2]
    assert middle.count("38;2;255;0;0;48;2;255;0;0") == 14
    assert middle.count("38;2;0;0;255;48;2;0;0;255") == 14


def test_no_more_pictures_than_fit(paths):
    *_, captions = strip(paths, ["one", "two", "three"], "blocks", 2 * CELL_COLUMNS + 5).split("\n")
    assert captions.split() == ["one", "two"]


@pytest.mark.parametrize("how", ["kitty", "iterm2"])
def test_protocols_for_pixels_carry_a_png(paths, how):
    text = strip(paths, ["one", "two", "three"], how, 80)
    pattern = r"\x1b_G[^;]*;([^\x1b]*)\x1b\\" if how == "kitty" else r"File=[^:]*:([^\a]*)\a"
    picture = Image.open(io.BytesIO(base64.b64decode("".join(re.findall(pattern, text)))))
    assert picture.format == "PNG"
    assert picture.getpixel((70, picture.height // 2)) == (255, 0, 0, 255)

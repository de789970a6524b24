"""Pictures in a terminal, where it can show any: by the protocols of kitty and iTerm2, else as coloured half blocks.

https://sw.kovidgoyal.net/kitty/graphics-protocol/, https://iterm2.com/documentation-images.html
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from workbench.pictures import read

Protocol = Literal["kitty", "iterm2", "blocks"]
CELL_COLUMNS = 16  # of each picture, with the gap to the next one
_GAP_COLUMNS = 2
_ROWS = 7
_PIXELS_OF_A_COLUMN = 10  # for protocols that show pixels; a row is twice as high
_KITTY_CHUNK = 4096
_RESET = "\x1b[0m"


def protocol(environment: Mapping[str, str], *, is_terminal: bool) -> Protocol | None:
    """Returns how the terminal with these environment variables shows pictures; None if it does not."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if not is_terminal or term == "dumb":
        return None
    if environment.get("TMUX") or term.startswith("screen"):
        pass  # they pass neither protocol on without being asked to
    elif environment.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    elif program in ("iTerm.app", "WezTerm"):
        return "iterm2"
    return "blocks" if environment.get("COLORTERM") in ("truecolor", "24bit") else None


def strip(paths: Sequence[Path], captions: Sequence[str], how: Protocol, columns: int) -> str:
    """Returns text that shows pictures beside each other, as many as fit, with their captions below.

    Args:
        paths: the images; the place of one that cannot be read stays empty.
        captions: of each.
        how: see `protocol`.
        columns: of the terminal.
    """
    count = max(1, min(len(paths), columns // CELL_COLUMNS))
    shown = paths[:count]
    inner = CELL_COLUMNS - _GAP_COLUMNS
    scale = 1 if how == "blocks" else _PIXELS_OF_A_COLUMN
    picture = Image.new("RGBA", (count * CELL_COLUMNS * scale, _ROWS * 2 * scale))
    for number, path in enumerate(shown):
        image = read(path, inner * scale)
        if image is not None:
            small = ImageOps.contain(image, (inner * scale, _ROWS * 2 * scale), Image.Resampling.LANCZOS)
            top = (picture.height - small.height) // 2
            picture.paste(small, (number * CELL_COLUMNS * scale, top))
    drawn = _blocks(picture) if how == "blocks" else _pixels(picture, how, count * CELL_COLUMNS)
    below = "".join(caption[:inner].ljust(CELL_COLUMNS) for caption in captions[:count])
    return f"{drawn}\n{below.rstrip()}"


def _blocks(picture: Image.Image) -> str:
    """Two pixels in each character: the upper one in its colour, the lower one behind it."""
    pixels = picture.load()
    assert pixels is not None
    lines = []
    for row in range(0, picture.height, 2):
        parts = []
        for column in range(picture.width):
            upper, lower = _color(pixels[column, row]), _color(pixels[column, row + 1])
            if upper and lower:
                parts.append(f"\x1b[38;2;{upper};48;2;{lower}m▀")
            elif upper:
                parts.append(f"{_RESET}\x1b[38;2;{upper}m▀")
            elif lower:
                parts.append(f"{_RESET}\x1b[38;2;{lower}m▄")
            else:
                parts.append(f"{_RESET} ")
        lines.append("".join(parts) + _RESET)
    return "\n".join(lines)


def _color(pixel: object) -> str | None:
    assert isinstance(pixel, tuple)
    red, green, blue, alpha = pixel
    return f"{red};{green};{blue}" if alpha else None


def _pixels(picture: Image.Image, how: Protocol, columns: int) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG")
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    if how == "iterm2":
        size = f"width={columns};height={_ROWS};preserveAspectRatio=1"
        return f"\x1b]1337;File=inline=1;size={len(data.getvalue())};{size}:{encoded}\a"
    chunks = [encoded[start : start + _KITTY_CHUNK] for start in range(0, len(encoded), _KITTY_CHUNK)]
    # q=2: no answer, which nobody here would read.
    head = f"a=T,f=100,q=2,c={columns},r={_ROWS},"
    parts = [
        f"\x1b_G{head if number == 0 else ''}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    ]
    return "".join(parts)

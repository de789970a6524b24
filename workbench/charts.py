"""Charts as SVG for the pages of `workbench.page`: drawn by matplotlib, in the colours of the page, day and night."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand for the colours of the page, which the browser picks: each is replaced by its custom property.
_INK, _SOFT, _LINE = "#010203", "#010204", "#010205"
_PROPERTIES = {_INK: "var(--ink)", _SOFT: "var(--soft)", _LINE: "var(--line)"}
# Told apart by people with any colour vision, on white and on black (after Okabe and Ito).
COLORS = ("#0b84d8", "#e3760b", "#1a9e6e", "#c95a9e", "#b59410", "#5fb4e5", "#d9483b", "#8a8f99")
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's font
    "svg.hashsalt": "lookalike",  # the same chart is the same SVG
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "text.parse_math": False,  # names of classes may hold a dollar sign
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "figure.facecolor": "none",
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.color": _LINE,
    "ytick.labelcolor": _SOFT,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


class Chart:
    """A chart being drawn.

    Attributes:
        axes: what to draw on.
        svg: the chart as an SVG element, to stand in HTML; empty until the drawing is done.
    """

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.svg = ""


@contextmanager
def chart(title: str, *, width: float = 7.2, height: float = 3.6) -> Iterator[Chart]:
    """Draws a chart in the style of the pages.

    Args:
        title: its heading.
        width: inches, of 72 pixels each; the element shrinks with a narrow page.
        height: likewise.

    >>> with chart("Latency") as drawn:
    ...     _ = drawn.axes.plot([1, 2, 3], [10, 12, 30])
    >>> drawn.svg[:4]
    '<svg'
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        drawn = Chart(figure.add_subplot())
        drawn.axes.set_title(title)
        yield drawn
        drawn.svg = _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    for color, name in _PROPERTIES.items():
        svg = svg.replace(color, name)
    return svg[svg.index("<svg") :].replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)

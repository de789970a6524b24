"""HTML pages that are complete in themselves: one file, no script from elsewhere, readable by day and by night."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1b1f27; --soft: #667080; --line: #dfe3e9;
  --match: #1a8f5c; --other: #c2622d; }
@media (prefers-color-scheme: dark) { :root { --ground: #12151a; --card: #1b2028; --ink: #e8ebf0; --soft: #95a0b0;
  --line: #2d343f; --match: #4cc38a; --other: #e8935f; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2.5rem 1.5rem 4rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 78rem; margin: 0 auto; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; letter-spacing: -.01em; }
.lead { margin: 0 0 1.5rem; color: var(--soft); max-width: 46rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 0 0 2rem; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
"""


def render(title: str, lead: str, facts: Mapping[str, str], body: str, style: str = "") -> str:
    """Returns a page as HTML.

    Args:
        title: the page's heading, as text.
        lead: what the reader sees here, in a sentence or two, as text.
        facts: short facts shown above the body, by name, as text.
        body: HTML below them. The colours to use are the custom properties --ground, --card, --ink, --soft, --line,
            --match and --other.
        style: CSS for the body.
    """
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n<dl class="facts">{listed}</dl>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )

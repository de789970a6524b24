"""One HTML page, complete in itself, that shows queries and what was found for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lookalike import Hit
from workbench import page
from workbench.pictures import thumbnail

_STYLE = """
section { display: grid; grid-template-columns: 11.5rem 1fr; gap: 1.5rem; margin-bottom: 1.25rem; padding: 1.25rem;
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
h2 { margin: .5rem 0 0; font-size: 1rem; overflow-wrap: anywhere; }
.query p, .hits p { margin: 0; color: var(--soft); font-size: .8rem; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.25rem, 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
.frame { display: grid; place-items: center; aspect-ratio: 1; padding: .4rem; overflow: hidden;
  background: var(--ground); border: 2px solid var(--line); border-radius: 10px; }
.frame img { max-width: 100%; max-height: 100%; border-radius: 4px; display: block; }
.match .frame { border-color: var(--match); }
.other .frame { border-color: var(--other); }
figcaption { margin-top: .4rem; font-size: .8rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
.id { display: block; font-weight: 600; overflow-wrap: anywhere; }
.numbers { color: var(--soft); }
.mark { display: block; font-weight: 600; }
.match .mark { color: var(--match); }
.other .mark { color: var(--other); }
@media (max-width: 44rem) { section { grid-template-columns: 1fr; } .query { max-width: 11.5rem; } }
"""


@dataclass(frozen=True)
class QueryResult:
    """A query image and the hits for it.

    Attributes:
        name: how the page calls the query.
        image: the query's file.
        hits: the best first; their pictures are read from the rows' sources.
        label: the query's class, or None where it has none: then hits are not marked as right or wrong.
    """

    name: str
    image: Path
    hits: Sequence[Hit]
    label: str | None = None

    def matches(self, hit: Hit) -> bool:
        """Whether a hit has the query's class."""
        return hit.record.attributes.get("class") == self.label


def write_report(
    path: Path, *, title: str, lead: str, facts: Mapping[str, str], results: Sequence[QueryResult]
) -> None:
    """Writes the page.

    Args:
        path: the file to write; its folder is made if need be.
        title: the page's heading.
        lead: what the reader sees here, in a sentence or two.
        facts: short facts shown above the results, by name.
        results: what is shown.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(title=title, lead=lead, facts=facts, results=results), encoding="utf-8")


def render(*, title: str, lead: str, facts: Mapping[str, str], results: Sequence[QueryResult]) -> str:
    """Returns the page as HTML; see `write_report`."""
    body = "\n".join(_section(result) for result in results)
    return page.render(title, lead, facts, body, _STYLE)


def _section(result: QueryResult) -> str:
    hits = "\n".join(_figure(rank, hit, result) for rank, hit in enumerate(result.hits, 1))
    return (
        f'<section>\n<div class="query"><p>query</p><div class="frame">{thumbnail(result.image, result.name)}</div>'
        f"<h2>{escape(result.name)}</h2></div>\n"
        f'<div class="hits">\n{hits or "<p>nothing found</p>"}\n</div>\n</section>'
    )


def _figure(rank: int, hit: Hit, result: QueryResult) -> str:
    kind, mark = "", ""
    if result.label is not None:
        kind, word = ("match", "✓ same") if result.matches(hit) else ("other", "✗ other")
        mark = f'<span class="mark">{word}</span>'
    name = escape(hit.id).replace("/", "/<wbr>")  # long ids are paths: better broken there than anywhere
    return (
        f'<figure class="{kind}"><div class="frame">{thumbnail(Path(hit.record.source), hit.id)}</div>'
        f'<figcaption><span class="id">{rank}.&nbsp;{name}</span>'
        f'<span class="numbers">similarity {hit.similarity:.4f}<br>distance {hit.distance:.4f}</span>{mark}'
        "</figcaption></figure>"
    )

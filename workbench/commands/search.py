"""`lookalike search`: finds the stored images most similar to image files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.options import add_target, positive, security

if TYPE_CHECKING:
    from lookalike import SearchOptions, SearchResult


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "search",
        help="find the stored images most similar to an image",
        description="Finds the stored images most similar to each of the given image files. In a terminal that can "
        "show pictures, it shows them.",
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image file to search by")
    parser.add_argument("--collection", required=True, metavar="NAME", help="collection to search")
    parser.add_argument("--top-k", type=positive, default=10, metavar="K", help="hits wanted (default: %(default)s)")
    parser.add_argument(
        "--filter",
        default="",
        metavar="EXPR",
        help="""which rows may be hits, such as 'attributes["class"] == "cat"'""",
    )
    parser.add_argument("--min-similarity", type=float, metavar="S", help="lowest cosine similarity of a hit, -1 to 1")
    parser.add_argument("--exact", action="store_true", help="compare with every row instead of using the index")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image instead of tables")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the pictures of all hits")
    parser.add_argument(
        "--open", action="store_true", help="show that page in the browser; without --html, one in the temporary folder"
    )
    parser.add_argument("--no-pictures", action="store_true", help="no pictures in the terminal")
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from lookalike import Client, SearchOptions
    from workbench.tables import hits_table

    options = SearchOptions(top_k=args.top_k, filter=args.filter, exact=args.exact)
    if args.min_similarity is not None:
        options["min_similarity"] = args.min_similarity
    results = []
    with Client(args.target, security=security(args)) as client:
        for path in args.images:
            result = client.search(args.collection, image=path.read_bytes(), **options)
            results.append((path, result))
            if args.json:
                print(_as_json(path, result))
            else:
                print(f"{path}\n{hits_table(result.hits, indent='  ')}")
                _show_pictures(args, path, result)
    if args.html or args.open:
        page = args.html or _temporary_page()
        _write_html(args, page, options, results)
        if args.open:
            _open(page)
    return 0


def _show_pictures(args: argparse.Namespace, path: Path, result: SearchResult) -> None:
    """Shows the query and its hits, where the terminal can."""
    import os
    import shutil
    import sys

    from workbench.terminal_pictures import protocol, strip

    how = None if args.no_pictures else protocol(os.environ, is_terminal=sys.stdout.isatty())
    if how is not None:
        paths = [path, *(Path(hit.record.source) for hit in result.hits)]
        captions = ["query", *(f"{hit.similarity:.4f}" for hit in result.hits)]
        print(strip(paths, captions, how, shutil.get_terminal_size().columns))


def _temporary_page() -> Path:
    import tempfile

    # It stays: the browser reads it after this command has ended.
    return Path(tempfile.mkdtemp(prefix="lookalike-search-")) / "hits.html"


def _open(page: Path) -> None:
    import sys
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        print(f"There is no browser to show it in; the page is {page}", file=sys.stderr)


def _as_json(path: Path, result: SearchResult) -> str:
    hits = [
        {
            "id": hit.id,
            "similarity": hit.similarity,
            "distance": hit.distance,
            "source": hit.record.source,
            "attributes": hit.record.attributes,
        }
        for hit in result.hits
    ]
    return json.dumps({"query": str(path), "hits": hits}, ensure_ascii=False)


def _write_html(
    args: argparse.Namespace, page: Path, options: SearchOptions, results: list[tuple[Path, SearchResult]]
) -> None:
    from workbench.report import QueryResult, write_report

    write_report(
        page,
        title=f"Search in {args.collection}",
        lead="Each query with its most similar stored images, the best first.",
        facts={"collection": args.collection, "top_k": str(args.top_k)}
        | ({"filter": args.filter} if args.filter else {}),
        results=[QueryResult(path.name, path, result.hits) for path, result in results],
    )

"""`lookalike collections`: lists, describes, creates and deletes collections."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from workbench.options import add_target

if TYPE_CHECKING:
    from lookalike import Collection


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("collections", help="list, describe, create or delete collections")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    add_target(_action(actions, "list", _list, "list all collections"))
    for name, run, text in (
        ("describe", _describe, "show the model, index and size of a collection"),
        ("create", _create, "create an empty collection for the embedder's model"),
        ("delete", _delete, "delete a collection with all its rows"),
    ):
        action = _action(actions, name, run, text)
        action.add_argument("name", metavar="NAME", help="name of the collection")
        add_target(action)
        if run is _create:
            action.add_argument("--flat", action="store_true", help="search exactly, without an HNSW index")


def _action(actions: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(run=run)
    return parser


def _list(args: argparse.Namespace) -> int:
    from lookalike import Client
    from workbench.tables import table

    with Client(args.target) as client:
        collections = client.list_collections()
    print(table(("collection", "rows", "dimensions", "index", "model"), [_row(each) for each in collections]))
    return 0


def _row(collection: Collection) -> tuple[str, ...]:
    serving = collection.serving
    if serving is None:
        return collection.name, "-", "-", "-", "none serves"
    space, index = serving.space, serving.index
    return collection.name, f"{serving.row_count:,}", str(space.dimension), index.type.name, space.fingerprint[:12]


def _describe(args: argparse.Namespace) -> int:
    from lookalike import Client

    with Client(args.target) as client:
        description = client.describe_collection(args.name)
    _print(description.collection)
    print(f"database     {description.backend}")
    return 0


def _create(args: argparse.Namespace) -> int:
    from lookalike import Client, IndexSpec, IndexType

    with Client(args.target) as client:
        _print(client.create_collection(args.name, index=IndexSpec(IndexType.FLAT) if args.flat else None))
    return 0


def _delete(args: argparse.Namespace) -> int:
    from lookalike import Client

    with Client(args.target) as client:
        client.delete_collection(args.name)
    print(f"collection {args.name} is deleted")
    return 0


def _print(collection: Collection) -> None:
    print(f"collection   {collection.name}")
    print(f"tenants      {'yes' if collection.multi_tenant else 'no'}")
    for version in collection.versions:
        index = version.index
        parameters = f" (M {index.m}, efConstruction {index.ef_construction})" if index.m else ""
        print(f"version      {version.version}, {version.state.name}, since {version.create_time:%Y-%m-%d %H:%M} UTC")
        print(f"rows         {version.row_count:,}")
        print(f"model        {version.space.fingerprint}")
        print(f"dimensions   {version.space.dimension}")
        print(f"index        {index.type.name}{parameters}")

"""`lookalike collections`: lists, describes, creates and deletes collections, and their versions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from workbench.options import add_index, add_target, positive, security

if TYPE_CHECKING:
    from lookalike import Collection, CollectionVersion, IndexSpec


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "collections", help="list, describe, create or delete collections and versions of them"
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    add_target(_action(actions, "list", _list, "list all collections"))
    for name, run, text in (
        ("describe", _describe, "show the model, index and size of a collection"),
        ("create", _create, "create an empty collection for the embedder's model"),
        ("delete", _delete, "delete a collection with all its rows, or one version that does not serve"),
        ("versions", _versions, "list the versions of a collection"),
        ("create-version", _create_version, "create a further version, empty, for the embedder's model"),
        ("switch", _switch, "let another version of a collection serve"),
    ):
        action = _action(actions, name, run, text)
        action.add_argument("name", metavar="NAME", help="name of the collection")
        add_target(action)
        if run in (_create, _create_version):
            add_index(action, "the service's choice, flat on Milvus Lite and hnsw on a Milvus server")
        if run is _delete:
            action.add_argument("--version", type=positive, metavar="N", help="delete this version only")
        if run is _switch:
            action.add_argument(
                "version", type=positive, metavar="VERSION", help="number of the version that shall serve"
            )


def _action(actions: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(run=run)
    return parser


def _list(args: argparse.Namespace) -> int:
    from lookalike import Client
    from workbench.tables import table

    with Client(args.target, security=security(args)) as client:
        collections = client.list_collections()
    header = ("collection", "rows", "dimensions", "index", "memory", "model")
    print(table(header, [_row(each) for each in collections]))
    return 0


def _row(collection: Collection) -> tuple[str, ...]:
    serving = collection.serving
    if serving is None:
        return collection.name, "-", "-", "-", "-", "none serves"
    return (
        collection.name,
        f"{serving.row_count:,}",
        str(serving.space.dimension),
        serving.index.type.name,
        _size(serving.memory_bytes),
        serving.space.fingerprint[:12],
    )


def _size(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.1f} MiB"


def _describe(args: argparse.Namespace) -> int:
    from lookalike import Client

    with Client(args.target, security=security(args)) as client:
        description = client.describe_collection(args.name)
    _print(description.collection)
    print(f"database     {description.backend}")
    return 0


def _create(args: argparse.Namespace) -> int:
    from lookalike import Client

    with Client(args.target, security=security(args)) as client:
        _print(client.create_collection(args.name, index=_index(args)))
    return 0


def _delete(args: argparse.Namespace) -> int:
    from lookalike import Client

    with Client(args.target, security=security(args)) as client:
        client.delete_collection(args.name, version=args.version)
    what = f"version {args.version} of collection" if args.version else "collection"
    print(f"{what} {args.name} is deleted")
    return 0


def _versions(args: argparse.Namespace) -> int:
    from lookalike import Client

    with Client(args.target, security=security(args)) as client:
        _print_versions(client.describe_collection(args.name).collection)
    return 0


def _create_version(args: argparse.Namespace) -> int:
    from lookalike import Client

    with Client(args.target, security=security(args)) as client:
        _print_version(client.create_collection_version(args.name, index=_index(args)))
    return 0


def _switch(args: argparse.Namespace) -> int:
    from lookalike import Client

    with Client(args.target, security=security(args)) as client:
        _print_versions(client.switch_collection_version(args.name, args.version))
    return 0


def _index(args: argparse.Namespace) -> IndexSpec:
    from lookalike import IndexSpec, IndexType

    return IndexSpec(IndexType[(args.index or "unspecified").upper()], args.m or 0, args.ef_construction or 0)


def _print_versions(collection: Collection) -> None:
    from workbench.tables import table

    rows = [
        (
            str(version.version),
            version.state.name,
            f"{version.row_count:,}",
            str(version.space.dimension),
            version.index.type.name,
            _size(version.memory_bytes),
            version.space.fingerprint[:12],
        )
        for version in collection.versions
    ]
    print(table(("version", "state", "rows", "dimensions", "index", "memory", "model"), rows))


def _print(collection: Collection) -> None:
    print(f"collection   {collection.name}")
    print(f"tenants      {'yes' if collection.multi_tenant else 'no'}")
    for version in collection.versions:
        _print_version(version)


def _print_version(version: CollectionVersion) -> None:
    index = version.index
    parameters = f" (M {index.m}, efConstruction {index.ef_construction})" if index.m else ""
    print(f"version      {version.version}, {version.state.name}, since {version.create_time:%Y-%m-%d %H:%M} UTC")
    indexed = "" if version.indexed_row_count is None else f", {version.indexed_row_count:,} of them indexed"
    print(f"rows         {version.row_count:,}{indexed}")
    print(f"model        {version.space.fingerprint}")
    print(f"dimensions   {version.space.dimension}")
    print(f"index        {index.type.name}{parameters}")
    print(f"memory       about {_size(version.memory_bytes)} for vectors and index")

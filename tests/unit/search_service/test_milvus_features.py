"""The table of differences is true: each feature is tried on each backend, without the store between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from milvus_samples import Place
from pymilvus import DataType, MilvusClient, MilvusException

from lookalike.search.v1 import search_pb2 as pb
from search_service import convert, milvus_local
from search_service.filters import literal
from search_service.milvus_features import FEATURES, Backend, FeatureName
from search_service.records import IndexSpec
from service_kit.errors import Unimplemented

ROOT = Path(__file__).parents[3]
_numbers = itertools.count()


class Bench:
    """A client, and the one collection that the features are tried on, which has an alias."""

    def __init__(self, client: Any, backend: Backend) -> None:
        self.client = client
        self.backend = backend
        self.collection = self.create("HNSW")
        client.create_alias(self.collection, f"alias_of_{self.collection}")

    def create(self, index_type: str, **params: Any) -> str:
        name = f"trial_{next(_numbers)}"
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("attributes", DataType.JSON)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
        indexes = MilvusClient.prepare_index_params()
        params = {"M": 8, "efConstruction": 64, **params}
        indexes.add_index("vector", index_type=index_type, metric_type="COSINE", params=params)
        self.client.create_collection(name, schema=schema, index_params=indexes, timeout=30)
        return name

    def upsert(self, *rows: dict[str, Any]) -> None:
        self.client.upsert(self.collection, [{"vector": [1.0, 2, 3, 4], "attributes": {}, **row} for row in rows])

    def read(self, condition: str, level: str = "Strong", **options: Any) -> list[dict[str, Any]]:
        fields = ["id", "attributes"]
        found: list[dict[str, Any]] = self.client.query(
            self.collection, filter=condition, output_fields=fields, consistency_level=level, timeout=30, **options
        )
        return found


def hnsw_sq(bench: Bench) -> bool:
    bench.create("HNSW_SQ", sq_type="SQ8")
    return True


def bulk_import(bench: Bench) -> bool:
    # That there is no such file is found out later.
    client, context = bench.client, bench.client._generate_call_context()
    return bool(client._handler.do_bulk_insert(bench.collection, "", ["/nowhere.parquet"], timeout=30, context=context))


def search_by_id(bench: Bench) -> bool:
    bench.upsert({"id": "known"})
    found = bench.client.search(
        bench.collection, ids=["known"], anns_field="vector", limit=9, consistency_level="Strong", timeout=30
    )
    # A server that does not know of it finds nothing.
    return any(hits for hits in found)


def filter_values(bench: Bench) -> bool:
    bench.upsert({"id": "value"})
    return len(bench.read("id == {wanted}", filter_params={"wanted": "value"})) == 1


def null_conditions(bench: Bench) -> bool:
    bench.upsert({"id": "null", "attributes": {"here": 1}})
    return len(bench.read('id == "null" and attributes["gone"] is null')) == 1


def membership_of_attributes(bench: Bench) -> bool:
    bench.upsert({"id": "member", "attributes": {"x": 7}})
    return len(bench.read('id == "member" and attributes["x"] in [6, 7]')) == 1


def attributes_of_any_name(bench: Bench) -> bool:
    names = ["a\tb", "\x01"]
    bench.upsert({"id": "names", "attributes": dict.fromkeys(names, 1)})
    return all(bench.read(f'id == "names" and attributes[{literal(name)}] == 1') for name in names)


def true_is_not_1(bench: Bench) -> bool:
    bench.upsert({"id": "one", "attributes": {"x": 1}})
    return not bench.read('id == "one" and attributes["x"] == true')


def bounded_reads_see_all_writes(bench: Bench) -> bool:
    # Once could be luck.
    for number in range(5):
        bench.upsert({"id": f"fresh {number}"})
        if not bench.read(f'id == "fresh {number}"', "Bounded"):
            return False
    return True


def last_of_equal_ids_wins(bench: Bench) -> bool:
    bench.upsert({"id": "twice", "attributes": {"n": 1}}, {"id": "twice", "attributes": {"n": 2}})
    return [row["attributes"] for row in bench.read('id == "twice"')] == [{"n": 2}]


def insert_of_a_stored_id_replaces(bench: Bench) -> bool:
    row = {"id": "inserted", "vector": [1.0, 2, 3, 4], "attributes": {}}
    for _ in range(2):
        bench.client.insert(bench.collection, [row])
    fields = ["count(*)"]
    answer = bench.client.query(
        bench.collection, filter='id == "inserted"', output_fields=fields, consistency_level="Strong", timeout=30
    )
    return int(answer[0]["count(*)"]) == 1


def aliases_listed_in_any_database(bench: Bench) -> bool:
    return len(bench.client.list_aliases(bench.collection)["aliases"]) == 1


def aliases_end_with_their_collection(bench: Bench) -> bool:
    collection = bench.create("FLAT")
    bench.client.create_alias(collection, "orphan")
    bench.client.drop_collection(collection)
    # An alias that is still there cannot be created.
    bench.client.create_alias(bench.collection, "orphan")
    return True


TRIALS: dict[FeatureName, Callable[[Bench], bool]] = {
    "hnsw_sq": hnsw_sq,
    "bulk_import": bulk_import,
    "search_by_id": search_by_id,
    "filter_values": filter_values,
    "null_conditions": null_conditions,
    "membership_of_attributes": membership_of_attributes,
    "attributes_of_any_name": attributes_of_any_name,
    "true_is_not_1": true_is_not_1,
    "bounded_reads_see_all_writes": bounded_reads_see_all_writes,
    "last_of_equal_ids_wins": last_of_equal_ids_wins,
    "insert_of_a_stored_id_replaces": insert_of_a_stored_id_replaces,
    "aliases_listed_in_any_database": aliases_listed_in_any_database,
    "aliases_end_with_their_collection": aliases_end_with_their_collection,
}


@pytest.fixture
def bench(place: Place, backend: str) -> Iterator[Bench]:
    with closing(MilvusClient(place.uri, db_name=place.database, timeout=30, dedicated=True)) as client:
        yield Bench(client, Backend.parse(client.get_server_version(), local=backend == "lite"))
    if backend == "lite":
        milvus_local.stop(place.uri)


def test_the_table_is_true(bench: Bench) -> None:
    found = {}
    for name, trial in TRIALS.items():
        try:
            found[name] = trial(bench)
        except (MilvusException, grpc.RpcError):
            found[name] = False
    assert found == {name: bench.backend.has(name) for name in FEATURES}


def test_the_docs_show_the_whole_table() -> None:
    rows = [line for line in (ROOT / "docs/backends.md").read_text().splitlines() if line.startswith("| ")]
    server = Backend.parse("2.3.5", local=False)
    lite = Backend.parse("3.2", local=True)
    for name, feature in FEATURES.items():
        since = ".".join(map(str, feature.server_since)) if feature.server_since else "not known"
        cells = (feature.what, "yes" if lite.has(name) else "no", "yes" if server.has(name) else "no", since)
        assert f"| {' | '.join(cells)} |" in rows


@pytest.mark.parametrize(
    ("text", "local", "shown"),
    [
        ("v2.3.5-lite", False, "Milvus 2.3.5"),
        ("2.6.15", False, "Milvus 2.6.15"),
        ("v2.5", False, "Milvus 2.5.0"),
        ("milvus_lite-3.2.2", True, "Milvus Lite 3.2.2"),
        ("nightly", False, "Milvus 0.0.0"),
    ],
)
def test_backends_tell_their_version_in_several_ways(text: str, local: bool, shown: str) -> None:
    assert str(Backend.parse(text, local=local)) == shown


def test_later_servers_have_more() -> None:
    assert not Backend.parse("v2.6.8", local=False).has("search_by_id")
    assert Backend.parse("v2.6.10", local=False).has("search_by_id")
    assert not Backend.parse("nightly", local=False).has("hnsw_sq")


def test_what_a_backend_lacks_is_refused_with_who_has_it() -> None:
    Backend.parse("v2.6.0", local=False).require("hnsw_sq")
    with pytest.raises(Unimplemented, match=r"Milvus 2\.3\.5 has no .*: Milvus Lite, Milvus servers from 2\.6\.0"):
        Backend.parse("v2.3.5", local=False).require("hnsw_sq")


def test_without_a_choice_an_index_suits_the_backend() -> None:
    assert Backend.parse("3.2.2", local=True).default_index == IndexSpec("FLAT")
    assert Backend.parse("v2.3.5", local=False).default_index == IndexSpec("HNSW")
    unset = pb.IndexSpec()
    assert convert.index_from(unset) is None
    assert convert.index_from(pb.IndexSpec(m=8)) == IndexSpec("HNSW", m=8)

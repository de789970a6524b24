"""Requests to the search service carry what the caller said, and replies are read completely."""

from datetime import UTC, datetime

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2

from lookalike import Embedding, IndexSpec, IndexType, Item, LookalikeError, UpsertOutcome, VectorSpace
from lookalike import types as t
from lookalike._convert import search as convert
from lookalike.search.v1 import search_pb2 as pb

_TIME = datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=UTC)


def _timestamp() -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(_TIME)
    return stamp


@pytest.mark.parametrize(
    ("enumeration", "contract"),
    [
        (t.IndexType, pb.IndexType),
        (t.VersionState, pb.VersionState),
        (t.UpsertOutcome, pb.UpsertOutcome),
        (t.Consistency, pb.Consistency),
    ],
)
def test_enumerations_have_the_names_and_numbers_of_the_contract(enumeration, contract):
    (prefix,) = {name.removesuffix("UNSPECIFIED") for name in contract.keys() if name.endswith("UNSPECIFIED")}  # noqa: SIM118
    assert {member.name: int(member) for member in enumeration} == {
        name.removeprefix(prefix): number for name, number in contract.items()
    }


def test_a_number_of_a_newer_contract_reads_as_unspecified():
    assert t.UpsertOutcome(99) is t.UpsertOutcome.UNSPECIFIED


def test_a_collection_is_created_in_the_embedders_space_unless_one_is_given():
    request = convert.create_collection("photos", None, None, False).request
    assert not request.HasField("space")
    assert not request.HasField("index")
    request = convert.create_collection(
        "photos", VectorSpace("m1", 8), IndexSpec(IndexType.HNSW, m=32, ef_construction=100), True
    ).request
    assert (request.space.model_fingerprint, request.space.dimension) == ("m1", 8)
    assert (request.index.type, request.index.m, request.index.ef_construction) == (pb.INDEX_TYPE_HNSW, 32, 100)
    assert request.multi_tenant


def test_a_version_is_created_in_the_embedders_space_unless_one_is_given():
    request = convert.create_version("photos", None, None).request
    assert (request.name, request.HasField("space"), request.HasField("index")) == ("photos", False, False)
    request = convert.create_version("photos", VectorSpace("m1", 8), IndexSpec(IndexType.FLAT)).request
    assert (request.space.model_fingerprint, request.space.dimension) == ("m1", 8)
    assert request.index.type == pb.INDEX_TYPE_FLAT


def test_rows_of_the_serving_version_go_to_another_one_with_their_time():
    item = t.FillItem(Item("a", image=b"jpeg"), _TIME)
    request = convert.fill_version("photos", 2, [item], ["b"], "me").request
    [sent] = request.items
    assert (request.name, request.version, request.tenant, list(request.surplus_ids)) == ("photos", 2, "me", ["b"])
    assert (sent.item.id, sent.item.image, sent.update_time) == ("a", b"jpeg", _timestamp())
    stored = pb.UpsertResult(id="a", outcome=pb.UPSERT_OUTCOME_STORED)
    result = convert.fill_result(pb.FillCollectionVersionResponse(results=[stored], deleted_count=1, index_built=True))
    assert result == t.FillResult((t.UpsertResult("a", UpsertOutcome.STORED),), 1, index_built=True)


def test_a_version_is_named_only_where_it_was_asked_for():
    def scan(**options):
        return convert.scan("photos", "", {}, "", {}, **options).request

    def search(**options):
        return convert.search("photos", b"jpeg", None, None, "", options).request.params

    for request in (scan(), search(), convert.count("photos", "", {}, "").request):
        assert not request.HasField("version")
    assert scan(version=2, all_tenants=True) == pb.ScanRequest(
        collection="photos", filter=pb.Filter(), output=pb.OutputFields(), version=2, all_tenants=True
    )
    assert search(version=2).version == 2
    assert convert.count("photos", "", {}, "", 2).request.version == 2
    assert convert.create_version("photos", None, None, require_embedder=True).request.require_embedder
    assert convert.record(pb.Record(id="a", tenant="me")).tenant == "me"


def test_items_carry_an_image_or_a_vector():
    image = Item("a", image=b"jpeg", attributes={"year": 1991}, source="/photos/a.jpg")
    vector = Item("b", vector=Embedding([3.0, 4.0], "m1"))
    request = convert.upsert("photos", [image, vector], True, "me").request
    first, second = request.items
    assert (request.collection, request.tenant, request.if_content_changed) == ("photos", "me", True)
    assert (first.id, first.image, first.source, first.attributes["year"].int_value) == (
        "a",
        b"jpeg",
        image.source,
        1991,
    )
    assert (list(second.vector.values), second.vector.model_fingerprint) == ([3.0, 4.0], "m1")
    assert second.WhichOneof("content") == "vector"


@pytest.mark.parametrize("content", [{}, {"image": b"jpeg", "vector": Embedding([1.0], "m1")}])
def test_an_item_without_exactly_one_content_is_refused(content):
    with pytest.raises(ValueError, match="'a' needs either an image or a vector"):
        Item("a", **content)


@pytest.mark.parametrize(
    "vector", [[1, 2], (1.0, 2.0), np.array([1, 2], np.float64), np.array([1, 2], np.float16), np.array([1, 2])]
)
def test_any_one_dimensional_array_is_a_vector(vector):
    embedding = Embedding(vector, "m1")
    assert embedding.vector.dtype == np.float32
    assert embedding.vector.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("vector", "message"), [([[1.0]], r"shape \[1, 1\]"), ([], "not empty"), ([float("nan")], "NaN or infinite")]
)
def test_what_is_no_vector_is_refused(vector, message):
    with pytest.raises(ValueError, match=message):
        Embedding(vector, "m1")


def test_a_search_without_options_leaves_them_to_the_service():
    request = convert.search("photos", b"jpeg", None, None, "", {}).request
    assert request.query.image == b"jpeg"
    params = request.params
    assert not any(params.HasField(name) for name in ("top_k", "min_similarity", "ef"))
    assert (params.exact, params.read_your_writes, params.filter.expression) == (False, False, "")
    assert not params.output.omit_attributes


def test_a_search_carries_its_options():
    request = convert.search(
        "photos",
        None,
        None,
        "a",
        "me",
        {
            "top_k": 3,
            "offset": 2,
            "filter": 'attributes["year"] > {year}',
            "filter_values": {"year": 1990},
            "min_similarity": 0.0,
            "ef": 99,
            "exact": True,
            "read_your_writes": True,
            "attributes": ["year"],
            "include_vector": True,
        },
    ).request
    params = request.params
    assert (request.query.id, request.tenant) == ("a", "me")
    assert (params.top_k, params.offset, params.ef, params.exact, params.read_your_writes) == (3, 2, 99, True, True)
    assert params.HasField("min_similarity"), "0 is a similarity like any other"
    assert params.filter.values["year"].int_value == 1990
    assert (list(params.output.attributes), params.output.include_vector) == (["year"], True)


def test_no_attributes_and_all_attributes_are_different_wishes():
    assert convert.get("photos", ["a"], "", {"attributes": []}).request.output.omit_attributes
    assert not convert.get("photos", ["a"], "", {}).request.output.omit_attributes


def test_a_misspelt_option_is_refused_by_name():
    with pytest.raises(TypeError, match="'topk'"):
        convert.search("photos", b"jpeg", None, None, "", {"topk": 3})


@pytest.mark.parametrize("query", [(None, None, None), (b"jpeg", None, "a")])
def test_a_search_by_nothing_or_by_two_things_is_refused(query):
    with pytest.raises(ValueError, match="exactly one"):
        convert.search("photos", *query, "", {})


def test_one_string_is_not_a_list_of_ids():
    with pytest.raises(TypeError, match="'cat'"):
        convert.delete("photos", "cat", None, {}, "")


def test_a_deletion_needs_ids_or_a_filter():
    assert list(convert.delete("photos", ["a"], None, {}, "").request.ids.ids) == ["a"]
    assert convert.delete("photos", None, "id != ''", {}, "").request.filter.expression == "id != ''"
    with pytest.raises(ValueError, match="either ids or a filter"):
        convert.delete("photos", None, None, {}, "")


def test_a_failed_item_carries_code_reason_and_time_to_wait():
    status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="the queue is full")
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=250_000_000)))
    result = convert.upsert_result(pb.UpsertResult(id="a", outcome=pb.UPSERT_OUTCOME_FAILED, error=status))
    assert result.outcome is UpsertOutcome.FAILED
    assert isinstance(result.error, LookalikeError)
    assert result.error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert result.error.retry_after == pytest.approx(0.25)
    assert str(result.error) == "RESOURCE_EXHAUSTED: the queue is full"


def test_a_stored_item_carries_no_error():
    assert convert.upsert_result(pb.UpsertResult(id="a", outcome=pb.UPSERT_OUTCOME_STORED)).error is None


def test_a_search_result_is_read_completely():
    record = pb.Record(id="a", source="/a.jpg", content_sha256="ab", update_time=_timestamp())
    record.attributes["year"].int_value = 1991
    record.vector.CopyFrom(pb.Vector(values=[0.6, 0.8], model_fingerprint="m1"))
    response = pb.SearchResponse(
        hits=[pb.Hit(record=record, similarity=0.75, distance=0.5)],
        served_by=pb.ServedBy(
            version=2,
            physical_name="photos_2",
            space=pb.VectorSpace(model_fingerprint="m1", dimension=2),
            index_type=pb.INDEX_TYPE_HNSW,
            ef=64,
            consistency=pb.CONSISTENCY_STRONG,
        ),
        timings=[pb.StageTiming(stage="search", duration=duration_pb2.Duration(nanos=1_500_000))],
    )
    result = convert.search_result(response)
    (hit,) = result.hits
    assert (hit.id, hit.similarity, hit.distance) == ("a", 0.75, 0.5)
    assert hit.record.attributes == {"year": 1991}
    assert (hit.record.update_time, hit.record.content_sha256) == (_TIME, "ab")
    assert hit.record.vector.vector.tolist() == pytest.approx([0.6, 0.8])
    assert result.served_by == t.ServedBy(2, "photos_2", VectorSpace("m1", 2), IndexType.HNSW, 64, t.Consistency.STRONG)
    assert result.timings == {"search": pytest.approx(0.0015)}


def test_a_collection_knows_the_version_that_serves():
    message = pb.Collection(
        name="photos",
        serving_version=1,
        versions=[
            pb.CollectionVersion(version=1, state=pb.VERSION_STATE_SERVING, row_count=3, create_time=_timestamp()),
            pb.CollectionVersion(version=2, state=pb.VERSION_STATE_FILLING, indexed_row_count=0),
        ],
    )
    collection = convert.collection(message)
    first, second = collection.versions
    assert collection.serving is first
    assert (first.state, first.row_count, first.create_time) == (t.VersionState.SERVING, 3, _TIME)
    assert (first.indexed_row_count, second.indexed_row_count) == (None, 0), "unknown is not none"


def test_missing_ids_are_told():
    result = convert.get_result(pb.GetResponse(records=[pb.Record(id="a")], missing_ids=["b"]))
    assert [record.id for record in result.records] == ["a"]
    assert result.missing_ids == ("b",)


def test_a_batch_of_queries_and_its_results_keep_their_order():
    queries = [t.Query(image=b"jpeg"), t.Query(id=""), t.Query(vector=Embedding([3.0, 4.0], "m1"))]
    request = convert.search_batch(
        "photos", queries, "me", {"top_k": 3, "max_similarity": 0.9, "fold_similarity": 0.5}
    ).request
    assert [query.WhichOneof("by") for query in request.queries] == ["image", "id", "vector"]
    assert (request.collection, request.tenant, request.params.top_k) == ("photos", "me", 3)
    assert request.params.max_similarity == pytest.approx(0.9)
    assert request.params.fold_similarity == 0.5
    assert not convert.search_batch("photos", queries, "", {}).request.params.HasField("fold_similarity")

    hit = pb.Hit(record=pb.Record(id="a"), similarity=0.5, distance=1.0, folded_ids=["b", "c"])
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="no such row")
    response = pb.SearchBatchResponse(
        results=[
            pb.SearchBatchResult(error=status),
            pb.SearchBatchResult(hits=pb.HitList(hits=[hit])),
            pb.SearchBatchResult(hits=pb.HitList()),
        ]
    )
    error, hits, nothing = convert.search_batch_result(response).results
    assert isinstance(error, LookalikeError)
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert [(found.id, found.folded_ids) for found in hits] == [("a", ("b", "c"))]
    assert nothing == ()


@pytest.mark.parametrize("parts", [{}, {"image": b"jpeg", "id": "a"}])
def test_a_query_is_exactly_one_thing(parts):
    with pytest.raises(ValueError, match="exactly one of image, vector and id"):
        t.Query(**parts)

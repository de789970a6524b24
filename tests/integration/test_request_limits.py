"""The limits that the services tell of, each at its edge: what is exactly at it passes, one more is refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from embedder_process import Embedder
from embedder_process import running as running_embedder
from google.protobuf.message import Message
from google.rpc import code_pb2
from PIL import Image

from lookalike.channel import connect
from lookalike.embedder.v1 import embedder_pb2
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc
from lookalike.values import to_value
from workbench.services import ANY_PORT, ServerProcess

INVALID, FULL = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
FLAGS = [
    *("--max-batch-items=8", "--max-batch-queries=3", "--max-top-k=20", "--max-ef=100", "--max-collections=3"),
    *("--max-filter-bytes=400", "--max-filter-depth=4", "--max-message-bytes=1M", "--max-metadata-bytes=4K"),
]


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """A search service on Milvus Lite with narrow limits and no embedder, and two collections of vectors."""
    folder = tmp_path_factory.mktemp("limits")
    flags = ["--milvus-uri", str(folder / "milvus.db"), "--embedder", "127.0.0.1:1", "--address", ANY_PORT]
    flags += ["--metrics-address", ANY_PORT, *FLAGS]
    with (
        ServerProcess("search-service", "search_service.main", flags, folder) as process,
        connect(process.addresses.grpc) as channel,
    ):
        stub: Any = search_pb2_grpc.SearchServiceStub(channel)
        create(stub, "points")
        create(stub, "shared", multi_tenant=True)
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    """Its calls."""
    return search_pb2_grpc.SearchServiceStub(channel)


@pytest.fixture(scope="module")
def limits(stub: Any) -> pb.Limits:
    """What the service says of its limits."""
    response: pb.DescribeCollectionResponse = stub.DescribeCollection(pb.DescribeCollectionRequest(name="points"))
    return response.limits


def create(stub: Any, name: str, **fields: Any) -> None:
    space = pb.VectorSpace(model_fingerprint="mine", dimension=2)
    stub.CreateCollection(pb.CreateCollectionRequest(name=name, space=space, **fields))


def vector(*values: float) -> pb.Vector:
    return pb.Vector(values=values or (1.0, 0.0), model_fingerprint="mine")


def refused(call: Callable[[], object], code: grpc.StatusCode, *parts: str) -> None:
    """Asserts that a call fails with a code and a message that has all the parts."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    assert error.code() is code, error
    for part in parts:
        assert part in error.details()


def upsert(stub: Any, *items: pb.UpsertItem, collection: str = "points", tenant: str = "") -> list[pb.UpsertResult]:
    return list(stub.Upsert(pb.UpsertRequest(collection=collection, tenant=tenant, items=items)).results)


def item(row_id: str = "a", source: str = "", **attributes: Any) -> pb.UpsertItem:
    fields = {name: to_value(value) for name, value in attributes.items()}
    return pb.UpsertItem(id=row_id, vector=vector(), source=source, attributes=fields)


def stored(stub: Any, row: pb.UpsertItem) -> None:
    [result] = upsert(stub, row)
    assert result.outcome == pb.UPSERT_OUTCOME_STORED, result


def failed(stub: Any, row: pb.UpsertItem, *parts: str) -> None:
    """Asserts that a row is refused, and another one of its request is not."""
    result, other = upsert(stub, row, item("other"))
    assert result.error.code == code_pb2.INVALID_ARGUMENT
    for part in parts:
        assert part in result.error.message
    assert other.outcome == pb.UPSERT_OUTCOME_STORED


def nested(depth: int, *, lists: bool) -> Any:
    """Lists or objects within each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


def search(stub: Any, **params: Any) -> pb.SearchResponse:
    query = pb.Query(vector=vector())
    response: pb.SearchResponse = stub.Search(
        pb.SearchRequest(collection="points", query=query, params=pb.SearchParams(**params))
    )
    return response


def count(stub: Any, expression: str, **values: Any) -> int:
    condition = pb.Filter(expression=expression, values={name: to_value(value) for name, value in values.items()})
    return int(stub.Count(pb.CountRequest(collection="points", filter=condition)).count)


# ---- The search service


def test_the_limits_are_told(limits: pb.Limits) -> None:
    told = {field.name: value for field, value in limits.ListFields()}
    assert told.keys() == set(pb.Limits.DESCRIPTOR.fields_by_name.keys())  # none is 0
    assert (told["max_filter_depth"], told["max_metadata_bytes"], told["max_message_bytes"]) == (4, 4096, 1 << 20)
    assert (told["max_caller_calls"], told["request_seconds"], told["stream_idle_seconds"]) == (512, 30, 300)


def test_a_row(stub: Any, limits: pb.Limits) -> None:
    stored(stub, item("i" * limits.max_id_bytes))
    failed(stub, item("i" * (limits.max_id_bytes + 1)), "513 bytes")
    stored(stub, item(source="s" * limits.max_source_bytes))
    failed(stub, item(source="s" * (limits.max_source_bytes + 1)), "source", "4097 bytes")
    text = "x" * (limits.max_attributes_bytes - len('{"a": ""}'))
    stored(stub, item(a=text))
    failed(stub, item(a=text + "x"), "attributes", "65537 bytes")
    failed(stub, item(a="x" * 400_000), "attributes", "65536")  # not even converted
    failed(stub, pb.UpsertItem(id="v", vector=vector(*[1.0] * 32_769)), "32769 components")
    [result] = upsert(stub, pb.UpsertItem(id="v", vector=vector(*[1.0] * 32_768)))
    assert result.error.code == code_pb2.FAILED_PRECONDITION  # the collection's have 2


@pytest.mark.parametrize("lists", [True, False])
def test_attributes_nest_as_deep_as_every_reply_can_bear(stub: Any, limits: pb.Limits, lists: bool) -> None:
    deepest = limits.max_attributes_depth - 1  # the attributes are an object themselves
    stored(stub, item("deep", a=nested(deepest, lists=lists)))
    queries = [pb.Query(vector=vector())] * 3
    [hits, *_] = stub.SearchBatch(pb.SearchBatchRequest(collection="points", queries=queries)).results
    assert any(hit.record.attributes["a"] == to_value(nested(deepest, lists=lists)) for hit in hits.hits.hits)
    failed(stub, item(a=nested(deepest + 1, lists=lists)), "deeper than 30")


def test_a_message_that_nests_too_deep_to_be_read_is_refused(channel: grpc.Channel) -> None:
    def field(number: int, content: bytes) -> bytes:
        size, head = len(content), [number << 3 | 2]
        while size >= 128:
            head.append(size % 128 + 128)
            size //= 128
        return bytes([*head, size]) + content

    value = b""
    for _ in range(10_000):
        value = field(6, field(1, value))  # a list in a list
    request = field(3, field(4, field(1, b"a") + field(2, value)))
    refused(lambda: channel.unary_unary("/lookalike.search.v1.SearchService/Upsert")(request), INVALID)


def test_rows_ids_and_queries_of_a_request(stub: Any, limits: pb.Limits) -> None:
    most = limits.max_batch_items
    assert len(upsert(stub, *(item(str(n)) for n in range(most)))) == most
    refused(lambda: upsert(stub, *(item(str(n)) for n in range(most + 1))), INVALID, "9 items: send 1 to 8")
    refused(lambda: upsert(stub, *[pb.UpsertItem()] * 200_000), INVALID, "200000 items")
    ids = [str(n) for n in range(most + 1)]
    stub.Get(pb.GetRequest(collection="points", ids=ids[:-1]))
    refused(lambda: stub.Get(pb.GetRequest(collection="points", ids=ids)), INVALID, "9 ids")
    stub.Delete(pb.DeleteRequest(collection="points", ids=pb.IdList(ids=ids[:-1])))
    refused(lambda: stub.Delete(pb.DeleteRequest(collection="points", ids=pb.IdList(ids=ids))), INVALID, "9 ids")
    queries = [pb.Query(vector=vector())] * (limits.max_batch_queries + 1)
    stub.SearchBatch(pb.SearchBatchRequest(collection="points", queries=queries[:-1]))
    refused(lambda: stub.SearchBatch(pb.SearchBatchRequest(collection="points", queries=queries)), INVALID, "4 queries")


def test_a_search(stub: Any, limits: pb.Limits) -> None:
    top_k, ef = limits.max_top_k, limits.max_ef
    search(stub, top_k=top_k, ef=ef)
    refused(lambda: search(stub, top_k=top_k + 1), INVALID, "top_k is 21: use 1 to 20")
    search(stub, top_k=1, offset=top_k - 1)
    refused(lambda: search(stub, top_k=1, offset=top_k), INVALID, "offset + top_k is 21")
    refused(lambda: search(stub, ef=ef + 1), INVALID, "ef is 101: use 1 to 100")
    names = [f"n{number}" for number in range(limits.max_output_attributes + 1)]
    search(stub, output=pb.OutputFields(attributes=names[:-1]))
    refused(lambda: search(stub, output=pb.OutputFields(attributes=names)), INVALID, "257 attributes")


def test_a_filter(stub: Any, limits: pb.Limits) -> None:
    most, depth = limits.max_filter_bytes, limits.max_filter_depth
    shortest = 'id == ""'
    count(stub, f'id == "{"i" * (most - len(shortest))}"')
    refused(lambda: count(stub, f'id == "{"i" * (most - len(shortest) + 1)}"'), INVALID, "401 bytes")
    refused(lambda: count(stub, "id in {ids}", ids=["i" * 100] * 4), INVALID, "filter", "400")
    refused(lambda: count(stub, "id in {ids}", ids=["i" * 100] * 1000), INVALID, "filter", "400")  # not even converted
    count(stub, "(" * depth + 'id == "a"' + ")" * depth)
    refused(lambda: count(stub, "(" * (depth + 1) + 'id == "a"' + ")" * (depth + 1)), INVALID, "deeper than 4")


def test_names(stub: Any, limits: pb.Limits) -> None:
    tenant = "t" * limits.max_tenant_bytes
    upsert(stub, item(), collection="shared", tenant=tenant)
    refused(lambda: upsert(stub, item(), collection="shared", tenant=tenant + "t"), INVALID, "tenant", "1 to 128")
    refused(lambda: upsert(stub, item(), collection="shared", tenant="t" * 500_000), INVALID, "tenant", "1 to 128")
    name = "c" * limits.max_name_bytes
    refused(lambda: create(stub, name + "c"), INVALID, "collection name", "1 to 128")
    refused(lambda: create(stub, "c" * 500_000), INVALID, "collection name", "1 to 128")
    create(stub, name)  # the third collection
    refused(lambda: create(stub, "fourth"), grpc.StatusCode.FAILED_PRECONDITION, "3 collections")
    assert len(stub.ListCollections(pb.ListCollectionsRequest()).collections) == 3
    stub.DeleteCollection(pb.DeleteCollectionRequest(name=name))


def test_a_message(stub: Any, limits: pb.Limits) -> None:
    def of(size: int) -> Message:
        request = pb.GetRequest(collection="points", ids=["i"])
        request.tenant = "t" * (size - request.ByteSize() - 4)
        assert request.ByteSize() == size
        return request

    refused(lambda: stub.Get(of(limits.max_message_bytes)), INVALID, "tenant")  # it was read
    refused(lambda: stub.Get(of(limits.max_message_bytes + 1)), FULL, "larger than max")


# ---- The embedder


@pytest.fixture(scope="module")
def embedder(bundle: Path) -> Iterator[Embedder]:
    """An embedder with narrow limits."""
    with running_embedder(
        bundle, "--max-image-bytes=5000", "--max-image-pixels=10000", "--max-batch-images=4", "--max-message-bytes=64K"
    ) as embedder:
        yield embedder


def picture(width: int, height: int, size: int) -> bytes:
    """A PNG file of so many bytes: what follows its end is ignored."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (0, 90, 180)).save(file, "png")
    return file.getvalue().ljust(size, b"\0")


def test_an_image_and_a_batch(embedder: Embedder) -> None:
    limits = embedder.stub.GetModel(embedder_pb2.GetModelRequest()).limits
    assert {field.name for field, _ in limits.ListFields()} == set(limits.DESCRIPTOR.fields_by_name.keys())
    most = limits.max_image_bytes
    embedder.embed(picture(100, 100, most))
    refused(lambda: embedder.embed(picture(100, 100, most + 1)), INVALID, "5001 bytes, above the limit of 5000")
    refused(lambda: embedder.embed(picture(73, 137, most)), INVALID, "73x137 = 10001 pixels, above the limit of 10000")
    images = [picture(1, 1, 100 + number) for number in range(limits.max_batch_images + 1)]
    assert len(embedder.embed_batch(images[:-1]).results) == 4
    refused(lambda: embedder.embed_batch(images), INVALID, "5 images", "at most 4")
    refused(lambda: embedder.embed_batch([bytes(1 << 16)]), FULL, "larger than max")

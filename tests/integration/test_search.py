"""The search service as its callers see it: both services running, real images, on both backends."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from lookalike import (
    AsyncClient,
    Client,
    EmbedderClient,
    Embedding,
    IndexSpec,
    IndexType,
    Item,
    LookalikeError,
    Query,
    UpsertOutcome,
    VectorSpace,
)
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc
from search_service.settings import SearchSettings
from workbench.demo_images import DemoImages
from workbench.services import Services

SERVICE = "lookalike.search.v1.SearchService"
NASTY_IDS = [
    "it's",
    'say "cheese"',
    "two\nlines",
    "back\\slash",
    "smile 😀",
    "a/b c?d=e&f#g",
    "] or id != '",
    " ",
    "x" * 512,
]


def point(*values: float) -> Embedding:
    return Embedding(values, "mine")


def refused(call: Callable[[], Any], code: grpc.StatusCode, *parts: str) -> None:
    """Asserts that a call fails with a code and a message that has all the parts."""
    with pytest.raises(LookalikeError) as caught:
        call()
    assert caught.value.code is code, caught.value
    for part in parts:
        assert part in caught.value.message


def huge_png() -> bytes:
    """A PNG file of 30,000 x 30,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9)) + chunk(b"IEND", b"")


# ---- Images


def test_an_edited_copy_finds_the_photograph_it_was_made_from(
    client: Client, photos: str, demo_images: DemoImages
) -> None:
    stored = client.upsert(photos, [Item(path.stem, image=path.read_bytes()) for path in demo_images.queries])
    assert {result.outcome for result in stored} == {UpsertOutcome.STORED}
    copy = (demo_images.copies / "chelsea" / "mirror.jpg").read_bytes()
    result = client.search(photos, image=copy, top_k=3, read_your_writes=True)
    assert result.hits[0].id == "chelsea"
    assert result.hits[0].similarity > result.hits[1].similarity > result.hits[2].similarity
    for hit in result.hits:
        assert hit.distance == pytest.approx(math.sqrt(2 - 2 * hit.similarity), abs=1e-3)
    assert set(result.timings) == {"embed", "search", "total"}


def test_bad_images_of_a_batch_fail_alone(client: Client, photos: str, demo_images: DemoImages) -> None:
    good = demo_images.queries[0].read_bytes()
    bad = {
        "truncated": good[: len(good) // 2],
        "text": b"this is not an image",
        "empty": b"",
        "bomb": huge_png(),
        "large": b"\xff\xd8" + bytes(16 << 20),
    }
    items = [Item("first", image=good)]
    items += [Item(name, image=content) for name, content in bad.items()]
    items += [Item("", image=good), Item("y" * 513, image=good), Item("nul\0", image=good), Item("last", image=good)]
    results = client.upsert(photos, items)
    assert [result.outcome for result in results] == [
        UpsertOutcome.STORED,
        *[UpsertOutcome.FAILED] * (len(bad) + 3),
        UpsertOutcome.STORED,
    ]
    for result in results[1:-1]:
        assert result.error is not None
        assert result.error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert len(result.error.message) > 10
    assert client.count(photos) == 2


def test_search_by_a_bad_image_says_what_is_wrong(client: Client, photos: str) -> None:
    refused(lambda: client.search(photos, image=b"hello"), grpc.StatusCode.INVALID_ARGUMENT, "image")
    refused(lambda: client.search(photos, image=huge_png()), grpc.StatusCode.INVALID_ARGUMENT, "30000x30000")


def test_unchanged_images_are_left_alone_when_asked(client: Client, photos: str, demo_images: DemoImages) -> None:
    items = [Item(path.stem, image=path.read_bytes(), attributes={"n": 1}) for path in demo_images.queries[:3]]
    client.upsert(photos, items)
    items[1] = dataclasses.replace(items[1], attributes={"n": 2})
    outcomes = [result.outcome for result in client.upsert(photos, items, if_content_changed=True)]
    assert outcomes == [UpsertOutcome.UNCHANGED, UpsertOutcome.STORED, UpsertOutcome.UNCHANGED]
    assert client.get(photos, [items[1].id], read_your_writes=True).records[0].attributes == {"n": 2}


# ---- Vectors, ids, attributes


def test_rows_come_back_as_they_went_in(client: Client, points: str) -> None:
    attributes = {"int": 2**60 + 1, "float": 2.0, "text": "é\n😀", "none": None, "deep": {"list": [1, True, "x", {}]}}
    client.upsert(points, [Item("a", vector=point(3, 0, 4, 0), attributes=attributes, source="/photos/a.jpg")])
    [record] = client.get(points, ["a"], include_vector=True, read_your_writes=True).records
    assert record.attributes == attributes
    assert [type(record.attributes[name]) for name in ("int", "float")] == [int, float]
    assert record.source == "/photos/a.jpg"
    assert record.vector is not None
    np.testing.assert_allclose(record.vector.vector, [0.6, 0, 0.8, 0], atol=1e-6)


def test_ids_may_hold_any_characters(client: Client, points: str) -> None:
    items = [Item(id, vector=point(1, index, 0, 0), attributes={"id": id}) for index, id in enumerate(NASTY_IDS)]
    assert {result.outcome for result in client.upsert(points, items)} == {UpsertOutcome.STORED}
    assert {
        record.id: record.attributes["id"] for record in client.get(points, NASTY_IDS, read_your_writes=True).records
    } == {id: id for id in NASTY_IDS}
    for index, id in enumerate(NASTY_IDS):
        assert client.search(points, vector=point(1, index, 0, 0), top_k=1, read_your_writes=True).hits[0].id == id
        assert id not in [
            hit.id for hit in client.search(points, id=id, top_k=len(NASTY_IDS), read_your_writes=True).hits
        ]
    assert client.delete(points, ids=NASTY_IDS[:4]) == 4
    assert client.get(points, NASTY_IDS, read_your_writes=True).missing_ids == tuple(NASTY_IDS[:4])
    assert client.count(points) == len(NASTY_IDS) - 4


def test_the_last_good_item_of_an_id_wins(client: Client, points: str) -> None:
    items = [
        Item("a", vector=point(1, 0, 0, 0), attributes={"n": 1}),
        Item("a", vector=point(1, 0, 0, 0), attributes={"n": 2}),
        Item("b", vector=point(0, 1, 0, 0)),
        Item("a", image=b"not an image"),
    ]
    outcomes = [result.outcome for result in client.upsert(points, items)]
    assert outcomes == [
        UpsertOutcome.SUPERSEDED,
        UpsertOutcome.STORED,
        UpsertOutcome.STORED,
        UpsertOutcome.FAILED,
    ]
    assert client.count(points) == 2
    assert client.get(points, ["a"], read_your_writes=True).records[0].attributes == {"n": 2}


def test_filters_take_values_and_paging_continues_where_it_stopped(client: Client, points: str) -> None:
    items = [
        Item(f"p{n}", vector=point(1, n / 10, 0, 0), attributes={"n": n, "kind": "odd's" if n % 2 else 'even "s"'})
        for n in range(10)
    ]
    client.upsert(points, items)
    odd = {"filter": 'attributes["kind"] == {kind}', "filter_values": {"kind": "odd's"}}
    found = client.search(points, vector=point(1, 0, 0, 0), top_k=10, read_your_writes=True, **odd)
    assert [hit.id for hit in found.hits] == ["p1", "p3", "p5", "p7", "p9"]
    page = client.search(points, vector=point(1, 0, 0, 0), top_k=2, offset=2, read_your_writes=True, **odd)
    assert [hit.id for hit in page.hits] == ["p5", "p7"]
    near = client.search(points, vector=point(1, 0, 0, 0), min_similarity=0.99, read_your_writes=True)
    assert [hit.id for hit in near.hits] == ["p0", "p1"]
    assert client.count(points, filter="id in {ids}", filter_values={"ids": ["p1", "p2", "q"]}) == 2
    assert client.delete(points, filter='attributes["n"] >= {n}', filter_values={"n": 8}) == 2
    assert client.count(points) == 8


def test_exact_and_indexed_searches_say_what_served_them(client: Client) -> None:
    points = "indexed"
    client.create_collection(points, space=VectorSpace("mine", 4), index=IndexSpec(IndexType.HNSW))
    client.upsert(points, [Item(str(n), vector=point(1, n, 0, 0)) for n in range(5)])
    by_index = client.search(points, vector=point(1, 0, 0, 0), ef=100, read_your_writes=True)
    exact = client.search(points, vector=point(1, 0, 0, 0), exact=True)
    assert [hit.id for hit in by_index.hits] == [hit.id for hit in exact.hits] == ["0", "1", "2", "3", "4"]
    assert (by_index.served_by.index_type, by_index.served_by.ef) == (IndexType.HNSW, 100)
    assert (exact.served_by.index_type, exact.served_by.ef) == (IndexType.FLAT, None)
    assert by_index.served_by.space == VectorSpace("mine", 4)
    client.delete_collection(points)


def test_vectors_of_8_bits_are_searched_where_milvus_has_them(client: Client, backend: str) -> None:
    def create() -> None:
        client.create_collection("bytes", space=VectorSpace("mine", 4), index=IndexSpec(IndexType.HNSW_SQ8, m=8))

    if backend == "server":
        refused(create, grpc.StatusCode.UNIMPLEMENTED, "Milvus 2.3.5", "Milvus servers from 2.6.0")
        return
    create()
    client.upsert("bytes", [Item(str(n), vector=point(1, n, 0, 0)) for n in range(5)])
    found = client.search("bytes", vector=point(1, 0, 0, 0), ef=100)
    assert [hit.id for hit in found.hits] == ["0", "1", "2", "3", "4"]
    assert (found.served_by.index_type, found.served_by.ef) == (IndexType.HNSW_SQ8, 100)
    assert client.search("bytes", vector=point(1, 0, 0, 0), exact=True).served_by.index_type is IndexType.FLAT
    serving = client.describe_collection("bytes").collection.serving
    assert serving is not None
    assert serving.index == IndexSpec(IndexType.HNSW_SQ8, 8, 200)
    client.delete_collection("bytes")


def test_tenants_see_their_own_rows_only(client: Client) -> None:
    client.create_collection("shared", space=VectorSpace("mine", 4), multi_tenant=True)
    try:
        for tenant, n in (("acme", 1), ("zoo", 2)):
            client.upsert("shared", [Item("a", vector=point(1, n, 0, 0), attributes={"n": n})], tenant=tenant)
            client.upsert("shared", [Item(f"of {tenant}", vector=point(1, 0, n, 0))], tenant=tenant)
        refused(lambda: client.count("shared"), grpc.StatusCode.INVALID_ARGUMENT, "tenant")
        for tenant, n in (("acme", 1), ("zoo", 2)):
            assert client.count("shared", tenant=tenant) == 2
            assert client.get("shared", ["a"], tenant=tenant, read_your_writes=True).records[0].attributes == {"n": n}
            found = client.search("shared", vector=point(1, 0, 0, 0), tenant=tenant, read_your_writes=True)
            assert {hit.id for hit in found.hits} == {"a", f"of {tenant}"}
        escape = 'id != "") or (id != ""'
        refused(lambda: client.count("shared", filter=escape, tenant="acme"), grpc.StatusCode.INVALID_ARGUMENT)
        assert client.delete("shared", ids=["a", "of zoo"], tenant="acme") == 1
        assert client.count("shared", tenant="zoo") == 2
    finally:
        client.delete_collection("shared")


# ---- Batches, ranges, folding, scans


def test_a_batch_takes_queries_of_all_kinds_and_bad_ones_fail_alone(
    client: Client, photos: str, demo_images: DemoImages
) -> None:
    paths = demo_images.queries[:3]
    client.upsert(photos, [Item(path.stem, image=path.read_bytes()) for path in paths])
    [record] = client.get(photos, [paths[1].stem], include_vector=True, read_your_writes=True).records
    queries = [
        Query(image=paths[0].read_bytes()),
        Query(image=b"this is not an image"),
        Query(vector=record.vector),
        Query(id=paths[2].stem),
        Query(id="stranger"),
        Query(vector=Embedding([1, 2], "another-model")),
    ]
    batch = client.search_batch(photos, queries, top_k=2, read_your_writes=True)
    codes = [result.code if isinstance(result, LookalikeError) else None for result in batch.results]
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    assert codes == [None, invalid, None, None, missing, grpc.StatusCode.FAILED_PRECONDITION]
    for position, first in ((0, paths[0].stem), (2, paths[1].stem)):
        hits = batch.results[position]
        assert not isinstance(hits, LookalikeError)
        assert (hits[0].id, len(hits)) == (first, 2)
    alone = client.search(photos, id=paths[2].stem, top_k=2, read_your_writes=True)
    assert batch.results[3] == alone.hits
    assert batch.served_by == alone.served_by
    assert set(batch.timings) == {"embed", "get", "search", "total"}


def test_batches_have_the_limit_that_is_told(client: Client, points: str) -> None:
    client.upsert(points, [Item("a", vector=point(1, 0, 0, 0))])
    most = client.describe_collection(points).limits.max_batch_queries
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    full = client.search_batch(points, [Query(vector=point(1, 0, 0, 0))] * most, read_your_writes=True)
    assert [len(result) for result in full.results if not isinstance(result, LookalikeError)] == [1] * most
    refused(lambda: client.search_batch(points, [Query(id="a")] * (most + 1)), invalid, f"{most + 1} queries")
    refused(lambda: client.search_batch(points, []), invalid, "0 queries")
    refused(lambda: client.search_batch(points, [Query(id="a")], top_k=0), invalid, "top_k is 0")
    refused(lambda: client.search(points, id="a", max_similarity=-2.0), invalid, "max_similarity is -2")
    refused(lambda: client.search(points, id="a", max_similarity=0.1, min_similarity=0.2), invalid, "swap")


def test_hits_out_of_range_or_folded_make_room_for_others(client: Client, points: str) -> None:
    def at(degrees: float) -> Embedding:
        return point(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), 0, 0)

    def cosine(degrees: float) -> float:
        return math.cos(math.radians(degrees))

    # Ten scenes, 8 degrees apart, of twelve shots each.
    items = [Item(f"{8 * n:02d}.{shot:02d}", vector=at(8 * n + shot / 10)) for n in range(10) for shot in range(12)]
    client.upsert(points, items)
    folded = client.search(points, vector=at(0), top_k=10, fold_similarity=cosine(2), read_your_writes=True)
    assert [hit.id for hit in folded.hits] == [f"{8 * n:02d}.00" for n in range(10)]
    assert folded.hits[0].folded_ids == tuple(f"00.{shot:02d}" for shot in range(1, 12))
    middle = client.search(
        points, vector=at(0), top_k=3, max_similarity=cosine(39), fold_similarity=cosine(2), read_your_writes=True
    )
    assert [hit.id for hit in middle.hits] == ["40.00", "48.00", "56.00"]
    ranged = client.search(points, vector=at(0), top_k=100, max_similarity=cosine(71), read_your_writes=True)
    assert [hit.id for hit in ranged.hits] == [f"72.{shot:02d}" for shot in range(12)]
    assert ranged.hits[0].folded_ids == ()


def test_a_scan_yields_each_row_once_with_what_was_asked_for(client: Client, services: Services, points: str) -> None:
    items = [
        Item(f"p{n}", vector=point(1, n, 0, 0), attributes={"n": n, "text": "x" * 10_000}, source=f"/p{n}")
        for n in range(400)
    ]
    client.upsert(points, items)
    client.upsert(points, [Item(id, vector=point(1, 1, 1, 1)) for id in NASTY_IDS])
    records = {record.id: record for record in client.scan(points, include_vector=True)}
    assert records.keys() == {item.id for item in items} | set(NASTY_IDS)
    assert records["p7"] == dataclasses.replace(client.get(points, ["p7"]).records[0], vector=records["p7"].vector)
    assert records["p7"].vector is not None
    some = client.scan(points, filter='attributes["n"] < {n}', filter_values={"n": 3}, attributes=["n"])
    assert sorted(record.attributes["n"] for record in some) == [0, 1, 2]
    assert len(list(client.scan(points))) == len(items) + len(NASTY_IDS)
    with grpc.insecure_channel(services.search.addresses.grpc) as channel:
        # Within the 4 MiB that gRPC clients take by default.
        pages = list(search_pb2_grpc.SearchServiceStub(channel).Scan(pb.ScanRequest(collection=points), timeout=30))
        assert len(pages) > 3
        assert max(page.ByteSize() for page in pages) < 1.1 * (1 << 20)
    refused(lambda: list(client.scan("nowhere")), grpc.StatusCode.NOT_FOUND, "nowhere")
    refused(lambda: list(client.scan(points, filter="nonsense")), grpc.StatusCode.INVALID_ARGUMENT, "nonsense")


def test_scans_that_are_left_give_their_places_back(client: Client, points: str) -> None:
    rows = [Item(f"p{n}", vector=point(1, n, 0, 0), attributes={"text": "x" * 50_000}) for n in range(300)]
    client.upsert(points, rows)
    limit = SearchSettings().max_scans
    scans = [client.scan(points) for _ in range(limit)]
    for scan in scans:
        next(scan)
    refused(lambda: next(client.scan(points)), grpc.StatusCode.RESOURCE_EXHAUSTED, f"{limit} scans")
    assert client.delete(points, ids=["p0"]) == 1  # readers that pause hold nobody up
    for scan in scans:
        scan.close()

    def scanned() -> int | None:
        try:
            return sum(1 for _ in client.scan(points))
        except LookalikeError as error:
            if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return None
            raise

    deadline = time.monotonic() + 10
    while (count := scanned()) is None:
        assert time.monotonic() < deadline
    assert count == len(rows) - 1


async def test_the_asyncio_client_batches_and_scans_alike(client: Client, services: Services, points: str) -> None:
    client.upsert(points, [Item(f"p{n}", vector=point(1, n, 0, 0)) for n in range(20)])
    queries = [Query(id="p3"), Query(id="nobody"), Query(vector=point(1, 9, 0, 0))]
    async with AsyncClient(services.search.addresses.grpc) as other:
        batch = await other.search_batch(points, queries, top_k=3, read_your_writes=True)
        same = client.search_batch(points, queries, top_k=3, read_your_writes=True)
        assert [batch.results[0], batch.results[2]] == [same.results[0], same.results[2]]
        assert isinstance(batch.results[1], LookalikeError)
        assert {record.id async for record in other.scan(points)} == {f"p{n}" for n in range(20)}


# ---- What is refused


def test_requests_that_make_no_sense_are_refused_with_a_reason(client: Client, points: str) -> None:
    client.upsert(points, [Item("a", vector=point(1, 0, 0, 0))])
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    query = point(1, 0, 0, 0)
    refused(lambda: client.search("nowhere", vector=query), missing, "nowhere")
    refused(lambda: client.upsert("nowhere", [Item("a", vector=query)]), missing, "nowhere")
    refused(lambda: client.count("no such; name"), invalid, "no such; name")
    refused(lambda: client.search(points, id="stranger"), missing, "stranger")
    refused(lambda: client.search(points, vector=query, top_k=0), invalid, "top_k is 0", "1000")
    refused(lambda: client.search(points, vector=query, top_k=10**6), invalid, "top_k is 1000000", "1000")
    refused(lambda: client.search(points, vector=query, top_k=10, offset=995), invalid, "offset + top_k")
    refused(lambda: client.search(points, vector=query, ef=10**6), invalid, "ef is 1000000")
    refused(lambda: client.search(points, vector=query, min_similarity=2.0), invalid, "min_similarity")
    refused(lambda: client.search(points, vector=query, filter="attributes["), invalid, "ends at position 12")
    refused(lambda: client.search(points, vector=query, filter="this is no filter"), invalid, "no field 'this'")
    refused(lambda: client.search(points, vector=query, filter='id == "a") or (id != "a"'), invalid, "filter")
    refused(lambda: client.search(points, vector=query, filter="id == {who}"), invalid, "who")
    refused(lambda: client.search(points, vector=query, tenant="acme"), invalid, "acme")
    refused(lambda: client.delete(points, filter=""), invalid, "filter")
    refused(lambda: client.get(points, []), invalid, "0 ids")
    refused(lambda: client.upsert(points, []), invalid, "0 items")
    refused(lambda: client.create_collection(points), grpc.StatusCode.ALREADY_EXISTS, points)
    refused(lambda: client.create_collection("1st"), invalid, "1st")
    refused(lambda: client.create_collection("c", space=VectorSpace("mine", 1)), invalid, "dimension")
    refused(lambda: client.create_collection("c", index=IndexSpec(IndexType.HNSW, m=1000)), invalid, "m")
    assert client.count(points) == 1


def test_vectors_that_cannot_be_stored_fail_alone(services: Services, points: str) -> None:
    """Sent as raw messages, because the SDK refuses most of these itself."""

    def item(id: str, values: list[float], fingerprint: str = "mine") -> pb.UpsertItem:
        return pb.UpsertItem(id=id, vector=pb.Vector(values=values, model_fingerprint=fingerprint))

    items = [
        item("good", [1, 2, 3, 4]),
        item("short", [1, 2, 3]),
        item("nan", [1, 2, 3, math.nan]),
        item("inf", [1, 2, 3, math.inf]),
        item("zero", [0, 0, 0, 0]),
        item("none", []),
        item("other model", [1, 2, 3, 4], "theirs"),
        pb.UpsertItem(id="nothing"),
    ]
    with grpc.insecure_channel(services.search.addresses.grpc) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        results = stub.Upsert(pb.UpsertRequest(collection=points, items=items), timeout=30).results
        codes = [result.error.code for result in results]
        invalid, precondition = 3, 9
        assert codes == [0, precondition, invalid, invalid, invalid, precondition, precondition, invalid]
        for values, code in (([1, 2, 3], precondition), ([1, 2, 3, math.nan], invalid)):
            vector = pb.Vector(values=values, model_fingerprint="mine")
            with pytest.raises(grpc.RpcError) as caught:
                stub.Search(pb.SearchRequest(collection=points, query=pb.Query(vector=vector)), timeout=30)
            assert caught.value.code().value[0] == code
        assert stub.Count(pb.CountRequest(collection=points), timeout=30).count == 1


def test_vectors_of_another_model_are_refused_naming_both(
    client: Client, services: Services, photos: str, points: str, demo_images: DemoImages
) -> None:
    with EmbedderClient(services.embedder.addresses.grpc) as embedder:
        model = embedder.get_model().model
    image = demo_images.queries[0].read_bytes()
    precondition = grpc.StatusCode.FAILED_PRECONDITION
    stranger = Embedding(np.ones(model.dimension), "another-model")
    refused(lambda: client.search(photos, vector=stranger), precondition, "another-model", model.fingerprint)
    # A collection of another model: the embedder's own vectors are the strangers there.
    refused(lambda: client.search(points, image=image), precondition, "mine", model.fingerprint)
    [result] = client.upsert(points, [Item("a", image=image)])
    assert result.error is not None
    assert result.error.code is precondition
    assert "mine" in result.error.message
    assert model.fingerprint in result.error.message


# ---- Collections and the server itself


def test_collections_are_described_and_listed(client: Client, photos: str, points: str, backend: str) -> None:
    client.upsert(points, [Item("a", vector=point(1, 0, 0, 0))])
    end = time.monotonic() + 20
    # On a server the number of rows is some seconds old.
    while client.describe_collection(points).collection.serving.row_count < 1 and time.monotonic() < end:
        time.sleep(0.2)
    assert [collection.name for collection in client.list_collections()] == [photos, points]
    description = client.describe_collection(points)
    serving = description.collection.serving
    assert (serving.space, serving.row_count) == (VectorSpace("mine", 4), 1)
    assert serving.index == (IndexSpec(IndexType.FLAT) if backend == "lite" else IndexSpec(IndexType.HNSW, 16, 200))
    assert serving.memory_bytes == pytest.approx(16 if backend == "lite" else 16 + 4 * 33 + 12, abs=1)
    assert description.backend.startswith("Milvus Lite 3." if backend == "lite" else "Milvus 2.3.5")
    assert description.limits.max_top_k == 1000


def test_metrics_tell_of_the_services_behind(client: Client, services: Services, photos: str) -> None:
    client.count(photos)
    with urllib.request.urlopen(f"http://{services.search.addresses.metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    assert 'search_upstream_requests_total{code="OK",method="GetModel",upstream="embedder"}' in text
    assert 'search_upstream_requests_total{code="OK",method="count",upstream="milvus"}' in text
    assert "search_upstream_duration_seconds_bucket" in text
    assert f'grpc_server_handled_total{{grpc_code="OK",grpc_method="Count",grpc_service="{SERVICE}"}}' in text


def test_any_grpc_client_can_call_through_reflection(services: Services, photos: str) -> None:
    buf = Path(sys.executable).parent / "buf"
    url = f"http://{services.search.addresses.grpc}/{SERVICE}/DescribeCollection"
    data = json.dumps({"name": photos})
    command = [str(buf), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", data, url]
    reply = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert json.loads(reply.stdout)["collection"]["name"] == photos


def test_a_deadline_that_has_nearly_passed_is_kept(services: Services, photos: str, demo_images: DemoImages) -> None:
    image = demo_images.queries[0].read_bytes()
    with Client(services.search.addresses.grpc, timeout=0.001) as hurried:
        refused(lambda: hurried.search(photos, image=image), grpc.StatusCode.DEADLINE_EXCEEDED)


def test_grey_images_of_one_pixel_are_images(client: Client, photos: str) -> None:
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    [result] = client.upsert(photos, [Item("dot", image=buffer.getvalue())])
    assert result.outcome is UpsertOutcome.STORED

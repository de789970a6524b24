"""Ids, attributes and filters of any characters against a real search service: exactly the right rows, and no others'.

LOOKALIKE_CASES is how many ids, and how many filter expressions, are tried on each backend; the same ones in each run.
`make faults` tries 5,000.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from lookalike import Client, Embedding, IndexSpec, IndexType, Item, LookalikeError, UpsertOutcome, VectorSpace
from workbench.services import ANY_PORT, ServerProcess

CASES = int(os.environ.get("LOOKALIKE_CASES", "100"))
ROWS = 25  # in one example
# A read that sees the last writes takes a server 0.2 s, in which it does little: many at a time.
THREADS = 16
TENANT, NEIGHBOUR = "acme", "zoo"
HERE = Embedding([1, 0, 0, 0], "mine")
bounded = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
# What has a meaning to some layer on the way, and what is easily taken for something else.
SPECIAL = [
    *"\"'\\\n\r\t\v\x7f\x1b`{}[]()%_*$#?&;,=/\x01 ",
    *('"] or id != "', "'] or id != '", '") or (id != "', "--", "/*", "*/", "//", " or 1 == 1"),
    *("\\u0041", "\\x41", "\\0", "null", "true", "in", "not", "like", "exists", "id", "tenant", "$meta"),
    *("{s}", "{{s}}", "%s", "0", "-0", "1e3", "..", "./", "acme/", "zoo/"),
    *"\u00a0\u2028\u200d\ufeff\ufffd\ufffe\uffff\ud7ff\ue000\U00010000\U0010ffff",
    *("é", "e\u0301", "ﬁ", "ß", "İ", "👩\u200d👩\u200d👧", "\u202e", "😀"),
]
pieces = st.sampled_from(SPECIAL) | st.text(characters, max_size=4)
texts = st.lists(pieces, max_size=5).map("".join)


def cut(text: str) -> str:
    """As much of a text as is allowed in an id."""
    return text.encode()[:512].decode(errors="ignore")


ids = st.builds(lambda text, times: cut(text * times), texts, st.sampled_from([1, 1, 1, 1, 2, 600])).filter(bool)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([0, 1, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, 0.1, 1e-300, 5e-324, 1.7976931348623157e308, 2.0**53, 2.0**63])
    | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=4
)
attributes = st.dictionaries(st.sampled_from(["a", "b"]) | texts, values, max_size=3)
rows = st.dictionaries(ids, attributes, min_size=ROWS, max_size=ROWS)

WORDS = """( ) [ ] " ' \\ || && ! id tenant attributes attributes["n"] updated_ms vector $meta == != >= < {s} 1 1==1
id!="" tenant=="zoo" tenant!="" - + * ** -- /* */ # ) or (id!=( true null exists json_contains( array_length( , 0 ~
["zoo"] "%" 9223372036854775808 1e400 0x7f . & | ^ << // ; count(*)"""
expressions = st.lists(
    st.sampled_from([*WORDS.split(), "\n", " ", " or ", " and ", "not ", " in ", " like ", " is null", ") or ("])
    | st.text(characters, max_size=3),
    max_size=10,
).map("".join)


def exact(value: Any) -> Any:
    """A value that equals others of the same JSON type alone: to Python 1, 1.0 and True are equal, and 0.0 and -0.0."""
    if isinstance(value, Mapping):
        return {key: exact(member) for key, member in value.items()}
    if isinstance(value, list):
        return [exact(element) for element in value]
    return type(value), repr(value)


def equal(a: Any, b: Any, backend: str) -> bool:
    """Whether a filter takes two scalars for equal: 1 and 1.0 are, and to Milvus Lite, as to Python, 1 and true."""
    if backend == "server" and (isinstance(a, bool) or isinstance(b, bool)):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    return type(a) is type(b) and bool(a == b)


@pytest.fixture(scope="module")
def client(backend: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of a search service without an embedder."""
    folder = tmp_path_factory.mktemp("hostile")
    milvus = str(folder / "milvus.db") if backend == "lite" else request.getfixturevalue("milvus_server").uri
    flags = ["--milvus-uri", milvus, "--embedder", "127.0.0.1:1", "--address", ANY_PORT, "--metrics-address", ANY_PORT]
    with (
        ServerProcess("search-service", "search_service.main", flags, folder) as server,
        Client(server.addresses.grpc) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def shared(client: Client) -> Iterator[str]:
    """A collection of two tenants, searched exactly."""
    space, index = VectorSpace("mine", 4), IndexSpec(IndexType.FLAT)
    client.create_collection("hostile", space=space, index=index, multi_tenant=True)
    yield "hostile"
    client.delete_collection("hostile")


@contextmanager
def stored(client: Client, collection: str, tenant: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Keeps rows in a collection for as long as the context lasts, unless they are deleted in it."""
    items = [Item(id, vector=HERE, attributes=attributes) for id, attributes in rows.items()]
    try:
        results = client.upsert(collection, items, tenant=tenant)
        assert [(result.id, result.outcome) for result in results] == [(id, UpsertOutcome.STORED) for id in rows]
        yield
    finally:
        client.delete(collection, filter='id != ""', tenant=tenant)


# An assertion names the row that fails; to shrink its example would take minutes.
@settings(bounded, max_examples=-(-CASES // ROWS), phases=(Phase.explicit, Phase.generate))
@given(rows)
@example({"smallest": {"n": -(2**63)}, "next": {"n": 1 - 2**63}, "largest": {"n": 2**63 - 1}})
def test_any_ids_and_attributes_give_exactly_the_right_rows(
    client: Client, shared: str, backend: str, rows: dict[str, dict[str, Any]]
) -> None:
    fresh = {"tenant": TENANT, "read_your_writes": True}
    ids = list(rows)
    everything = {id: exact(attributes) for id, attributes in rows.items()}

    def found(filter: str, **bound: Any) -> set[str]:
        hits = client.search(
            shared, vector=HERE, filter=filter, filter_values=bound, top_k=2 * len(ids), attributes=(), **fresh
        ).hits
        assert len({hit.id for hit in hits}) == len(hits)
        return {hit.id for hit in hits}

    def check_by_id(id: str) -> None:
        assert found("id == {id}", id=id) == {id}
        others = client.search(shared, id=id, top_k=2 * len(ids), **fresh).hits
        assert {hit.id: exact(hit.record.attributes) for hit in others} == {
            other: fields for other, fields in everything.items() if other != id
        }

    def check_by_attribute(condition: tuple[str, Any]) -> None:
        key, value = condition
        expected = {id for id, fields in rows.items() if key in fields and equal(fields[key], value, backend)}
        assert found("attributes[{key}] == {value}", key=key, value=value) == expected

    conditions = [
        (key, value)
        for fields in rows.values()
        for key, value in fields.items()
        if isinstance(value, bool | int | float | str)
        # See `attributes_of_any_name` in search_service/milvus_features.py.
        and (backend == "lite" or (key and not any(each < " " and each not in "\r\n" for each in key)))
    ]
    # The neighbour's rows have the same ids.
    with (
        stored(client, shared, NEIGHBOUR, {id: {"of": NEIGHBOUR} for id in ids}),
        stored(client, shared, TENANT, rows),
        ThreadPoolExecutor(THREADS) as pool,
    ):
        records = client.get(shared, ids, **fresh).records
        assert {record.id: exact(record.attributes) for record in records} == everything
        scanned = list(client.scan(shared, tenant=TENANT))
        assert {record.id: exact(record.attributes) for record in scanned} == everything
        assert len(scanned) == len(ids)
        list(pool.map(check_by_id, ids))
        list(pool.map(check_by_attribute, conditions))
        half = ids[::2]
        assert found("id in {ids}", ids=half) == set(half)
        assert client.delete(shared, ids=half[::2], tenant=TENANT) == len(half[::2])
        rest = half[1::2]
        assert client.delete(shared, filter="id in {ids}", filter_values={"ids": rest}, tenant=TENANT) == len(rest)
        assert {record.id for record in client.scan(shared, tenant=TENANT)} == set(ids) - set(half)
        theirs = list(client.scan(shared, tenant=NEIGHBOUR))
        assert {record.id: record.attributes for record in theirs} == {id: {"of": NEIGHBOUR} for id in ids}


@pytest.fixture(scope="module")
def neighbours(client: Client, shared: str) -> Iterator[str]:
    """The collection with a few rows of each tenant, which every read sees."""
    with ExitStack() as stack:
        for tenant in (TENANT, NEIGHBOUR):
            rows = {f"{tenant} {n}": {"n": n, "of": tenant} for n in range(3)}
            stack.enter_context(stored(client, shared, tenant, rows))
        yield shared


ESCAPES: Sequence[str] = [
    'id != "") or (id != ""',
    'id != "" or tenant == "zoo"',
    "1 == 1) or (1 == 1",
    'tenant == "zoo"',
    'not (tenant == "acme")',
    'id == "x" or 1 == 1',
    'id != "" or true',
    'id == "x\\") or (id != \\""',
    'id == "" /* or */ or id != ""',
    'id == "" -- ) or (id != ""',
    'id in ["a"] or id != ""',
    'tenant in ["zoo", "acme"] or tenant like "%"',
]


@settings(bounded, max_examples=CASES)
@given(expressions, texts)
def test_no_filter_expression_shows_rows_of_another_tenant(
    client: Client, neighbours: str, expression: str, text: str
) -> None:
    bound = {"s": text} if "{s}" in expression else {}
    only_own_rows(client, neighbours, expression, bound)


for escape in ESCAPES:
    test_no_filter_expression_shows_rows_of_another_tenant = example(escape, "")(
        test_no_filter_expression_shows_rows_of_another_tenant
    )


def only_own_rows(client: Client, collection: str, expression: str, bound: dict[str, Any]) -> None:
    """An expression chooses among a tenant's own rows, or is refused."""
    if not expression:
        return  # no filter
    options: dict[str, Any] = {"tenant": TENANT, "filter": expression, "filter_values": bound}
    try:
        hits = client.search(collection, vector=HERE, top_k=10, **options).hits
    except LookalikeError as error:
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT, f"{expression!r}: {error}"  # noqa: PT017
    else:
        assert {hit.record.attributes["of"] for hit in hits} <= {TENANT}, expression


def test_no_filter_expression_deletes_or_counts_rows_of_another_tenant(client: Client, neighbours: str) -> None:
    for escape in ESCAPES:
        try:
            assert client.count(neighbours, filter=escape, tenant="nobody") == 0
            assert client.delete(neighbours, filter=escape, tenant="nobody") == 0
            assert list(client.scan(neighbours, filter=escape, tenant="nobody")) == []
        except LookalikeError as error:
            assert error.code is grpc.StatusCode.INVALID_ARGUMENT, f"{escape!r}: {error}"  # noqa: PT017
    for tenant in (TENANT, NEIGHBOUR):
        assert client.count(neighbours, tenant=tenant) == 3


def test_ids_that_no_layer_could_keep_are_refused(client: Client, shared: str) -> None:
    results = client.upsert(shared, [Item(id, vector=HERE) for id in ("", "a\0b", "x" * 513, "é" * 257)], tenant=TENANT)
    assert {result.outcome for result in results} == {UpsertOutcome.FAILED}
    assert {result.error.code for result in results if result.error} == {grpc.StatusCode.INVALID_ARGUMENT}
    with pytest.raises((ValueError, LookalikeError)):
        client.upsert(shared, [Item("\ud800", vector=HERE)], tenant=TENANT)
    assert client.get(shared, ["x" * 512], tenant=TENANT, read_your_writes=True).records == ()

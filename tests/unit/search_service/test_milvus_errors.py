"""Failures of Milvus, as errors a caller can act on."""

from __future__ import annotations

import grpc
import pytest
from pymilvus import exceptions as pymilvus

from search_service.milvus_errors import TooLarge, translate
from service_kit.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    Unimplemented,
)

Milvus = pymilvus.MilvusException


def rpc_error(code: grpc.StatusCode) -> grpc.RpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="details")


@pytest.mark.parametrize(
    ("error", "expected", "retriable"),
    [
        (Milvus(2, "Fail connecting to server on 127.0.0.1:1"), Unavailable, True),
        (Milvus(101, "collection not loaded"), Unavailable, True),
        (Milvus(8, "rate limit exceeded"), ResourceExhausted, True),
        (Milvus(9, "quota exceeded"), ResourceExhausted, False),
        (Milvus(6, "unknown field 'foo'"), InvalidArgument, False),
        (Milvus(1100, "invalid parameter"), InvalidArgument, False),
        (Milvus(65535, "failed to create query plan: cannot parse expression: id =="), InvalidArgument, False),
        (Milvus(1, "maximum recursion depth exceeded"), InvalidArgument, False),
        (Milvus(1, "Python int too large to convert to C long"), InvalidArgument, False),
        (Milvus(100, "collection 'x' does not exist"), NotFound, False),
        (Milvus(1600, "alias not found"), NotFound, False),
        (Milvus(1, "alias 'a' already exists"), AlreadyExists, False),
        (Milvus(1401, "privilege not permitted"), FailedPrecondition, False),
        (Milvus(10, "service unimplemented"), Unimplemented, False),
        (Milvus(10001, "context deadline exceeded"), DeadlineExceeded, True),
        (Milvus(1, "[search] Retry timeout: 2s"), DeadlineExceeded, True),
        (Milvus(1, "Unexpected error, message=<Cannot invoke RPC on closed channel!>"), Unavailable, True),
        (
            Milvus(65535, "empty grpc client: failed to connect 127.0.0.1:5, reason: connection error"),
            Unavailable,
            True,
        ),
        (Milvus(grpc.StatusCode.UNAVAILABLE, "Retry run out"), Unavailable, True),
        (Milvus(1, "something new"), Internal, False),
        (pymilvus.DescribeCollectionException(100, "can't find collection"), NotFound, False),
        (pymilvus.ParamError(message="`limit` value 0 is illegal"), InvalidArgument, False),
        (pymilvus.DataNotMatchException(message="missed a field"), InvalidArgument, False),
        (pymilvus.ConnectionConfigException(message="uri is illegal"), FailedPrecondition, False),
        (rpc_error(grpc.StatusCode.UNAVAILABLE), Unavailable, True),
        (rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED), DeadlineExceeded, True),
        (rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED), ResourceExhausted, True),
        (rpc_error(grpc.StatusCode.UNIMPLEMENTED), Unimplemented, False),
        (rpc_error(grpc.StatusCode.UNAUTHENTICATED), FailedPrecondition, False),
        (rpc_error(grpc.StatusCode.INTERNAL), Internal, False),
    ],
)
def test_each_family_of_failures_has_its_error(error: Exception, expected: type[ServiceError], retriable: bool) -> None:
    failure = translate(error, "search")
    assert failure is not None
    assert type(failure.error) is expected
    assert failure.retriable is retriable
    assert "search" in failure.error.message


def too_large(text: str) -> grpc.RpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), details=text
    )


@pytest.mark.parametrize(
    "text", ["CLIENT: Sent message larger than max (5 vs. 4)", "grpc: received message larger than max (5 vs. 4)"]
)
def test_what_is_too_large_is_not_tried_again_as_it_is(text: str) -> None:
    failure = translate(too_large(text), "upsert")
    assert failure is not None
    assert isinstance(failure.error, TooLarge)
    assert not failure.retriable


@pytest.mark.parametrize(
    ("error", "unanswered"),
    [
        (Milvus(2, "Fail connecting to server on 127.0.0.1:1"), True),
        (rpc_error(grpc.StatusCode.UNAVAILABLE), True),
        (rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED), True),
        (rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED), False),
        (Milvus(8, "rate limit exceeded"), False),
        (Milvus(100, "collection 'x' does not exist"), False),
        (Milvus(101, "collection not loaded"), False),
        (Milvus(1100, "invalid parameter"), False),
    ],
)
def test_only_failures_without_an_answer_raise_the_suspicion_that_milvus_is_down(
    error: Exception, unanswered: bool
) -> None:
    failure = translate(error, "search")
    assert failure is not None
    assert failure.unanswered is unanswered


def test_the_message_keeps_what_milvus_said() -> None:
    failure = translate(Milvus(6, "unknown field 'foo' at column 1"), "search")
    assert failure is not None
    assert "unknown field 'foo' at column 1" in failure.error.message


def test_errors_of_others_are_left_alone() -> None:
    assert translate(ValueError("ours"), "search") is None

import grpc
import pytest
from google.rpc import code_pb2, status_pb2

from service_kit import errors, status

PLAIN = [
    errors.InvalidArgument,
    errors.NotFound,
    errors.AlreadyExists,
    errors.FailedPrecondition,
    errors.ResourceExhausted,
    errors.DeadlineExceeded,
    errors.Unavailable,
    errors.Unimplemented,
]


@pytest.mark.parametrize("kind", PLAIN)
def test_an_error_survives_the_way_through_a_status(kind):
    back = status.from_status(status.to_status(kind("it is so")), "the embedder")
    assert type(back) is kind
    assert back.message == "the embedder: it is so"


@pytest.mark.parametrize("kind", [errors.ResourceExhausted, errors.Unavailable])
def test_the_time_to_try_again_survives_too(kind):
    back = status.from_status(status.to_status(kind("full", 2.5)), "the embedder")
    assert back.retry_after == 2.5


def test_no_time_to_try_again_stays_none():
    sent = status.to_status(errors.ResourceExhausted("full"))
    assert not sent.details
    assert status.from_status(sent, "the embedder").retry_after is None


@pytest.mark.parametrize("code", [code_pb2.INTERNAL, code_pb2.UNKNOWN, code_pb2.DATA_LOSS])
def test_a_fault_of_another_service_is_unavailable(code):
    assert type(status.from_status(status_pb2.Status(code=code), "the embedder")) is errors.Unavailable


def test_every_error_has_a_code_of_its_own():
    kinds = errors.ServiceError.__subclasses__()
    assert set(status.CODES) == set(kinds)
    assert len(set(status.CODES.values())) == len(kinds)


def test_a_subclass_has_the_code_of_its_base():
    class Missing(errors.NotFound):
        pass

    assert status.code_of(Missing("gone")) is grpc.StatusCode.NOT_FOUND

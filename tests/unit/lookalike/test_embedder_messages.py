"""Requests to the embedder carry what the caller said, and replies are read completely."""

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2

from lookalike import Embedding, LookalikeError, Precision, Priority
from lookalike._convert import embedder as convert
from lookalike.embedder.v1 import embedder_pb2 as pb


def test_requests_carry_images_and_the_expected_model():
    assert convert.embed(b"a", Priority.BULK, "m1").request == pb.EmbedRequest(
        image=b"a", priority=pb.PRIORITY_BULK, expected_fingerprint="m1"
    )
    assert list(convert.embed_batch([b"a", b"b"], Priority.UNSPECIFIED, "").request.images) == [b"a", b"b"]
    streamed = convert.embed_stream_request(("id", b"a"), Priority.INTERACTIVE, 1.5, "m1")
    assert (streamed.correlation_id, streamed.image, streamed.priority) == ("id", b"a", pb.PRIORITY_INTERACTIVE)
    assert streamed.timeout.ToNanoseconds() == 1_500_000_000


def test_a_vector_comes_with_its_fingerprint():
    response = pb.EmbedResponse(embedding=pb.Embedding(values=[0.6, 0.8]), model_fingerprint="m1")
    embedding = convert.embedding(response)
    np.testing.assert_array_equal(embedding.vector, np.array([0.6, 0.8], np.float32))
    assert embedding.fingerprint == "m1"


def test_an_image_of_a_batch_fails_alone():
    error = status_pb2.Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="not an image")
    response = pb.EmbedBatchResponse(
        results=[pb.EmbedResult(error=error), pb.EmbedResult(embedding=pb.Embedding(values=[1.0]))],
        model_fingerprint="m1",
    )
    failed, embedded = convert.embedding_batch(response)
    assert isinstance(failed, LookalikeError)
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(embedded, Embedding)


def test_a_model_is_described_completely():
    response = pb.GetModelResponse(
        model=pb.Model(
            fingerprint="m1",
            dimension=150,
            backbone="resnet50",
            precision=pb.PRECISION_BF16,
            precision_losses=[pb.PrecisionLoss(precision=pb.PRECISION_INT8, mean_cosine=0.99)],
        ),
        limits=pb.Limits(max_batch_images=256),
    )
    description = convert.model_description(response)
    (loss,) = description.model.precision_losses
    assert (description.model.dimension, description.model.precision) == (150, Precision.BF16)
    assert (loss.precision, loss.mean_cosine, loss.accuracy_loss_points) == (Precision.INT8, pytest.approx(0.99), None)
    assert description.limits.max_batch_images == 256


def test_precisions_have_the_names_and_numbers_of_the_contract():
    assert {f"PRECISION_{member.name}": int(member) for member in Precision} == dict(pb.Precision.items())


def test_priorities_have_the_names_and_numbers_of_the_contract():
    assert {f"PRIORITY_{member.name}": int(member) for member in Priority} == dict(pb.Priority.items())

"""Calls to the embedder: their requests, and what the replies mean."""

from __future__ import annotations

from collections.abc import Sequence

from lookalike import types as t
from lookalike.call import Call
from lookalike.embedder.v1 import embedder_pb2 as pb
from lookalike.errors import LookalikeError, from_status


def get_model() -> Call[t.ModelDescription]:
    return Call("GetModel", pb.GetModelRequest(), model_description)


def embed(image: bytes, priority: t.Priority, expected_fingerprint: str) -> Call[t.Embedding]:
    request = pb.EmbedRequest(image=image, priority=_priority(priority), expected_fingerprint=expected_fingerprint)
    return Call("Embed", request, embedding)


def embed_batch(
    images: Sequence[bytes], priority: t.Priority, expected_fingerprint: str
) -> Call[list[t.Embedding | LookalikeError]]:
    request = pb.EmbedBatchRequest(
        images=images, priority=_priority(priority), expected_fingerprint=expected_fingerprint
    )
    return Call("EmbedBatch", request, embedding_batch)


def embed_stream_request(
    item: tuple[str, bytes], priority: t.Priority, timeout: float, expected_fingerprint: str
) -> pb.EmbedStreamRequest:
    correlation_id, image = item
    request = pb.EmbedStreamRequest(
        correlation_id=correlation_id,
        image=image,
        priority=_priority(priority),
        expected_fingerprint=expected_fingerprint,
    )
    request.timeout.FromNanoseconds(round(timeout * 1e9))
    return request


def embedding(response: pb.EmbedResponse) -> t.Embedding:
    return t.Embedding(response.embedding.values, response.model_fingerprint)


def embedding_batch(response: pb.EmbedBatchResponse) -> list[t.Embedding | LookalikeError]:
    return [_outcome(result, response.model_fingerprint) for result in response.results]


def stream_result(response: pb.EmbedStreamResponse) -> tuple[str, t.Embedding | LookalikeError]:
    return response.correlation_id, _outcome(response.result, response.model_fingerprint)


def model_description(response: pb.GetModelResponse) -> t.ModelDescription:
    model, limits = response.model, response.limits
    return t.ModelDescription(
        t.Model(
            fingerprint=model.fingerprint,
            dimension=model.dimension,
            backbone=model.backbone,
            weights_source=model.weights_source,
            weights_sha256=model.weights_sha256,
            input_height=model.input_height,
            input_width=model.input_width,
            feature_length=model.feature_length,
            pca_images=model.pca_images,
            explained_variance_ratio=model.explained_variance_ratio,
            runtime=model.runtime,
            device=model.device,
            precision=t.Precision(model.precision),
            precision_losses=tuple(_precision_loss(loss) for loss in model.precision_losses),
        ),
        t.EmbedderLimits(
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_batch_images=limits.max_batch_images,
            max_message_bytes=limits.max_message_bytes,
            max_stream_in_flight=limits.max_stream_in_flight,
            max_metadata_bytes=limits.max_metadata_bytes,
            max_caller_calls=limits.max_caller_calls,
            request_seconds=limits.request_seconds,
            stream_idle_seconds=limits.stream_idle_seconds,
        ),
    )


def _outcome(result: pb.EmbedResult, fingerprint: str) -> t.Embedding | LookalikeError:
    if result.HasField("error"):
        return from_status(result.error)
    return t.Embedding(result.embedding.values, fingerprint)


def _priority(priority: t.Priority) -> pb.Priority.ValueType:
    return pb.Priority.Value(f"PRIORITY_{priority.name}")


def _precision_loss(loss: pb.PrecisionLoss) -> t.PrecisionLoss:
    return t.PrecisionLoss(
        precision=t.Precision(loss.precision),
        mean_cosine=loss.mean_cosine if loss.HasField("mean_cosine") else None,
        accuracy_loss_points=loss.accuracy_loss_points if loss.HasField("accuracy_loss_points") else None,
    )

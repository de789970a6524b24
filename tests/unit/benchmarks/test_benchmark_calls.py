"""The requests of the clients."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.calls import _batches, _Singles
from embedder_service.decode import decode
from lookalike.embedder.v1 import embedder_pb2


def _image(format):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_no_two_requests_are_equal_though_their_pictures_are(format):
    image = _image(format)
    one, other = _Singles([image]), _Singles([image])
    requests = [one.request(0), one.request(1), one.request(2), other.request(0)]
    assert len(set(requests)) == 4
    expected = decode(image, height=32, width=32, resize="bicubic")
    for request in requests:
        sent = embedder_pb2.EmbedRequest.FromString(request).image
        assert np.array_equal(decode(sent, height=32, width=32, resize="bicubic"), expected)


def test_the_image_of_a_number_is_that_modulo_how_many_there_are():
    singles = _Singles([b"a", b"b", b"c"])
    images = [embedder_pb2.EmbedRequest.FromString(singles.request(number)).image[:1] for number in range(5)]
    assert images == [b"a", b"b", b"c", b"a", b"b"]


def test_batches_have_their_size_whatever_the_number_of_images():
    batches = [embedder_pb2.EmbedBatchRequest.FromString(batch) for batch in _batches([b"a", b"b", b"c"], 2)]
    assert [list(batch.images) for batch in batches] == [[b"a", b"b"], [b"c", b"a"]]

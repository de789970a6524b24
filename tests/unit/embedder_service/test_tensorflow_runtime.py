import numpy as np
import pytest

from embedder_service.decode import decode
from embedder_service.runtimes import load_runtime
from service_kit.errors import FailedPrecondition, InvalidArgument


@pytest.fixture(scope="module")
def images(image_paths):
    """uint8 [4, 224, 224, 3]."""
    return np.stack([decode(path.read_bytes(), height=224, width=224, resize="bicubic") for path in image_paths[:4]])


def test_a_bucket_gives_the_vectors_that_single_images_give(lite0, images):
    runtime = load_runtime(lite0, "tensorflow", buckets=(1, 4))
    alone = np.concatenate([runtime.run(image[np.newaxis]) for image in images])
    np.testing.assert_allclose(runtime.run(images), alone, atol=1e-4)


@pytest.mark.parametrize("buckets", [(2, 4), (1, 4, 2), (1, 1)])
def test_buckets_must_ascend_from_1(lite0, buckets):
    with pytest.raises(InvalidArgument, match="do not ascend from 1"):
        load_runtime(lite0, "tensorflow", buckets=buckets)


def test_a_precision_that_tensorflow_has_not_is_refused(lite0):
    with pytest.raises(FailedPrecondition, match="tensorflow runtime has no precision 'bf16'"):
        load_runtime(lite0, "tensorflow", precision="bf16")

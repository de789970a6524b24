import pytest

from embedder_service.settings import EmbedderSettings, validate
from service_kit.errors import InvalidArgument


def test_the_defaults_fit_together():
    validate(EmbedderSettings())


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"queue_images": 255}, "lower --max-batch-images or raise --queue-images"),
        ({"max_message_bytes": 1 << 20}, "lower --max-image-bytes or raise --max-message-bytes"),
        ({"queue_bytes": 1 << 20}, "lower --max-message-bytes or raise --queue-bytes"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(change, advice):
    with pytest.raises(InvalidArgument, match=advice):
        validate(EmbedderSettings(**change))

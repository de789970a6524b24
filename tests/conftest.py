from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def collector() -> Iterator[Any]:
    """A receiver of traces; its `environment` has processes send theirs to it."""
    from otlp_receiver import OtlpReceiver

    with OtlpReceiver() as receiver:
        yield receiver

"""What messages say, where a program could not have said it: such bytes come from nobody's client."""

import pytest

from lookalike.search.v1 import search_pb2 as pb
from search_service import convert
from service_kit.errors import InvalidArgument


@pytest.mark.parametrize(("seconds", "nanos"), [(0, -1), (0, 10**9), (2**62, 0), (-(2**62), 0)])
def test_a_time_that_cannot_be_is_the_items_fault(seconds, nanos):
    message = pb.FillItem(item=pb.UpsertItem(id="a", image=b"jpeg"))
    message.update_time.seconds, message.update_time.nanos = seconds, nanos
    found = convert.fill_item_from(message)
    assert isinstance(found, InvalidArgument)
    assert "item 'a' has no update_time that there could be" in found.message


def test_a_time_that_can_be_is_taken():
    message = pb.FillItem(item=pb.UpsertItem(id="a", image=b"jpeg"))
    message.update_time.FromMilliseconds(1_700_000_000_123)
    assert convert.fill_item_from(message).updated_ms == 1_700_000_000_123

"""Which failed calls are tried again, and how often."""

from __future__ import annotations

import asyncio
import time

import pytest

from search_service import retries
from search_service.retries import Failed, Failure, Retries
from service_kit.errors import InvalidArgument, ResourceExhausted, ServiceError, Unavailable


class Calls:
    """Fails a number of times, then succeeds."""

    def __init__(self, failures: int, error: ServiceError, *, retriable: bool = True) -> None:
        self.failures = failures
        self.made = 0
        self._failure = Failure(error, retriable)

    async def __call__(self) -> int:
        self.made += 1
        if self.made <= self.failures:
            raise Failed(self._failure)
        return self.made


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_FIRST_BACKOFF_SECONDS", 0.001)


def within(seconds: float) -> float:
    return time.monotonic() + seconds


async def test_what_may_pass_is_tried_again_up_to_the_last_attempt() -> None:
    assert await Retries("thing").call("look", Calls(3, Unavailable("down")), within(10)) == 4
    calls = Calls(9, Unavailable("down"))
    with pytest.raises(Unavailable, match="down"):
        await Retries("thing").call("look", calls, within(10))
    assert calls.made == 4


async def test_what_cannot_pass_is_not_tried_again() -> None:
    calls = Calls(1, InvalidArgument("wrong"), retriable=False)
    with pytest.raises(InvalidArgument):
        await Retries("thing").call("look", calls, within(10))
    assert calls.made == 1


async def test_no_attempt_starts_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_FIRST_BACKOFF_SECONDS", 1e9)
    monkeypatch.setattr(retries, "_LONGEST_BACKOFF_SECONDS", 1e9)
    calls = Calls(9, Unavailable("down"))
    with pytest.raises(Unavailable, match="down"):
        await Retries("thing").call("look", calls, within(0.5))
    assert calls.made == 1


async def test_retries_do_not_multiply_an_outage() -> None:
    policy = Retries("thing")
    calls = Calls(10**6, Unavailable("down"))
    await asyncio.gather(*(policy.call("look", calls, within(10)) for _ in range(200)), return_exceptions=True)
    assert calls.made == 210
    # Successes earn some again.
    for _ in range(30):
        await policy.call("look", Calls(0, Unavailable("down")), within(10))
    assert await policy.call("look", Calls(2, Unavailable("down")), within(10)) == 3


async def test_who_is_patient_comes_back_when_told_to_as_often_as_time_allows() -> None:
    busy = ResourceExhausted("full", 0.001)
    assert await Retries("thing").call("look", Calls(50, busy, retriable=False), within(10), patient=True) == 51
    calls = Calls(50, busy, retriable=False)
    with pytest.raises(ResourceExhausted):
        await Retries("thing").call("look", calls, within(10))
    assert calls.made == 1
    calls = Calls(50, ResourceExhausted("full", 60.0), retriable=False)
    with pytest.raises(ResourceExhausted):
        await Retries("thing").call("look", calls, within(1), patient=True)
    assert calls.made == 1

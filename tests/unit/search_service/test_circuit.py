"""When calls to a service that gives no answer fail at once, and when they pass again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

import pytest
from prometheus_client import REGISTRY

from search_service.circuit import Circuit
from service_kit.errors import Unavailable

PROBE_SECONDS = 0.1


class Service:
    """Answers probes, refuses them, or lets them wait."""

    def __init__(self) -> None:
        self.probes = 0
        self.at_a_time = self.most_at_a_time = 0
        self.down = False
        self.going_on = asyncio.Event()
        self.going_on.set()

    async def probe(self) -> None:
        self.probes += 1
        self.at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        try:
            if self.down:
                raise ConnectionError("nobody listens")
            await self.going_on.wait()
        finally:
            self.at_a_time -= 1


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def circuit(service: Service) -> AsyncIterator[Circuit]:
    circuit = Circuit("thing", "a:1", service.probe, probe_seconds=PROBE_SECONDS, pause_seconds=0.01, rest_seconds=0.05)
    yield circuit
    await circuit.aclose()


async def become(condition: Callable[[], object]) -> float:
    """Waits until a condition holds, and returns the seconds it took."""
    began = time.monotonic()
    while True:
        seconds = time.monotonic() - began
        if condition():
            return seconds
        assert seconds < 5
        await asyncio.sleep(0.001)


async def test_a_service_that_hangs_opens_it_and_one_that_goes_on_closes_it(
    circuit: Circuit, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service.going_on.clear()
    circuit.suspect()
    circuit.check()  # nothing is known yet
    await become(lambda: circuit.open)
    with pytest.raises(Unavailable, match="thing at a:1 has given no answer") as caught:
        circuit.check()
    assert caught.value.retry_after is not None
    assert REGISTRY.get_sample_value("search_circuit_open", {"upstream": "thing", "target": "a:1"}) == 1
    await asyncio.sleep(3 * PROBE_SECONDS)
    service.going_on.set()
    assert await become(lambda: not circuit.open) < PROBE_SECONDS
    circuit.check()
    assert service.most_at_a_time == 1
    assert REGISTRY.get_sample_value("search_circuit_open", {"upstream": "thing", "target": "a:1"}) == 0
    assert [record.message for record in caplog.records] == ["circuit opened", "circuit closed"], "one line a change"


async def test_a_service_that_is_down_opens_it_at_once_and_is_probed_until_it_is_back(
    circuit: Circuit, service: Service
) -> None:
    service.down = True
    for _ in range(50):
        circuit.suspect()
    assert await become(lambda: circuit.open) < PROBE_SECONDS
    await become(lambda: service.probes == 3)
    assert service.most_at_a_time == 1
    service.down = False
    await become(lambda: not circuit.open)


async def test_a_heavy_call_that_times_out_on_a_living_service_does_not_open_it(
    circuit: Circuit, service: Service
) -> None:
    circuit.suspect()
    await become(lambda: service.probes and not service.at_a_time)
    for _ in range(100):
        circuit.suspect()  # it was asked a moment ago
    await asyncio.sleep(0)
    assert not circuit.open
    assert service.probes == 1


async def test_an_answer_to_any_other_call_outweighs_a_probe_that_fails(circuit: Circuit, service: Service) -> None:
    service.going_on.clear()
    circuit.suspect()
    await become(lambda: service.at_a_time)
    circuit.answered()
    await become(lambda: not service.at_a_time)
    await asyncio.sleep(0.02)
    assert not circuit.open
    assert service.probes == 1


async def test_closing_ends_its_probes(circuit: Circuit, service: Service) -> None:
    service.down = True
    circuit.suspect()
    await become(lambda: circuit.open)
    await circuit.aclose()
    probes = service.probes
    await asyncio.sleep(0.05)
    assert service.probes == probes

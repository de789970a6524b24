"""The load generators against callees whose behaviour is known."""

import asyncio
import math
import time

import numpy as np
import pytest

from benchmarks.load import OK, Calls, Measured, closed_loop, open_loop, poisson
from benchmarks.processes import Cpu


def _calls(*rows, unsent=0):
    due, sent, ended, codes = zip(*rows, strict=True)
    return Calls(np.array(due), np.array(sent), np.array(ended), np.array(codes, np.str_), unsent)


async def test_a_closed_loop_keeps_as_many_calls_in_flight_as_it_has_callers():
    in_flight, most, numbers = 0, 0, []

    async def send(number, limit):
        nonlocal in_flight, most
        in_flight, most = in_flight + 1, max(most, in_flight + 1)
        numbers.append(number)
        await asyncio.sleep(0.01)
        in_flight -= 1
        return OK

    found = await closed_loop(send, 3, 0.3, 0.0, None)
    assert most == 3
    assert in_flight == 0
    assert numbers == list(range(len(numbers)))
    assert 0 < len(found.calls.due) < len(numbers)  # what ended in the warm-up or after the end is not counted
    assert np.array_equal(found.calls.due, found.calls.sent)
    assert found.seconds >= 0.3


async def test_a_closed_loop_measures_only_once_each_caller_was_answered():
    async def send(number, limit):
        await asyncio.sleep(0.3 if number == 0 else 0.01)
        return OK if number else "UNAVAILABLE"

    found = await closed_loop(send, 2, 0.1, 0.0, None)
    assert found.calls.counts().keys() == {OK}


async def test_a_closed_loop_keeps_the_load_up_until_the_last_call_of_the_measurement_is_answered():
    ended = []

    async def send(number, limit):
        await asyncio.sleep(0.3 if number == 2 else 0.01)
        ended.append(number)
        return OK

    # Number 2 is in flight at the end, and others are sent beside it for as long as it lasts.
    found = await closed_loop(send, 2, 0.05, 0.0, None)
    assert found.calls.ended.max() - found.end > 0.1
    assert len(ended[: ended.index(2)]) > 10


def test_the_rate_counts_calls_by_the_part_of_them_that_lies_in_the_measurement():
    # Two callers, whose calls take 4 s and are answered together: half a call each second.
    starts = [0.0, 4.0, 8.0, 12.0]
    calls = _calls(*((start, start, start + 4.0, OK) for start in starts for _ in range(2)))
    for begin, end in ((3.9, 8.1), (4.1, 7.9), (5.0, 6.0), (2.0, 11.0)):
        assert Measured.cut(begin, end, calls, Cpu(0, 0, 0)).rate() == pytest.approx(0.5)


def test_calls_that_fail_are_in_a_measurement_and_not_in_its_rate():
    calls = _calls((0.0, 0.0, 1.0, OK), (1.0, 1.0, 2.0, "INTERNAL"), (9.0, 9.0, 10.0, OK))
    found = Measured.cut(0.0, 2.0, calls, Cpu(0, 0, 0))
    assert found.calls.counts() == {"INTERNAL": 1, OK: 1}
    assert found.rate() == 0.5


async def test_the_latency_of_an_open_loop_counts_from_the_time_a_call_was_due():
    begin = time.monotonic() + 0.05
    due = begin + np.arange(10) * 0.01

    async def send(number, limit):
        if number == 0:
            time.sleep(0.2)  # noqa: ASYNC251 - nothing else runs: the calls after it are sent late
        return OK

    calls = await open_loop(send, due)
    assert calls.late(0.05) >= 5
    by_due = calls.latencies()[np.argsort(calls.due)]
    assert by_due[1] > 0.15
    assert (calls.ended - calls.sent)[calls.sent > begin + 0.2].max() < 0.1


async def test_every_planned_call_is_sent_or_unsent_and_every_sent_call_has_a_code():
    answered = asyncio.Event()

    async def send(number, limit):
        if number == 4:
            answered.set()
        await answered.wait()
        return OK if number % 2 else "UNAVAILABLE"

    begin = time.monotonic()
    calls = await open_loop(send, begin + np.arange(20) * 0.002, most_in_flight=5)
    assert calls.planned == 20
    assert calls.unsent + len(calls.due) == calls.planned
    assert sum(calls.counts().values()) == len(calls.due)
    assert calls.errors() == {"UNAVAILABLE": calls.counts()["UNAVAILABLE"]}


async def test_calls_beyond_the_most_in_flight_are_not_sent():
    never = asyncio.Event()

    async def send(number, limit):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(never.wait(), limit)
        return "DEADLINE_EXCEEDED"

    due = time.monotonic() + np.arange(8) * 0.001
    calls = await open_loop(send, due, limit=0.3, most_in_flight=3)
    assert (calls.counts(), calls.unsent) == ({"DEADLINE_EXCEEDED": 3}, 5)


async def test_calls_long_overdue_are_not_sent():
    async def send(number, limit):
        return OK

    calls = await open_loop(send, np.array([time.monotonic() - 5.0, time.monotonic()]))
    assert (len(calls.due), calls.unsent) == (1, 1)


def test_a_poisson_schedule_has_the_rate_asked_for_and_independent_gaps():
    times = poisson(200.0, 50.0, seed=7)
    assert len(times) == 10_000
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= 0
    assert times[-1] < 50
    gaps = np.diff(times)
    # Of exponential gaps, mean and standard deviation are equal, and 1/e are longer than the mean.
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)
    assert (gaps > gaps.mean()).mean() == pytest.approx(math.exp(-1), abs=0.02)


def test_a_schedule_is_the_same_for_the_same_seed_alone():
    assert np.array_equal(poisson(10, 5, seed=1), poisson(10, 5, seed=1))
    assert not np.array_equal(poisson(10, 5, seed=1), poisson(10, 5, seed=2))


def test_calls_of_several_clients_add_up():
    one = _calls((0.0, 0.0, 3.0, OK), (1.0, 1.5, 2.0, "UNAVAILABLE"), unsent=2)
    two = _calls((0.5, 0.5, 2.5, OK), unsent=1)
    both = Calls.merge([one, two])
    assert both.planned == one.planned + two.planned == 6
    assert both.ended.tolist() == [2.0, 2.5, 3.0]
    assert both.codes.tolist() == ["UNAVAILABLE", OK, OK]
    assert both.latencies().tolist() == [1.0, 2.0, 3.0]
    assert both.late(0.1) == 1


def test_calls_are_selected_by_their_end_and_by_their_code():
    calls = _calls((0, 0, 1.0, OK), (0, 0, 2.0, "UNAVAILABLE"), (0, 0, 3.0, OK))
    assert calls.ended_within(1.0, 3.0).ended.tolist() == [1.0, 2.0]
    assert calls.having(OK).ended.tolist() == [1.0, 3.0]

"""The closed loop of threads, against a callee whose behaviour is known."""

import os
import threading

from benchmarks.threads import closed_loop, merged_rate


def test_as_many_calls_are_in_flight_as_there_are_threads_and_errors_are_counted():
    lock = threading.Lock()
    all_there = threading.Barrier(3)  # breaks unless three are in flight at a time
    numbers: list[int] = []

    def call(number: int) -> None:
        with lock:
            numbers.append(number)
        all_there.wait(5)
        if number % 3 == 0:
            raise ValueError

    # The last calls may wait for others that come no more: the barrier ends them as errors.
    slice_ = closed_loop(call, 3, 0.2, 0.05, [os.getpid()])
    counts = slice_.measured.calls.counts()
    assert counts["OK"] > counts["ValueError"] > 0
    assert sorted(numbers) == list(range(len(numbers)))
    assert slice_.measured.seconds >= 0.2
    assert 0 < slice_.measured.rate() * slice_.measured.seconds < len(numbers)
    assert slice_.servers[0] > 0
    assert merged_rate([slice_, slice_]) == slice_.measured.rate()

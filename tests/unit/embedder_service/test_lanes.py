import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedder_service.lanes import Lane, LaneQueue


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_the_first_lane_goes_first_and_in_each_the_oldest():
    queue = LaneQueue()
    for item, lane in (("b1", Lane.BULK), ("i1", Lane.INTERACTIVE), ("b2", Lane.BULK), ("i2", Lane.INTERACTIVE)):
        queue.put(item, lane)
    assert queue.take(3) == ["i1", "i2", "b1"]
    assert queue.take(3) == ["b2"]
    assert len(queue) == 0


def test_callers_take_turns_within_a_lane_and_lanes_go_before_turns():
    queue = LaneQueue()
    for number in range(100):
        queue.put(number, Lane.INTERACTIVE, "flood")
    queue.put("bulk", Lane.BULK, "modest")
    queue.put("first", Lane.INTERACTIVE, "modest")
    queue.put("second", Lane.INTERACTIVE, "modest")
    queue.discard("first", Lane.INTERACTIVE, "modest")
    assert queue.take(3) == [0, "second", 1]
    assert queue.take(200)[-1] == "bulk"


def test_what_is_discarded_never_comes():
    queue = LaneQueue()
    queue.put(1, Lane.BULK)
    queue.put(2, Lane.BULK)
    queue.discard(1, Lane.BULK)
    queue.discard(7, Lane.BULK)  # was never there
    assert queue.take(9) == [2]


def test_take_waits_for_an_item(threads):
    queue = LaneQueue()
    taken = threads.submit(queue.take)
    queue.put(1, Lane.BULK)
    assert taken.result(10) == [1]


def test_places_are_held_to_the_bound(threads):
    queue = LaneQueue(2)
    assert queue.reserve()
    queue.put(1, Lane.BULK, reserved=True)
    assert queue.reserve()
    third = threads.submit(queue.reserve)
    assert not third.done()
    queue.take()
    assert third.result(10)
    fourth = threads.submit(queue.reserve)
    queue.give_back()
    assert fourth.result(10)
    queue.put(2, Lane.BULK, reserved=True)
    fifth = threads.submit(queue.reserve)
    queue.discard(2, Lane.BULK)
    assert fifth.result(10)


def test_closing_ends_all_waiting_and_returns_what_was_left(threads):
    queue = LaneQueue(1)
    queue.put(1, Lane.BULK)
    reserving = threads.submit(queue.reserve)
    assert queue.close() == [1]
    assert reserving.result(10) is False
    assert queue.put(2, Lane.BULK) is False
    assert queue.take() == []
    assert queue.close() == []


def test_nothing_is_lost_or_doubled_between_many_threads(threads):
    queue = LaneQueue(5)
    taken, done = [], threading.Event()

    def produce(start):
        for item in range(start, start + 500):
            assert queue.reserve()
            queue.put(item, Lane(item % 2), reserved=True)

    def consume():
        while items := queue.take(3):
            assert len(queue) <= 5
            taken.extend(items)
            if len(taken) == 1000:
                done.set()

    consumers = [threads.submit(consume) for _ in range(2)]
    producers = [threads.submit(produce, start) for start in (0, 500)]
    for producer in producers:
        producer.result(30)
    assert done.wait(30)
    queue.close()
    for consumer in consumers:
        consumer.result(10)
    assert sorted(taken) == list(range(1000))

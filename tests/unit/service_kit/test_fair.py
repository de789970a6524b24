"""Turns among callers."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_kit.fair import FairQueue, Share, Slots, Turns


def drained(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_callers_take_turns_and_the_items_of_each_keep_their_order():
    queue = FairQueue()
    for item in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        queue.put(item, item[0])
    assert queue.first() == "a1"
    assert drained(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_who_comes_late_waits_for_one_item_of_each_other_caller():
    queue = FairQueue()
    for number in range(1000):
        queue.put(number, "flood")
    assert queue.pop() == 0
    queue.put("late", "modest")
    assert [queue.pop(), queue.pop()] == [1, "late"]
    queue.put("again", "modest")
    assert [queue.pop(), queue.pop()] == [2, "again"]


def test_what_is_discarded_never_comes_and_takes_no_turn():
    queue = FairQueue()
    for item in ("a1", "a2", "b1"):
        queue.put(item, item[0])
    assert queue.discard("a1", "a")
    assert not queue.discard("a1", "a")
    assert not queue.discard("x", "nobody")
    assert queue.discard("b1", "b")
    assert list(queue) == ["a2"]
    assert drained(queue) == ["a2"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["put", "pop", "discard"]))))
def test_whatever_happens_nothing_is_lost_or_doubled_and_idle_callers_are_forgotten(steps):
    queue, held = FairQueue(), Counter()
    for number, (caller, step) in enumerate(steps):
        mine = [item for item in queue if item[0] == caller]
        if step == "put":
            queue.put((caller, number), caller)
            held[caller] += 1
        elif step == "discard" and mine:
            assert queue.discard(mine[-1], caller)
            held[caller] -= 1
        elif step == "pop" and len(queue):
            held[queue.pop()[0]] -= 1
        assert Counter(item[0] for item in queue) == +held
        assert len(queue) == held.total()
        assert set(queue._callers) == set(+held)


async def test_slots_go_to_callers_in_turn():
    slots, got = Slots(2), []

    async def work(caller):
        async with slots.held(caller):
            got.append(caller)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(caller) for caller in "aaaaaabbc"))
    assert "".join(got) == "aaabcabaa"


async def test_who_stops_waiting_for_a_slot_takes_none_along():
    slots = Slots(1)
    await slots.acquire("a")
    waiting = [asyncio.create_task(slots.acquire(caller)) for caller in "abc"]
    await asyncio.sleep(0)
    waiting[0].cancel()
    slots.release()  # while the first does not know yet that it was cancelled
    waiting[1].cancel()  # which has the slot, and does not know yet either
    await asyncio.wait_for(waiting[2], 10)
    assert [task.cancelled() for task in waiting] == [True, True, False]
    slots.release()
    await asyncio.wait_for(slots.acquire("a"), 10)


def test_a_share_is_each_callers_own():
    share = Share(2)
    give_back = share.take("a")
    assert give_back
    assert share.take("a")
    assert share.take("a") is None
    assert share.take("b")
    give_back()
    assert share.take("a")


@pytest.mark.parametrize("most", [1, 3])
def test_a_share_forgets_callers_with_nothing_in_progress(most):
    share = Share(most)
    for caller in range(1000):
        taken = [share.take(str(caller)) for _ in range(most)]
        for give_back in taken:
            give_back()
    assert not share._held


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


async def test_a_caller_alone_takes_all_turns_and_beside_others_so_many():
    clock = Clock()
    turns = Turns(2, clock)
    for _ in range(5):
        await turns.acquire("flood")
    await turns.acquire("modest")
    waiting = [asyncio.create_task(turns.acquire("flood")) for _ in range(3)]
    await asyncio.sleep(0)
    for _ in range(3):  # what runs already goes on; of five, the turns are two from now on
        turns.release("flood")
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    turns.release("flood")
    await asyncio.wait_for(waiting[0], 10)
    turns.release("modest")  # which is there for another second
    turns.release("flood")
    await asyncio.wait_for(waiting[1], 10)
    await asyncio.sleep(0)
    assert not waiting[2].done()
    clock.now += 1.1
    turns.release("flood")
    await asyncio.wait_for(waiting[2], 10)
    for _ in range(9):
        await asyncio.wait_for(turns.acquire("flood"), 10)


async def test_a_call_that_ends_while_it_waits_for_its_turn_takes_none():
    turns = Turns(1)
    await turns.acquire("modest")
    await turns.acquire("flood")
    waiting = [asyncio.create_task(turns.acquire("flood")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    turns.release("flood")  # while the first does not know yet that it was cancelled
    waiting[1].cancel()  # whose turn it is, which it does not know yet
    await asyncio.wait_for(waiting[2], 10)
    turns.release("flood")
    turns.release("modest")
    assert not turns._active
    assert not turns._waiting


async def test_turns_forget_callers_after_a_second():
    clock = Clock()
    turns = Turns(1, clock)
    for number in range(1000):
        clock.now += 0.1
        await turns.acquire(str(number))
        turns.release(str(number))
    assert len(turns._seen) <= 12

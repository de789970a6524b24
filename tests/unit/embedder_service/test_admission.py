import asyncio
from contextlib import ExitStack, contextmanager

import pytest

from embedder_service.admission import Admission
from embedder_service.lanes import Lane
from service_kit import sharing
from service_kit.errors import ResourceExhausted


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def refusal(admission, images, size, lane=Lane.INTERACTIVE):
    with pytest.raises(ResourceExhausted) as caught, admission.admit(lane, images, size):
        pass
    return caught.value


@contextmanager
def caller(name):
    """Does what follows for a caller."""
    before = sharing.caller()
    sharing.begin(name)
    try:
        yield
    finally:
        sharing.begin(before)


def test_places_are_free_again_after_the_reply():
    admission = Admission(2, 100)
    for _ in range(3):
        with admission.admit(Lane.INTERACTIVE, 2, 100):
            assert admission.images == 2
    assert admission.images == 0


def test_places_are_free_again_after_an_error():
    admission = Admission(2, 100)
    with pytest.raises(ZeroDivisionError), admission.admit(Lane.INTERACTIVE, 2, 100):
        1 / 0  # noqa: B018
    assert admission.images == 0


def test_too_many_images_are_refused_with_what_is_held_and_what_is_allowed():
    admission = Admission(3, 1000)
    with admission.admit(Lane.INTERACTIVE, 2, 10):
        error = refusal(admission, 2, 10)
        assert "it holds 2 of at most 3 images, and the request brings 2 more" in error.message
        with admission.admit(Lane.INTERACTIVE, 1, 10):
            pass


def test_too_many_bytes_are_refused_with_what_is_held_and_what_is_allowed():
    admission = Admission(100, 50)
    with admission.admit(Lane.INTERACTIVE, 1, 30):
        error = refusal(admission, 1, 21)
        assert "it holds 30 of at most 50 bytes, and the request brings 21 more" in error.message
        with admission.admit(Lane.INTERACTIVE, 1, 20):
            pass


def test_single_images_and_batches_are_held_to_the_same_rule():
    admission = Admission(4, 1000)
    with admission.admit(Lane.INTERACTIVE, 3, 10), admission.admit(Lane.INTERACTIVE, 1, 10):
        refusal(admission, 1, 10)
        refusal(admission, 3, 10)


def test_bulk_work_leaves_places_for_interactive_work():
    admission = Admission(4, 100, bulk_share=0.5)
    with admission.admit(Lane.BULK, 1, 40):
        assert "of at most 2 images" in refusal(admission, 2, 1, Lane.BULK).message
        assert "of at most 50 bytes" in refusal(admission, 1, 11, Lane.BULK).message
        with admission.admit(Lane.BULK, 1, 10), admission.admit(Lane.INTERACTIVE, 2, 50):
            refusal(admission, 1, 0)


def measure(admission, clock, seconds):
    """Makes the admission see images that take so long each."""
    admission.done(more=True)
    for more in (True, False):
        clock.now += seconds
        admission.done(more=more)


def test_interactive_images_that_would_wait_too_long_are_refused(clock):
    admission = Admission(100, 1000, max_seconds=2.0, clock=clock)
    measure(admission, clock, 0.5)
    with admission.admit(Lane.INTERACTIVE, 5, 10):
        error = refusal(admission, 1, 1)
        assert "work for 2.5 s, too much for the limit of 2 s" in error.message
        assert error.retry_after == pytest.approx(0.8)  # when 1.7 s are left, with a margin
        with admission.admit(Lane.BULK, 50, 10):  # nobody waits for it
            pass
    with (
        admission.admit(Lane.BULK, 50, 10),  # interactive images go before it
        admission.admit(Lane.INTERACTIVE, 3, 10),
        admission.admit(Lane.INTERACTIVE, 36, 10),  # what counts is what was there before
    ):
        pass


def test_interactive_images_that_would_come_after_their_deadline_are_refused(clock):
    admission = Admission(100, 1000, max_seconds=2.0, clock=clock)
    measure(admission, clock, 0.1)
    with admission.admit(Lane.INTERACTIVE, 10, 10, clock.now + 0.5):  # what counts is what was there before
        with (
            pytest.raises(ResourceExhausted) as caught,
            admission.admit(Lane.INTERACTIVE, 1, 1, clock.now + 1.1),
        ):
            pass
        assert "work for 1.0 s, too much for the 1.1 s that your deadline leaves" in caught.value.message
        assert caught.value.retry_after == pytest.approx(0.065)  # until 0.935 s are left, with the margin
        with (
            admission.admit(Lane.INTERACTIVE, 1, 1, clock.now + 1.2),
            admission.admit(Lane.BULK, 1, 1, clock.now + 0.1),
        ):
            pass
    with admission.admit(Lane.INTERACTIVE, 1, 1, clock.now - 1):  # it fails of its deadline, and not of the queue
        pass


async def test_who_waits_gets_a_place_when_there_is_one_and_in_order():
    admission = Admission(2, 100)
    got = []

    async def wait(name, images):
        await admission.wait(Lane.BULK, images, 1)
        with admission.admit(Lane.BULK, images, 1):
            got.append(name)
            await asyncio.sleep(0)

    with admission.admit(Lane.BULK, 2, 1):
        waiting = [asyncio.create_task(wait("both", 2)), asyncio.create_task(wait("one", 1))]
        await asyncio.sleep(0)
        assert got == []
    await asyncio.gather(*waiting)
    assert got == ["both", "one"]


async def test_who_stops_waiting_holds_nobody_up():
    admission = Admission(1, 100)
    with admission.admit(Lane.BULK, 1, 1):
        first, second = (asyncio.create_task(admission.wait(Lane.BULK, 1, 1)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
    await asyncio.wait_for(second, 10)


def test_the_time_to_try_again_is_a_second_before_anything_is_measured(clock):
    admission = Admission(1, 1000, clock=clock)
    with admission.admit(Lane.INTERACTIVE, 1, 10):
        assert refusal(admission, 1, 10).retry_after == 1.0


def test_the_time_to_try_again_comes_from_the_measured_rate(clock):
    admission = Admission(10, 1000, clock=clock)
    measure(admission, clock, 0.5)
    clock.now += 3600.0  # an idle hour says nothing about the rate
    admission.done(more=True)
    with admission.admit(Lane.INTERACTIVE, 8, 1000):
        assert refusal(admission, 3, 0).retry_after == pytest.approx(0.5)  # one image must go first
        assert refusal(admission, 6, 0).retry_after == pytest.approx(2.0)
        assert refusal(admission, 1, 500).retry_after == pytest.approx(2.0)  # half of what is held must go first


def test_the_time_to_try_again_has_bounds(clock):
    admission = Admission(100, 1000, clock=clock)
    admission.expect(1e-6)
    with admission.admit(Lane.INTERACTIVE, 100, 10):
        assert refusal(admission, 1, 10).retry_after == 0.05
        admission.expect(1e6)
        assert refusal(admission, 100, 10).retry_after == 30.0


def hold(stack, admission, name, images, size=0, lane=Lane.INTERACTIVE):
    with caller(name):
        stack.enter_context(admission.admit(lane, images, size))


def test_a_caller_alone_may_hold_all_and_beside_others_its_share():
    admission = Admission(8, 100, caller_share=0.5)
    with ExitStack() as stack:
        hold(stack, admission, "flood", 6)
        hold(stack, admission, "modest", 1)
        with caller("flood"):
            error = refusal(admission, 1, 0)
        assert "you hold 6 of at most 4 images while others wait, and the request brings 1 more" in error.message
        assert error.retry_after is not None
        hold(stack, admission, "modest", 1)
    with ExitStack() as stack:
        hold(stack, admission, "flood", 1, 45)
        hold(stack, admission, "modest", 1, 10)
        with caller("flood"):
            assert "you hold 45 of at most 50 bytes" in refusal(admission, 1, 6).message
            with admission.admit(Lane.INTERACTIVE, 1, 5):
                pass


def test_who_was_refused_counts_as_another_for_a_while(clock):
    admission = Admission(8, 100, caller_share=0.5, clock=clock)
    with ExitStack() as stack:
        with ExitStack() as most:
            hold(stack, admission, "flood", 4)
            hold(most, admission, "flood", 4)
            with caller("modest"):
                assert "the queue is full" in refusal(admission, 1, 0).message
        with caller("flood"):  # half of its places are free again, and not for it
            refusal(admission, 1, 0)
        hold(stack, admission, "modest", 1)
    clock.now += 11.0
    with ExitStack() as stack:
        hold(stack, admission, "flood", 8)


def test_a_request_within_the_limits_is_let_in_by_a_caller_that_holds_nothing_whatever_its_share():
    admission = Admission(8, 100, caller_share=0.25)
    with ExitStack() as stack:
        hold(stack, admission, "others", 1)
        hold(stack, admission, "batch", 7)


def test_the_wait_that_is_bounded_is_a_callers_own(clock):
    admission = Admission(100, 1000, max_seconds=2.0, clock=clock)
    measure(admission, clock, 0.5)
    with ExitStack() as stack:
        hold(stack, admission, "flood", 5)
        with caller("flood"):
            assert "work for 2.5 s" in refusal(admission, 1, 0).message
        hold(stack, admission, "modest", 1)  # which waits for one of the others, as they take turns
        hold(stack, admission, "modest", 1)
        with caller("modest"):
            assert "work for 2.5 s" in refusal(admission, 1, 0).message  # its own two, and three of the others


async def test_a_caller_at_its_share_does_not_hold_up_the_waiting_of_others():
    admission = Admission(4, 100, caller_share=0.5)
    with ExitStack() as stack:
        with ExitStack() as leaving:
            hold(stack, admission, "flood", 2, lane=Lane.BULK)
            hold(leaving, admission, "third", 2, lane=Lane.BULK)
            tasks = []
            for name in ("flood", "modest"):
                with caller(name):
                    tasks.append(asyncio.create_task(admission.wait(Lane.BULK, 1, 1)))
            await asyncio.sleep(0)
        await asyncio.wait_for(tasks[1], 10)
        assert not tasks[0].done()
        tasks[0].cancel()


def test_the_refused_and_the_holding_are_forgotten():
    admission = Admission(1, 100)
    with ExitStack() as stack:
        hold(stack, admission, "holder", 1)
        for number in range(1500):
            with caller(str(number)):
                refusal(admission, 1, 0)
        assert len(admission._refused) == 1000
    assert not admission._held

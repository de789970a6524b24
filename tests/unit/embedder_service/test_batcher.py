import asyncio
import threading
import time

import pytest
from fake_runtime import SHAPE, FakeRuntime, image

from embedder_service.batcher import Batcher
from embedder_service.jobs import Job, Waiter
from embedder_service.lanes import Lane
from service_kit.errors import Broken, Internal, Unavailable


@pytest.fixture
async def start():
    """Makes batchers over fake runtimes, and ends them."""
    made = []

    def start(stall_timeout=60.0, on_lost=lambda error: None, **options):
        runtime = FakeRuntime(**options)
        batcher = Batcher(runtime, SHAPE, stall_timeout=stall_timeout, on_lost=on_lost)
        made.append((runtime, batcher))
        return runtime, batcher

    yield start
    for runtime, batcher in made:
        runtime.release()
        await batcher.close()


def submit(batcher, value, within=None, lane=Lane.INTERACTIVE):
    """Puts an image that somebody waits for; returns the future of the reply, cancelled if it was dropped."""

    def settled(job, outcome):
        if outcome is None:
            waiter.reply.cancel()
        else:
            waiter.answer(outcome)

    loop = asyncio.get_running_loop()
    job = Job(lane, "", b"", loop, settled, pixels=image(value))
    waiter = Waiter(loop.create_future(), None if within is None else time.monotonic() + within)
    job.waiters.append(waiter)
    batcher.put(job)
    return waiter.reply


async def occupy(runtime, batcher):
    """Makes every slot busy with an image of value 0 until the runtime is released; returns their replies."""
    runtime.block()
    replies = []
    for _ in range(runtime.slots):
        replies.append(submit(batcher, 0))
        await asyncio.to_thread(runtime.wait_for_run)
    return replies


def value(vector):
    return int(vector[0])


async def test_an_idle_model_runs_a_single_image_at_once(start):
    runtime, batcher = start(buckets=(1, 8))
    vector = await submit(batcher, 7)
    assert vector.tolist() == [7, 7, 7]
    assert runtime.batches == [[7]]


async def test_images_that_come_while_the_model_is_busy_go_together(start):
    runtime, batcher = start(buckets=(1, 4))
    first = await occupy(runtime, batcher)
    tasks = [submit(batcher, v) for v in (1, 2, 3, 4)]
    runtime.release()
    assert [value(v) for v in await asyncio.gather(*first, *tasks)] == [0, 1, 2, 3, 4]
    assert runtime.batches == [[0], [1, 2, 3, 4]]


async def test_a_batch_is_padded_to_the_next_bucket_and_the_padding_dropped(start):
    runtime, batcher = start(buckets=(1, 2, 4, 8))
    first = await occupy(runtime, batcher)
    tasks = [submit(batcher, v) for v in (5, 6, 7)]
    runtime.release()
    assert [value(v) for v in await asyncio.gather(*first, *tasks)] == [0, 5, 6, 7]
    assert runtime.batches == [[0], [5, 6, 7, 0]]


async def test_a_batch_never_exceeds_the_largest_bucket_and_the_oldest_go_first(start):
    runtime, batcher = start(buckets=(1, 2))
    first = await occupy(runtime, batcher)
    tasks = [submit(batcher, v) for v in (1, 2, 3)]
    runtime.release()
    await asyncio.gather(*first, *tasks)
    assert runtime.batches == [[0], [1, 2], [3]]


async def test_as_many_batches_run_at_once_as_there_are_slots(start):
    runtime, batcher = start(slots=2)
    tasks = await occupy(runtime, batcher)  # ends only if both run at the same time
    tasks.append(submit(batcher, 1))
    assert runtime.batches == [[0], [0]]
    runtime.release()
    await asyncio.gather(*tasks)
    assert runtime.batches == [[0], [0], [1]]


async def test_warm_up_runs_every_bucket_on_every_slot_and_tells_the_speed(start):
    runtime, batcher = start(slots=2, buckets=(1, 4))
    seconds = await batcher.warm_up()
    assert [len(batch) for batch in runtime.batches] == [1, 1, 4, 4, 4, 4]  # the last ones for the speed
    assert 0 < seconds < 10


async def test_interactive_images_go_before_bulk_ones(start):
    runtime, batcher = start()
    first = await occupy(runtime, batcher)
    bulk = [submit(batcher, v, lane=Lane.BULK) for v in (1, 2)]
    interactive = [submit(batcher, v) for v in (3, 4)]
    runtime.release()
    await asyncio.gather(*first, *bulk, *interactive)
    assert runtime.batches == [[0], [3], [4], [1], [2]]


async def test_an_image_that_nobody_waits_for_is_never_run(start):
    runtime, batcher = start(buckets=(1, 2))
    first = await occupy(runtime, batcher)
    gone, kept = submit(batcher, 1), submit(batcher, 2)
    gone.cancel()
    runtime.release()
    assert value(await kept) == 2
    await asyncio.gather(*first)
    assert runtime.batches == [[0], [2]]


async def test_an_image_whose_deadline_has_passed_is_never_run_even_if_no_timer_said_so(start):
    runtime, batcher = start()
    late = submit(batcher, 1, within=-1)
    assert value(await submit(batcher, 2, within=60)) == 2
    assert late.cancelled()
    assert runtime.batches == [[2]]


async def test_a_discarded_image_is_never_run(start):
    runtime, batcher = start()
    first = await occupy(runtime, batcher)
    job = Job(Lane.BULK, "", b"", asyncio.get_running_loop(), lambda job, outcome: None, pixels=image(1))
    batcher.put(job)
    batcher.discard(job)
    runtime.release()
    await asyncio.gather(*first)
    await submit(batcher, 2, lane=Lane.BULK)
    assert runtime.batches == [[0], [2]]


async def test_one_poisonous_image_fails_alone(start):
    runtime, batcher = start(buckets=(1, 4))
    runtime.poison[2] = RuntimeError("secret detail")
    first = await occupy(runtime, batcher)
    tasks = [submit(batcher, v) for v in (1, 2, 3)]
    runtime.release()
    results = await asyncio.gather(*first, *tasks, return_exceptions=True)
    assert isinstance(results.pop(2), Internal)
    assert [value(v) for v in results] == [0, 1, 3]
    assert runtime.batches == [[0], [1, 2, 3, 0], [1], [2], [3]]


async def test_the_text_of_a_models_error_stays_in_the_log(start, caplog):
    runtime, batcher = start()
    runtime.poison[2] = RuntimeError("secret detail")
    with pytest.raises(Internal) as caught:
        await submit(batcher, 2)
    assert "secret" not in caught.value.message
    assert "secret detail" in caplog.text


async def test_a_vector_that_is_not_finite_fails_alone(start):
    runtime, batcher = start(buckets=(1, 4))
    runtime.undefined.add(2)
    first = await occupy(runtime, batcher)
    tasks = [submit(batcher, v) for v in (1, 2)]
    runtime.release()
    results = await asyncio.gather(*first, *tasks, return_exceptions=True)
    assert [value(v) for v in results[:2]] == [0, 1]
    assert isinstance(results[2], Internal)


async def test_a_retry_skips_what_nobody_waits_for_any_more(start):
    runtime, batcher = start(buckets=(1, 4))
    runtime.poison[1] = RuntimeError("bad")
    first = await occupy(runtime, batcher)
    bad, cancelled = submit(batcher, 1), submit(batcher, 2)
    runtime.release(runs=1)
    await asyncio.gather(*first)
    await asyncio.to_thread(runtime.wait_for_run)  # both together
    cancelled.cancel()
    runtime.release()
    with pytest.raises(Internal):
        await bad
    assert runtime.batches == [[0], [1, 2, 0, 0], [1]]


async def test_a_thread_that_dies_fails_every_image_and_the_model_is_lost(start):
    class Strange(BaseException):
        pass

    lost = asyncio.get_running_loop().create_future()
    runtime, batcher = start(on_lost=lost.set_result)
    runtime.poison[1] = Strange()
    runtime.block()
    replies = [submit(batcher, v) for v in (1, 2)]
    await asyncio.to_thread(runtime.wait_for_run)
    threading.excepthook, hook = (lambda _: None), threading.excepthook
    runtime.release()
    for reply in replies:
        with pytest.raises(Unavailable):
            await reply
    assert isinstance(await lost, Broken)
    threading.excepthook = hook
    with pytest.raises(Broken):
        await batcher.check()
    with pytest.raises(Unavailable):
        await submit(batcher, 3)
    assert runtime.batches == [[1]]


async def test_a_check_of_a_healthy_model_costs_no_run(start):
    runtime, batcher = start()
    await submit(batcher, 1)
    await batcher.check()
    assert runtime.batches == [[1]]


async def test_a_model_that_fails_on_every_image_is_unavailable_until_it_works_again(start):
    runtime, batcher = start()
    runtime.broken = True
    errors = []
    for v in (1, 2, 3):
        with pytest.raises((Internal, Unavailable)) as caught:
            await submit(batcher, v)
        errors.append(caught.type)
    assert errors == [Internal, Internal, Unavailable]
    with pytest.raises(Unavailable):
        await batcher.check()
    runtime.broken = False
    await batcher.check()
    runtime.batches.clear()
    await batcher.check()
    assert runtime.batches == []


async def test_bad_images_in_a_row_do_not_make_the_model_unavailable(start):
    runtime, batcher = start()
    runtime.poison[9] = RuntimeError("bad")
    for _ in range(5):
        with pytest.raises((Internal, Unavailable)):
            await submit(batcher, 9)
    await batcher.check()


async def test_a_model_that_fails_check_after_check_is_lost(start):
    errors = []
    runtime, batcher = start(on_lost=errors.append)
    runtime.broken = True
    for v in (1, 2, 3):
        with pytest.raises((Internal, Unavailable)):
            await submit(batcher, v)
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await batcher.check()
        assert caught.type is Unavailable
    for _ in range(2):
        with pytest.raises(Broken):
            await batcher.check()
    assert len(errors) == 1


async def test_a_stuck_model_is_lost_and_its_images_are_answered(start):
    errors = []
    runtime, batcher = start(stall_timeout=0.0, on_lost=errors.append)
    (running,) = await occupy(runtime, batcher)
    waiting = submit(batcher, 1)
    with pytest.raises(Broken, match="stuck"):
        await batcher.check()
    for reply in (running, waiting):
        with pytest.raises(Unavailable):
            await reply
    assert len(errors) == 1
    await batcher.close()  # does not wait for what never ends
    runtime.release()


async def test_close_fails_what_waits_and_lets_finish_what_runs(start):
    runtime, batcher = start()
    (running,) = await occupy(runtime, batcher)
    waiting = submit(batcher, 1)
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(Unavailable):
        await waiting
    runtime.release()
    await closing
    assert value(await running) == 0
    assert runtime.batches == [[0]]
    with pytest.raises(Unavailable):
        await submit(batcher, 2)

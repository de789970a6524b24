import asyncio

import pytest
from fake_runtime import SHAPE, FakeRuntime, image

from embedder_service.batcher import Batcher
from service_kit.errors import DeadlineExceeded, Internal, Unavailable


@pytest.fixture
async def start():
    """Makes batchers over fake runtimes, and ends them."""
    made = []

    def start(stall_timeout=60.0, **options):
        runtime = FakeRuntime(**options)
        batcher = Batcher(runtime, SHAPE, stall_timeout=stall_timeout)
        made.append((runtime, batcher))
        return runtime, batcher

    yield start
    for runtime, batcher in made:
        runtime.release()
        await batcher.close()


async def submit(batcher, value, within=None):
    """Returns the task of one embedding, which waits or runs already."""
    deadline = None if within is None else asyncio.get_running_loop().time() + within
    task = asyncio.create_task(batcher.embed(image(value), deadline))
    await asyncio.sleep(0)
    return task


async def occupy(runtime, batcher):
    """Makes every slot busy with an image of value 0 until the runtime is released; returns their tasks."""
    runtime.block()
    tasks = [await submit(batcher, 0) for _ in range(runtime.slots)]
    for _ in tasks:
        await asyncio.to_thread(runtime.wait_for_run)
    return tasks


def value(vector):
    return int(vector[0])


async def test_an_idle_model_runs_a_single_image_at_once(start):
    runtime, batcher = start(buckets=(1, 8))
    vector = await batcher.embed(image(7))
    assert vector.tolist() == [7, 7, 7]
    assert runtime.batches == [[7]]


async def test_images_that_come_while_the_model_is_busy_go_together(start):
    runtime, batcher = start(buckets=(1, 4))
    first = await occupy(runtime, batcher)
    tasks = [await submit(batcher, v) for v in (1, 2, 3, 4)]
    runtime.release()
    assert [value(v) for v in await asyncio.gather(*first, *tasks)] == [0, 1, 2, 3, 4]
    assert runtime.batches == [[0], [1, 2, 3, 4]]


async def test_a_batch_is_padded_to_the_next_bucket_and_the_padding_dropped(start):
    runtime, batcher = start(buckets=(1, 2, 4, 8))
    first = await occupy(runtime, batcher)
    tasks = [await submit(batcher, v) for v in (5, 6, 7)]
    runtime.release()
    assert [value(v) for v in await asyncio.gather(*first, *tasks)] == [0, 5, 6, 7]
    assert runtime.batches == [[0], [5, 6, 7, 0]]


async def test_a_batch_never_exceeds_the_largest_bucket_and_the_oldest_go_first(start):
    runtime, batcher = start(buckets=(1, 2))
    first = await occupy(runtime, batcher)
    tasks = [await submit(batcher, v) for v in (1, 2, 3)]
    runtime.release()
    await asyncio.gather(*first, *tasks)
    assert runtime.batches == [[0], [1, 2], [3]]


async def test_as_many_batches_run_at_once_as_there_are_slots(start):
    runtime, batcher = start(slots=2)
    tasks = await occupy(runtime, batcher)  # ends only if both run at the same time
    tasks.append(await submit(batcher, 1))
    assert runtime.batches == [[0], [0]]
    runtime.release()
    await asyncio.gather(*tasks)
    assert runtime.batches == [[0], [0], [1]]


async def test_warm_up_runs_every_bucket_on_every_slot(start):
    runtime, batcher = start(slots=2, buckets=(1, 4))
    await batcher.warm_up()
    assert [len(batch) for batch in runtime.batches] == [1, 1, 4, 4]


async def test_a_cancelled_image_is_never_run(start):
    runtime, batcher = start()
    first = await occupy(runtime, batcher)
    cancelled, kept = await submit(batcher, 1), await submit(batcher, 2)
    cancelled.cancel()
    runtime.release()
    assert value(await kept) == 2
    await asyncio.gather(*first)
    assert cancelled.cancelled()
    assert runtime.batches == [[0], [2]]


async def test_a_waiting_image_is_answered_at_its_deadline_and_never_run(start):
    runtime, batcher = start()
    first = await occupy(runtime, batcher)
    expiring, kept = await submit(batcher, 1, within=0.02), await submit(batcher, 2, within=60)
    with pytest.raises(DeadlineExceeded):
        await expiring  # the model is still busy
    runtime.release()
    assert value(await kept) == 2
    await asyncio.gather(*first)
    assert runtime.batches == [[0], [2]]


async def test_an_image_that_comes_after_its_deadline_is_never_run(start):
    runtime, batcher = start()
    with pytest.raises(DeadlineExceeded):
        await batcher.embed(image(1), asyncio.get_running_loop().time() - 1)
    await batcher.embed(image(2))
    assert runtime.batches == [[2]]


async def test_an_image_on_the_model_is_answered_at_its_deadline_too(start):
    runtime, batcher = start()
    runtime.block()
    running = await submit(batcher, 1, within=0.02)
    with pytest.raises(DeadlineExceeded):
        await running
    runtime.release()
    assert value(await batcher.embed(image(2))) == 2


async def test_one_poisonous_image_fails_alone(start):
    runtime, batcher = start(buckets=(1, 4))
    runtime.poison[2] = RuntimeError("secret detail")
    first = await occupy(runtime, batcher)
    tasks = [await submit(batcher, v) for v in (1, 2, 3)]
    runtime.release()
    results = await asyncio.gather(*first, *tasks, return_exceptions=True)
    assert isinstance(results.pop(2), Internal)
    assert [value(v) for v in results] == [0, 1, 3]
    assert runtime.batches == [[0], [1, 2, 3, 0], [1], [2], [3]]


async def test_the_text_of_a_models_error_stays_in_the_log(start, caplog):
    runtime, batcher = start()
    runtime.poison[2] = RuntimeError("secret detail")
    with pytest.raises(Internal) as caught:
        await batcher.embed(image(2))
    assert "secret" not in caught.value.message
    assert "secret detail" in caplog.text


async def test_a_vector_that_is_not_finite_fails_alone(start):
    runtime, batcher = start(buckets=(1, 4))
    runtime.undefined.add(2)
    first = await occupy(runtime, batcher)
    tasks = [await submit(batcher, v) for v in (1, 2)]
    runtime.release()
    results = await asyncio.gather(*first, *tasks, return_exceptions=True)
    assert [value(v) for v in results[:2]] == [0, 1]
    assert isinstance(results[2], Internal)


async def test_a_retry_skips_what_nobody_waits_for_any_more(start):
    runtime, batcher = start(buckets=(1, 4))
    runtime.poison[1] = RuntimeError("bad")
    first = await occupy(runtime, batcher)
    bad, cancelled = await submit(batcher, 1), await submit(batcher, 2)
    runtime.release()
    await asyncio.gather(*first)
    runtime.block()
    await asyncio.to_thread(runtime.wait_for_run)  # both together
    cancelled.cancel()
    runtime.release()
    with pytest.raises(Internal):
        await bad
    assert runtime.batches == [[0], [1, 2, 0, 0], [1]]


async def test_nobody_waits_for_ever_when_a_run_ends_in_an_unheard_of_way(start):
    class Strange(BaseException):
        pass

    runtime, batcher = start(buckets=(1, 2))
    runtime.poison[1] = Strange()
    with pytest.raises(Unavailable):
        await batcher.embed(image(1))
    assert value(await batcher.embed(image(2))) == 2  # and the slot is free again


async def test_a_check_of_a_healthy_model_costs_no_run(start):
    runtime, batcher = start()
    await batcher.embed(image(1))
    await batcher.check()
    assert runtime.batches == [[1]]


async def test_a_model_that_fails_on_every_image_is_unavailable_until_it_works_again(start):
    runtime, batcher = start()
    runtime.broken = True
    errors = []
    for v in (1, 2, 3):
        with pytest.raises((Internal, Unavailable)) as caught:
            await batcher.embed(image(v))
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
            await batcher.embed(image(9))
    await batcher.check()


async def test_a_stuck_model_fails_the_check(start):
    runtime, batcher = start(stall_timeout=0.0)
    first = await occupy(runtime, batcher)
    with pytest.raises(Unavailable, match="stuck"):
        await batcher.check()
    runtime.release()
    await asyncio.gather(*first)
    await batcher.check()


async def test_close_fails_what_waits_and_lets_finish_what_runs(start):
    runtime, batcher = start()
    (running,) = await occupy(runtime, batcher)
    waiting = await submit(batcher, 1)
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(Unavailable):
        await waiting
    runtime.release()
    await closing
    assert value(await running) == 0
    assert runtime.batches == [[0]]
    with pytest.raises(Unavailable):
        await batcher.embed(image(2))

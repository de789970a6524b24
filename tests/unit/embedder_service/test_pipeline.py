"""The pipeline with its real decoder and batcher over a fake model, whose vectors tell which image they are of."""

import asyncio
import threading
import time

import numpy as np
import pytest
from fake_runtime import REAL_DECODE, SHAPE, FakeRuntime, png
from prometheus_client import REGISTRY

from embedder_service.admission import Admission
from embedder_service.batcher import Batcher
from embedder_service.pipeline import Lane, Pipeline
from service_kit import sharing
from service_kit.errors import DeadlineExceeded, Internal, InvalidArgument, ResourceExhausted, Unavailable


def value(vector):
    return int(vector[0])


def kinds(outcomes):
    """Each outcome's value, or the type of its error."""
    return [value(outcome) if isinstance(outcome, np.ndarray) else type(outcome) for outcome in outcomes]


def metric(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def until(condition):
    """Waits until other threads have made a condition true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
async def start():
    """Makes pipelines over fake runtimes, and ends them."""
    made = []

    def start(decode=REAL_DECODE, images=8, size=10_000, max_image_bytes=1000, **options):
        runtime = FakeRuntime(**options)
        pipeline = Pipeline(
            Admission(images, size),
            decode,
            Batcher(runtime, SHAPE),
            decode_threads=1,
            max_image_bytes=max_image_bytes,
        )
        made.append((runtime, pipeline))
        return runtime, pipeline

    yield start
    for runtime, pipeline in made:
        runtime.release()
        await pipeline.close()


async def occupy(runtime, pipeline, *values):
    """Starts embeddings, and waits until the first one holds the model; returns their tasks."""
    runtime.block()
    tasks = [asyncio.create_task(pipeline.embed(png(v))) for v in values]
    await asyncio.to_thread(runtime.wait_for_run)
    return tasks


class SlowDecoder:
    """A decoder that decodes one image after the other, and only once it is released."""

    def __init__(self):
        self.decoded = []
        self.begun = threading.Event()
        self.release = threading.Event()

    def __call__(self, data):
        self.begun.set()
        assert self.release.wait(10)
        pixels = REAL_DECODE(data)
        self.decoded.append(int(pixels[0, 0, 0]))
        return pixels


@pytest.fixture
def decoder():
    decoder = SlowDecoder()
    yield decoder
    decoder.release.set()


async def test_an_image_gets_its_own_vector(start):
    _, pipeline = start(buckets=(1, 4))
    assert value(await pipeline.embed(png(42))) == 42


async def test_results_come_in_the_order_of_the_images(start):
    _, pipeline = start(buckets=(1, 2))
    assert kinds(await pipeline.embed_many([png(v) for v in (5, 3, 9, 1, 7)])) == [5, 3, 9, 1, 7]


async def test_bad_images_fail_alone_and_never_reach_the_model(start):
    runtime, pipeline = start()
    images = [png(1), png(2)[:-30], b"text", b"", png(3, (11, 10)), png(4), bytes(1001)]
    outcomes = await pipeline.embed_many(images)
    assert kinds(outcomes) == [1, *[InvalidArgument] * 4, 4, InvalidArgument]
    assert "11x10 = 110 pixels, above the limit of 100" in outcomes[4].message
    assert "1001 bytes, above the limit of 1000" in outcomes[6].message
    assert sorted(runtime.batches) == [[1], [4]]


async def test_a_single_bad_image_is_an_error_of_the_call(start):
    _, pipeline = start()
    with pytest.raises(InvalidArgument):
        await pipeline.embed(b"text")


async def test_an_image_that_the_model_fails_on_fails_alone(start):
    runtime, pipeline = start(buckets=(1, 4))
    runtime.poison[2] = RuntimeError("bad")
    assert kinds(await pipeline.embed_many([png(v) for v in (1, 2, 3)])) == [1, Internal, 3]


async def test_an_unheard_of_error_of_the_decoder_harms_one_image_and_stays_in_the_log(start, caplog):
    def fragile(data):
        if data == b"strange":
            raise ZeroDivisionError("secret detail")
        return REAL_DECODE(data)

    _, pipeline = start(decode=fragile)
    outcomes = await pipeline.embed_many([png(1), b"strange"])
    assert kinds(outcomes) == [1, Internal]
    assert "secret" not in outcomes[1].message
    assert "secret detail" in caplog.text


async def test_a_full_queue_refuses_at_once_and_takes_images_again_later(start):
    runtime, pipeline = start(images=2)
    tasks = await occupy(runtime, pipeline, 1, 2)
    with pytest.raises(ResourceExhausted) as caught:
        await pipeline.embed(png(3))
    assert caught.value.retry_after is not None
    with pytest.raises(ResourceExhausted):
        await pipeline.embed_many([png(4)])
    runtime.release()
    assert kinds(await asyncio.gather(*tasks)) == [1, 2]
    assert value(await pipeline.embed(png(5))) == 5
    assert runtime.batches == [[1], [2], [5]]


async def test_a_queue_full_of_bytes_refuses_too(start):
    runtime, pipeline = start(size=len(png(1)) + 10)
    tasks = await occupy(runtime, pipeline, 1)
    with pytest.raises(ResourceExhausted, match="bytes"):
        await pipeline.embed(png(2))
    runtime.release()
    await asyncio.gather(*tasks)


async def test_a_batch_without_room_for_all_of_it_is_refused_as_a_whole(start):
    runtime, pipeline = start(images=3)
    tasks = await occupy(runtime, pipeline, 1)
    with pytest.raises(ResourceExhausted):
        await pipeline.embed_many([png(v) for v in (2, 3, 4)])
    runtime.release()
    await asyncio.gather(*tasks)
    assert runtime.batches == [[1]]


async def test_bad_images_do_not_hold_places(start):
    _, pipeline = start(images=1)
    for _ in range(3):
        with pytest.raises(InvalidArgument):
            await pipeline.embed(b"text")


async def test_a_cancelled_call_gives_its_places_back_and_is_not_run(start):
    runtime, pipeline = start(images=3)
    tasks = await occupy(runtime, pipeline, 1)
    cancelled = asyncio.create_task(pipeline.embed_many([png(2), png(3)]))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    last = asyncio.create_task(pipeline.embed_many([png(4), png(5)]))
    runtime.release()
    assert kinds(await asyncio.gather(*tasks)) == [1]
    assert kinds(await last) == [4, 5]
    assert runtime.batches == [[1], [4], [5]]


async def test_an_image_whose_deadline_has_passed_is_not_decoded(start, decoder):
    runtime, pipeline = start(decode=decoder)
    with pytest.raises(DeadlineExceeded):
        await pipeline.embed(png(1), deadline=time.monotonic() - 1)
    assert not decoder.begun.is_set()
    assert runtime.batches == []


async def test_an_image_that_waits_for_a_decoder_is_answered_at_its_deadline_and_not_decoded(start, decoder):
    runtime, pipeline = start(decode=decoder)
    first = asyncio.create_task(pipeline.embed(png(1)))
    await asyncio.to_thread(decoder.begun.wait, 10)
    with pytest.raises(DeadlineExceeded):
        await pipeline.embed(png(2), deadline=time.monotonic() + 0.02)
    decoder.release.set()
    assert value(await first) == 1
    assert value(await pipeline.embed(png(3))) == 3
    assert decoder.decoded == [1, 3]
    assert runtime.batches == [[1], [3]]


async def test_a_deadline_that_passes_on_the_model_fails_what_is_not_done(start):
    runtime, pipeline = start()
    runtime.block()
    outcomes = await pipeline.embed_many([png(1), png(2)], deadline=time.monotonic() + 0.1)
    assert kinds(outcomes) == [DeadlineExceeded] * 2
    runtime.release()
    assert value(await pipeline.embed(png(3))) == 3
    assert [2] not in runtime.batches


async def test_interactive_images_overtake_bulk_ones_before_they_are_decoded(start, decoder):
    runtime, pipeline = start(decode=decoder)
    tasks = [asyncio.create_task(pipeline.embed(png(1), Lane.BULK))]
    await asyncio.to_thread(decoder.begun.wait, 10)
    tasks += [asyncio.create_task(pipeline.embed(png(v), lane)) for v, lane in ((2, Lane.BULK), (3, Lane.INTERACTIVE))]
    await asyncio.sleep(0)
    decoder.release.set()
    assert kinds(await asyncio.gather(*tasks)) == [1, 2, 3]
    assert decoder.decoded == [1, 3, 2]
    assert runtime.batches == [[1], [3], [2]]


async def test_one_who_floods_does_not_keep_another_waiting(start, decoder):
    runtime, pipeline = start(decode=decoder, images=40)
    sharing.begin("flood")
    tasks = [asyncio.create_task(pipeline.embed(png(v))) for v in range(1, 31)]
    await asyncio.to_thread(decoder.begun.wait, 10)
    sharing.begin("modest")
    tasks += [asyncio.create_task(pipeline.embed(png(v))) for v in (101, 102)]
    await asyncio.sleep(0)
    decoder.release.set()
    await asyncio.gather(*tasks)
    assert decoder.decoded[:5] == [1, 2, 101, 3, 102]
    assert [value for [value] in runtime.batches][:5] == [1, 2, 101, 3, 102]


async def test_equal_images_of_two_callers_do_not_wait_in_one_line(start):
    runtime, pipeline = start()
    sharing.begin("flood")
    tasks = await occupy(runtime, pipeline, 1, 2, 3, 4)
    sharing.begin("modest")
    tasks.append(asyncio.create_task(pipeline.embed(png(4))))
    await asyncio.sleep(0)
    runtime.release()
    assert kinds(await asyncio.gather(*tasks)) == [1, 2, 3, 4, 4]
    assert len(runtime.batches) == 5


async def test_no_more_is_decoded_than_the_model_needs_next(start):
    decoded = []

    def counting(data):
        decoded.append(data)
        return REAL_DECODE(data)

    runtime, pipeline = start(decode=counting)
    tasks = await occupy(runtime, pipeline, *range(1, 8))
    # One on the model, and one for it to take next.
    await until(lambda: len(decoded) == 2)
    late = asyncio.create_task(pipeline.embed(png(9)))
    runtime.release(runs=1)
    await until(lambda: len(decoded) == 3)
    assert runtime.batches in ([[1]], [[1], [2]])
    runtime.release()
    await asyncio.gather(*tasks, late)


async def test_equal_images_in_flight_are_computed_once(start):
    runtime, pipeline = start()
    before = metric("embedder_deduplicated_images_total")
    tasks = await occupy(runtime, pipeline, 1, 2, 1, 2, 2)
    runtime.release()
    assert kinds(await asyncio.gather(*tasks)) == [1, 2, 1, 2, 2]
    assert runtime.batches == [[1], [2]]
    assert metric("embedder_deduplicated_images_total") - before == 3
    assert value(await pipeline.embed(png(1))) == 1  # that was in flight no more
    assert runtime.batches == [[1], [2], [1]]


async def test_an_equal_image_in_a_hurry_does_not_wait_for_bulk_work(start):
    runtime, pipeline = start()
    tasks = await occupy(runtime, pipeline, 1)
    tasks += [asyncio.create_task(pipeline.embed(png(v), Lane.BULK)) for v in (2, 3)]
    await asyncio.sleep(0)
    hurried = asyncio.create_task(pipeline.embed(png(3)))
    await asyncio.sleep(0)
    runtime.release(runs=3)  # 1; 2, which was decoded by then; and the one in a hurry
    assert value(await hurried) == 3
    runtime.release()
    await asyncio.gather(*tasks)


async def test_a_caller_that_leaves_takes_nothing_from_others_with_the_same_image(start):
    runtime, pipeline = start()
    (busy,) = await occupy(runtime, pipeline, 1)
    leader, follower, hasty = (
        asyncio.create_task(pipeline.embed(png(2), deadline=deadline))
        for deadline in (None, None, time.monotonic() + 0.02)
    )
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(DeadlineExceeded):
        await hasty
    runtime.release()
    assert kinds(await asyncio.gather(busy, follower)) == [1, 2]
    assert runtime.batches == [[1], [2]]


async def test_everybody_with_a_bad_image_gets_the_reason(start, decoder):
    _, pipeline = start(decode=decoder)
    first = asyncio.create_task(pipeline.embed(png(1)))
    await asyncio.to_thread(decoder.begun.wait, 10)
    bad = asyncio.create_task(pipeline.embed_many([b"text", b"text"]))
    await asyncio.sleep(0)
    decoder.release.set()
    assert kinds(await bad) == [InvalidArgument, InvalidArgument]
    assert value(await first) == 1


async def test_every_stage_of_a_call_is_timed(start):
    runtime, pipeline = start()
    runtime.block()
    stages = {}
    task = asyncio.create_task(pipeline.embed(png(1), stages=stages))
    await asyncio.to_thread(runtime.wait_for_run)
    began = time.monotonic()
    await asyncio.sleep(0.05)
    runtime.release()
    await task
    assert stages.keys() == {"admit", "queue", "decode", "run", "total"}
    assert stages["run"] >= 0.05
    parts = sum(seconds for stage, seconds in stages.items() if stage != "total")
    assert parts <= stages["total"] <= parts + time.monotonic() - began


async def test_the_time_of_a_failed_call_is_told_too(start):
    runtime, pipeline = start()
    (busy,) = await occupy(runtime, pipeline, 1)
    stages = {}
    with pytest.raises(DeadlineExceeded, match="queue"):
        await pipeline.embed(png(2), deadline=time.monotonic() + 0.05, stages=stages)
    assert stages["queue"] >= 0.04
    assert "run" not in stages
    runtime.release()
    await busy


async def test_images_that_nobody_waits_for_are_counted_by_how_far_they_came(start):
    runtime, pipeline = start()
    stages = ("admit", "queue", "run")
    before = [metric("embedder_expired_images_total", stage=stage) for stage in stages]
    (on_the_model,) = await occupy(runtime, pipeline, 1)
    waiting = asyncio.create_task(pipeline.embed_many([png(2), png(3)], deadline=time.monotonic() + 0.02))
    assert kinds(await waiting) == [DeadlineExceeded] * 2
    with pytest.raises(DeadlineExceeded):
        await pipeline.embed(png(4), deadline=time.monotonic() - 1)
    on_the_model.cancel()
    await asyncio.wait([on_the_model])
    runtime.release()
    assert value(await pipeline.embed(png(5))) == 5
    assert runtime.batches == [[1], [5]]
    gained = [
        metric("embedder_expired_images_total", stage=stage) - was for stage, was in zip(stages, before, strict=True)
    ]
    assert gained == [1, 2, 1]


async def test_closing_answers_everything(start, decoder):
    _, pipeline = start(decode=decoder)
    tasks = [asyncio.create_task(pipeline.embed(png(v))) for v in (1, 2)]
    await asyncio.to_thread(decoder.begun.wait, 10)
    closing = asyncio.create_task(pipeline.close())
    await asyncio.sleep(0)
    decoder.release.set()
    await closing
    assert [type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == [Unavailable] * 2
    with pytest.raises(Unavailable):
        await pipeline.embed(png(3))


async def test_every_image_is_counted_by_its_outcome(start):
    def counts():
        return {
            outcome: metric("embedder_images_total", outcome=outcome)
            for outcome in ("ok", "invalid", "expired", "failed", "cancelled")
        }

    runtime, pipeline = start()
    runtime.poison[9] = RuntimeError("bad")
    before = counts()
    await pipeline.embed_many([png(1), png(2), b"text", png(9)])
    await pipeline.embed_many([png(3)], deadline=time.monotonic() - 1)
    (blocked,) = await occupy(runtime, pipeline, 4)
    blocked.cancel()
    await asyncio.wait([blocked])
    gained = {outcome: count - before[outcome] for outcome, count in counts().items()}
    assert gained == {"ok": 2, "invalid": 1, "expired": 1, "failed": 1, "cancelled": 1}


async def test_the_queues_depth_is_what_its_capacity_bounds(start):
    runtime, pipeline = start(images=4)
    tasks = await occupy(runtime, pipeline, 1, 2, 3)
    assert REGISTRY.get_sample_value("embedder_queue_depth") == 3
    assert REGISTRY.get_sample_value("embedder_inflight_images") == 1
    runtime.release()
    await asyncio.gather(*tasks)
    assert REGISTRY.get_sample_value("embedder_queue_depth") == 0

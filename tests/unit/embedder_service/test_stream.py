"""Streams over the real pipeline and a fake model, without a transport."""

import asyncio
import time

import pytest
from fake_runtime import REAL_DECODE, SHAPE, FakeRuntime, png

from embedder_service.admission import Admission
from embedder_service.batcher import Batcher
from embedder_service.lanes import Lane
from embedder_service.pipeline import Pipeline
from embedder_service.stream import Item, embed_stream
from service_kit.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, ServiceError, Unavailable


class Stream:
    """A caller: what it sends, what came back, and whether it reads."""

    def __init__(self, pipeline, in_flight=4):
        self.sent = asyncio.Queue()
        self.read = 0  # items the server has asked for and got
        self.results = {}
        self.reads = asyncio.Event()
        self.reads.set()
        self.draining = asyncio.Event()
        self.call = asyncio.create_task(
            embed_stream(pipeline, self._items(), self._write, in_flight=in_flight, draining=self.draining)
        )

    def send(self, *images, lane=Lane.BULK, deadline=None, refusal=None):
        for name, image in images:
            self.sent.put_nowait(Item(name, image, lane, deadline, refusal))

    def end(self):
        self.sent.put_nowait(None)

    async def _items(self):
        while item := await self.sent.get():
            self.read += 1
            yield item

    async def _write(self, name, outcome):
        await self.reads.wait()
        self.results[name] = type(outcome) if isinstance(outcome, ServiceError) else int(outcome[0])

    async def settled(self):
        """Lets everything go on that can: how else to see that something does not happen."""
        for _ in range(50):
            await asyncio.sleep(0.001)


@pytest.fixture
async def start():
    made = []

    def start(images=8, in_flight=4):
        runtime = FakeRuntime()
        pipeline = Pipeline(
            Admission(images, 1 << 20),
            REAL_DECODE,
            Batcher(runtime, SHAPE, ahead=2),
            decode_threads=1,
            max_image_bytes=1000,
        )
        stream = Stream(pipeline, in_flight)
        made.append((runtime, pipeline, stream))
        return runtime, pipeline, stream

    yield start
    for runtime, pipeline, stream in made:
        runtime.release()
        stream.call.cancel()
        await asyncio.wait([stream.call])
        await pipeline.close()


def pngs(*values):
    return [(str(value), png(value)) for value in values]


async def test_every_image_gets_its_own_result_and_the_stream_ends_after_the_last(start):
    _, _, stream = start()
    stream.send(*pngs(*range(1, 21)), ("bad", b"text"))
    stream.end()
    await stream.call
    assert stream.results == {str(v): v for v in range(1, 21)} | {"bad": InvalidArgument}


async def test_results_come_as_they_are_done(start):
    runtime, _, stream = start()
    runtime.block()
    stream.send(*pngs(1, 2), ("bad", b"text"))
    await stream.settled()
    assert stream.results == {"bad": InvalidArgument}
    stream.send(*pngs(3), lane=Lane.INTERACTIVE)
    await stream.settled()
    runtime.release()
    stream.end()
    await stream.call
    assert list(stream.results)[:2] == ["bad", "1"]
    assert stream.results.keys() == {"bad", "1", "2", "3"}


async def test_no_more_is_read_than_may_be_in_flight(start):
    runtime, _, stream = start(in_flight=3)
    runtime.block()
    stream.send(*pngs(*range(1, 8)))
    await stream.settled()
    assert stream.read == 3
    runtime.release(runs=1)
    await stream.settled()
    assert stream.read == 4


async def test_a_full_server_makes_a_stream_wait_instead_of_refusing_it(start):
    runtime, pipeline, stream = start(images=2, in_flight=8)
    runtime.block()
    others = [asyncio.create_task(pipeline.embed(image)) for _, image in pngs(1, 2)]
    await stream.settled()
    stream.send(*pngs(3, 4, 5))
    stream.end()
    await stream.settled()
    assert stream.read == 1  # the one that waits for a place
    runtime.release()
    await asyncio.gather(*others)
    await stream.call
    assert stream.results == {"3": 3, "4": 4, "5": 5}


async def test_an_image_whose_time_is_up_before_there_is_room_fails_alone(start):
    runtime, pipeline, stream = start(images=1)
    runtime.block()
    other = asyncio.create_task(pipeline.embed(png(1)))
    await stream.settled()
    stream.send(*pngs(2), deadline=time.monotonic() + 0.01)
    stream.send(*pngs(3))
    stream.end()
    await stream.settled()
    assert stream.results == {"2": DeadlineExceeded}
    runtime.release()
    await other
    await stream.call
    assert stream.results["3"] == 3


async def test_a_caller_that_does_not_read_holds_no_places_of_others(start):
    _, pipeline, stream = start(images=4, in_flight=4)
    stream.reads.clear()
    stream.send(*pngs(1, 2, 3, 4, 5, 6))
    await stream.settled()
    assert stream.read == 4
    assert [int((await pipeline.embed(png(v)))[0]) for v in (7, 8)] == [7, 8]
    stream.reads.set()
    stream.end()
    await stream.call
    assert len(stream.results) == 6


async def test_a_refused_item_is_answered_without_being_run(start):
    runtime, _, stream = start()
    stream.send(*pngs(1), refusal=FailedPrecondition("another model"))
    stream.end()
    await stream.call
    assert stream.results == {"1": FailedPrecondition}
    assert runtime.batches == []


async def test_a_cancelled_stream_gives_everything_back(start):
    runtime, pipeline, stream = start(images=4)
    runtime.block()
    stream.send(*pngs(1, 2, 3, 4, 5))
    await stream.settled()
    stream.call.cancel()
    await asyncio.wait([stream.call])
    runtime.release()
    outcomes = await pipeline.embed_many([image for _, image in pngs(6, 7, 8, 9)])
    assert [int(vector[0]) for vector in outcomes] == [6, 7, 8, 9]
    assert [2] not in runtime.batches


async def test_draining_ends_the_stream_once_what_was_read_is_answered(start):
    runtime, _, stream = start()
    runtime.block()
    stream.send(*pngs(1, 2))
    await stream.settled()
    stream.draining.set()
    await stream.settled()
    assert not stream.call.done()
    runtime.release()
    with pytest.raises(Unavailable, match="to another one"):
        await stream.call
    assert stream.results == {"1": 1, "2": 2}


async def test_a_caller_whose_sending_fails_ends_the_stream(start):
    _, _, stream = start()

    async def broken():
        raise ConnectionResetError

    stream.send(("1", png(1)))
    stream.sent.get = broken
    with pytest.raises(ConnectionResetError):
        await stream.call

"""`make bench-fairness`: whether one caller who floods leaves another his share. PASS or FAIL for each of three parts.

    by image     two tenants of the search service, on Milvus Lite, search by image
    by vector    the same on a Milvus server, where one is installed, by vector
    embedder     two callers of the embedder alone

A modest caller keeps a few calls in flight, alone, and then beside one with 64. His slowest calls may take twice as
long at most, and none may fail. No two images are equal. The report, JSON, has the figures of each part.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks import milvus_server
from benchmarks.inputs import add_flags, describe_bundle, find_inputs, run, say
from benchmarks.milvus_server import MilvusServer
from benchmarks.summary import latency, surroundings, write_json
from lookalike import Client, EmbedderClient, Embedding, Item, VectorSpace
from lookalike.embedder.v1 import embedder_pb2
from lookalike.search.v1 import search_pb2
from service_kit.sharing import CALLER_KEY
from workbench.services import ServerProcess, Services, running

SCHEMA = 1
FLOOD, MODEST = "flood", "modest"
MOST_TIMES = 2.0
_COLLECTION = "shared"
_SEARCH = "/lookalike.search.v1.SearchService/Search"
_CALL_SECONDS = 60.0
_WARM_UP_SECONDS = 2.0
_ROWS = 500


@dataclass(frozen=True)
class Load:
    """What a caller got: the milliseconds of each call that ended well in time, and how many ended otherwise."""

    milliseconds: Sequence[float]
    errors: dict[str, int]


def searches(images: Sequence[bytes], caller: str) -> tuple[str, Callable[[int], bytes], tuple[tuple[str, str], ...]]:
    """Searches by image of a tenant: the method, the request of a number and its metadata."""

    def request(number: int) -> bytes:
        query = search_pb2.Query(image=_unlike_others(images, number))
        return search_pb2.SearchRequest(collection=_COLLECTION, tenant=caller, query=query).SerializeToString()

    return _SEARCH, request, ()


def vector_searches(
    space: VectorSpace, images: Sequence[bytes], caller: str
) -> tuple[str, Callable[[int], bytes], tuple[tuple[str, str], ...]]:
    """Searches by vector of a tenant, as `searches`."""
    draw = np.random.default_rng()

    def request(number: int) -> bytes:
        values = draw.standard_normal(space.dimension, np.float32)
        query = search_pb2.Query(vector=search_pb2.Vector(values=values, model_fingerprint=space.fingerprint))
        return search_pb2.SearchRequest(collection=_COLLECTION, tenant=caller, query=query).SerializeToString()

    return _SEARCH, request, ()


def embeddings(images: Sequence[bytes], caller: str) -> tuple[str, Callable[[int], bytes], tuple[tuple[str, str], ...]]:
    """Embeddings for a caller, as `searches`."""

    def request(number: int) -> bytes:
        return embedder_pb2.EmbedRequest(image=_unlike_others(images, number)).SerializeToString()

    return "/lookalike.embedder.v1.EmbedderService/Embed", request, ((CALLER_KEY, caller),)


def closed_loop(
    address: str, kind: Callable[..., Any], paths: Sequence[Path], caller: str, callers: int, s: float
) -> Load:
    """Keeps a number of calls in flight for so many seconds, after some to warm up."""
    if caller == FLOOD:
        os.nice(19)  # what its client computes would not be on the servers' machine
    path, request, metadata = kind([path.read_bytes() for path in paths], caller)
    milliseconds: list[float] = []
    errors: Counter[str] = Counter()

    async def call_again_and_again(send: Any, numbers: Any, begin: float, end: float) -> None:
        while (sent := time.monotonic()) < end:
            try:
                await send(request(next(numbers)), timeout=_CALL_SECONDS, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                errors[error.code().name] += 1
                await asyncio.sleep(0.05)
            else:
                if sent >= begin:
                    milliseconds.append(1e3 * (time.monotonic() - sent))

    async def load() -> None:
        begin, numbers = time.monotonic() + _WARM_UP_SECONDS, itertools.count()
        async with grpc.aio.insecure_channel(address) as channel:
            send: Any = channel.unary_unary(path)
            await asyncio.gather(*(call_again_and_again(send, numbers, begin, begin + s) for _ in range(callers)))

    asyncio.run(load())
    return Load(milliseconds, dict(errors))


def measure(
    address: str, kind: Callable[..., Any], paths: Sequence[Path], callers: int, seconds: float
) -> dict[str, Any]:
    """Returns the figures of a part: of the modest caller alone and beside the other, and of that one."""
    spawn = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        alone = pool.submit(closed_loop, address, kind, paths, MODEST, callers, seconds).result()
        flooding = pool.submit(closed_loop, address, kind, paths, FLOOD, 64, seconds + 2 * _WARM_UP_SECONDS)
        time.sleep(_WARM_UP_SECONDS)  # the flood is there before
        beside = pool.submit(closed_loop, address, kind, paths, MODEST, callers, seconds).result()
        flood = flooding.result()
    quiet, loud = (latency(np.array(load.milliseconds) / 1e3) for load in (alone, beside))
    return {
        "alone, ms": vars(quiet),
        "beside a flood, ms": vars(loud),
        "p99 times": loud.p99 / quiet.p99,
        "calls/s": {name: len(load.milliseconds) / seconds for name, load in (("alone", alone), ("beside", beside))},
        "flood, ms": vars(latency(np.array(flood.milliseconds) / 1e3)),
        "errors": {"alone": alone.errors, "beside": beside.errors, "flood": flood.errors},
        "passed": loud.p99 <= MOST_TIMES * quiet.p99 and not alone.errors and not beside.errors,
    }


def fill(services: Services) -> VectorSpace:
    """Creates the collection that both tenants have rows in, and returns whose vectors it takes."""
    with EmbedderClient(services.embedder.addresses.grpc) as client:
        model = client.get_model().model
    vectors = np.random.default_rng(0).standard_normal((_ROWS, model.dimension)).astype(np.float32)
    with Client(services.search.addresses.grpc) as client:
        client.create_collection(_COLLECTION, multi_tenant=True)
        for tenant in (FLOOD, MODEST):
            items = [Item(str(n), vector=Embedding(vector, model.fingerprint)) for n, vector in enumerate(vectors)]
            for start in range(0, _ROWS, 250):
                client.upsert(_COLLECTION, items[start : start + 250], tenant=tenant)
    return VectorSpace(model.fingerprint, model.dimension)


def _unlike_others(images: Sequence[bytes], number: int) -> bytes:
    """An image of its own: what follows the end of a picture is ignored."""
    return images[number % len(images)] + os.getpid().to_bytes(4) + number.to_bytes(4)


def main(argv: Sequence[str]) -> int:
    """Runs both parts; returns the exit code: 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__.partition("\n")[0])
    add_flags(parser, "fairness.json")
    parser.add_argument("--precision", default="auto", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="of each load (default: %(default)s)")
    parser.add_argument(
        "--callers", type=int, default=2, metavar="N", help="calls the modest one has in flight (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    images, bundle = find_inputs(args)
    parts: dict[str, Any] = {}

    def part(name: str, server: ServerProcess, kind: Callable[..., Any]) -> None:
        say(name)
        parts[name] = measure(server.addresses.grpc, kind, images.paths, args.callers, args.seconds)
        for what, figure in parts[name].items():
            print(f"    {what}: {figure}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        with running(bundle.path, Path(folder) / "milvus.db", args.logs, precision=args.precision) as services:
            fill(services)
            part("by image", services.search, searches)
            part("embedder", services.embedder, embeddings)
        if reason := milvus_server.why_not():
            say(f"by vector: left out, {reason}")
        else:
            milvus = MilvusServer(Path(folder))
            try:
                with running(bundle.path, milvus.uri, args.logs, precision=args.precision) as services:
                    part("by vector", services.search, partial(vector_searches, fill(services)))
            finally:
                milvus.kill()
    write_json(
        args.out,
        {
            "schema": SCHEMA,
            **surroundings(),
            "bundle": describe_bundle(bundle),
            "images": images.describe(),
            "callers": args.callers,
            "parts": parts,
        },
    )
    for name, figures in parts.items():
        print(f"{'PASS' if figures['passed'] else 'FAIL'}  {name}: p99 {figures['p99 times']:.2f} times")
    return 0 if all(figures["passed"] for figures in parts.values()) else 1


if __name__ == "__main__":
    sys.exit(run(main))

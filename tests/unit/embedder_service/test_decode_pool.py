"""Decoding in processes: what happens to one of them costs the image that it had, and nothing else."""

import io
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import skimage.data
from PIL import Image
from poisoned_decoder import CRASH, HANG, LIE
from prometheus_client import REGISTRY
from waiting import until

from embedder_service import decode_process
from embedder_service.decode import decode
from embedder_service.decode_pool import DecodePool
from embedder_service.decode_process import DecodeProcess
from service_kit.errors import Internal, InvalidArgument, Unavailable

GOOD = (Path(skimage.data.__file__).parent / "rocket.jpg").read_bytes()
OPTIONS = {"resize": "bilinear", "max_pixels": 50_000_000}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@contextmanager
def pool(count=1, seconds=60.0, memory=256 << 20):
    with DecodePool(partial(DecodeProcess, (32, 48, 3), memory=memory, **OPTIONS), count, seconds) as pool:
        pool.wait_until_ready()
        yield pool


@pytest.fixture
def poisoned(monkeypatch):
    monkeypatch.setattr(decode_process, "PROGRAM", "poisoned_decoder")


def decoders():
    """The processes that decode for this one."""
    return [process for process in psutil.Process().children() if "decode" in " ".join(process.cmdline())]


def lost(reason):
    return REGISTRY.get_sample_value("embedder_decoders_lost_total", {"reason": reason}) or 0.0


def check(pool):
    """Whether it decodes, as a thread would."""
    np.testing.assert_array_equal(pool.decode(GOOD), decode(GOOD, height=32, width=48, **OPTIONS))


def told_by_check(pool):
    try:
        pool.check()
    except Unavailable as error:
        return "no decoder can be started" in error.message
    return False


def begin(threads, pool, image):
    """Starts decoding an image that takes for ever; returns its future and its process, which is at work on it."""
    future = threads.submit(pool.decode, image)
    before = {process: process.cpu_times().user for process in decoders()}
    busy = []
    until(lambda: busy.extend(p for p in before if p.cpu_times().user > before[p] + 0.1) or busy)
    return future, busy[0]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("poison", "error", "message", "reason"),
    [
        (CRASH, InvalidArgument, "its decoder ended by signal 11, Segmentation fault", "crashed"),
        (HANG, InvalidArgument, r"takes longer than the limit of 0\.5 s", "timeout"),
        (LIE, Internal, r"an answer of kind 2 and 4294967295 bytes", "garbled"),
    ],
)
def test_an_image_that_its_decoder_does_not_survive_fails_alone(poison, error, message, reason):
    with pool(seconds=0.5 if poison == HANG else 60) as decoding:
        (before,), count = decoders(), lost(reason)
        with pytest.raises(error, match=message):
            decoding.decode(GOOD + poison)
        assert lost(reason) == count + 1
        check(decoding)
        (after,) = decoders()
        assert after != before


@pytest.mark.usefixtures("poisoned")
def test_a_decoder_that_is_killed_in_the_middle_fails_its_image_and_harms_no_other():
    with pool(count=2) as decoding, ThreadPoolExecutor() as threads:
        future, busy = begin(threads, decoding, GOOD + HANG)
        check(decoding)
        assert not future.done()
        busy.kill()
        with pytest.raises(Internal, match="its decoder ended by SIGKILL"):
            future.result()
        check(decoding)
        until(lambda: decoding.check() or len(decoders()) == 2)  # not more than two in a second


def test_a_decoder_that_is_stopped_fails_its_image_in_time():
    with pool(seconds=0.5) as decoding:
        (process,) = decoders()
        process.suspend()
        with pytest.raises(InvalidArgument, match="longer than the limit"):
            decoding.decode(GOOD)
        assert not process.is_running()
        check(decoding)


def test_an_image_that_takes_more_memory_than_it_may_is_refused_and_its_decoder_goes_on():
    file = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(file, "PNG")
    with pool(memory=24 << 20) as decoding:
        before = decoders()
        with pytest.raises(InvalidArgument, match="takes more memory than there is for one; send it scaled down"):
            decoding.decode(file.getvalue())
        check(decoding)
        assert decoders() == before


def test_a_decoder_that_ends_while_it_has_nothing_to_do_costs_no_image():
    with pool() as decoding:
        (first,) = decoders()
        first.kill()
        until(lambda: first.status() == psutil.STATUS_ZOMBIE)
        check(decoding)
        (second,) = decoders()
        second.kill()
        until(lambda: second.status() == psutil.STATUS_ZOMBIE)
        until(lambda: decoding.check() or decoders() not in ([], [second]))  # not more than one in a second
        check(decoding)


@pytest.mark.usefixtures("poisoned")
def test_images_that_kill_decoders_do_not_have_them_started_more_often_than_once_a_second_each():
    with pool() as decoding:
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(InvalidArgument):
                decoding.decode(GOOD + CRASH)
        check(decoding)
        assert time.monotonic() - began > 2


def test_without_a_decoder_nothing_is_decoded_until_one_can_be_started(monkeypatch):
    with pool() as decoding:
        (process,) = decoders()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/no/python")
            process.kill()
            until(lambda: process.status() == psutil.STATUS_ZOMBIE)
            with pytest.raises(Unavailable, match="no decoder can be started: No such file or directory"):
                decoding.decode(GOOD)
            until(lambda: told_by_check(decoding))  # not more than one try in a second
        check(decoding)
        decoding.check()


def test_decoders_that_do_not_come_up_are_told_at_once(monkeypatch):
    monkeypatch.setattr(decode_process, "PROGRAM", "no_such_module")
    with pytest.raises(Unavailable, match="a decoder did not come up: it ended with exit code 1"), pool():
        pass


@pytest.mark.usefixtures("poisoned")
def test_closing_ends_what_is_being_decoded():
    with ThreadPoolExecutor() as threads:
        with pool() as decoding:
            future, _ = begin(threads, decoding, GOOD + HANG)
        with pytest.raises(Unavailable, match="the server is stopping"):
            future.result()
        assert decoders() == []
        with pytest.raises(Unavailable, match="the server is stopping"):
            decoding.decode(GOOD)


def test_a_decoder_gets_no_secret_no_file_and_no_more_code_than_it_needs(monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    with pool() as decoding, Path(__file__).open() as file:
        os.set_inheritable(file.fileno(), True)
        check(decoding)
        (process,) = decoders()
        assert process.environ().keys() <= {"PYTHONPATH", "LD_LIBRARY_PATH"}
        assert os.listdir(f"/proc/{process.pid}/fd") == ["0", "1", "2"]
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "/PIL/" in maps
        assert [name for name in ("numpy", "grpc", "openvino", "tensorflow") if f"/{name}/" in maps] == []


def test_more_threads_than_decoders_take_turns():
    with pool(count=2) as decoding, ThreadPoolExecutor(8) as threads:
        for _ in threads.map(lambda _: check(decoding), range(40)):
            pass
        assert len(decoders()) == 2


def test_signals_to_all_processes_of_a_service_do_not_end_decoders():
    with pool() as decoding:
        (process,) = decoders()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        check(decoding)
        assert decoders() == [process]

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import embedder_service
from embedder_service.decode import decode
from embedder_service.model.tf import tensorflow as tf
from embedder_service.runtimes import load_runtime
from embedder_service.runtimes import tensorflow as runtimes
from embedder_service.runtimes.tensorflow import TensorFlowRuntime
from service_kit.errors import FailedPrecondition, InvalidArgument

ROOT = Path(embedder_service.__file__).parents[1]
# There is one on every machine, whatever else there is.
CPU = ("CPU:0",)


class Gate:
    """Goes before something that takes a batch, which waits there until the gate is opened, for 30 s at most."""

    def __init__(self, behind):
        self._behind = behind
        self._came = threading.Semaphore(0)
        self._open = threading.Event()
        self._lock = threading.Lock()
        self._batches = 0
        self.most = 0  # batches there at a time

    def __call__(self, batch):
        with self._lock:
            self._batches += 1
            self.most = max(self.most, self._batches)
        self._came.release()
        assert self._open.wait(30), "nobody opened the gate"
        result = self._behind(batch)
        with self._lock:
            self._batches -= 1
        return result

    def wait_for_batch(self):
        assert self._came.acquire(timeout=30), "no batch came"

    def open(self):
        self._open.set()


class Tiny(tf.Module):
    """The vector of an image is its first pixel. Fails on the value 255, and wants a petabyte for over 24 zeros."""

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2, 3], tf.uint8)])
    def embed(self, images):
        tf.debugging.assert_less(tf.reduce_max(images), tf.constant(255, tf.uint8), "too bright")
        zeros = tf.reduce_sum(tf.cast(images == 0, tf.int32))
        numbers = tf.where(zeros > 24, tf.constant(2**48, tf.int64), tf.constant(0, tf.int64))
        return tf.cast(images[:, 0, 0], tf.float32) + tf.reduce_sum(tf.fill([numbers], 1.0))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tf.saved_model.save(Tiny(), str(folder))
    return folder


def flat(value):
    return np.full((1, 2, 2, 3), value, np.uint8)


@pytest.fixture(scope="module")
def images(image_paths):
    """uint8 [4, 224, 224, 3]."""
    return np.stack([decode(path.read_bytes(), height=224, width=224, resize="bicubic") for path in image_paths[:4]])


@pytest.fixture(scope="module")
def expected(lite0, images):
    """In float32, one by one, without XLA."""
    runtime = TensorFlowRuntime(lite0.saved_model, precision="f32", buckets=(1,), devices=CPU)
    yield np.concatenate([runtime.run(image[np.newaxis]) for image in images])
    runtime.close()


def test_a_bucket_gives_the_vectors_that_single_images_give(lite0, images, expected):
    runtime = load_runtime(lite0, "tensorflow", buckets=(1, 4))
    np.testing.assert_allclose(runtime.run(images), expected, atol=1e-4)


def test_f16_is_close_to_f32_and_not_the_same(lite0, images, expected):
    runtime = TensorFlowRuntime(lite0.saved_model, precision="f16", buckets=(1, 4), devices=CPU)
    assert runtime.precision == "f16"
    vectors = runtime.run(images)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors * expected).sum(axis=1).mean() >= 0.999
    assert np.abs(vectors - expected).max() > 1e-5


@pytest.mark.parametrize(("precision", "least"), [("f32", 0.99999), ("f16", 0.999)])
def test_xla_gives_the_same_vectors(lite0, images, expected, precision, least):
    runtime = TensorFlowRuntime(lite0.saved_model, precision=precision, buckets=(1,), devices=CPU, xla=True)
    vectors = np.concatenate([runtime.run(image[np.newaxis]) for image in images])
    assert (vectors * expected).sum(axis=1).min() >= least


def test_on_a_cpu_auto_is_f32(lite0):
    assert TensorFlowRuntime(lite0.saved_model, buckets=(1,), devices=CPU).precision == "f32"


@pytest.mark.parametrize("buckets", [(2, 4), (1, 4, 2), (1, 1)])
def test_buckets_must_ascend_from_1(lite0, buckets):
    with pytest.raises(InvalidArgument, match="do not ascend from 1"):
        load_runtime(lite0, "tensorflow", buckets=buckets)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_precision_that_tensorflow_has_not_is_refused(lite0, precision):
    message = f"tensorflow runtime has no precision '{precision}'; choose one of auto, f32, f16"
    with pytest.raises(FailedPrecondition, match=message):
        load_runtime(lite0, "tensorflow", precision=precision)


def test_f16_is_refused_if_the_model_has_none(tiny):
    with pytest.raises(FailedPrecondition, match="has no f16; build its bundle again, or choose f32"):
        TensorFlowRuntime(tiny, precision="f16")
    assert TensorFlowRuntime(tiny, precision="auto", buckets=(1,)).precision == "f32"


def test_a_device_that_is_not_there_is_refused_with_those_there_are(tiny):
    with pytest.raises(FailedPrecondition, match=r"there is no device 'GPU:99' here; choose from CPU:0"):
        TensorFlowRuntime(tiny, devices=("GPU:99",))


def test_a_batch_that_fails_says_why_and_the_next_one_runs(tiny):
    runtime = TensorFlowRuntime(tiny, buckets=(1, 2), devices=CPU)
    with pytest.raises(RuntimeError, match=r"the model failed on CPU:0: (?s:.*)too bright"):
        runtime.run(flat(255))
    np.testing.assert_array_equal(runtime.run(flat(7)), [[7, 7, 7]])
    runtime.close()


def test_a_bucket_too_large_for_the_memory_is_refused_at_the_start(tiny):
    with pytest.raises(FailedPrecondition, match=r"cannot be run in batches of 4: CPU:0 has too little memory"):
        TensorFlowRuntime(tiny, buckets=(1, 2, 4), devices=CPU)


def test_closing_waits_for_the_running_batch_and_refuses_those_that_wait(tiny):
    runtime = TensorFlowRuntime(tiny, buckets=(1,), devices=CPU)
    gate = gate_before_computing(runtime)
    with ThreadPoolExecutor(3) as threads:
        running = threads.submit(runtime.run, flat(1))
        gate.wait_for_batch()
        waiting = threads.submit(runtime.run, flat(2))
        closing = threads.submit(runtime.close)
        with pytest.raises(RuntimeError, match="the runtime is closed"):
            waiting.result(30)
        assert not closing.done()
        gate.open()
        np.testing.assert_array_equal(running.result(30), [[1, 1, 1]])
        closing.result(30)


def test_with_two_slots_a_batch_is_brought_to_the_device_while_another_computes(tiny, monkeypatch):
    """What a GPU has, on a CPU."""
    monkeypatch.setitem(runtimes._SLOTS, "CPU", 2)
    runtime = TensorFlowRuntime(tiny, buckets=(1,), devices=CPU)
    assert runtime.slots == 2
    (replica,) = runtime._replicas
    computing = gate_before_computing(runtime)
    arriving = replica.run = Gate(replica.run)
    arriving.open()
    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(runtime.run, flat(value)) for value in range(1, 9)]
        arriving.wait_for_batch()
        arriving.wait_for_batch()
        computing.open()
        assert [int(result.result(30)[0, 0]) for result in results] == list(range(1, 9))
    assert arriving.most == 2
    assert computing.most == 1
    runtime.close()


def test_two_devices_work_at_the_same_time_from_one_queue_each_with_its_own_weights(lite0, tmp_path, images, expected):
    """In a process of its own: a CPU can be split into logical devices only before TensorFlow's first use of it."""
    program = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from embedder_service.model.tf import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from embedder_service.runtimes.tensorflow import TensorFlowRuntime

model, images, vectors = map(Path, sys.argv[1:])
runtime = TensorFlowRuntime(model, buckets=(1, 2), devices=("CPU:0", "CPU:1"))
assert runtime.slots == 2

for replica, device in zip(runtime._replicas, ("CPU:0", "CPU:1"), strict=True):
    places = {variable.device.rpartition("device:")[2] for variable in replica._compiled[1].variables}
    assert places == {device}, places

# Passes only when both compute at once.
meeting = threading.Barrier(2)

def meet(compiled):
    def run(batch):
        meeting.wait(60)
        return compiled(batch)
    return run

for replica in runtime._replicas:
    replica._compiled = {bucket: meet(compiled) for bucket, compiled in replica._compiled.items()}

batches = np.split(np.load(images), 2)
with ThreadPoolExecutor(4) as threads:
    np.save(vectors, np.concatenate(list(threads.map(runtime.run, batches * 2))))
runtime.close()
"""
    np.save(tmp_path / "images.npy", images)
    arguments = [str(lite0.saved_model), str(tmp_path / "images.npy"), str(tmp_path / "vectors.npy")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), np.tile(expected, (2, 1)), atol=1e-4)


def gate_before_computing(runtime):
    """Before the bucket of 1 of a runtime with a single replica."""
    (replica,) = runtime._replicas
    gate = replica._compiled[1] = Gate(replica._compiled[1])
    return gate

import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from embedder_service.model import weights
from embedder_service.model.weights import WeightsUnavailable

HEAD = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]


def pickled(*values):
    return b"".join(pickle.dumps(value, protocol=2) for value in values)


def legacy_file(tensor=b"", values=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), count=None, tail=b"", keys=("k",)):
    """A file with one tensor `w`, as PyTorch writes it; `tensor` are the opcodes of its offset, shape and stride."""
    tensor = tensor or b"K\x00" + b"K\x02K\x03\x86" + b"K\x01K\x02\x86"  # 0, (2, 3), (1, 2)
    state = (
        b"\x80\x02ccollections\nOrderedDict\n)R"
        b"X\x01\x00\x00\x00w"
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00kX\x03\x00\x00\x00cpuK\x06NtQ"
        + tensor
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )
    raw = np.asarray(values, "<f4").tobytes()
    storage = struct.pack("<q", len(values) if count is None else count) + raw
    return pickled(*HEAD) + state + pickled(list(keys)) + storage + tail


def test_the_installed_weights_become_arrays_with_pytorchs_names_and_shapes():
    state = weights.read_lite0(weights.lite0_file())
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert state["_fc.weight"].shape == (1000, 1280)
    assert state["_fc.weight"].dtype == np.float32
    assert state["_bn0.num_batches_tracked"].shape == ()
    assert len(state) == 296


def test_a_file_with_another_digest_is_refused_before_it_is_parsed(tmp_path):
    marker = tmp_path / "ran"
    file = tmp_path / "weights.pth"
    file.write_bytes(malicious(f"touch {marker}"))
    with pytest.raises(WeightsUnavailable, match=r"has SHA-256 [0-9a-f]{64}, expected 57934424"):
        weights.read_lite0(file)
    assert not marker.exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"gone\.pth cannot be read: No such file"):
        weights.read_lite0(tmp_path / "gone.pth")


def malicious(command):
    class Evil:
        def __reduce__(self):
            return os.system, (command,)

    return pickled(*HEAD, OrderedDict(w=Evil()))


@pytest.mark.parametrize("position", range(5))
def test_a_name_beyond_plain_tensors_is_refused_wherever_it_stands(tmp_path, position):
    marker = tmp_path / "ran"
    evil = malicious(f"touch {marker}")[len(pickled(*HEAD)) :]
    parts = [*map(pickled, HEAD), pickled(OrderedDict()), pickled([])]
    parts[position] = evil
    with pytest.raises(pickle.UnpicklingError, match=r"the name \S+ has no place here"):
        weights.parse_state_dict(b"".join(parts))
    assert not marker.exists()


def test_strides_are_those_of_the_file():
    state = weights.parse_state_dict(legacy_file())
    np.testing.assert_array_equal(state["w"], [[1, 3, 5], [2, 4, 6]])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickled(1, 1001),
        pickled(HEAD[0], 1002),
        pickled(HEAD[0], 1001, {"little_endian": False}),
        pickled(*HEAD, [1]),
        pickled(*HEAD, OrderedDict(w=1), []),
        legacy_file(values=(1.0,) * 5),
        legacy_file(count=7),
        legacy_file()[:-1],
        legacy_file(tail=b"x"),
        legacy_file(keys=("k", "l")),
        legacy_file(tensor=b"K\x01" + b"K\x02K\x03\x86" + b"K\x01K\x02\x86"),  # reaches beyond its storage
        legacy_file(tensor=b"J\xff\xff\xff\xff" + b"K\x02K\x03\x86" + b"K\x01K\x02\x86"),  # begins before it
        legacy_file(tensor=b"K\x00" + b"K\x02K\x03\x86" + b"K\x01\x85"),  # one stride for two axes
    ],
)
def test_anything_unexpected_is_refused(data):
    with pytest.raises(pickle.UnpicklingError):
        weights.parse_state_dict(data)

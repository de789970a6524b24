"""What code that took a decoding process over could still do."""

import ctypes
import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, sys
from embedder_service import sandbox

def error(what, *args):
    try:
        what(*args)
    except OSError as error:
        return error.errno

sandbox.enter(64 << 20, 0)
blocks = []
try:
    while True:
        blocks.append(bytes(1 << 20))
except MemoryError:
    taken = len(blocks)
    del blocks
print(json.dumps({
    "taken": taken,
    "open": error(os.open, os.devnull, os.O_RDONLY),
    "rename": error(os.rename, sys.argv[1], sys.argv[1] + "2"),
    "signal": error(os.kill, os.getppid(), 0),
}))
sys.stderr.write("for nobody")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has all of it")
def test_it_opens_no_file_moves_none_signals_nobody_and_takes_no_more_memory(tmp_path):
    file = tmp_path / "file"
    file.touch()
    done = subprocess.run([sys.executable, "-c", PROGRAM, file], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert 32 < found["taken"] < 64  # MiB
    assert found["open"] is not None
    landlock = ctypes.CDLL(None).syscall(444, None, 0, 1)  # the kernel's version of it, -1 for none
    assert (found["rename"] is not None) is (landlock >= 1)
    assert (found["signal"] is not None) is (landlock >= 6)
    assert done.stderr == ""

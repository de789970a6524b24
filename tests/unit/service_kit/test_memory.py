"""Freed memory goes back, in a process of its own: the allocator's settings are the process'."""

import platform
import subprocess
import sys

import pytest

# Frees a block of 8 MiB, after which glibc would keep smaller ones; then frees some of 4 MiB below one that stays.
SCRIPT = """
import ctypes
from service_kit import memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def block(size):
    address = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(address, 1, size)
    return address

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

memory.return_large_blocks()
libc.free(block(8 << 20))
before = resident()
freed = [block(4 << 20) for _ in range(8)]
stays = block(100_000)
for address in freed:
    libc.free(address)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_large_blocks_go_back_when_they_are_freed():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert int(run.stdout) < 4 << 20

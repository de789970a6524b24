"""What the process keeps of the memory that it frees."""

from __future__ import annotations

import contextlib
import ctypes
import sys

# malloc.h of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
# At the end of a heap: once one of the two is set, glibc no longer raises the other from its 128 KiB.
_KEPT = 16 << 20


def return_large_blocks() -> None:
    """Has blocks of 1 MiB and more go back to the system as soon as they are freed, where the allocator is glibc's.

    By default glibc raises this bound to the size of each block that is freed, up to 32 MiB: after a few large images
    and messages it keeps such blocks in heaps that fragment, and the process stays as large as it ever was.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, _LARGE)
            mallopt(_M_TRIM_THRESHOLD, _KEPT)

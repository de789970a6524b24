"""What a process that decodes gives up before it sees an image, so that code which took it over could do little.

Linux has all of this, other systems a part. Sources: prctl(2), setrlimit(2), proc(5),
https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
# linux/landlock.h; the numbers of the calls are the same on all architectures.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1


def end_with_parent() -> None:
    """Has the process killed as soon as the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def enter(memory: int, file_size: int) -> None:
    """Gives up for good: files, new connections, other processes, privileges, core dumps; stderr becomes /dev/null.

    What is not imported before cannot be afterwards.

    Args:
        memory: bytes of address space that the process may take beyond what it has.
        file_size: bytes that a file may grow to which is open already.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")  # where memory is short, this process goes first
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
        _restrict()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_size)
    _limit(resource.RLIMIT_NPROC, 0)
    os.dup2(null, sys.stderr.fileno())
    os.close(null)
    _limit(resource.RLIMIT_NOFILE, 3)


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _restrict() -> None:
    """Landlock: no file can be opened, no TCP port used, no process outside be sent a signal or looked into."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    version = libc.syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    if version < 1:  # the kernel does not have it
        return
    # What each version can forbid: operations on files, on TCP ports, and across its border.
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    rules = struct.pack("QQQ", files, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(_CREATE_RULESET, rules, len(rules), 0)
    libc.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)

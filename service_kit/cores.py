"""How many processors and cores this process may really use."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Logical processors this process may use, at least 1: its CPU affinity, bounded by its cgroup v2 quota.

    A container limited to 2 CPUs on a 64-core node counts 64 by `os.cpu_count()`; so many threads get throttled.
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    return max(1, min([len(_affinity()), *(int(quota) for quota in _quotas(root, membership))]))


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """As `available_cores`, with the hardware threads of one core counted once.

    They share its vector units, which a convolution keeps busy by itself: a second one on the same core makes both
    slower and takes the core from decoding and from the network.
    """
    cores = {_siblings(topology, cpu) for cpu in _affinity()}
    return min(len(cores), available_cores())


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _siblings(topology: Path, cpu: int) -> str:
    """What names the core of a logical processor: the list of all that share it."""
    try:
        return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quotas(root: Path, membership: Path) -> list[float]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    unified = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")
    group = root / unified
    found = []
    # Every ancestor may set a limit of its own, and the tightest rules.
    for folder in (group, *group.parents):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            quota, period = "max", "0"
        if quota != "max":
            found.append(int(quota) / int(period))
        if folder == root:
            break
    return found

"""The precisions that this CPU has instructions for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

# Fastest first. Images/s of ResNet50 on 2 Zen 4 cores: 98, 57 and 29.
FASTEST_FIRST = ("int8", "bf16", "f32")
# The 8-bit dot product with 32-bit sums. OpenVINO lists INT8 for every CPU, but without these its sums have 16 bits:
# they overflow, and are hardly faster than float32.
_DOT_PRODUCT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def native_precisions(capabilities: Collection[str], flags: Collection[str]) -> tuple[str, ...]:
    """The precisions of a CPU, fastest first.

    Args:
        capabilities: what OpenVINO lists as OPTIMIZATION_CAPABILITIES.
        flags: as the kernel names them; see `cpu_flags`.
    """
    has = {"int8": not _DOT_PRODUCT.isdisjoint(flags), "bf16": "BF16" in capabilities, "f32": True}
    return tuple(precision for precision in FASTEST_FIRST if has[precision])


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of an x86 CPU; none where the kernel does not tell them."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())

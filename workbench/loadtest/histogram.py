"""Histograms of latencies in the layout of HdrHistogram: three significant digits from a microsecond to over an hour.

Counting is done by numpy for thousands of values at once; `encode` gives what all tools for HdrHistogram read.
http://hdrhistogram.org
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

_HALF_BITS = 10
_HALF = 1 << _HALF_BITS  # sub-buckets of each power of two: enough for three digits
_HIGHEST = 3_600_000_000  # microseconds
_DIGITS = 3
_LENGTH = HdrHistogram(1, _HIGHEST, _DIGITS).counts_len


class Histogram:
    """Counts of latencies.

    Attributes:
        counts: int64 [buckets].
        sum: of all values, in seconds.
        max: the greatest value, in seconds; 0 while there is none.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_LENGTH, np.int64)
        self.sum = 0.0
        self.max = 0.0

    def __len__(self) -> int:
        return int(self.counts.sum())

    def record(self, seconds: NDArray[np.float64]) -> None:
        """Counts values, float64 [N], in seconds."""
        if not seconds.size:
            return
        self.counts += np.bincount(_indices(seconds), minlength=_LENGTH)
        self.sum += float(seconds.sum())
        self.max = max(self.max, float(seconds.max()))

    def add(self, other: Self) -> None:
        """Adds the counts of another one."""
        self.counts += other.counts
        self.sum += other.sum
        self.max = max(self.max, other.max)

    def mean(self) -> float:
        """Returns the mean in seconds, NaN of nothing."""
        return self.sum / len(self) if len(self) else math.nan

    def percentile(self, percent: float) -> float:
        """Returns the value in seconds that so many percent of all are at most, NaN of nothing."""
        total = len(self)
        if not total:
            return math.nan
        rank = max(1, math.ceil(percent / 100 * total - 1e-9))
        index = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(float(VALUES[index]), self.max)

    def encode(self) -> str:
        """Returns it in HdrHistogram's compressed form, V2, base64; values are microseconds."""
        hdr = HdrHistogram(1, _HIGHEST, _DIGITS)
        for index in np.flatnonzero(self.counts):
            hdr.record_value(int(hdr.get_value_from_index(int(index))), int(self.counts[index]))
        text: bytes = hdr.encode()
        return text.decode("ascii")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Returns what `encode` wrote; sum and maximum are those of the buckets."""
        hdr = HdrHistogram.decode(text)
        found = cls()
        counts = np.ctypeslib.as_array(hdr.counts)  # not always of the whole length
        found.counts[: len(counts)] = counts
        found.sum = float(found.counts @ VALUES)
        found.max = float(VALUES[np.flatnonzero(found.counts)[-1]]) if found.counts.any() else 0.0
        return found


def _indices(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the bucket of each value, int64 [N]."""
    values = np.clip(np.rint(seconds * 1e6), 0, _HIGHEST).astype(np.int64)
    # frexp gives the length in bits, exactly so for numbers below 2**53.
    power = np.frexp(np.maximum(values, 2 * _HALF - 1).astype(np.float64))[1].astype(np.int64) - (_HALF_BITS + 1)
    result: NDArray[np.int64] = (power << _HALF_BITS) + (values >> power)
    return result


def _values() -> NDArray[np.float64]:
    index = np.arange(_LENGTH)
    power = np.maximum((index >> _HALF_BITS) - 1, 0)
    lowest = (index - (power << _HALF_BITS)) << power
    # HdrHistogram's convention: the highest value that falls in the same bucket.
    result: NDArray[np.float64] = (lowest + (1 << power) - 1) / 1e6
    return result


VALUES = _values()
"""The value in seconds that stands for each bucket, float64 [buckets]."""

"""Numbers with units, as people write them: 100ms, 0.1%, 1:64:x2."""

from __future__ import annotations

import argparse
import re

_NUMBER = re.compile(r"([0-9]*\.?[0-9]+)\s*([a-z%]*)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_MOST_LEVELS = 100


def duration(text: str) -> float:
    """Returns the seconds of "100ms", "30s", "2m" or "1h"; a bare number is in seconds.

    Raises:
        argparse.ArgumentTypeError: it is not a duration, or is zero.
    """
    match = _NUMBER.fullmatch(text.strip().lower())
    if match is None or match[2] not in _SECONDS or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 500us, 100ms, 30s, 2m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def duration_or_none(text: str) -> float:
    """Returns a duration in seconds, which may be 0."""
    return 0.0 if text.strip() in {"0", "0s"} else duration(text)


def share(text: str) -> float:
    """Returns 0.001 for "0.1%" as for "0.001".

    Raises:
        argparse.ArgumentTypeError: it is not a share between 0 and 1.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in {"", "%"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: write 0.1% or 0.001")
    value = float(match[1]) / (100 if match[2] else 1)
    if value > 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is more than everything: a share lies between 0 and 1, or 0% and 100%"
        )
    return value


def positive_number(text: str) -> float:
    """Returns a number above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(match[1])


def levels(text: str) -> list[float]:
    """Returns the numbers of "10,20,50", of "10:50:10" (steps) or of "1:64:x2" (factors), ends included.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    found: list[float] = []
    for part in text.split(","):
        bounds = part.split(":")
        if len(bounds) == 1:
            found.append(positive_number(part))
            continue
        if len(bounds) != 3:
            raise argparse.ArgumentTypeError(f"{part!r} is not a range: write FROM:TO:STEP or FROM:TO:xFACTOR")
        value, last = positive_number(bounds[0]), positive_number(bounds[1])
        by_factor = bounds[2].startswith("x")
        step = positive_number(bounds[2].removeprefix("x"))
        if by_factor and step <= 1:
            raise argparse.ArgumentTypeError(f"{part!r} never ends: the factor must be more than 1")
        while value <= last * (1 + 1e-9) and len(found) <= _MOST_LEVELS:
            found.append(value)
            value = value * step if by_factor else value + step
    if not 0 < len(found) <= _MOST_LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} has {len(found)} levels; there must be 1 to {_MOST_LEVELS}")
    return found


def whole_levels(text: str) -> list[int]:
    """Returns levels that are whole numbers.

    Raises:
        argparse.ArgumentTypeError: one is not.
    """
    found = levels(text)
    if any(value != int(value) for value in found):
        raise argparse.ArgumentTypeError(f"{text!r} has levels that are not whole numbers")
    return [int(value) for value in found]

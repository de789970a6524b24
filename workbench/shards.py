"""A part of the images, for one machine of many: each image is in exactly one, by the hash of its id."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.id_set import id_hash

# What Kubernetes tells each pod of an Indexed Job.
_INDEX_VARIABLE = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard `index` of `count`, counted from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, id: str) -> bool:
        """Whether the image of an id belongs to this shard."""
        # The first half of the bits: the rest stays a good hash within the shard.
        return self.count == 1 or (id_hash(id) >> 32) % self.count == self.index


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """Parses "2/8", or "auto/8", whose index is that of the pod in an Indexed Job of Kubernetes.

    Raises:
        ValueError: it is neither; the message says why.
    """
    index, slash, count = text.partition("/")
    if index == "auto":
        index = environment.get(_INDEX_VARIABLE, "")
        if not index:
            raise ValueError(f"{text!r} takes the index from {_INDEX_VARIABLE}, which is not set")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"{text!r} is not I/N with I from 0 to N - 1, or auto/N")
    return Shard(int(index), int(count))

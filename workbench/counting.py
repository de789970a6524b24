"""Counts images ahead of those who read them, for a total to be known early."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

from workbench.inputs.found import Input
from workbench.shards import Shard


class Count:
    """Counts in a thread of its own.

    Attributes:
        so_far: images counted.
        complete: whether that is all of them. It never is where counting would cost as much as reading.
    """

    def __init__(self, inputs: Sequence[Input], shard: Shard) -> None:
        self.so_far = 0
        self.complete = False
        if all(each.countable for each in inputs):
            threading.Thread(target=self._run, args=(inputs, shard), name="counter", daemon=True).start()

    def _run(self, inputs: Sequence[Input], shard: Shard) -> None:
        with suppress(Exception):  # whoever reads the images meets it, too, and says so
            for each in inputs:
                for found in each.find():
                    self.so_far += shard.takes(found.id)
            self.complete = True

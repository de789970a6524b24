"""What an ingest would send: finds images and reads the beginning of each, without a service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from embedder_service.container import sniff
from search_service.settings import SearchSettings
from service_kit.errors import InvalidArgument
from workbench.batches import Failure, check_row
from workbench.inputs.found import Found, Unreadable

_HEADER_BYTES = 32
_SHOWN = 3


@dataclass
class DryRun:
    """What has been found.

    Attributes:
        good: images that look like ones.
        bytes: of all of those.
        formats: how many of them there are of each format.
        shown: the first of them.
    """

    good: int = 0
    bytes: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    shown: list[Found] = field(default_factory=list)

    def look(self, images: Iterable[Found], on_failure: Callable[[Failure], None]) -> None:
        """Looks at images; `on_failure` is called with each that could not be sent or stored."""
        most = SearchSettings().max_image_bytes
        for found in images:
            try:
                check_row(found)
                head = found.read(_HEADER_BYTES)
                name = sniff(head)
                size = os.stat(found.source).st_size if found.size is None else found.size
                if size > most:
                    raise Unreadable(f"has {size:,} bytes; by default, services take {most:,} at most")
            except (Unreadable, InvalidArgument) as error:
                on_failure(Failure(found.id, getattr(error, "message", str(error)), found.source))
                continue
            self.good += 1
            self.bytes += size
            self.formats[name] = self.formats.get(name, 0) + 1
            if len(self.shown) < _SHOWN:
                self.shown.append(found)

"""The main function of a server process."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from service_kit import logs
from service_kit.errors import ServiceError
from service_kit.settings import ServerSettings, load

S = TypeVar("S", bound=ServerSettings)
_log = logging.getLogger(__name__)


def run(cls: type[S], prefix: str, serve: Callable[[S], Awaitable[int]], argv: Sequence[str] | None = None) -> int:
    """Reads settings, sets up logs and runs `serve` until it returns the exit code.

    What a user can cause (a wrong path, a port in use) ends with exit code 1 and one line that says what to do.
    """
    settings = load(cls, prefix=prefix, argv=sys.argv[1:] if argv is None else argv)
    logs.configure(settings.log_level, settings.log_format)

    async def main() -> int:
        return await serve(settings)

    try:
        return asyncio.run(main())
    except (ServiceError, OSError) as error:
        logs.log(_log, logging.CRITICAL, f"cannot serve: {error}")
        return 1

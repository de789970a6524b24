"""The main function of a server process."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from service_kit import logs, memory, tracing
from service_kit.errors import Broken, ServiceError
from service_kit.settings import ServerSettings, load

S = TypeVar("S", bound=ServerSettings)
_END_WITHIN = 5.0  # seconds
_log = logging.getLogger(__name__)
_owned = False


def run(cls: type[S], prefix: str, serve: Callable[[S], Awaitable[int]], argv: Sequence[str] | None = None) -> int:
    """Reads settings, sets up logs and traces and runs `serve` until it returns the exit code.

    What a user can cause (a wrong path, a port in use) ends with exit code 1 and one line that says what to do.

    Args:
        cls: the settings.
        prefix: of their environment variables; in traces the service has its name, in lower case and with hyphens.
        serve: runs the server.
        argv: the flags. None means those of the command line, and that the process is the server's own: then `end_soon`
            may end it.
    """
    global _owned
    _owned = argv is None
    settings = load(cls, prefix=prefix, argv=sys.argv[1:] if argv is None else argv)
    logs.configure(settings.log_level, settings.log_format)
    memory.return_large_blocks()

    async def main() -> int:
        return await serve(settings)

    try:
        tracing.configure(prefix.lower().replace("_", "-"))
        return asyncio.run(main())
    except (ServiceError, OSError) as error:
        logs.log(_log, logging.CRITICAL, f"cannot serve: {error}")
        if isinstance(error, Broken):
            end_soon()
        return 1


def end_soon() -> None:
    """Has the process end with exit code 1 within seconds, even if a thread hangs and its end would wait for ever.

    Before that, the stacks of all threads go to stderr. In a process that is not the server's own it does nothing.
    """
    if _owned:
        # Not a thread of Python, so it needs neither the interpreter lock nor those of the log.
        faulthandler.dump_traceback_later(_END_WITHIN, exit=True)

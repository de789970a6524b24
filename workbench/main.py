"""The `lookalike` command: dispatches to the commands, and turns what a user can cause into one line."""

from __future__ import annotations

import argparse
import errno
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

# In the order of `lookalike --help`. A module imports what it needs when it runs: --help must be quick.
_COMMANDS = (
    "quickstart",
    "serve",
    "ingest",
    "embed",
    "bulk-import",
    "search",
    "collections",
    "reindex",
    "evaluate",
    "compare_backbones",
    "recall",
    "loadtest",
    "token",
    "bundle",
    "caltech101",
)
_INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 for a failure, 2 for wrong arguments, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="lookalike", description="Finds images that look alike.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        importlib.import_module(f"workbench.commands.{name.replace('-', '_')}").register(subparsers)
    args = parser.parse_args(argv)
    # Being told to end is like Ctrl-C: servers that a command started are stopped on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under nohup a hang-up is ignored
            signal.signal(number, _interrupt)
    try:
        _set_up_tracing()
        code: int = args.run(args)
    except KeyboardInterrupt:
        print("\nlookalike: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        print(f"lookalike: {message}", file=sys.stderr)
        return 1
    return code


def _set_up_tracing() -> None:
    from service_kit import tracing

    tracing.configure("lookalike", instrument_clients=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _explain(error: Exception) -> str | None:
    """Returns what to tell the user, or None for an error that is our own fault."""
    from lookalike import LookalikeError
    from service_kit.errors import ServiceError
    from workbench.errors import CommandError

    match error:
        case CommandError() | LookalikeError():
            return str(error)
        case ServiceError():
            return error.message
        case ModuleNotFoundError(name=str(name)):
            return f"the package {name.partition('.')[0]} is not installed: pip install 'lookalike[quickstart]'"
        case OSError(filename=str(name)):
            return f"{name}: {error.strerror}"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"a file cannot be written: {error.strerror}: make room, and run the command again"
        case _:
            return None


if __name__ == "__main__":
    sys.exit(main())

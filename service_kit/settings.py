"""Settings: one typed dataclass field each, with a default, an environment variable, a flag and a line of help.

    @dataclass(frozen=True)
    class Settings(ServerSettings):
        bundle: Path = setting(Path("bundle"), "Directory of the model bundle.")

    settings = load(Settings, prefix="LOOKALIKE_EMBEDDER", argv=sys.argv[1:])

A flag beats the environment variable, which beats the default.
"""

from __future__ import annotations

import argparse
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def setting(
    default: Any,
    help: str,
    *,
    min: float | None = None,
    choices: Sequence[str] | None = None,
    secret: bool = False,
) -> Any:
    """Declares one setting of a settings dataclass.

    `min` bounds a number from below; `choices` lists the values allowed; a `secret` never shows its value.
    """
    return field(default=default, metadata={"help": help, "min": min, "choices": choices, "secret": secret})


@dataclass(frozen=True)
class ServerSettings:
    """The settings that both servers have."""

    address: str = setting("127.0.0.1:0", "HOST:PORT to serve gRPC on; port 0 takes any free one.")
    metrics_address: str = setting(
        "127.0.0.1:0", "HOST:PORT to serve Prometheus metrics on; port 0 takes any free one."
    )
    health_address: str | None = setting(
        None,
        "HOST:PORT to serve health checks on as well, in plaintext and apart from calls; port 0 takes any free one.",
    )
    liveness_timeout: float = setting(
        30.0, "Seconds that the event loop may hang until health checks on the health address fail.", min=0.1
    )
    address_file: Path | None = setting(
        None, "File to write the bound addresses to, as JSON, once the server is ready."
    )
    tls_cert: Path | None = setting(
        None, "PEM file of the server's certificate and those between it and its authority; read again when it changes."
    )
    tls_key: Path | None = setting(None, "PEM file of that certificate's private key, not encrypted.")
    tls_client_ca: Path | None = setting(
        None, "PEM file of authorities: every client has to show a certificate of one of them (mutual TLS)."
    )
    tokens: Path | None = setting(
        None,
        "TOML file of the tokens, hashed, that calls may come with, as `lookalike token` makes it; read again when it "
        "changes. Without it whoever reaches the server may do everything.",
    )
    insecure: bool = setting(
        False, "Serve other addresses than loopback without TLS; for networks that keep others out by themselves."
    )
    max_message_bytes: int = setting(64 << 20, "Largest gRPC message accepted, in bytes.", min=1 << 10)
    max_concurrent_rpcs: int = setting(
        1024, "Calls in progress at most, health checks not counted; others get RESOURCE_EXHAUSTED.", min=1
    )
    max_caller_rpcs: int = setting(
        512, "Calls of one caller in progress at most, from its request on; others get RESOURCE_EXHAUSTED.", min=1
    )
    caller_turns: int | None = setting(
        None,
        "Calls of one caller worked on at a time while there are others, streams not counted; more wait. If unset: of "
        "an embedder half of what its model takes at a time; of a search service 4, on Milvus Lite one for two cores.",
        min=1,
    )
    max_connections: int = setting(1024, "Connections at most; others are closed at once.", min=1)
    max_pending_rpcs: int = setting(
        128,
        "Calls that have come and are not begun: of more, some end as CANCELLED, and of more than twice as many all. A "
        "call waits as long as the server takes to begin those before it.",
        min=1,
    )
    max_connection_rpcs: int = setting(
        1024, "Calls in progress on one connection at most; clients wait before they send others.", min=1
    )
    max_connection_idle: float = setting(
        300.0, "Seconds after which a connection without calls is closed; clients connect anew by themselves.", min=0.1
    )
    handshake_timeout: float = setting(10.0, "Seconds that a new connection has to speak HTTP/2, and TLS.", min=0.1)
    max_metadata_bytes: int = setting(
        16 << 10, "Metadata of a call at most, in bytes as HTTP/2 counts them: 32 more for each entry.", min=1 << 10
    )
    request_timeout: float = setting(
        30.0, "Seconds that the request of a call may take to arrive; its caller gets DEADLINE_EXCEEDED.", min=0.1
    )
    stream_idle_timeout: float = setting(
        300.0, "Seconds that the server waits for the next message of a stream; as above.", min=0.1
    )
    reflection: bool = setting(True, "Serve gRPC reflection, so that generic clients work.")
    readiness_interval: float = setting(5.0, "Seconds between two checks that the server can really serve.", min=0.1)
    drain_delay: float = setting(4.0, "Seconds between telling health checks and refusing calls, on SIGTERM.", min=0)
    max_connection_age: float | None = setting(
        None,
        "Seconds, give or take a tenth, after which a client is asked to connect anew: it then looks its name up again "
        "and finds new replicas. Its calls go on. Never if unset.",
        min=1,
    )
    grace: float = setting(20.0, "Seconds that calls in progress get to finish, on SIGTERM.", min=0)
    slow_call: float = setting(5.0, "Seconds from which on a call that is no stream is logged, with its stages.", min=0)
    log_level: str = setting("INFO", "Least severity logged.", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    log_format: str = setting("console", "Form of a log line.", choices=("console", "json"))


S = TypeVar("S", bound=ServerSettings)


def load(cls: type[S], *, prefix: str, argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> S:
    """Reads settings from flags and environment variables.

    Raises:
        SystemExit: a value is wrong (exit code 2, after a message that names the flag or variable), or `--help`.
    """
    parser = argparse.ArgumentParser(prog=None, description=cls.__doc__, allow_abbrev=False)
    values: dict[str, Any] = {}
    for item, parse in _settings(cls):
        variable = _variable(prefix, item)
        if variable in environ:
            try:
                values[item.name] = parse(environ[variable])
            except ValueError as error:
                parser.error(f"environment variable {variable}: {error}")
        parser.add_argument(
            _flag(item),
            type=_argument_type(parse),
            default=argparse.SUPPRESS,
            nargs="?" if isinstance(item.default, bool) else None,
            const=True if isinstance(item.default, bool) else None,
            metavar="VALUE",
            help=f"{item.metadata['help']} [{variable}; default: {_shown(item)}]".replace("%", "%%"),
        )
    values.update(vars(parser.parse_args(argv)))
    return cls(**values)


def reference(cls: type[ServerSettings], prefix: str) -> str:
    """Returns a Markdown table of all settings of `cls`, for the documentation."""
    rows = ["| flag | environment variable | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{_flag(item)}` | `{_variable(prefix, item)}` | `{_shown(item)}` | {_meaning(item)} |"
        for item, _ in _settings(cls)
    ]
    return "\n".join(rows) + "\n"


def describe(settings: ServerSettings) -> dict[str, str]:
    """Returns name and value of every setting, for a log line at start-up; secrets are hidden."""
    return {
        item.name: "***"
        if item.metadata.get("secret") and getattr(settings, item.name)
        else str(getattr(settings, item.name))
        for item, _ in _settings(type(settings))
    }


def _settings(cls: type[ServerSettings]) -> list[tuple[Field[Any], Callable[[str], Any]]]:
    hints = typing.get_type_hints(cls)
    return [(item, _parser(hints[item.name], item)) for item in fields(cls)]


def _parser(hint: Any, item: Field[Any]) -> Callable[[str], Any]:
    """Returns the function that parses the text of a setting, and raises ValueError with what is wrong with it."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # X | None: an empty text means None
        inner = _parser(next(arg for arg in typing.get_args(hint) if arg is not type(None)), item)
        return lambda text: inner(text) if text else None
    base = _PARSERS[hint]

    def parse(text: str) -> Any:
        try:
            value = base(text)
        except ValueError:
            raise ValueError(f"{text!r} is not of type {hint.__name__}") from None
        choices, least = item.metadata.get("choices"), item.metadata.get("min")
        if choices and value not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        if least is not None and not value >= least:
            raise ValueError(f"{text} is below the least value, {least}")
        return value

    return parse


def _argument_type(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def argument(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


def _bool(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


def _int(text: str) -> int:
    """Parses an integer with an optional binary suffix: 16M is 16 * 2**20."""
    suffix = text[-1:].upper() if text[-1:].isalpha() else ""
    return int(text[: len(text) - len(suffix)]) * _UNITS[suffix] if suffix in _UNITS else int(text)


# The types that a setting may have.
_PARSERS: dict[Any, Callable[[str], Any]] = {bool: _bool, int: _int, float: float, str: str, Path: Path}


def _flag(item: Field[Any]) -> str:
    return "--" + item.name.replace("_", "-")


def _variable(prefix: str, item: Field[Any]) -> str:
    return f"{prefix}_{item.name.upper()}"


def _shown(item: Field[Any]) -> str:
    value = None if item.default is MISSING else item.default
    return "none" if value is None else str(value)


def _meaning(item: Field[Any]) -> str:
    choices = item.metadata.get("choices")
    return f"{item.metadata['help']} One of {', '.join(choices)}." if choices else str(item.metadata["help"])

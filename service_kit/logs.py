"""Structured logs: an event, its fields and the request's id, as a console line or a JSON object. To stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from service_kit import calls

_FIELDS = "fields"


def configure(level: str, form: str) -> None:
    """Sends the process' logs to stderr from `level` up, as `console` lines or `json` objects."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if form == "json" else _ConsoleFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # gRPC logs a reply that meets the end of its call, as by its deadline, as an error, with a stack trace.
    logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: "raised in core" not in str(record.msg))


def log(logger: logging.Logger, level: int, event: str, **fields: Any) -> None:
    """Logs an event with fields, and the exception being handled if the level is ERROR.

    Images, vectors and secrets are never fields.
    """
    logger.log(level, event, exc_info=level == logging.ERROR and sys.exc_info()[0] is not None, extra={_FIELDS: fields})


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "severity": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, _FIELDS, {})
    # A line is formatted by the code that logs it, so the request is its own.
    request_id = calls.request_id()
    return {**fields, "request_id": request_id} if request_id else fields


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() or c == '"' for c in text) else text

import json
import logging
import re

import pytest

from service_kit import logs

_log = logging.getLogger("a.module")


@pytest.fixture
def configure():
    """`logs.configure`, whose effect on the root logger is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # `configure` closes the handlers it replaces, and these are pytest's
    yield logs.configure
    root.handlers, root.level = handlers, level


def test_a_console_line_has_time_level_logger_event_and_fields(configure, capsys):
    configure("INFO", "console")
    logs.log(_log, logging.INFO, "listening", port=1, path="a b", empty="")
    line = capsys.readouterr().err
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    a\.module: listening port=1 path="a b" empty=""\n', line
    )


def test_a_json_line_is_one_object_with_the_fields(configure, capsys):
    configure("INFO", "json")
    logs.log(_log, logging.WARNING, "not ready", reason="no\nmodel", count=2)
    entry = json.loads(capsys.readouterr().err)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "severity": "WARNING",
        "logger": "a.module",
        "event": "not ready",
        "reason": "no\nmodel",
        "count": 2,
    }


@pytest.mark.parametrize("form", ["console", "json"])
def test_an_error_brings_the_exception_that_is_being_handled(configure, capsys, form):
    configure("INFO", form)
    try:
        raise RuntimeError("device lost")
    except RuntimeError:
        logs.log(_log, logging.ERROR, "run failed")
    assert "RuntimeError: device lost" in capsys.readouterr().err


def test_an_error_without_exception_brings_none(configure, capsys):
    configure("INFO", "json")
    logs.log(_log, logging.ERROR, "run failed")
    assert "exception" not in json.loads(capsys.readouterr().err)


def test_what_is_below_the_level_is_not_logged(configure, capsys):
    configure("WARNING", "console")
    logs.log(_log, logging.INFO, "listening")
    assert capsys.readouterr().err == ""

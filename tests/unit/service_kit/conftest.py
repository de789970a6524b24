import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import running_server
import small_server

import service_kit


@pytest.fixture
def start():
    """Runs a small server in this process for as long as a context lasts."""
    return running_server.start


@pytest.fixture
def start_process():
    """Starts small servers as processes, and returns each once it has logged the event `until`, if any."""
    environment = {**os.environ, "PYTHONPATH": str(Path(service_kit.__file__).parents[1])}
    started = []

    def start(*flags, until="serving", **variables):
        process = subprocess.Popen(
            [sys.executable, small_server.__file__, "--log-format=json", "--drain-delay=0", *flags],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, **variables},
        )
        started.append(process)
        events = []
        while until and (not events or events[-1]["event"] != until):
            events.append(json.loads(process.stderr.readline()))
        return process, {name: value for event in events for name, value in event.items()}

    yield start
    for process in started:
        process.kill()
        process.communicate()

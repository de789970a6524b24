import pytest
import running_server


@pytest.fixture
def start():
    """Runs a small server in this process for as long as a context lasts."""
    return running_server.start


@pytest.fixture
def start_process():
    """Starts small servers as processes; see `running_server.processes`."""
    with running_server.processes() as start:
        yield start

"""An embedder that moves to another address while the search service is connected to it by name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from waiting import until

from lookalike import Client, Item, LookalikeError
from workbench.demo_images import DemoImages
from workbench.services import ANY_PORT, ServerProcess

NAME = "embedder.test"


def embedder_at(address: str, bundle: Path, logs: Path) -> ServerProcess:
    flags = ["--bundle", str(bundle), "--address", address, "--metrics-address", ANY_PORT]
    return ServerProcess(f"embedder-{address}", "embedder_service.main", flags, logs)


def test_an_embedder_is_found_again_at_another_address(tmp_path: Path, bundle: Path, demo_images: DemoImages) -> None:
    """The name is looked up when the connection ends: within 5 s, of which gRPC may wait all since the last look."""
    hosts = tmp_path / "hosts"
    # The search service gets a file of its own for /etc/hosts, in a mount namespace.
    enter = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    hosts.write_text("127.0.0.1 localhost\n")
    tried = shutil.which("unshare") and subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    if not tried or tried.returncode:
        pytest.skip(f"no mount namespace can be had here, it takes Linux and root: {tried and tried.stderr}")

    image = demo_images.queries[0].read_bytes()
    with embedder_at("127.0.0.2:0", bundle, tmp_path) as first:
        port = first.addresses.grpc.rpartition(":")[2]
        hosts.write_text(f"127.0.0.2 {NAME}\n")
        flags = ["--milvus-uri", str(tmp_path / "milvus.db"), "--embedder", f"dns:///{NAME}:{port}"]
        flags += ["--address", ANY_PORT, "--metrics-address", ANY_PORT]
        search = ServerProcess("search-service", "search_service.main", flags, tmp_path)
        search._command[:0] = enter
        with search, Client(search.addresses.grpc, timeout=5) as client:
            client.create_collection("photos")
            client.upsert("photos", [Item("a", image=image)])
            with embedder_at(f"127.0.0.3:{port}", bundle, tmp_path):
                hosts.write_text(f"127.0.0.3 {NAME}\n")
                os.kill(first.pid, signal.SIGTERM)

                def found() -> bool:
                    try:
                        return [hit.id for hit in client.search("photos", image=image).hits] == ["a"]
                    except LookalikeError:
                        return False

                until(found, 30)

"""Real Prometheus and Alertmanager watch both services under load: the rules compute, an overload pages, and resolves.

Rules and routes are those of deploy/ in a copy in which a minute is a second: so much shorter are the windows, `for`
and what Alertmanager waits. Nothing else of them is changed but the addresses that they are sent to."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from deploy_tools import ROOT, need_tools, tool
from waiting import SECONDS, until

from lookalike import Client, VectorSpace
from workbench.services import ANY_PORT, ServerProcess

pytest.importorskip("hdrh", reason="the load test needs hdrhistogram: pip install 'lookalike[loadtest]'")

MONITORING = ROOT / "deploy" / "monitoring"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Of the embedder, which holds little, so that it has to refuse soon.
SMALL = ["--queue-images", "8", "--max-batch-images", "4", "--streams", "1", "--decode-threads", "1"]


class Webhook(ThreadingHTTPServer):
    """Takes what Alertmanager sends.

    Attributes:
        received: the receiver (page or ticket) and the state of every alert that was sent, as they came.
    """

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_port}"

    def of(self, name: str, status: str) -> list[tuple[str, dict[str, Any]]]:
        """What was sent of an alert in a state, which is firing or resolved."""
        return [
            each for each in self.received if each[1]["labels"]["alertname"] == name and each[1]["status"] == status
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received += [(self.path.strip("/"), alert) for alert in sent["alerts"]]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an expression, now or at a time."""
        asked = urllib.parse.urlencode({"query": expression} | ({} if at is None else {"time": at}))
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{asked}", timeout=SECONDS) as reply:
            return list(json.load(reply)["data"]["result"])

    def value(self, expression: str, at: float | None = None) -> float | None:
        """The value of an expression with one series; None as long as there is none."""
        found = self.query(expression, at)
        assert len(found) < 2
        return float(found[0]["value"][1]) if found else None


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """Both receivers of Alertmanager."""
    with Webhook() as webhook:
        thread = threading.Thread(target=webhook.serve_forever, args=(0.01,))
        thread.start()
        yield webhook
        webhook.shutdown()
        thread.join()


@pytest.fixture
def services(bundle: Path, tmp_path: Path) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """An embedder and a search service that has the collection "points"."""
    need_tools()
    bind = ["--address", ANY_PORT, "--metrics-address", ANY_PORT]
    with ServerProcess(
        "embedder", "embedder_service.main", ["--bundle", str(bundle), *bind, *SMALL], tmp_path
    ) as embedder:
        flags = ["--milvus-uri", str(tmp_path / "milvus.db"), "--embedder", embedder.addresses.grpc, *bind]
        with ServerProcess("search", "search_service.main", flags, tmp_path) as search:
            with Client(search.addresses.grpc) as client:
                client.create_collection("points", space=VectorSpace("mine", 4))
            yield embedder, search


@pytest.fixture
def prometheus(services: tuple[ServerProcess, ServerProcess], webhook: Webhook, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus that reads both, and an Alertmanager behind it."""
    routes = _faster((MONITORING / "alertmanager.yaml").read_text())
    routes, count = re.subn(r"http://(pager|tickets)\.example/hook", rf"http://{webhook.address}/\1", routes)
    assert count == 2
    (tmp_path / "alertmanager.yaml").write_text(routes)
    for path in (MONITORING / "rules").iterdir():
        (tmp_path / f"rules-{path.name}").write_text(_faster(path.read_text()))
    flags = [f"--config.file={tmp_path / 'alertmanager.yaml'}", f"--storage.path={tmp_path / 'alertmanager'}"]
    command = [*_at_home(), tool("prometheus-alertmanager"), *flags, "--cluster.listen-address="]
    with _listening(*command, log=tmp_path / "alertmanager.log") as to:
        jobs = (("embedder", services[0]), ("search", services[1]))
        configuration = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(tmp_path / "rules-*.yaml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [to]}]}]},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [server.addresses.metrics]}]} for job, server in jobs
            ],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(configuration))  # which is YAML, too
        flags = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'series'}"]
        flags += ["--rules.alert.resend-delay=1s"]
        log = tmp_path / "prometheus.log"
        with _listening(tool("prometheus"), *flags, log=log) as address:
            until(lambda: "Server is ready to receive web requests" in log.read_text())
            prometheus = Prometheus(address)
            until(lambda: len(prometheus.query("up == 1")) == 2)
            yield prometheus


def test_rules_compute_under_load_and_an_overload_pages_until_it_ends(
    services: tuple[ServerProcess, ServerProcess], prometheus: Prometheus, webhook: Webhook, tmp_path: Path
) -> None:
    with _load(services, tmp_path / "load.json", "search-vector=1", "--concurrency", "4", "--duration", "6s") as load:
        assert load.wait(SECONDS) == 0
    sent = _level(tmp_path / "load.json")

    # Every call is counted, and every objective is recorded for both services.
    for job, method, operation in (("embedder", "Embed", "embed"), ("search", "Search", "search-vector")):
        handled = f'sum(grpc_server_handled_total{{job="{job}", grpc_method="{method}", grpc_code="OK"}})'
        counts = sent["operations"][operation]
        until(lambda query=handled, ok=counts["ok"]: (prometheus.value(query) or 0) >= ok)  # type: ignore[misc]
        assert (prometheus.value(handled) or 0) <= counts["ok"] + sent["counts"]["cut_off"]
    names = set(re.findall(r"record: (\S+)", (MONITORING / "rules" / "slo.yaml").read_text()))
    wanted = {(name, job) for name in names for job in ("embedder", "search")}
    found = prometheus.query('{__name__=~"job:.+"}')
    assert {(each["metric"]["__name__"], each["metric"]["job"]) for each in found} == wanted
    assert {each["value"][1] for each in prometheus.query("job:grpc_errors:ratio_rate1h")} == {"0"}
    embeds = 'job="embedder", grpc_method="Embed"'
    quick = prometheus.value(f'sum(grpc_server_handling_seconds_bucket{{{embeds}, le="0.25"}})')
    slow = 1 - (quick or 0.0) / sent["operations"]["embed"]["ok"]
    assert prometheus.value('job:grpc_slow:ratio_rate1h{job="embedder"}') == pytest.approx(slow, abs=0.2)
    assert webhook.of("EmbedderShedding", "firing") == []

    rate = 3 * sent["operations"]["embed"]["goodput"]
    with _load(services, tmp_path / "overload.json", "--rate", f"{rate:.0f}", "--duration", f"{SECONDS:.0f}s") as load:
        until(lambda: webhook.of("EmbedderShedding", "firing"))
        over = time.time()
        load.send_signal(signal.SIGINT)
        load.wait(SECONDS)
    receiver, alert = webhook.of("EmbedderShedding", "firing")[0]
    assert receiver == "pager"
    assert alert["labels"].items() >= {"job": "embedder", "reason": "images", "severity": "page"}.items()
    assert (ROOT / alert["annotations"]["runbook"]).exists()
    sent = _level(tmp_path / "overload.json")
    assert sent["counts"]["errors"]["RESOURCE_EXHAUSTED"] > 0
    ok, refused = (sum(sent["series"][each][-5:]) for each in ("ok", "errors"))  # of the last five seconds
    recorded = prometheus.value('job:grpc_errors:ratio_rate5m{job="embedder"}', over)
    assert recorded == pytest.approx(refused / (refused + ok), abs=0.2)

    until(lambda: webhook.of("EmbedderShedding", "resolved"))


def _faster(text: str) -> str:
    """Rules or routes in which a minute is a second."""
    return re.sub(
        r"(\[|\bfor: |_wait: |_interval: )(\d+)([smhd])\b",
        lambda found: f"{found[1]}{round(int(found[2]) * UNITS[found[3]] * 1000 / 60)}ms",
        text,
    )


def _at_home() -> list[str | Path]:
    """What to run Debian's Alertmanager by: it was unpacked, not installed, and reads a template from /usr/share."""
    if Path("/usr/share/prometheus/alertmanager/default.tmpl").exists():
        return []
    unshare = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip(
            "this machine lets no process have its own /usr/share, and prometheus-alertmanager is not installed"
        )
    script = 'mount --bind "$0" /usr/share && exec "$@"'
    return [*unshare, "sh", "-c", script, tool("prometheus-alertmanager").parents[1] / "share"]


@contextmanager
def _listening(*command: str | Path, log: Path) -> Iterator[str]:
    """Runs Prometheus or Alertmanager on any free port; yields its address, which it logs."""
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stderr=file)

    def address() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r'msg="Listening on" address=(\S+)', log.read_text())
        return found and found[1]

    try:
        until(address)
        yield str(address())
    finally:
        process.kill()
        process.wait()


@contextmanager
def _load(
    services: tuple[ServerProcess, ServerProcess], result: Path, *flags: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a load test of the embedder, and of whatever else the flags name."""
    targets = ["--embedder", services[0].addresses.grpc, "--target", services[1].addresses.grpc]
    targets += ["--collection", "points"] if "search-vector=1" in flags else []
    more = ["--warm-up", "0", "--synthetic", "320x240", "--json", str(result)]
    command = [sys.executable, "-m", "workbench.main", "loadtest", "embed=1", *flags, *targets, *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _level(result: Path) -> dict[str, Any]:
    """What a load test of one level sent."""
    (level,) = json.loads(result.read_text())["levels"]
    return dict(level)

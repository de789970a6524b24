"""Generates the dashboards, and the PrometheusRule from rules/: `make dashboards`. `--check` tells what is stale."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_ERRORS = "Unknown|DeadlineExceeded|ResourceExhausted|Unimplemented|Internal|Unavailable|DataLoss"
_HPA = "kube_horizontalpodautoscaler_"
_WIDTH = 24  # columns of Grafana's grid


@dataclass
class Panel:
    """A graph, or with `stat` a number, of the results of some expressions."""

    title: str
    queries: dict[str, str]  # legend: expression
    unit: str = "short"
    help: str = ""
    stat: bool = False
    columns: int = 8
    thresholds: list[tuple[str, float]] = field(default_factory=list)  # colour, from


def quantiles(metric: str, by: str = "job", selector: str = "") -> dict[str, str]:
    """The median and the 99th percentile of a histogram."""
    return {f"p{q * 100:g} {{{{{by}}}}}": _quantile(metric, q, by, selector) for q in (0.5, 0.99)}


def _quantile(metric: str, q: float, by: str, selector: str = "") -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{selector}[5m])))"


SERVICE_OWNER = [
    Panel(
        "Errors, 1 h",
        {"{{job}}": "job:grpc_errors:ratio_rate1h"},
        "percentunit",
        "Objective: 0.1 %.",
        stat=True,
        thresholds=[("green", 0), ("red", 0.001)],
    ),
    Panel(
        "Slow calls, 1 h",
        {"{{job}}": "job:grpc_slow:ratio_rate1h"},
        "percentunit",
        "Embed and Search above 0.25 s. Objective: 1 %.",
        stat=True,
        thresholds=[("green", 0), ("red", 0.01)],
    ),
    Panel(
        "Recall",
        {"{{collection}}": "min by (collection) (search_canary_recall_ratio)"},
        "percentunit",
        "Of the index, on real queries, against an exact search.",
        stat=True,
        thresholds=[("red", 0), ("orange", 0.9), ("green", 0.95)],
    ),
    Panel(
        "Error budget left, 3 d",
        {
            "{{job}}": "1 - job:grpc_errors:ratio_rate3d / 0.001",
            "{{job}} latency": "1 - job:grpc_slow:ratio_rate3d / 0.01",
        },
        "percentunit",
        "As if the last three days were the whole month; below 0 more is spent than there is.",
    ),
    Panel(
        "Calls", {"{{grpc_method}} {{job}}": "sum by (job, grpc_method) (rate(grpc_server_started_total[5m]))"}, "reqps"
    ),
    Panel(
        "Outcomes", {"{{grpc_code}} {{job}}": "sum by (job, grpc_code) (rate(grpc_server_handled_total[5m]))"}, "reqps"
    ),
    Panel("Latency of Search", quantiles("grpc_server_handling_seconds", selector='{grpc_method="Search"}'), "s"),
    Panel("Latency of Embed", quantiles("grpc_server_handling_seconds", selector='{grpc_method="Embed"}'), "s"),
    Panel(
        "Images",
        {"{{outcome}}": "sum by (outcome) (rate(embedder_images_total[5m]))"},
        "ops",
        "What became of the images that were admitted.",
    ),
    Panel(
        "Hits per search",
        {"mean": "sum(rate(search_results_returned_sum[5m])) / sum(rate(search_results_returned_count[5m]))"},
    ),
    Panel("Rows", {"{{collection}}": "max by (collection) (search_collection_entities)"}),
    Panel(
        "Models",
        {"{{model}} {{precision}} {{fingerprint}}": "count by (model, precision, fingerprint) (embedder_model_info)"},
        help="Embedders by model: two fingerprints while a model is changed.",
    ),
]

ON_CALL = [
    Panel(
        "Embedders up", {"up": 'sum(up{job="embedder"})'}, stat=True, thresholds=[("red", 0), ("green", 2)], columns=4
    ),
    Panel(
        "Search services up",
        {"up": 'sum(up{job="search"})'},
        stat=True,
        thresholds=[("red", 0), ("green", 2)],
        columns=4,
    ),
    Panel(
        "Circuits open",
        {"{{upstream}} {{target}}": "max by (upstream, target) (search_circuit_open)"},
        stat=True,
        thresholds=[("green", 0), ("red", 1)],
    ),
    Panel("Alerts", {"{{alertname}}": 'sum by (alertname) (ALERTS{alertstate="firing"})'}, stat=True),
    Panel("Errors, 5 min", {"{{job}}": "job:grpc_errors:ratio_rate5m"}, "percentunit"),
    Panel(
        "Which calls fail",
        {
            "{{job}} {{grpc_method}} {{grpc_code}}": "sum by (job, grpc_method, grpc_code) "
            f'(rate(grpc_server_handled_total{{grpc_code=~"{_ERRORS}"}}[5m])) > 0'
        },
        "reqps",
    ),
    Panel("Slow calls, 5 min", {"{{job}}": "job:grpc_slow:ratio_rate5m"}, "percentunit"),
    Panel(
        "Queue of the embedder",
        {"{{pod}}": "embedder_queue_depth / embedder_queue_capacity"},
        "percentunit",
        "At 1 images are refused.",
    ),
    Panel("Images refused", {"{{reason}}": "sum by (reason) (rate(embedder_rejected_images_total[5m]))"}, "ops"),
    Panel(
        "Images given up",
        {"{{stage}}": "sum by (stage) (rate(embedder_expired_images_total[5m]))"},
        "ops",
        "Nobody waited any more; those in run had cost the model a run.",
    ),
    Panel(
        "Decoders lost, 1 h",
        {"{{reason}}": "sum by (reason) (increase(embedder_decoders_lost_total[1h]))"},
        help="Processes that an image crashed, or that were killed: each costs one image.",
    ),
    Panel(
        "Delay of the event loops",
        quantiles("server_event_loop_delay_seconds", "pod"),
        "s",
        "A server begins one call each time that its loop comes round. Calls beyond wait before it, and those that "
        "cannot end as CANCELLED, which only their callers and proxies count.",
    ),
    Panel(
        "Stages of the embedder, p99",
        {"{{stage}}": _quantile("embedder_stage_duration_seconds", 0.99, "stage")},
        "s",
    ),
    Panel(
        "Stages of the search, p99",
        {"{{stage}}": _quantile("search_stage_duration_seconds", 0.99, "stage")},
        "s",
    ),
    Panel(
        "Calls to Milvus and embedders, p99",
        {"{{upstream}} {{method}}": _quantile("search_upstream_duration_seconds", 0.99, "upstream, method")},
        "s",
    ),
    Panel(
        "Failures of Milvus and embedders",
        {
            "{{upstream}} {{method}} {{code}}": "sum by (upstream, method, code) "
            '(rate(search_upstream_requests_total{code!="OK"}[5m])) > 0'
        },
        "reqps",
    ),
    Panel(
        "Retries",
        {
            "{{upstream}}": "sum by (upstream) (rate(search_upstream_retries_total[5m]))",
            "{{upstream}} refused": "sum by (upstream) (rate(search_upstream_retries_refused_total[5m]))",
        },
        "reqps",
    ),
    Panel(
        "Waiting in the search service",
        {"{{pod}} for a thread": "search_milvus_calls_waiting", "{{pod}} to write": "search_writes_waiting"},
    ),
    Panel(
        "Restarts, 1 h",
        {"{{pod}} {{container}}": 'increase(kube_pod_container_status_restarts_total{namespace="lookalike"}[1h]) > 0'},
    ),
    Panel(
        "Age of the recall",
        {"{{collection}}": "time() - max by (collection) (search_canary_last_success_timestamp_seconds)"},
        "s",
    ),
]

CAPACITY = [
    Panel(
        "Images per second and pod", {"{{pod}}": 'sum by (pod) (rate(embedder_images_total{outcome="ok"}[5m]))'}, "ops"
    ),
    Panel(
        "Images per second",
        {
            "all": 'sum(rate(embedder_images_total{outcome="ok"}[5m]))',
            "equal to one in flight": "sum(rate(embedder_deduplicated_images_total[5m]))",
        },
        "ops",
    ),
    Panel(
        "Replicas",
        {
            "{{horizontalpodautoscaler}}": _HPA + 'status_current_replicas{namespace="lookalike"}',
            "{{horizontalpodautoscaler}} at most": _HPA + 'spec_max_replicas{namespace="lookalike"}',
        },
    ),
    Panel(
        "Images waiting and in the model",
        {"{{pod}} in all": "embedder_queue_depth", "{{pod}} in the model": "embedder_inflight_images"},
    ),
    Panel("Wait for the model", quantiles("embedder_queue_wait_seconds"), "s"),
    Panel(
        "Images in a batch",
        {
            "mean {{pod}}": "sum by (pod) (rate(embedder_batch_images_sum[5m])) "
            "/ sum by (pod) (rate(embedder_batch_images_count[5m]))"
        },
    ),
    Panel("Size of images", quantiles("embedder_image_size_bytes"), "bytes"),
    Panel(
        "Start of an embedder",
        {"{{pod}}": "embedder_model_load_duration_seconds"},
        "s",
        "What an autoscaler waits for a new pod, beside its image.",
    ),
    Panel("Processors", {"{{pod}}": 'rate(process_cpu_seconds_total{job=~"embedder|search"}[5m])'}),
    Panel("Memory", {"{{pod}}": 'process_resident_memory_bytes{job=~"embedder|search"}'}, "bytes"),
    Panel(
        "Rows, 30 d ahead",
        {
            "{{collection}} now": "max by (collection) (search_collection_entities)",
            "{{collection}} in 30 d": "max by (collection) "
            "(predict_linear(search_collection_entities[1d], 30 * 86400))",
        },
        help="On from the last day: the size of Milvus follows from it (deploy/milvus/README.md).",
    ),
    Panel(
        "Rows without index",
        {"{{collection}}": "max by (collection) (search_collection_entities - search_collection_indexed_entities)"},
    ),
    Panel(
        "Memory of vectors and indexes",
        {"{{collection}}": "max by (collection) (search_collection_memory_bytes)"},
        "bytes",
        "Estimated, once for each replica in Milvus.",
    ),
    Panel(
        "Threads to Milvus",
        {"{{pod}} busy": "search_milvus_threads_busy", "{{pod}} there are": "search_milvus_threads"},
    ),
    Panel("Streams and scans", {"{{pod}} UpsertStream": "search_upsert_streams", "{{pod}} Scan": "search_scans"}),
]

DASHBOARDS = {
    "service-owner": ("Lookalike: service", SERVICE_OWNER),
    "on-call": ("Lookalike: on call", ON_CALL),
    "capacity": ("Lookalike: capacity", CAPACITY),
}


def dashboard(uid: str, title: str, panels: list[Panel]) -> dict[str, Any]:
    """Lays panels out from left to right, in rows."""
    laid, x, y = [], 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.columns > _WIDTH:
            x, y = 0, y + 8
        laid.append(_panel(number, panel, x, y))
        x += panel.columns
    return {
        "uid": f"lookalike-{uid}",
        "title": title,
        "tags": ["lookalike"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": laid,
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    letters = (chr(ord("A") + n) for n in count())
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.thresholds:
        steps = [{"color": colour, "value": value if n else None} for n, (colour, value) in enumerate(panel.thresholds)]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        **({"description": panel.help} if panel.help else {}),
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.columns, "h": 8},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": letter, "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for letter, (legend, expression) in zip(letters, panel.queries.items(), strict=False)
        ],
    }


def prometheus_rule() -> str:
    """rules/ as the one object that Prometheus' operator reads."""
    head = (
        "# Generated by `make dashboards` from rules/.\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n"
        "metadata:\n  name: lookalike\n  labels:\n    release: prometheus\nspec:\n  groups:\n"
    )
    groups = [
        file.read_text().split("\ngroups:\n")[-1].removeprefix("groups:\n")
        for file in sorted((_HERE / "rules").iterdir())
    ]
    return head + "".join(f"  {line}\n" if line else "\n" for line in "".join(groups).splitlines())


def main() -> int:
    """Writes what is generated, or with --check tells what is stale."""
    files = {_HERE / "prometheusrule.yaml": prometheus_rule()}
    for uid, (title, panels) in DASHBOARDS.items():
        files[_HERE / "dashboards" / f"{uid}.json"] = json.dumps(dashboard(uid, title, panels), indent=2) + "\n"
    if "--check" in sys.argv[1:]:
        stale = [
            str(path.relative_to(_HERE))
            for path, text in files.items()
            if not path.exists() or path.read_text() != text
        ]
        for name in stale:
            print(f"{name} is stale: run make dashboards")
        return 1 if stale else 0
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

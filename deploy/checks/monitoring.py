"""Rules, their tests, runbooks, Alertmanager, dashboards."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.checks.tree import Check, Tree, reading, run, tool

SECTIONS = ("Meaning", "Impact", "Diagnosis", "Mitigation")
SEVERITIES = {"page": "page", "ticket": "ticket"}  # the receiver of each
# Names of metrics that others make, beside those of a scrape itself.
_EXTERNAL = ("kube_", "DCGM_", "etcd_", "up", "ALERTS")
_OURS = ("embedder_", "search_", "grpc_server_", "process_", "server_", "tls_")


def metrics(tree: Tree) -> dict[str, set[str]]:
    """The metrics of our services that rules, dashboards and autoscalers ask for, with the labels that they name."""
    found: dict[str, set[str]] = defaultdict(set)
    for _, expression in _expressions(tree):
        for metric, labels in _selectors(expression):
            if metric.startswith(_OURS):
                found[metric] |= labels
    return dict(found)


@reading
def rules(tree: Tree) -> Iterator[str]:
    """Yields what is wrong with the rules, or was not generated from them again."""
    folder = tree.deploy / "monitoring"
    yield from run(
        tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *sorted((folder / "rules").iterdir())
    )
    yield from run(sys.executable, folder / "generate.py", "--check")
    for alert in _alerts(tree):
        if alert["labels"].get("severity") not in SEVERITIES:
            yield f"{alert['alert']}: severity must be one of {', '.join(SEVERITIES)}"
        if not alert["annotations"].get("summary"):
            yield f"{alert['alert']} has no summary"


def rule_tests(tree: Tree) -> Iterator[str]:
    """Yields what the tests of the rules say, and the alerts that no test sees fire, or sees stay silent."""
    files = sorted((tree.deploy / "monitoring" / "tests").iterdir())
    yield from run(tool("promtool"), "test", "rules", *files)
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for file in files:
        for test in yaml.safe_load(file.read_text())["tests"]:
            for expected in test["promql_expr_test"]:
                matchers = promql_parser.parse(expected["expr"]).matchers.matchers
                alert = next(each.value for each in matchers if each.name == "alertname")
                seen[bool(expected["exp_samples"])].add(alert)
    alerts = {alert["alert"] for alert in _alerts(tree)}
    for fires, word in ((True, "fires"), (False, "stays silent")):
        yield from (f"no test shows that {alert} {word}" for alert in sorted(alerts - seen[fires]))
        yield from (f"a test shows that {alert} {word}, which is no alert" for alert in sorted(seen[fires] - alerts))


def runbooks(tree: Tree) -> Iterator[str]:
    """Yields alerts without a runbook, runbooks without an alert, and those that lack a section."""
    folder = tree.root / "docs" / "runbooks"
    alerts = {alert["alert"]: alert for alert in _alerts(tree)}
    for alert, rule in alerts.items():
        path = f"docs/runbooks/{alert}.md"
        if rule["annotations"].get("runbook") != path:
            yield f"{alert}: its runbook should be {path}"
        if not (tree.root / path).exists():
            yield f"{path} is not there"
    for file in sorted(folder.glob("*.md")):
        if file.stem not in alerts:
            yield f"docs/runbooks/{file.name}: there is no such alert"
        text = file.read_text()
        yield from (
            f"docs/runbooks/{file.name} has no section {each}" for each in SECTIONS if f"\n## {each}\n" not in text
        )


def alertmanager(tree: Tree) -> Iterator[str]:
    """Yields what is wrong with the example for Alertmanager."""
    path = tree.deploy / "monitoring" / "alertmanager.yaml"
    if problems := run(tool("amtool"), "check-config", path):
        yield from problems
        return
    routes = (tool("amtool"), "config", "routes", "test", "--config.file", path)
    for severity, receiver in SEVERITIES.items():
        yield from run(*routes, f"--verify.receivers={receiver}", f"severity={severity}", "alertname=Any", "job=search")
    alerts = {alert["alert"] for alert in _alerts(tree)}
    for rule in yaml.safe_load(path.read_text())["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            # alertname="A" or alertname=~"A|B(C|D)"; as a selector it is read by the same grammar.
            (parsed,) = promql_parser.parse(f"{{{matcher}}}").matchers.matchers
            probe = run_matches(parsed.value, alerts)
            if parsed.name == "alertname" and not probe:
                yield f"alertmanager.yaml: {matcher} is none of the alerts"


def run_matches(expression: str, alerts: set[str]) -> bool:
    """Whether an anchored regular expression finds one of the alerts, and each of its alternatives does."""
    import re

    alternatives = expression.split("|") if "(" not in expression else [expression]
    return all(any(re.fullmatch(each, alert) for alert in alerts) for each in alternatives)


def prometheus(tree: Tree) -> Iterator[str]:
    """Yields what is wrong with the configuration of the composed Prometheus, and jobs that the rules miss."""
    path = tree.deploy / "compose" / "prometheus.yml"
    yield from run(tool("promtool"), "check", "config", "--syntax-only", path)
    jobs = {each["job_name"] for each in yaml.safe_load(path.read_text())["scrape_configs"]}
    yield from (f"prometheus.yml: the rules ask for the job {job}" for job in sorted({"embedder", "search"} - jobs))


@reading
def dashboards(tree: Tree) -> Iterator[str]:
    """Yields panels that Grafana would not understand, and metrics that nobody makes."""
    for path in sorted((tree.deploy / "monitoring" / "dashboards").iterdir()):
        given = json.loads(path.read_text())
        kept = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
        yield from (f"{path.name}: Grafana does not know {each}" for each in _lost(given, kept))
        ids = [panel["id"] for panel in given["panels"]]
        if len(set(ids)) < len(ids):
            yield f"{path.name}: two panels have one id"
        if not given["panels"]:
            yield f"{path.name} is empty"
    records = {rule["record"] for rule in _rules(tree) if "record" in rule}
    for where, expression in _expressions(tree):
        try:
            selectors = list(_selectors(expression))
        except ValueError as error:
            yield f"{where}: {expression}: {error}"
            continue
        for metric, _ in selectors:
            if metric not in records and not metric.startswith((*_OURS, *_EXTERNAL)):
                yield f"{where}: nobody makes {metric}"


def _lost(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Yields the paths of what is in `given` and not in `kept`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{path}.{key}"
            else:
                yield from _lost(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list):
        for number, (one, other) in enumerate(zip(given, kept, strict=False)):
            yield from _lost(one, other, f"{path}[{number}]")


def _rules(tree: Tree) -> Iterator[dict[str, Any]]:
    for file in sorted((tree.deploy / "monitoring" / "rules").iterdir()):
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


def _alerts(tree: Tree) -> list[dict[str, Any]]:
    return [rule for rule in _rules(tree) if "alert" in rule]


def _expressions(tree: Tree) -> Iterator[tuple[str, str]]:
    """Yields every expression of rules, dashboards and autoscalers, and where it stands."""
    for rule in _rules(tree):
        yield str(rule.get("alert") or rule["record"]), str(rule["expr"])
    for path in sorted((tree.deploy / "monitoring" / "dashboards").iterdir()):
        for panel in json.loads(path.read_text())["panels"]:
            yield from ((f"{path.name}: {panel['title']}", target["expr"]) for target in panel["targets"])
    scaled = yaml.safe_load((tree.deploy / "k8s" / "components" / "keda" / "embedder.yaml").read_text())
    yield from (("keda", trigger["metadata"]["query"]) for trigger in scaled["spec"]["triggers"])


def _selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yields the metrics of an expression, and the labels by which they are selected.

    Raises:
        ValueError: it is none.
    """
    found: list[tuple[str, set[str]]] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(expression), visit)
    yield from found


CHECKS: dict[str, Check] = {
    "rules": rules,
    "rule-tests": rule_tests,
    "runbooks": runbooks,
    "alertmanager": alertmanager,
    "prometheus": prometheus,
    "dashboards": dashboards,
}

if __name__ == "__main__":
    # For the test that asks the real services for them.
    asked = metrics(Tree(Path.cwd()))
    print(json.dumps({metric: sorted(labels) for metric, labels in sorted(asked.items())}))

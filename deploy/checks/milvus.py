"""The two ways to a Milvus cluster, the chart's values and the operator's resource, say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.checks.tree import Check, Tree

# What the operator calls a component, and what the chart does.
_COMPONENTS = {
    "proxy": "proxy",
    "mixCoord": "mixCoordinator",
    "queryNode": "queryNode",
    "dataNode": "dataNode",
    "streamingNode": "streamingNode",
}


def milvus(tree: Tree) -> Iterator[str]:
    """Yields where operator.yaml says another thing than values-cluster.yaml."""
    chart = _read(tree.deploy / "milvus" / "values-cluster.yaml")
    spec = _read(tree.deploy / "milvus" / "operator.yaml")["spec"]
    components, dependencies = spec["components"], spec["dependencies"]
    pairs = {
        "image": (components["image"].rpartition(":")[2], chart["image"]["all"]["tag"]),
        "config": (spec["config"], yaml.safe_load(chart["extraConfigFiles"]["user.yaml"])),
        "etcd": (dependencies["etcd"]["inCluster"]["values"], chart["etcd"]),
        "storage": (dependencies["storage"]["inCluster"]["values"], chart["minio"]),
        **{each: (components[each], chart[each]) for each in ("volumes", "volumeMounts")},
        **{ours: (components[ours], _sized(chart[theirs])) for ours, theirs in _COMPONENTS.items()},
    }
    for name, (operator, values) in pairs.items():
        if operator != values:
            yield f"operator.yaml: {name} is {operator}, and {values} in values-cluster.yaml"


def _sized(component: dict[str, Any]) -> dict[str, Any]:
    return {key: component[key] for key in ("replicas", "resources")}


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


CHECKS: dict[str, Check] = {"milvus": milvus}

"""Objects against the schemas of Kubernetes, at several versions, and of the custom resources."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator
from pydantic import BaseModel

from deploy.checks.tree import Check, Object, Tree, name, reading

# The oldest that has all that we use (podFailurePolicy, unhealthyPodEvictionPolicy and preStop.sleep by default), the
# newest, and one between.
VERSIONS = ("1.31.0", "1.34.0", "1.37.0")
_CUSTOM: dict[tuple[str, str], type[BaseModel]] = {
    ("cert-manager.io/v1", "Certificate"): cert_manager.Certificate,
    ("keda.sh/v1alpha1", "ScaledObject"): keda.ScaledObject,
    ("monitoring.coreos.com/v1", "PodMonitor"): prometheus_operator.PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): prometheus_operator.PrometheusRule,
}


@reading
def check(tree: Tree) -> Iterator[str]:
    """Yields what a server would refuse, or leave out, in any version."""
    seen = set()
    for where, objects in tree.rendered.items():
        for each in objects:
            if (key := repr(each)) in seen:
                continue
            seen.add(key)
            custom = (each["apiVersion"], each["kind"])
            if custom in _CUSTOM:
                for problem in jsonschema.Draft202012Validator(_schema(custom)).iter_errors(each):
                    yield f"{where}: {name(each)}: {problem.json_path}: {problem.message[:200]}"
                continue
            for version in VERSIONS:
                yield from (f"{where}: {name(each)}: {problem}" for problem in _problems(each, version))


def _problems(each: Object, version: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(each, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        yield f"Kubernetes {version} has no {each['apiVersion']} {each['kind']}, and no schema of it is known here"
    except kubernetes_validate.ValidationError as error:
        path = ".".join(map(str, error.path))
        yield f"{path}: {error.message[:200]} (Kubernetes {version})"


@cache
def _schema(custom: tuple[str, str]) -> dict[str, Any]:
    return _closed(_CUSTOM[custom].model_json_schema())


def _closed(schema: Any) -> Any:
    """The schema that refuses fields it does not know; as it comes it lets them through, as it does a typing error."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        closed["additionalProperties"] = False
    return closed


CHECKS: dict[str, Check] = {"schemas": check}

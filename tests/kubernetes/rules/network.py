"""Who may talk to whom: the pods of a run to one another, all to DNS, prefetch to the hub, people to TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.kubernetes.manifests import Manifest, Pods, named, pods
from tests.kubernetes.rules.rule import selects, with_setup

WAY_OUT = "prefetch"


def _policies(manifests: Sequence[Manifest], one: Pods) -> list[Manifest]:
    return [
        each["spec"]
        for each in with_setup(manifests)
        if each["kind"] == "NetworkPolicy" and selects(each["spec"]["podSelector"], one.labels)
    ]


def _dns(rule: dict[str, Any]) -> bool:
    return bool(rule.get("ports")) and all(port.get("port") == 53 for port in rule["ports"])


def network_closed(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Each pod is closed both ways, but for DNS; what opens it names pods, and only prefetch has egress."""
    for one in pods(manifests):
        policies = _policies(manifests, one)
        for direction in ("Ingress", "Egress"):
            if not any(direction in policy["policyTypes"] for policy in policies):
                yield f"{one.where}: no policy closes its {direction}"
        out = [rule for policy in policies for rule in policy.get("egress", [])]
        if not any(_dns(rule) for rule in out):
            yield f"{one.where}: cannot ask DNS"
        for rule in out:
            anywhere = not rule.get("to") or any("ipBlock" in peer for peer in rule["to"])
            if anywhere and one.component != WAY_OUT:
                yield f"{one.where}: has egress from the cluster"
        for rule in (rule for policy in policies for rule in policy.get("ingress", [])):
            if not rule.get("from") or any("ipBlock" in peer for peer in rule["from"]):
                yield f"{one.where}: is open to everybody"


def run_reaches_itself(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The pods of a run on several nodes reach one another, and no other pod of the namespace does."""
    by_job: dict[str, list[Pods]] = {}
    for one in pods(manifests):
        by_job.setdefault(named(one.of), []).append(one)
    for job, templates in by_job.items():
        if sum(one.count for one in templates) < 2:
            continue
        for one in templates:
            for direction, peers in (("ingress", "from"), ("egress", "to")):
                opened = [
                    peer["podSelector"]
                    for policy in _policies(manifests, one)
                    for rule in policy.get(direction, [])
                    for peer in rule.get(peers, [])
                    if "podSelector" in peer and "namespaceSelector" not in peer
                ]
                if not any(all(selects(each, other.labels) for other in templates) for each in opened):
                    yield f"{job}: no {direction} between its pods"
                if any(selects(each, {"app.kubernetes.io/name": "mini-r1"}) for each in opened):
                    yield f"{job}: {direction} for every pod of the kit"


def tensorboard_reachable(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Its Service leads to a port that the pod has, a policy lets visitors in, and it says when it is ready."""
    for one in pods(manifests):
        if one.component != "tensorboard":
            continue
        ports = {port["name"]: port["containerPort"] for c in one.containers for port in c.get("ports", [])}
        services = [each["spec"] for each in manifests if each["kind"] == "Service"]
        if not any(port["targetPort"] in ports for service in services for port in service["ports"]):
            yield f"{one.where}: no Service leads to its port"
        if not any(policy.get("ingress") for policy in _policies(manifests, one)):
            yield f"{one.where}: no policy lets a visitor in"
        if not all("readinessProbe" in container for container in one.containers):
            yield f"{one.where}: does not say when it is ready"


RULES = (network_closed, run_reaches_itself, tensorboard_reachable)

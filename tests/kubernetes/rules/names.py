"""Names are names, and what is named is there once kustomize is through."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.kubernetes.manifests import Manifest, Pods, named, pods
from tests.kubernetes.rules.rule import leaves, selects, with_setup

BY_HAND = {("Secret", "mini-r1-job-token"), ("Secret", "mini-r1-hub"), ("Secret", "mini-r1-registry")}
BY_HAND |= {("ConfigMap", "mini-r1-own")}
"""Made by the command in the header of the overlay or option that wants it."""
INSTANCE = "app.kubernetes.io/instance"
LONGEST = {"Job": 63 - len("-0"), "PyTorchJob": 63 - len("-master-0")}
"""A name becomes a label and, with an index, the name of a host: 63 characters (RFC 1035)."""
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

ENUMS: dict[tuple[str, ...], set[Any]] = {
    ("spec", "completionMode"): {"Indexed", "NonIndexed"},
    ("spec", "podReplacementPolicy"): {"Failed", "TerminatingOrFailed"},
    ("rules", "action"): {"FailJob", "FailIndex", "Ignore", "Count"},
    ("onExitCodes", "operator"): {"In", "NotIn"},
    ("onPodConditions", "status"): {"True", "False", "Unknown"},
    ("tolerations", "operator"): {"Exists", "Equal"},
    ("tolerations", "effect"): {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    ("emptyDir", "medium"): {"Memory"},
    ("securityContext", "fsGroupChangePolicy"): {"OnRootMismatch", "Always"},
    ("seccompProfile", "type"): {"RuntimeDefault", "Localhost", "Unconfined"},
    ("strategy", "type"): {"Recreate", "RollingUpdate"},
    ("spec", "accessModes"): {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    ("spec", "policyTypes"): {"Ingress", "Egress"},
    ("ports", "protocol"): {"TCP", "UDP", "SCTP"},
    ("runPolicy", "cleanPodPolicy"): {"None", "Running", "All"},
    ("Master", "restartPolicy"): {"Always", "OnFailure", "Never", "ExitCode"},
    ("Worker", "restartPolicy"): {"Always", "OnFailure", "Never", "ExitCode"},
    ("template", "spec", "restartPolicy"): {"Always", "OnFailure", "Never"},
    ("containers", "imagePullPolicy"): {"Always", "IfNotPresent", "Never"},
}
"""The end of a path, and what may stand there."""


def names(manifests: Sequence[Manifest]) -> Iterator[str]:
    """DNS-1035, short enough for what is made of them, fixed, and in the kit's own namespace."""
    for one in manifests:
        name = one.get("metadata", {}).get("name")
        if not name or "generateName" in one.get("metadata", {}):
            yield f"{named(one)}: has no fixed name, so that apply cannot find it again"
        elif not _DNS_1035.fullmatch(name) or len(name) > LONGEST.get(one["kind"], 63):
            yield f"{named(one)}: no DNS-1035 name of at most {LONGEST.get(one['kind'], 63)} characters"
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != "mini-r1":
            yield f"{named(one)}: is in the namespace {one['metadata'].get('namespace')}"


def references(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every ConfigMap, Secret, claim and Service that is named is in the build, in setup, or made by hand."""
    there = {(one["kind"], one["metadata"]["name"]) for one in with_setup(manifests)} | BY_HAND
    for one in pods(manifests):
        for kind, name in _wanted(one):
            if (kind, name) not in there:
                yield f"{one.where}: {kind} {name} is not there"


def _wanted(one: Pods) -> Iterator[tuple[str, str]]:
    """Kind and name of what a pod cannot start without; an optional Secret has to be a known one all the same."""
    yield from (("Secret", each["name"]) for each in one.spec.get("imagePullSecrets", []))
    if "subdomain" in one.spec:
        yield "Service", one.spec["subdomain"]
    for volume in one.volumes:
        for field, kind, name in (
            ("configMap", "ConfigMap", "name"),
            ("secret", "Secret", "secretName"),
            ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
        ):
            if field in volume:
                yield kind, volume[field].get(name)
    for container in one.containers:
        sources = container.get("envFrom", []) + [each.get("valueFrom", {}) for each in container.get("env", [])]
        for source in sources:
            for field, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
                for reference in (f"{field}Ref", f"{field}KeyRef"):
                    if reference in source:
                        yield kind, source[reference].get("name")


def one_instance(manifests: Sequence[Manifest]) -> Iterator[str]:
    """All objects of an overlay with pods share one label, by which one command deletes them."""
    if any(pods(manifests)):
        found = {one["metadata"].get("labels", {}).get(INSTANCE) for one in manifests}
        if len(found) != 1 or None in found:
            yield f"{', '.join(map(named, manifests))}: {INSTANCE} is {sorted(map(str, found))}"


def selectors(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Services, network policies and affinities find pods of this build."""
    labels = [one.labels for one in pods(manifests)]
    for one in manifests:
        spec, wanted = one.get("spec", {}), []
        if one["kind"] == "Service":
            wanted = [{"matchLabels": spec["selector"]}]
        elif one["kind"] == "NetworkPolicy" and labels:  # setup's is for pods that come later
            wanted = [spec["podSelector"]]
        elif one["kind"] == "Deployment":
            wanted = [spec["selector"]]
        for selector in wanted:
            if not any(selects(selector, each) for each in labels):
                yield f"{named(one)}: selects no pod of this build"
    for one in pods(manifests):
        for path, value in leaves(one.spec.get("affinity", {})):
            if "matchLabels" in path and one.labels.get(path[-1]) != value:
                yield f"{one.where}: is to stand near pods with {path[-1]}={value}, and is none itself"


def volumes(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What is mounted is a volume, each volume is mounted, and no two at one place."""
    for one in pods(manifests):
        declared = [volume["name"] for volume in one.volumes]
        mounts = [mount for container in one.containers for mount in container.get("volumeMounts", [])]
        for name in sorted({mount["name"] for mount in mounts} ^ set(declared)):
            yield f"{one.where}: volume {name} is " + ("not mounted" if name in declared else "not declared")
        for name in {name for name in declared if declared.count(name) > 1}:
            yield f"{one.where}: volume {name} is declared twice"
        for container in one.containers:
            places = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            for place in {place for place in places if places.count(place) > 1}:
                yield f"{one.where}, {container['name']}: two volumes at {place}"


def enums(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Words that may only be one of a few are."""
    for one in manifests:
        for path, value in leaves(one):
            for end, allowed in ENUMS.items():
                if path[-len(end) :] == end and value not in allowed:
                    yield f"{named(one)}: {'.'.join(path)} is {value!r}, not one of {', '.join(sorted(allowed))}"


RULES = (names, references, one_instance, selectors, volumes, enums)

"""What kubectl and the stand-in for the API server (tests/kubernetes/api.py) say to each other: which kinds there are,
patches, and the little protobuf that kubectl sends.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

Object = dict[str, Any]
Kinds = Mapping[str, Mapping[str, tuple[str, str]]]
"""By group and version, then by resource: kind and short name."""

KUBEFLOW, KUEUE = "kubeflow.org/v1", "kueue.x-k8s.io/v1beta1"
KUBERNETES: Kinds = {
    "v1": {
        "namespaces": ("Namespace", "ns"), "nodes": ("Node", "no"), "pods": ("Pod", "po"), "events": ("Event", "ev"),
        "resourcequotas": ("ResourceQuota", "quota"),
        "configmaps": ("ConfigMap", "cm"), "secrets": ("Secret", ""), "services": ("Service", "svc"),
        "persistentvolumeclaims": ("PersistentVolumeClaim", "pvc"), "serviceaccounts": ("ServiceAccount", "sa"),
    },
    "apps/v1": {"deployments": ("Deployment", "deploy")},
    "batch/v1": {"jobs": ("Job", "")},
    "networking.k8s.io/v1": {"networkpolicies": ("NetworkPolicy", "netpol")},
    "storage.k8s.io/v1": {"storageclasses": ("StorageClass", "sc")},
    "node.k8s.io/v1": {"runtimeclasses": ("RuntimeClass", "")},
    "rbac.authorization.k8s.io/v1": {"roles": ("Role", ""), "rolebindings": ("RoleBinding", "")},
    "scheduling.k8s.io/v1": {"priorityclasses": ("PriorityClass", "pc")},
}  # fmt: skip
INSTALLED: Kinds = {
    KUBEFLOW: {"pytorchjobs": ("PyTorchJob", "")},
    KUEUE: {"workloads": ("Workload", ""), "localqueues": ("LocalQueue", ""), "clusterqueues": ("ClusterQueue", "")},
}
"""What somebody has to install."""
CLUSTERWIDE = frozenset({"namespaces", "nodes", "storageclasses", "runtimeclasses", "clusterqueues", "priorityclasses"})
PROTOBUF = b"k8s\0"


def discovery(known: Kinds, path: str) -> Object | str | None:
    """What there is to ask for, or None: no such page."""
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0", "platform": "stand-in"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [{"groupVersion": at, "version": at.split("/")[1]} for at in known if "/" in at]
        groups = [{"name": v["groupVersion"].split("/")[0], "versions": [v], "preferredVersion": v} for v in versions]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/openapi/v3":
        return {"paths": {_root(at)[1:]: {"serverRelativeURL": f"/openapi/v3{_root(at)}?hash=1"} for at in known}}
    if path == "/openapi/v2":
        return ""  # as protobuf: nothing is known, so that kubectl passes over a kind that /openapi/v3 has not
    for at, kinds in known.items():
        if path == _root(at):
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": at, "resources": _listed(kinds)}
        if path == f"/openapi/v3{_root(at)}":
            return _openapi(at, kinds)
    return None


def _root(at: str) -> str:
    return f"/apis/{at}" if "/" in at else f"/api/{at}"


def _listed(kinds: Mapping[str, tuple[str, str]]) -> list[Object]:
    return [
        {
            "name": resource, "singularName": kind.lower(), "namespaced": resource not in CLUSTERWIDE, "kind": kind,
            "verbs": ["create", "delete", "get", "list", "patch", "watch"], "shortNames": [short] if short else [],
        }
        for resource, (kind, short) in kinds.items()
    ]  # fmt: skip


def _openapi(at: str, kinds: Mapping[str, tuple[str, str]]) -> Object:
    """As much of it as makes kubectl leave the validation to the server."""
    group, _, version = at.rpartition("/")
    paths = {
        f"{_root(at)}/{resource}/{{name}}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
            }
        }
        for resource, (kind, _) in kinds.items()
    }
    return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": paths}


def merged(old: Any, new: Any) -> Any:
    """A merge patch; lists of named things by their names, which is nearly what a strategic one does."""
    if isinstance(new, dict):
        result = dict(old) if isinstance(old, dict) else {}
        for name, value in new.items():
            if value is None:
                result.pop(name, None)
            elif not name.startswith("$"):
                result[name] = merged(result.get(name), value)
        return result
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(v, dict) and "name" in v for v in old + new):
        by_name = {value["name"]: value for value in old}
        return list({**by_name, **{v["name"]: merged(by_name.get(v["name"]), v) for v in new}}.values())
    return new


def from_protobuf(body: bytes) -> Object:
    """What `kubectl create` sends of a Secret, a ConfigMap or a Namespace: they are alike here."""
    envelope = dict(_fields(body[len(PROTOBUF) :]))
    kind = dict(_fields(envelope[1]))[2].decode()
    fields = list(_fields(envelope[2]))
    about = dict(_fields(dict(fields)[1]))
    read = (lambda value: base64.b64encode(value).decode()) if kind == "Secret" else bytes.decode
    entries = [dict(_fields(entry)) for number, entry in fields if number == 2 and kind != "Namespace"]
    return {"metadata": {"name": about[1].decode()}, "data": {entry[1].decode(): read(entry[2]) for entry in entries}}


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a protobuf message that has a length; whole numbers are passed over."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        tag, value = number(), number()
        if tag & 7 == 2:
            yield tag >> 3, message[at : at + value]
            at += value

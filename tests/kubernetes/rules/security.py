"""A hardened cluster admits it: PodSecurity `restricted`, and what the kit promises beyond that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tests.kubernetes.manifests import Manifest, named, pods
from tests.kubernetes.rules.rule import leaves, with_setup

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""Kinds that `restricted` admits."""
FORBIDDEN = ("hostNetwork", "hostPID", "hostIPC", "hostPort", "privileged", "procMount", "hostUsers", "sysctls")
PINS_MEMORY = "rdma/"
"""A container that asks for such a device may have IPC_LOCK; docs/kubernetes.md says what that takes."""
WRITES_CACHE = ("prefetch", "demo")
_DIGEST = re.compile(r"[^@]+@sha256:[0-9a-f]{64}")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
_PATH = re.compile(r"_(PATH|FILE|DIR)$")


def restricted(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The Pod Security Standards' profile of that name, as of Kubernetes 1.32."""
    for one in pods(manifests):
        for path, value in leaves(one.spec):
            if path[-1] in FORBIDDEN and value:
                yield f"{one.where}: {'.'.join(path)}"
        for volume in one.volumes:
            for kind in set(volume) - {"name"} - VOLUMES:
                yield f"{one.where}: volume {volume['name']} is a {kind}"
        for container in one.containers:
            where = f"{one.where}, {container['name']}"
            context = {**one.spec.get("securityContext", {}), **container.get("securityContext", {})}
            if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
                yield f"{where}: may run as root"
            if context.get("allowPrivilegeEscalation") is not False:
                yield f"{where}: allowPrivilegeEscalation is not false"
            if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
                yield f"{where}: no seccomp profile"
            capabilities = context.get("capabilities", {})
            if "ALL" not in capabilities.get("drop", []):
                yield f"{where}: keeps capabilities"
            devices = container.get("resources", {}).get("limits", {})
            allowed = {"IPC_LOCK"} if any(name.startswith(PINS_MEMORY) for name in devices) else set()
            for extra in sorted(set(capabilities.get("add", [])) - allowed):
                yield f"{where}: adds {extra}"


def closed_pod(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No service-account token, no other services' addresses, a root that is read-only, files of the pod's group."""
    for one in pods(manifests):
        if one.spec.get("automountServiceAccountToken") is not False:
            yield f"{one.where}: gets a service account's token"
        if one.spec.get("enableServiceLinks") is not False:
            yield f"{one.where}: gets every service's address into its environment"
        context = one.spec.get("securityContext", {})
        if not context.get("fsGroup") or context.get("fsGroupChangePolicy") != "OnRootMismatch":
            yield f"{one.where}: its claims are not its group's, or are walked through at every start"
        for container in one.containers:
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{one.where}, {container['name']}: its root can be written"


def image_by_digest(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What was tried is what runs, also at the next start."""
    for one in pods(manifests):
        for container in one.containers:
            if not _DIGEST.fullmatch(container.get("image", "")):
                yield f"{one.where}, {container['name']}: image {container.get('image')}"


def secrets_by_reference(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No secret is in a manifest or on a command line."""
    for one in manifests:
        if one["kind"] == "Secret":
            yield f"{named(one)}: a Secret in a file"
    for one in pods(manifests):
        for container in one.containers:
            for variable in container.get("env", []):
                if _SECRET_NAME.search(variable["name"]) and "value" in variable and not _PATH.search(variable["name"]):
                    yield f"{one.where}, {container['name']}: {variable['name']} is written out"
            for word in [*container.get("command", []), *container.get("args", [])]:
                if _SECRET_NAME.search(str(word)):
                    yield f"{one.where}, {container['name']}: {str(word)[:40]} on the command line"


def read_only_mounts(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Only prefetch writes to the cache, no pod to the recipes, and TensorBoard to no run."""
    for one in pods(manifests):
        closed = {"recipes", "hub"}
        closed |= set() if one.component in WRITES_CACHE else {"cache"}
        closed |= {"runs"} if one.component == "tensorboard" else set()
        for container in one.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] in closed and mount.get("readOnly") is not True:
                    yield f"{one.where}, {container['name']}: can write {mount['mountPath']}"


def namespace_enforces(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The namespace refuses what is not hardened."""
    for one in with_setup(manifests):
        labels = one["metadata"].get("labels", {})
        if one["kind"] == "Namespace" and labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{named(one)}: does not enforce restricted"


RULES = (restricted, closed_pod, image_by_digest, secrets_by_reference, read_only_mounts, namespace_enforces)

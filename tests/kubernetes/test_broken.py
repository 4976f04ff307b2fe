"""Manifests that are broken on purpose: each is refused, by the rules that are there for it and by no other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kubernetes.manifests import Manifest, needs_kustomize, overlay
from tests.kubernetes.rules import RULES, SCHEMA, breaches

pytestmark = [pytest.mark.real, needs_kustomize]

GONE = object()
"""As a value: the field is taken out."""

MISTAKES: dict[tuple[str, str], list[tuple[str, str, Any, str]]] = {
    ("job-4xh100", "Job"): [
        ("a field misspelt", "spec/backofLimit", 3, "schema"),
        ("a number as text", "POD/terminationGracePeriodSeconds", "900", "schema"),
        ("a name with a capital", "metadata/name", "Mini-R1", "names"),
        ("a generated name", "metadata/generateName", "mini-r1-", "names"),
        ("another namespace", "metadata/namespace", "default", "names"),
        ("a ConfigMap without its hash", "POD/volumes/recipes/configMap/name", "mini-r1-recipes", "references"),
        ("a claim that no overlay makes", "POD/volumes/runs/persistentVolumeClaim/claimName", "runs", "references"),
        ("a mount without a volume", "MAIN/volumeMounts/-", {"name": "x", "mountPath": "/x"}, "volumes"),
        ("a volume without a mount", "POD/volumes/-", {"name": "x", "emptyDir": {"sizeLimit": "1Gi"}}, "volumes"),
        ("two volumes at one place", "MAIN/volumeMounts/home/mountPath", "/tmp", "volumes"),
        ("an action of no such name", "spec/podFailurePolicy/rules/1/action", "Skip", "enums exit-codes-of-jobs"),
        (
            "memory in no unit",
            "MAIN/resources/limits/memory",
            "216GB", "quantities requests-equal-limits scratch-counted",
        ),
        ("less asked than the limit", "MAIN/resources/requests/memory", "100Gi", "requests-equal-limits"),
        (
            "no limit for the disk",
            "MAIN/resources/limits/ephemeral-storage",
            GONE, "requests-equal-limits scratch-counted",
        ),
        ("no toleration", "POD/tolerations", [], "gpus-whole"),
        ("a number of GPUs", "MAIN/resources/limits/nvidia.com~1gpu", 4, "quantities requests-equal-limits gpus-whole"),
        ("a number of cores", "MAIN/resources/limits/cpu", 32, "quantities requests-equal-limits"),
        ("no job to count attempts of", "MAIN/env/MINI_R1_JOB_ID", {"name": "X", "value": "x"}, "attempts-bounded"),
        ("no hours", "MAIN/env/MINI_R1_MAX_HOURS", {"name": "X", "value": "x"}, "attempts-bounded"),
        ("an object that the line Clean misses", "metadata/labels/app.kubernetes.io~1instance", "r1", "one-instance"),
        ("/dev/shm larger than the memory", "POD/volumes/shm/emptyDir/sizeLimit", "300Gi", "scratch-counted"),
        ("/tmp without a limit", "POD/volumes/tmp/emptyDir", {}, "scratch-counted"),
        ("the runtime's /dev/shm", "MAIN/volumeMounts/shm/mountPath", "/scratch", "scratch-counted"),
        ("no deadline", "spec/activeDeadlineSeconds", GONE, "deadlines"),
        ("Kubernetes' own 30 s to save in", "POD/terminationGracePeriodSeconds", GONE, "deadlines"),
        ("a grace period that differs from the launcher's", "MAIN/env/MINI_R1_GRACE_S/value", "60", "deadlines"),
        ("root", "POD/securityContext/runAsNonRoot", GONE, "restricted"),
        ("a folder of the host", "POD/volumes/runs", {"name": "runs", "hostPath": {"path": "/data"}}, "restricted"),
        ("no seccomp profile", "POD/securityContext/seccompProfile", GONE, "restricted"),
        ("a root that can be written", "MAIN/securityContext/readOnlyRootFilesystem", False, "closed-pod"),
        ("a tag", "MAIN/image", "mini-r1:latest", "image-by-digest"),
        ("a token written out", "MAIN/env/-", {"name": "HF_TOKEN", "value": "hf_x"}, "secrets-by-reference"),
        ("a trainer that can write the cache", "MAIN/volumeMounts/cache/readOnly", GONE, "read-only-mounts"),
        (
            "a label that no policy knows",
            "spec/template/metadata/labels/app.kubernetes.io~1name",
            "r1", "network-closed",
        ),
        ("78 tried again", "spec/podFailurePolicy/rules/0/action", "Count", "exit-codes-of-jobs"),
        ("150 not tried again", "spec/podFailurePolicy/rules/0/onExitCodes/values", [78, 150], "exit-codes-of-jobs"),
        ("a drain counted", "spec/podFailurePolicy/rules/1/onPodConditions/0/status", "False", "exit-codes-of-jobs"),
        (
            "a policy for no container",
            "spec/podFailurePolicy/rules/0/onExitCodes/containerName",
            "main", "exit-codes-of-jobs",
        ),
        ("restarted by the kubelet", "POD/restartPolicy", "OnFailure", "exit-codes-of-jobs"),
        ("two pods in one run directory", "spec/podReplacementPolicy", GONE, "exit-codes-of-jobs"),
        ("a probe that kills", "MAIN/livenessProbe", {"exec": {"command": ["true"]}}, "no-probe-on-training"),
        ("suspended for ever", "spec/suspend", True, "queued-is-suspended"),
    ],
    ("tensorboard", "Deployment"): [
        ("a probe of two kinds misspelt", "MAIN/readinessProb", {}, "schema"),
        ("a service account's token", "POD/automountServiceAccountToken", GONE, "closed-pod"),
        ("a TensorBoard that can write runs", "MAIN/volumeMounts/runs/readOnly", GONE, "read-only-mounts"),
    ],
    ("pytorchjob-2x8h100", "PyTorchJob"): [
        ("an operator's field misspelt", "spec/runPolicy/cleanPods", "Running", "schema"),
        ("processes per node as a number", "spec/nprocPerNode", 8, "schema"),
        ("a container's field in a replica", "POD/gpus", 8, "schema"),
        ("an older API", "apiVersion", "kubeflow.org/v1beta1", "schema"),
        ("a name too long for a host", "metadata/name", 60 * "a", "names selectors run-reaches-itself"),
        ("the same in a PyTorchJob", "POD/volumes/recipes/configMap/name", "mini-r1-recipes", "references"),
        ("a policy of no such name", "spec/runPolicy/cleanPodPolicy", "running", "enums exit-codes-of-pytorchjobs"),
        ("the host's network", "POD/hostNetwork", True, "restricted"),
        (
            "a replica that always restarts",
            "spec/pytorchReplicaSpecs/Master/restartPolicy",
            "OnFailure", "exit-codes-of-pytorchjobs",
        ),
        ("workers that keep their GPUs", "spec/runPolicy/cleanPodPolicy", GONE, "exit-codes-of-pytorchjobs"),
        ("a deadline that the operator ignores", "spec/runPolicy/activeDeadlineSeconds", 172800, "deadlines"),
        ("failures without end", "MAIN/env/MINI_R1_MAX_FAILURES", {"name": "X", "value": "x"}, "attempts-bounded"),
        ("two Masters", "spec/pytorchReplicaSpecs/Master/replicas", 2, "pytorchjob-form"),
        ("a container of another name", "MAIN/name", "train", "pytorchjob-form"),
        ("elastic", "spec/elasticPolicy", {"minReplicas": 1}, "pytorchjob-form"),
    ],
    ("indexed-job-2x8h100", "Job"): [
        ("a missing secret", "MAIN/env/MINI_R1_JOB_TOKEN/valueFrom/secretKeyRef/name", "token", "references"),
        ("a capability without its device", "MAIN/securityContext/capabilities/add", ["IPC_LOCK"], "restricted"),
        ("a node too few", "spec/completions", 1, "indexed-job-agrees"),
        ("no index", "spec/completionMode", "NonIndexed", "indexed-job-agrees"),
        ("a first node of another name", "MAIN/env/MINI_R1_MASTER_ADDR/value", "mini-r1-0", "indexed-job-agrees"),
        ("nodes all over the place", "POD/affinity", GONE, "near-one-another"),
        (
            "near other pods",
            "POD/affinity/podAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/podAffinityTerm/labelSelector/matchLabels",
            {"app": "x"}, "selectors",
        ),
    ],
    ("tensorboard", "Service"): [
        ("a Service for other pods", "spec/selector", {"app": "tensorboard"}, "selectors"),
        ("a Service that leads nowhere", "spec/ports/0/targetPort", "web", "tensorboard-reachable"),
    ],
    ("setup", "PersistentVolumeClaim"): [
        ("an access mode of no such name", "spec/accessModes", ["RWX"], "enums"),
        ("no storage class", "spec/storageClassName", GONE, "claims-shared"),
    ],
    ("demo-cpu", "Job"): [
        (
            "a demo on GPU nodes",
            "POD/tolerations",
            [{"key": "nvidia.com/gpu", "operator": "Exists"}], "off-gpu-nodes",
        ),
        ("a demo anywhere", "POD/tolerations", [{"operator": "Exists"}], "off-gpu-nodes"),
        (
            "a demo that keeps its node",
            "spec/template/metadata/annotations",
            {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}, "off-gpu-nodes",
        ),
    ],
    ("job-1gpu", "Job"): [
        ("half a GPU", "MAIN/resources/limits/nvidia.com~1gpu", "500m", "gpus-whole requests-equal-limits"),
    ],
    ("rdma", "PyTorchJob"): [
        ("another one with the device", "MAIN/securityContext/capabilities/add", ["SYS_ADMIN"], "restricted"),
    ],
    ("prefetch", "Job"): [
        ("a token on the command line", "MAIN/args/-", "--token=hf_x", "secrets-by-reference"),
    ],
    ("namespace", "Namespace"): [
        (
            "a namespace that only warns",
            "metadata/labels/pod-security.kubernetes.io~1enforce",
            "baseline", "namespace-enforces",
        ),
    ],
    ("indexed-job-2x8h100", "NetworkPolicy"): [
        ("egress for a run", "spec/egress/-", {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}, "network-closed"),
        ("nodes that cannot meet", "spec/ingress", GONE, "run-reaches-itself"),
    ],
    ("tensorboard", "NetworkPolicy"): [
        ("a door for everybody", "spec/ingress", [{}], "network-closed"),
        ("no ingress", "spec/ingress", [], "tensorboard-reachable"),
    ],
    ("pytorchjob-2x8h100", "NetworkPolicy"): [
        ("a run that everybody reaches", "spec/ingress", [{"from": [{"podSelector": {}}]}], "run-reaches-itself"),
    ],
    ("indexed-job-2x8h100", "Service"): [
        ("a Service that waits for readiness", "spec/publishNotReadyAddresses", GONE, "indexed-job-agrees"),
    ],
    ("kueue", "Job"): [
        ("queued and started", "spec/suspend", GONE, "queued-is-suspended"),
    ],
}  # fmt: skip
"""Overlay and kind: what is wrong, where (POD is the template's spec, the Master's in a PyTorchJob, MAIN its first
container, an item of a list by name or number, - its end), its new value, and the rules that refuse it."""


def _broken(name: str, kind: str, path: str, value: Any) -> list[Manifest]:
    """The overlay's manifests, with the mistake in the first object of the kind."""
    pod = "spec/pytorchReplicaSpecs/Master/template/spec" if kind == "PyTorchJob" else "spec/template/spec"
    keys = path.replace("MAIN", "POD/containers/0").replace("POD", pod).split("/")
    manifests = overlay(name)
    place: Any = next(one for one in manifests if one["kind"] == kind)
    for key in keys[:-1]:
        place = place[_key(place, key)]
    if keys[-1] == "-":
        place.append(value)
    elif value is GONE:
        del place[_key(place, keys[-1])]
    else:
        place[_key(place, keys[-1])] = value
    return manifests


def _key(place: Any, text: str) -> str | int:
    """Return an index or the name of an item of a list, or a mapping's key; a slash in a key is ~1, as in RFC 6901."""
    if not isinstance(place, list):
        return text.replace("~1", "/")
    return int(text) if text.isdecimal() else [item.get("name") for item in place].index(text)


CASES = [
    pytest.param(name, kind, *rest, id=f"{name}: {what}")
    for (name, kind), mistakes in MISTAKES.items()
    for what, *rest in mistakes
]


@pytest.mark.parametrize(("name", "kind", "path", "value", "rules"), CASES)
def test_a_broken_manifest_is_refused_by_the_rules_for_it(
    name: str, kind: str, path: str, value: Any, rules: str
) -> None:
    refused = breaches(_broken(name, kind, path, value))
    assert set(refused) == set(rules.split()), refused


def test_every_rule_refuses_something() -> None:
    assert {rule for mistakes in MISTAKES.values() for *_, rules in mistakes for rule in rules.split()} == {
        *RULES,
        SCHEMA,
    }

"""Several nodes, queues and places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.kubernetes.manifests import Manifest, named, pods
from tests.kubernetes.rules.rule import with_setup

QUEUE = "kueue.x-k8s.io/queue-name"


def indexed_job_agrees(manifests: Sequence[Manifest]) -> Iterator[str]:
    """As many parallel pods as MINI_R1_NODES, under names that a headless Service gives before they are ready."""
    services = {one["metadata"]["name"]: one["spec"] for one in manifests if one["kind"] == "Service"}
    for one in manifests:
        spec = one.get("spec", {})
        if one["kind"] != "Job" or spec.get("parallelism", 1) == 1:
            continue
        pod = spec["template"]["spec"]
        given = {variable["name"]: variable.get("value") for variable in pod["containers"][0].get("env", [])}
        if spec.get("completionMode") != "Indexed":
            yield f"{named(one)}: several pods without an index"
        if not str(spec.get("completions")) == str(spec["parallelism"]) == given.get("MINI_R1_NODES"):
            yield (
                f"{named(one)}: completions {spec.get('completions')}, parallelism {spec['parallelism']}, "
                f"MINI_R1_NODES {given.get('MINI_R1_NODES')}"
            )
        service = pod.get("subdomain")
        if given.get("MINI_R1_MASTER_ADDR") != f"{one['metadata']['name']}-0.{service}":
            yield f"{named(one)}: MINI_R1_MASTER_ADDR {given.get('MINI_R1_MASTER_ADDR')} is not its first pod"
        found = services.get(service, {})
        if found.get("clusterIP") != "None" or found.get("publishNotReadyAddresses") is not True:
            yield f"{named(one)}: no headless Service {service} that names pods before they are ready"


def pytorchjob_form(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What the operator wants and its webhook lets pass: one Master, a container `pytorch`, nothing elastic."""
    for one in manifests:
        if one["kind"] != "PyTorchJob":
            continue
        replicas = one["spec"]["pytorchReplicaSpecs"]
        if replicas.get("Master", {}).get("replicas") != 1:
            yield f"{named(one)}: not one Master"
        if set(replicas) - {"Master", "Worker"}:
            yield f"{named(one)}: replicas {', '.join(sorted(replicas))}"
        if "elasticPolicy" in one["spec"]:
            yield f"{named(one)}: elastic, which mini-r1 launch refuses"
        for replica, part in replicas.items():
            if [c["name"] for c in part["template"]["spec"]["containers"]].count("pytorch") != 1:
                yield f"{named(one)}, {replica}: no container named pytorch"
            if "restartPolicy" in part["template"]["spec"]:
                yield f"{named(one)}, {replica}: the template's restartPolicy, which the operator overwrites"


def claims_shared(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What pods of several nodes mount can be mounted on several nodes."""
    several = any(one.count > 1 for one in pods(manifests)) or any(one["kind"] == "PyTorchJob" for one in manifests)
    several = several or any(one.component == "tensorboard" for one in pods(manifests))  # during a run
    for one in with_setup(manifests):
        if one["kind"] == "PersistentVolumeClaim":
            if not one["spec"].get("storageClassName"):
                yield f"{named(one)}: no storage class"
            if several and "ReadWriteMany" not in one["spec"].get("accessModes", []):
                yield f"{named(one)}: {one['spec'].get('accessModes')} for pods of several nodes"


def near_one_another(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Pods of a run on several nodes prefer one zone, and never insist: a full zone is no reason to wait for ever."""
    for one in pods(manifests):
        if one.of["kind"] == "PyTorchJob" or one.count > 1:
            affinity = one.spec.get("affinity", {}).get("podAffinity", {})
            if not affinity.get("preferredDuringSchedulingIgnoredDuringExecution"):
                yield f"{one.where}: may be spread over zones"
            if affinity.get("requiredDuringSchedulingIgnoredDuringExecution"):
                yield f"{one.where}: waits for ever where its zone is full"


def queued_is_suspended(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A job with a queue waits for Kueue, and one without does not wait for anybody."""
    for one in manifests:
        if one["kind"] in ("Job", "PyTorchJob"):
            holder = one["spec"] if one["kind"] == "Job" else one["spec"].get("runPolicy", {})
            queued = QUEUE in one["metadata"].get("labels", {})
            if queued != bool(holder.get("suspend")):
                yield f"{named(one)}: " + ("queued, not suspended" if queued else "suspended, and in no queue")


RULES = (indexed_job_agrees, pytorchjob_form, claims_shared, near_one_another, queued_is_suspended)

"""What a pod asks for, and how long it may stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.kubernetes.manifests import Manifest, pods, quantity
from tests.kubernetes.rules.rule import leaves

GPU = "nvidia.com/gpu"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
GRACE = "MINI_R1_GRACE_S"
JOB_LABELS = {"Job": "batch.kubernetes.io/controller-uid", "PyTorchJob": "training.kubeflow.org/job-name"}
"""What each controller puts on its pods to tell one job from another."""
LIMITS = {"Job": {"MINI_R1_MAX_HOURS"}}
LIMITS["PyTorchJob"] = {"MINI_R1_MAX_HOURS", "MINI_R1_MAX_FAILURES", "MINI_R1_MAX_RESTARTS"}
NOT_KEPT = ("activeDeadlineSeconds", "backoffLimit")
"""Fields of a PyTorchJob that operator 1.9 does not act on when its pods are restarted."""
MIN_GRACE_S = 600
"""For what trains. tests/kubernetes/test_roles_in_pods.py compares it with the plan's step and save."""


def quantities(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every amount can be read, and is text: the API server returns text, so a number would change at every apply."""
    for one in manifests:
        for path, value in leaves(one):
            amount = path[-2:-1] in (("requests",), ("limits",)) or path[-1] == "sizeLimit"
            if amount and not _is_quantity(value):
                yield f"{one['kind']}: {'.'.join(path)} is {value!r}, no quantity"
            elif amount and not isinstance(value, str):
                yield f"{one['kind']}: {'.'.join(path)} is {value!r} and not quoted"


def requests_equal_limits(manifests: Sequence[Manifest]) -> Iterator[str]:
    """So a pod is evicted last, and is killed for its own memory alone."""
    for one in pods(manifests):
        for container in one.containers:
            asked = container.get("resources", {}).get("requests", {})
            limits = container.get("resources", {}).get("limits", {})
            for what in sorted({"cpu", "memory", "ephemeral-storage", *asked, *limits}):
                if asked.get(what) is None or asked.get(what) != limits.get(what):
                    yield f"{one.where}, {container['name']}: {what} {asked.get(what)} asked, limit {limits.get(what)}"


def gpus_whole(manifests: Sequence[Manifest]) -> Iterator[str]:
    """GPUs are whole, equal in requests and limits, and come with a toleration of their nodes' taint."""
    for one in pods(manifests):
        some = False
        for container in one.containers:
            values = [container.get("resources", {}).get(part, {}).get(GPU) for part in ("requests", "limits")]
            if values == [None, None]:
                continue
            some = True
            if values[0] != values[1]:
                yield f"{one.where}, {container['name']}: {values[0]} GPUs asked, limit {values[1]}"
            if any(not str(value).isdecimal() or int(value) < 1 for value in values):
                yield f"{one.where}, {container['name']}: {values[1]!r} GPUs, not a whole number"
        tolerations = one.spec.get("tolerations", [])
        if some and not any(each.get("key") == GPU and each.get("operator") == "Exists" for each in tolerations):
            yield f"{one.where}: does not tolerate nodes with the taint {GPU}"


def off_gpu_nodes(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A pod without GPUs stays off their nodes, and does not keep one from being removed."""
    for one in pods(manifests):
        if any(GPU in container.get("resources", {}).get("limits", {}) for container in one.containers):
            continue
        if any(each.get("key") in (GPU, None) for each in one.spec.get("tolerations", [])):
            yield f"{one.where}: tolerates nodes with the taint {GPU}, and asks for none"
        if one.template["metadata"].get("annotations", {}).get(SAFE_TO_EVICT) == "false":
            yield f"{one.where}: the autoscaler must keep its node"


def scratch_counted(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every emptyDir has a limit; those in memory fit into the memory limit, the others into that of the disk."""
    for one in pods(manifests):
        limits = [container.get("resources", {}).get("limits", {}) for container in one.containers]
        for medium, what in (("Memory", "memory"), (None, "ephemeral-storage")):
            directories = [volume["emptyDir"] for volume in one.volumes if "emptyDir" in volume]
            sizes = [each.get("sizeLimit") for each in directories if each.get("medium") == medium]
            available = [limit.get(what, 0) for limit in limits]
            if not all(map(_is_quantity, sizes)):
                yield f"{one.where}: an emptyDir without a sizeLimit"
            elif sizes and not sum(map(quantity, sizes)) < sum(
                quantity(size) for size in available if _is_quantity(size)
            ):
                yield f"{one.where}: its emptyDirs may grow to the limit of {what}"
        if one.component == "train" and "/dev/shm" not in {
            mount["mountPath"] for container in one.containers for mount in container.get("volumeMounts", [])
        }:
            yield f"{one.where}: no volume for /dev/shm, and the runtime's has 64 MiB"


def deadlines(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A job ends, is tried a bounded number of times, and is tidied up; what trains has time to save."""
    for one in manifests:
        if one["kind"] not in ("Job", "PyTorchJob"):
            continue
        policy = one["spec"] if one["kind"] == "Job" else one["spec"].get("runPolicy", {})
        kept = NOT_KEPT if one["kind"] == "Job" else ()
        for field in (*kept, "ttlSecondsAfterFinished"):
            if field not in policy:
                yield f"{one['kind']} {one['metadata']['name']}: no {field}"
        for field in NOT_KEPT if one["kind"] == "PyTorchJob" else ():
            if field in policy:
                yield f"PyTorchJob {one['metadata']['name']}: {field}, which the operator does not act on"
    for one in pods(manifests):
        if one.component in ("train", "demo") and one.spec.get("terminationGracePeriodSeconds", 30) < MIN_GRACE_S:
            yield f"{one.where}: less than {MIN_GRACE_S} s to save in"
        given = [env.get("value") for each in one.containers for env in each.get("env", []) if env["name"] == GRACE]
        if one.component in ("train", "demo") and given != [str(one.spec.get("terminationGracePeriodSeconds", 30))]:
            yield f"{one.where}: {GRACE} is not its terminationGracePeriodSeconds"


def attempts_bounded(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The launcher in a pod knows its job, whose attempts it counts, and the limits that its controller has not."""
    for one in pods(manifests):
        if one.component != "train":
            continue
        for container in one.spec["containers"]:
            given = {env["name"]: env for env in container.get("env", [])}
            path = given.get("MINI_R1_JOB_ID", {}).get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            if path != f"metadata.labels['{JOB_LABELS[one.of['kind']]}']":
                yield f"{one.where}, {container['name']}: MINI_R1_JOB_ID is {path}"
            for name in sorted(LIMITS[one.of["kind"]] - set(given)):
                yield f"{one.where}, {container['name']}: no {name}"


def _is_quantity(value: object) -> bool:
    try:
        quantity(value)
    except ValueError:
        return False
    return True


RULES = (quantities, requests_equal_limits, gpus_whole, off_gpu_nodes, scratch_counted, deadlines, attempts_bounded)

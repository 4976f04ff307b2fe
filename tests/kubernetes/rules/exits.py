"""docs/exit-codes.md as Kubernetes' policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mini_r1.errors import ExitCode

from tests.kubernetes.manifests import Manifest, named, pods

NEVER_AGAIN, ASKED_TO_STOP = {ExitCode.CONFIG}, {ExitCode.INTERRUPTED}
COUNTED = {ExitCode.FAILED, ExitCode.RETRY}
RETRIED_FROM = 128
"""The operator starts a pod again whose code is this or above, and fails the job with any below but 0."""


def exit_codes_of_jobs(manifests: Sequence[Manifest]) -> Iterator[str]:
    """78 fails a Job at once; 143 and disruptions are not counted; every other code is."""
    assert {ExitCode.FINISHED} | NEVER_AGAIN | ASKED_TO_STOP | COUNTED == set(ExitCode)
    for one in manifests:
        if one["kind"] != "Job":
            continue
        spec = one["spec"]
        containers = {container["name"] for container in spec["template"]["spec"]["containers"]}
        if spec["template"]["spec"].get("restartPolicy") != "Never":
            yield f"{named(one)}: the kubelet, not the Job, decides on another start"
        if spec.get("podReplacementPolicy") != "Failed":
            yield f"{named(one)}: a new pod comes while the old one still saves"
        codes: dict[str, set[int]] = {}
        disruptions: set[str] = set()
        for rule in spec.get("podFailurePolicy", {}).get("rules", []):
            on = rule.get("onExitCodes", {})
            if on.get("operator") == "In":
                codes.setdefault(rule["action"], set()).update(on["values"])
            elif on:
                yield f"{named(one)}: codes by exclusion"
            if "containerName" in on and on["containerName"] not in containers:
                yield f"{named(one)}: its policy speaks of a container {on['containerName']}"
            for condition in rule.get("onPodConditions", []):
                if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
                    disruptions.add(rule["action"])
        for action, wanted in (("FailJob", NEVER_AGAIN), ("Ignore", ASKED_TO_STOP)):
            if codes.get(action, set()) != wanted:
                yield f"{named(one)}: {action} on {sorted(codes.get(action, set()))}, the table says {sorted(wanted)}"
        if set(codes) - {"FailJob", "Ignore"}:
            yield f"{named(one)}: more is said of exit codes than the table says"
        if disruptions != {"Ignore"}:
            yield f"{named(one)}: a disruption is counted as a failure"


def exit_codes_of_pytorchjobs(manifests: Sequence[Manifest]) -> Iterator[str]:
    """By ExitCode the operator does what the table says, and a finished run frees its workers' GPUs."""
    assert all(code < RETRIED_FROM for code in NEVER_AGAIN)
    assert all(code >= RETRIED_FROM for code in {ExitCode.RETRY} | ASKED_TO_STOP)
    for one in manifests:
        if one["kind"] != "PyTorchJob":
            continue
        for replica, part in one["spec"]["pytorchReplicaSpecs"].items():
            if part.get("restartPolicy") != "ExitCode":
                yield f"{named(one)}, {replica}: restartPolicy {part.get('restartPolicy')}"
        if one["spec"].get("runPolicy", {}).get("cleanPodPolicy") != "Running":
            yield f"{named(one)}: workers outlive the run, or take their logs with them"


def no_probe_on_training(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A probe would kill a run that saves; the launcher ends one that hangs."""
    for one in pods(manifests):
        for container in one.containers:
            if one.component != "tensorboard" and {"livenessProbe", "startupProbe"} & set(container):
                yield f"{one.where}, {container['name']}: a probe that can kill it"


RULES = (exit_codes_of_jobs, exit_codes_of_pytorchjobs, no_probe_on_training)

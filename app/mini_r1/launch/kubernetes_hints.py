"""What to look at in Kubernetes when nodes do not meet: a launcher in a pod cannot see why, and a name is no reason."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from mini_r1.machine.paths import in_pod

NO_NAME = (
    "In Kubernetes: is node 0's pod running, does a headless Service with publishNotReadyAddresses: true give it this"
    " name (the pods' subdomain is the Service's name), and does a NetworkPolicy let pods ask the DNS?"
)
NO_WAY = "In Kubernetes: is node 0's pod running, and does a NetworkPolicy let this job's pods reach one another?"
NOT_COME = (
    "In Kubernetes: `kubectl describe pod` says what a pod waits for (GPUs, a secret, a volume that another node has:"
    " ReadWriteMany); a NetworkPolicy must let this job's pods reach one another"
)
CHANGED = "In Kubernetes a pod keeps the secret it was started with: delete this job's pods or the job"


def when_unreached(environment: Mapping[str, str], error: OSError) -> str:
    """For a node that looks for node 0; empty outside of a pod."""
    return (NO_NAME if isinstance(error, socket.gaierror) else NO_WAY) if in_pod(environment) else ""


def when_not_come(environment: Mapping[str, str]) -> str:
    """For node 0, that waits for another; empty outside of a pod."""
    return NOT_COME if in_pod(environment) else ""


def when_a_stranger(environment: Mapping[str, str]) -> str:
    """For a node that finds somebody else in node 0's place; empty outside of a pod."""
    return CHANGED if in_pod(environment) else ""

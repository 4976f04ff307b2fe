"""The manifests of k8s/, as kustomize builds them, and the pods in them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPO

K8S = REPO / "k8s"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
KUSTOMIZE = (["kubectl", "kustomize"], ["kustomize", "build"])

Manifest = dict[str, Any]
MULTIPLES = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
MULTIPLES |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([a-zA-Z]*)")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # many times faster, where libyaml is there


def _builder() -> list[str] | None:
    return next((command for command in KUSTOMIZE if shutil.which(command[0])), None)


needs_kustomize = pytest.mark.skipif(
    _builder() is None, reason="neither kubectl nor kustomize is on PATH: `.ci/install-engine` (Debian 12, root)"
)


@functools.cache
def build(folder: Path) -> str:
    """What `kubectl apply -k FOLDER` would send, as text.

    Raises:
        AssertionError: kustomize refuses it, in kustomize's own words.
    """
    done = subprocess.run([*(_builder() or []), folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(text: str) -> list[Manifest]:
    """The documents of a YAML stream."""
    return [document for document in yaml.load_all(text, Loader=LOADER) if document]


def overlay(name: str) -> list[Manifest]:
    """A fresh copy of what an overlay builds to."""
    return load(build(K8S / "overlays" / name))


@dataclass(frozen=True)
class Pods:
    """Pods that one template makes.

    Args:
        of: the object with the template.
        where: it and the path of the template in it, for messages.
        template: metadata and spec.
        count: how many there are at the same time.
        given_labels: what the controller adds to the template's own.
    """

    of: Manifest
    where: str
    template: Manifest
    count: int
    given_labels: dict[str, str]

    @property
    def spec(self) -> Manifest:
        """Spec of a pod."""
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        """That a selector can find a pod by."""
        return {**self.template.get("metadata", {}).get("labels", {}), **self.given_labels}

    @property
    def component(self) -> str | None:
        """What it does: train, demo, prefetch, ..."""
        return self.labels.get("app.kubernetes.io/component")

    @property
    def containers(self) -> Sequence[Manifest]:
        """All of them, those that come first included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def volumes(self) -> Sequence[Manifest]:
        """Volumes of a pod."""
        return self.spec.get("volumes", [])

    @property
    def gpus(self) -> int:
        """That a pod asks for."""
        return sum(int(c.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for c in self.containers)


def quantity(value: object) -> float:
    """A quantity of Kubernetes (16Gi, 500m, 2) as a number.

    Raises:
        ValueError: it is none.
    """
    match = _QUANTITY.fullmatch(str(value))
    if match is None or match[2] not in MULTIPLES:
        raise ValueError(f"{value!r} is no quantity")
    return float(match[1]) * MULTIPLES[match[2]]


def named(manifest: Manifest) -> str:
    """Kind and name."""
    return f"{manifest.get('kind')} {manifest.get('metadata', {}).get('name')}"


def pods(manifests: Sequence[Manifest]) -> Iterator[Pods]:
    """Every template of a pod in them."""
    for one in manifests:
        spec, name = one.get("spec", {}), one.get("metadata", {}).get("name")
        if one["kind"] == "Job":
            given = {"batch.kubernetes.io/job-name": name}
            yield Pods(one, named(one), spec["template"], spec.get("parallelism", 1), given)
        elif one["kind"] == "Deployment":
            yield Pods(one, named(one), spec["template"], spec.get("replicas", 1), {})
        elif one["kind"] == "PyTorchJob":
            given = {"training.kubeflow.org/job-name": name}
            for replica, part in spec["pytorchReplicaSpecs"].items():
                where = f"{named(one)}, {replica}"
                yield Pods(one, where, part["template"], part.get("replicas", 1), given)

"""The environment of every pod that an overlay makes, as its container would see it.

The manifest says most of it. What Kubernetes and the PyTorchJob operator (1.9) add is written down here, as it was seen
on a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes.manifests import Manifest, Pods, pods, quantity

SECRET = "a-stand-in-for-a-secret"
LABEL = "a-stand-in-for-a-label"
"""A value of the downward API."""


@dataclass(frozen=True)
class Pod:
    """One of those that an overlay makes.

    Args:
        of: its template.
        index: of its node.
        gpus: that it is given.
        environment: of its container.
    """

    of: Pods
    index: int
    gpus: int
    environment: dict[str, str]

    @property
    def arguments(self) -> list[str]:
        """Arguments of the image's entry point, which is mini-r1."""
        return list(self.container["args"])

    @property
    def container(self) -> Manifest:
        """The one that trains."""
        return dict(self.of.spec["containers"][0])

    @property
    def memory_gib(self) -> float:
        """Its limit."""
        return gib(self.container["resources"]["limits"]["memory"])

    def volume(self, path: str) -> Manifest:
        """What is mounted there."""
        name = next(mount["name"] for mount in self.container["volumeMounts"] if mount["mountPath"] == path)
        return next(volume for volume in self.of.spec["volumes"] if volume["name"] == name)

    @property
    def in_memory_gib(self) -> float:
        """Volumes that count into the limit on memory."""
        volumes = [volume.get("emptyDir", {}) for volume in self.of.spec["volumes"]]
        return sum(gib(volume["sizeLimit"]) for volume in volumes if volume.get("medium") == "Memory")


def gib(text: str) -> float:
    """A quantity of Kubernetes', in GiB."""
    return quantity(text) / 2**30


def config(manifests: Sequence[Manifest], name: str) -> dict[str, str]:
    """The data of a ConfigMap, which has to be in the build under the very name by which it is asked for."""
    return next(one["data"] for one in manifests if one["kind"] == "ConfigMap" and one["metadata"]["name"] == name)


def pods_of(manifests: Sequence[Manifest]) -> list[Pod]:
    """Every pod with the environment of its container."""
    found: list[Pod] = []
    templates = list(pods(manifests))
    count = sum(template.count for template in templates)
    for template in templates:
        for _ in range(template.count):
            index = len(found)  # the operator's Master comes first, as it does in the build
            environment = {
                "KUBERNETES_SERVICE_HOST": "10.96.0.1",
                **manifests_own(manifests, template.spec["containers"][0]),
                **added(template.of, index, count),
            }
            found.append(Pod(template, index, template.gpus, environment))
    return found


def manifests_own(manifests: Sequence[Manifest], container: Manifest) -> dict[str, str]:
    """What the manifest says: `env` wins over `envFrom`."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values.update(config(manifests, source["configMapRef"]["name"]))
    for one in container.get("env", []):
        (source,) = one.get("valueFrom", {"value": None})
        assert source in ("value", "secretKeyRef", "fieldRef")
        values[one["name"]] = one.get("value", {"secretKeyRef": SECRET, "fieldRef": LABEL}.get(source, ""))
    return values


def added(job: Manifest, index: int, count: int) -> dict[str, str]:
    """What Kubernetes or the operator adds on the node with this index."""
    if job["kind"] == "Job":
        indexed = job["spec"].get("completionMode") == "Indexed"
        assert indexed or count == 1
        return {"JOB_COMPLETION_INDEX": str(index)} if indexed else {}
    return {
        "MASTER_ADDR": f"{job['metadata']['name']}-master-0",
        "MASTER_PORT": "23456",
        "WORLD_SIZE": str(count),  # "auto" counts as one
        "RANK": str(index),
        "PET_NODE_RANK": str(index),
        "PET_NNODES": str(count),
        "PET_NPROC_PER_NODE": "auto",
    }


def recipe_file(pod: Pod, manifests: Sequence[Manifest], folder: Path) -> Path:
    """The pod's recipes as its volume shows them, and which one it launches."""
    assert pod.volume("/workspace/recipes")["configMap"]["name"]
    (folder / "recipes").mkdir(exist_ok=True)
    for name, text in config(manifests, pod.volume("/workspace/recipes")["configMap"]["name"]).items():
        (folder / "recipes" / name).write_text(text, encoding="utf-8")
    if pod.arguments == ["demo"]:
        return folder / "recipes" / "demo-cpu.yaml"
    word, recipe, *others = pod.arguments
    assert (word, others) == ("launch", [])
    return folder / recipe

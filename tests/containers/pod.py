"""A stand-in for the kubelet: a pod of a built overlay as `docker run` under the constraints that its own spec sets.

Every option comes from the manifest, so what a manifest drops is missing here too, and a field that is not known is
refused, so nothing is left out in silence. It differs from a kubelet in this:

- One container engine, no API server, no scheduler, no network unless a test gives one, and no device plugin: GPUs that
  a pod asks for do not arrive.
- An emptyDir on the disk is a tmpfs of its size limit: it is full at once where a kubelet evicts some time later,
  and it counts into the memory limit, as one of `medium: Memory` does everywhere.
- CPUs above what this machine has are cut to them. A memory limit above it is set as it is, and has no effect.
- `ephemeral-storage` is not enforced: with a read-only root it is the sum of the emptyDirs and the log.
"""

from __future__ import annotations

import copy
import json
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.containers import engine
from tests.kubernetes.manifests import K8S, Manifest, build, load, pods, quantity

OF_THE_CLUSTER = {
    "restartPolicy", "nodeSelector", "tolerations", "affinity", "subdomain", "imagePullSecrets", "runtimeClassName",
    "priorityClassName",
}  # fmt: skip
"""Fields of a pod's spec about scheduling, names and restarts. No container sees them."""
OF_THE_API = {"automountServiceAccountToken": False, "enableServiceLinks": False}
"""Fields of a pod's spec, with the only value that needs no API server."""
OF_THE_PROBER = {"name", "image", "ports", "readinessProbe"}
"""Fields of a container: names, the image that a test replaces, and what a test asks itself."""
NOT_HERE = ("nvidia.com/gpu", "rdma/hca", "ephemeral-storage")
"""Fields of a container's limits: devices that do not arrive, and what no engine enforces."""

Admission = Callable[[Manifest], Manifest]


class NotTranslatedError(Exception):
    """A field, or a value of it, that this stand-in does not know."""


class NeverStartsError(Exception):
    """What a kubelet would wait for, or refuse, for ever."""


def openshift(spec: Manifest) -> Manifest:
    """A stand-in for OpenShift's admission (restricted-v2): the namespace's user and group, the image's own group.

    Raises:
        NeverStartsError: the spec names users or groups itself.
    """
    changed = copy.deepcopy(spec)
    context = changed["securityContext"]
    own = {"runAsUser", "runAsGroup", "fsGroup"} & set(context)
    if own:
        raise NeverStartsError(f"{', '.join(sorted(own))}: not what the namespace was given")
    context.update(runAsUser=1000680000, fsGroup=1000680000)
    return changed


# ---- one pod ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pod:
    """The arguments of `docker run` for a pod.

    Args:
        spec: the pod's, as it was admitted.
        options: for `docker run`, without a network.
        image: in place of the manifest's.
        command: arguments of the entrypoint.
        grace_s: seconds between SIGTERM and SIGKILL.
        volumes: Docker's volumes that stand for claims.
        group: the group that they are given.
        given: volumes that have a group already; the pods of a node share it.
    """

    spec: Manifest
    options: Sequence[str]
    image: str
    command: Sequence[str]
    grace_s: int
    volumes: Sequence[str]
    group: int | None
    given: set[tuple[str, int]]

    def run(self, network: str = "none") -> subprocess.CompletedProcess[str]:
        """To its end."""
        return self._run([f"--network={network}", *self.options, self.image, *self.command])

    def python(self, script: str) -> subprocess.CompletedProcess[str]:
        """A script in place of its command, under the same constraints."""
        options = [option for option in self.options if not option.startswith("--entrypoint=")]
        return self._run(["--network=none", *options, "--entrypoint=python", self.image, "-c", script])

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self._give_volumes()
        name = f"mini-r1-test-{uuid.uuid4().hex[:8]}"
        try:
            return engine.docker("run", f"--name={name}", *arguments)
        finally:
            engine.docker("rm", "--force", name)  # also where it took too long

    @contextmanager
    def started(self) -> Iterator[str]:
        """The container's name, while the `with` lasts."""
        self._give_volumes()
        with engine.container("--network=none", *self.options, self.image, *self.command) as name:
            yield name

    def stop(self, name: str) -> int:
        """As the kubelet stops its container: SIGTERM, the spec's grace, SIGKILL. Its exit code."""
        engine.out("stop", f"--time={self.grace_s}", name)
        return int(engine.out("inspect", "--format={{.State.ExitCode}}", name))

    def _give_volumes(self) -> None:
        """A new volume of most storage classes is root's; the kubelet opens it to fsGroup, once (OnRootMismatch)."""
        script = 'cd /claims; chgrp -R "$0" . && chmod -R g+rwX . && find . -type d -exec chmod g+s {} +'
        due = [volume for volume in self.volumes if (volume, self.group) not in self.given]
        if self.group is None or not due:
            return
        mounts = [f"--mount=type=volume,source={volume},target=/claims/{volume},volume-nocopy" for volume in due]
        engine.out("run", "--rm", "--user=0:0", *mounts, "--entrypoint=sh", self.image, "-c", script, str(self.group))
        self.given.update((volume, self.group) for volume in due)


# ---- one machine -----------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A machine of a cluster that has the claims.

    Args:
        image: in place of what the manifests name.
        folder: for the files of ConfigMaps and Secrets.
        claims: name of a PersistentVolumeClaim → Docker's volume.
        cpus: that the machine has.
        secrets: name of a Secret → key → value.
        overlays: of which site.
        given: volumes that have a group already.
    """

    image: str
    folder: Path
    claims: Mapping[str, str]
    cpus: float
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    overlays: Path = K8S / "overlays"
    given: set[tuple[str, int]] = field(default_factory=set)

    def pod(
        self,
        overlay: str,
        *,
        args: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        recipes: Mapping[str, str | None] | None = None,
        admission: Admission = copy.deepcopy,
    ) -> Pod:
        """The first pod of an overlay.

        Args:
            overlay: its name.
            args: in place of the container's.
            env: added to the container's.
            recipes: changes of the ConfigMap with the recipes, as by an edit of configs/: file → content, None removes.
            admission: what the cluster changes of the spec.

        Raises:
            NotTranslatedError: the spec has what this stand-in does not know.
            NeverStartsError: a kubelet would not start it.
        """
        manifests = load(build(self.overlays / overlay))
        maps = {one["metadata"]["name"]: dict(one["data"]) for one in manifests if one["kind"] == "ConfigMap"}
        for name, data in maps.items():
            if "mini-r1-recipes" in name:
                data.update({file: text for file, text in (recipes or {}).items() if text is not None})
                for file in [file for file, text in (recipes or {}).items() if text is None]:
                    del data[file]
        spec = admission(next(pods(manifests)).spec)
        container = spec["containers"][0]
        if args is not None:
            container["args"] = list(args)
        container.setdefault("env", []).extend({"name": name, "value": value} for name, value in (env or {}).items())
        return self.translate(spec, maps)

    def translate(self, spec: Manifest, maps: Mapping[str, Mapping[str, str]]) -> Pod:
        """A pod's spec, and the ConfigMaps of its namespace, as arguments of `docker run`; raises as `pod` does."""
        rest = {key: value for key, value in spec.items() if key not in OF_THE_CLUSTER}
        for key, value in OF_THE_API.items():
            if rest.pop(key, True) is not value:
                raise NotTranslatedError(f"{key} is not {json.dumps(value)}, and there is no API server here")
        (container,) = rest.pop("containers")
        grace_s = rest.pop("terminationGracePeriodSeconds", 30)
        context = rest.pop("securityContext", {})
        volumes = {volume["name"]: volume for volume in rest.pop("volumes", [])}
        _nothing_left(rest, "spec")

        group = context.get("fsGroup")
        parts = {key: value for key, value in container.items() if key not in OF_THE_PROBER}
        command, args = parts.pop("command", []), parts.pop("args", [])
        options = [
            *self._confined(context, parts.pop("securityContext", {})),
            *self._limited(parts.pop("resources", {})),
            *self._environment(parts.pop("envFrom", []), parts.pop("env", []), maps),
            *([f"--workdir={parts.pop('workingDir')}"] if "workingDir" in parts else []),
            *([f"--entrypoint={command[0]}"] if command else []),
        ]
        claimed: list[str] = []
        for mount in parts.pop("volumeMounts", []):
            options.append(self._mounted(mount, volumes[mount["name"]], maps, group))
            claim = volumes[mount["name"]].get("persistentVolumeClaim")
            if claim:
                claimed.append(self.claims[claim["claimName"]])
        _nothing_left(parts, "container")
        return Pod(spec, options, self.image, [*command[1:], *args], grace_s, claimed, group, self.given)

    def _confined(self, of_pod: Manifest, of_container: Manifest) -> list[str]:
        settings = {**of_pod, **of_container}  # a container's own win
        options = []
        group, user = settings.pop("runAsGroup", None), settings.pop("runAsUser", None)
        if settings.pop("runAsNonRoot", False) and user == 0:
            raise NeverStartsError("runAsNonRoot, and runAsUser is 0")
        if user is not None:
            options.append(f"--user={user}" if group is None else f"--user={user}:{group}")
        elif group is not None:
            raise NotTranslatedError("runAsGroup without runAsUser")
        settings.pop("fsGroupChangePolicy", None)  # OnRootMismatch is what is done here
        if "fsGroup" in settings:
            options.append(f"--group-add={settings.pop('fsGroup')}")
        seccomp = settings.pop("seccompProfile", {"type": "Unconfined"})
        if seccomp != {"type": "RuntimeDefault"}:
            options.append("--security-opt=seccomp=unconfined")  # what a kubelet does by default
        if not settings.pop("allowPrivilegeEscalation", True):
            options.append("--security-opt=no-new-privileges")
        if settings.pop("readOnlyRootFilesystem", False):
            options.append("--read-only")
        capabilities = dict(settings.pop("capabilities", {}))
        options += [f"--cap-drop={name}" for name in capabilities.pop("drop", [])]
        options += [f"--cap-add={name}" for name in capabilities.pop("add", [])]
        _nothing_left({**settings, **capabilities}, "securityContext")
        return options

    def _limited(self, resources: Manifest) -> list[str]:
        limits = {key: value for key, value in resources.get("limits", {}).items() if key not in NOT_HERE}
        options = []
        if "memory" in limits:
            options.append(f"--memory={int(quantity(limits.pop('memory')))}")
        if "cpu" in limits:
            options.append(f"--cpus={min(quantity(limits.pop('cpu')), self.cpus)}")
        _nothing_left(limits, "limits")
        return options

    def _environment(
        self, sources: Sequence[Manifest], variables: Sequence[Manifest], maps: Mapping[str, Mapping[str, str]]
    ) -> list[str]:
        """Pass it by a file, so that no secret is on a command line."""
        values: dict[str, str] = {}
        for source in sources:
            rest = dict(source)
            values.update(_found(maps, rest.pop("configMapRef"), "ConfigMap"))
            _nothing_left(rest, "envFrom")
        for variable in variables:
            rest = dict(variable)
            name, value, source = rest.pop("name"), rest.pop("value", ""), dict(rest.pop("valueFrom", {}))
            _nothing_left(rest, "env")
            if "$(" in value:
                raise NotTranslatedError(f"{name}: a reference to another variable")
            if source:
                wanted = source.pop("secretKeyRef", {})
                if source.get("fieldRef", {}).get("fieldPath", "").startswith("metadata.labels["):
                    value = str(uuid.uuid4())  # what a controller gives: each pod is a job here
                    del source["fieldRef"]
                _nothing_left(source, "valueFrom")
                if wanted:
                    value = _found(self.secrets, {"name": wanted["name"]}, "Secret")[wanted["key"]]
            values[name] = value
        file = self._new("environment")
        file.touch(mode=0o600)
        file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        return [f"--env-file={file}"]

    def _mounted(
        self, mount: Manifest, volume: Manifest, maps: Mapping[str, Mapping[str, str]], group: int | None
    ) -> str:
        rest, source = dict(mount), {key: value for key, value in volume.items() if key != "name"}
        target, read_only = rest.pop("mountPath"), rest.pop("readOnly", False)
        del rest["name"]
        _nothing_left(rest, "volumeMounts")
        ((kind, settings),) = source.items()
        settings = dict(settings)
        if kind == "emptyDir":
            size = settings.pop("sizeLimit", None)
            settings.pop("medium", None)
            _nothing_left(settings, kind)
            # For everybody, and with fsGroup that group's too; code may be loaded from it.
            owned = "mode=0777" if group is None else f"mode=2777,gid={group}"
            return f"--tmpfs={target}:{owned},exec" + (f",size={int(quantity(size))}" if size else "")
        if kind == "persistentVolumeClaim":
            name = settings.pop("claimName")
            _nothing_left(settings, kind)
            if name not in self.claims:
                raise NeverStartsError(f"there is no claim {name}")
            # Without what the image has at this place: a claim never gets that.
            shown = f"--mount=type=volume,source={self.claims[name]},target={target},volume-nocopy"
            return shown + (",readonly" if read_only else "")
        if kind == "configMap":
            data = _found(maps, settings, "ConfigMap")
        elif kind == "secret":
            data = _found(self.secrets, {"name": settings.pop("secretName"), **settings}, "Secret")
        else:
            raise NotTranslatedError(f"a volume of kind {kind}")
        return f"--mount=type=bind,source={self._projected(data)},target={target},readonly"

    def _projected(self, data: Mapping[str, str]) -> Path:
        """Files as the kubelet lays them out: each a link through `..data`, which it moves when the object changes."""
        folder = self._new("volume")
        version = folder / "..2025_01_01_00_00_00.1"
        version.mkdir(parents=True)
        (folder / "..data").symlink_to(version.name)
        for name, content in data.items():
            (version / name).write_text(content)
            (version / name).chmod(0o644)
            (folder / name).symlink_to(f"..data/{name}")
        for place in (folder, version):
            place.chmod(0o755)
        return folder

    def _new(self, what: str) -> Path:
        return self.folder / f"{what}-{len(list(self.folder.iterdir()))}"


def _found(objects: Mapping[str, Mapping[str, str]], reference: Manifest, kind: str) -> Mapping[str, str]:
    rest = dict(reference)
    name, optional = rest.pop("name"), rest.pop("optional", False)
    _nothing_left(rest, kind)
    if name not in objects and not optional:
        raise NeverStartsError(f"there is no {kind} {name}")
    return objects.get(name, {})


def _nothing_left(fields: Manifest, where: str) -> None:
    if fields:
        raise NotTranslatedError(f"{where}: {', '.join(sorted(fields))}")

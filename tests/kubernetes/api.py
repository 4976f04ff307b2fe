"""Stand-in for Kubernetes' API server and its controllers, for the requests of the real kubectl with the commands of
the docs.

with Api() as api:
    ...  # KUBECONFIG=api.kubeconfig kubectl apply -k k8s/overlays/setup
    api.objects["namespaces", None, "mini-r1"]

It keeps objects in memory, and validates nothing (tests/kubernetes/schemas.py does), but refuses what the order of
commands can get wrong: an object in a namespace that is not there, a Job's new template, a kind that is not installed.
Controllers are some lines each: a Job's pods run at once, and it is complete when somebody has waited for that (watched
it, or asked for it COMPLETE_AFTER times) or has read the log of its pod. Those in `failing` fail at once, and those in
`refused` get no pods and an event. No pod runs anything, nothing is scheduled, admitted or pulled, and no tunnel leads
there.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.kubernetes.wire import INSTALLED, KUBERNETES, PROTOBUF, Object, discovery, from_protobuf, merged

Key = tuple[str, str | None, str]
"""Resource (`jobs`), namespace (None: the cluster's), name."""

LOG = "step 1/1: a line of the stand-in for a container's log\n"
NO_TUNNEL = "the stand-in for the API server has no tunnel"
IMMUTABLE = "field is immutable"
COMPLETE_AFTER = 6
"""Requests for a Job until it is complete: k8s/wait.sh asks once or twice every two seconds."""
NOT_SERVED = "the server could not find the requested resource"
_MADE = "2026-01-01T00:00:00Z"
_GPUS = {"nvidia.com/gpu": "4", "rdma/hca": "1"}
NODE: Object = {
    "metadata": {"name": "node-1", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
    "status": {
        "allocatable": {"cpu": "64", "memory": "1Ti", **_GPUS},
        "capacity": {"cpu": "64", "memory": "1Ti", **_GPUS},
    },
}


class Refused(Exception):
    """An answer that is none of the 200s."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
            "message": message,
        }  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One that was not for reading an object.

    Args:
        verb: POST, PATCH, DELETE, or GET of a part.
        key: of the object.
        body: what was sent.
        part: `log`, `portforward`, ...: what follows the object in the path.
    """

    verb: str
    key: Key
    body: Object
    part: str


@dataclass
class Api:
    """A server on a free port.

    Args:
        installed: in addition to Kubernetes' kinds, wire.KUBEFLOW and wire.KUEUE.

    Attributes:
        objects: everything there is.
        requests: in order.
        failing: jobs whose pods end with this exit code.
        refused: jobs whose pods are not admitted, with the reason.
        kubeconfig: a file for KUBECONFIG.
    """

    installed: Sequence[str] = ()
    objects: dict[Key, Object] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known = {**KUBERNETES, **{at: INSTALLED[at] for at in self.installed}}
        self._lock, self._ended, self._version = threading.RLock(), threading.Event(), 0
        self._asked: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self._server.daemon_threads = True
        self._folder = tempfile.TemporaryDirectory()
        self.kubeconfig = Path(self._folder.name) / "config"
        server = f"http://127.0.0.1:{self._server.server_port}"
        self.kubeconfig.write_text(
            json.dumps({  # which is YAML
                "apiVersion": "v1", "kind": "Config", "current-context": "stand-in",
                "clusters": [{"name": "stand-in", "cluster": {"server": server}}],
                "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "stand-in"}}],
                "users": [{"name": "nobody", "user": {}}],
            })
        )  # fmt: skip
        self.put("nodes", NODE)
        self.put("namespaces", {"metadata": {"name": "default"}})

    def __enter__(self) -> Api:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()

    # ---- objects, and what their controllers do ----------------------------------------------------------------------

    def named(self, resource: str, namespace: str | None = "mini-r1") -> list[str]:
        """The names of what there is of a resource."""
        return sorted(name for at, where, name in self.objects if (at, where) == (resource, namespace))

    def put(self, resource: str, sent: Object, namespace: str | None = None) -> Object:
        """Keep an object, and do what its controller would."""
        with self._lock:
            self._version += 1
            kept = json.loads(json.dumps(sent), object_hook=_with_quantities)
            (kept["apiVersion"], kept["kind"]), = [
                (at, kinds[resource][0]) for at, kinds in self._known.items() if resource in kinds
            ]  # fmt: skip
            about = kept["metadata"] | ({"namespace": namespace} if namespace else {})
            about |= {"uid": about.get("uid", f"uid-{self._version}"), "resourceVersion": str(self._version)}
            about |= {"creationTimestamp": _MADE, "generation": about.get("generation", 0) + 1}
            kept["metadata"] = about
            self.objects[resource, namespace, about["name"]] = kept
            if resource == "namespaces":
                about["labels"] = about.get("labels", {}) | {"kubernetes.io/metadata.name": about["name"]}
                if ("serviceaccounts", about["name"], "default") not in self.objects:
                    self.put("serviceaccounts", {"metadata": {"name": "default"}}, about["name"])
            elif resource == "deployments":
                ready = kept["spec"].get("replicas", 1)
                counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
                kept["status"] = {"observedGeneration": about["generation"], **dict.fromkeys(counts, ready)}
                self._pod(kept, f"{about['name']}-0", kept["spec"]["template"], {})
            elif resource == "jobs":
                self._job(kept, about["name"])
            elif resource == "pytorchjobs" and not kept["spec"]["runPolicy"].get("suspend"):
                conditions = [{"type": "Running", "status": "True"}]
                if about["name"] in self.failing:
                    conditions = [
                        {"type": "Running", "status": "False"},
                        {"type": "Failed", "status": "True", "reason": "PyTorchJobFailed", "message": "Master failed"},
                    ]
                kept["status"] = {"conditions": conditions}
                for replica, part in kept["spec"]["pytorchReplicaSpecs"].items():
                    labels = {"training.kubeflow.org/job-name": about["name"]}
                    for index in range(part["replicas"]):
                        self._pod(kept, f"{about['name']}-{replica.lower()}-{index}", part["template"], labels)
            return kept

    def _job(self, job: Object, name: str) -> None:
        if job["spec"].get("suspend") or "status" in job:
            return
        labels, count = {"batch.kubernetes.io/job-name": name}, job["spec"].get("parallelism", 1)
        job["spec"]["selector"] = {"matchLabels": labels}
        job["status"] = {"active": count, "ready": count, "startTime": _MADE}
        self._asked[name] = 0
        if name in self.refused:
            job["status"] = {"active": 0, "ready": 0, "startTime": _MADE}
            about = {"name": f"{name}.event"}
            event = {"metadata": about, "type": "Warning", "reason": "FailedCreate", "message": self.refused[name]}
            self.put("events", event | {"involvedObject": {"name": name}}, job["metadata"]["namespace"])
            return
        if name in self.failing:
            why = f"Container of {name}-0 failed with exit code {self.failing[name]} matching FailJob rule at index 0"
            ends = [{"type": kind, "status": "True", "reason": "PodFailurePolicy", "message": why}
                    for kind in ("FailureTarget", "Failed")]  # fmt: skip
            job["status"] = {"failed": count, "ready": 0, "startTime": _MADE, "conditions": ends}
        for index in range(count):
            self._pod(job, f"{name}-{index}", job["spec"]["template"], labels)

    def _pod(self, owner: Object, name: str, template: Object, labels: Mapping[str, str]) -> None:
        reference = {"kind": owner["kind"], "name": owner["metadata"]["name"], "controller": True}
        about = {"name": name, "labels": {**template["metadata"]["labels"], **labels}, "ownerReferences": [reference]}
        ready = [{"type": "Ready", "status": "True"}]
        status: Object = {"phase": "Running", "conditions": ready}
        if reference["name"] in self.failing:
            ended = {"terminated": {"exitCode": self.failing[reference["name"]], "reason": "Error"}}
            status = {"phase": "Failed", "conditions": [], "containerStatuses": [{"name": "train", "state": ended}]}
        pod = {"metadata": about, "spec": template["spec"], "status": status}
        self.put("pods", pod, owner["metadata"]["namespace"])

    def _complete(self, namespace: str | None, name: str) -> None:
        """End a Job well."""
        job = self.objects.get(("jobs", namespace, name))
        if job and name not in self.failing and name not in self.refused and not job["spec"].get("suspend"):
            job["status"] = {"succeeded": 1, "ready": 0, "conditions": [{"type": "Complete", "status": "True"}]}

    def _remove(self, key: Key) -> Object:
        """Take an object away, and what belongs to it."""
        gone = self._get(key)
        for (resource, namespace, name), one in list(self.objects.items()):
            owners = [(owner["kind"], owner["name"]) for owner in one["metadata"].get("ownerReferences", [])]
            is_owned = namespace == key[1] and (gone["kind"], key[2]) in owners
            is_within = key[0] == "namespaces" and namespace == key[2]
            if (resource, namespace, name) == key or is_owned or is_within:
                del self.objects[resource, namespace, name]
        return gone

    def _get(self, key: Key) -> Object:
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def answer(self, verb: str, url: str, kind_of_body: str, body: bytes) -> Object | str | Iterator[Object]:
        """An object, a text, or what a watch tells.

        Raises:
            Refused: as the API server would, or because the stand-in knows no such thing.
        """
        path, query = urlsplit(url).path, dict(parse_qsl(urlsplit(url).query))
        page = discovery(self._known, path)
        if page is not None:
            return page
        first, *parts = path.strip("/").split("/")
        at, rest = ("v1", parts[1:]) if first == "api" else ("/".join(parts[:2]), parts[2:])
        namespace = rest[1] if rest[:1] == ["namespaces"] and len(rest) > 2 else None
        resource, *more = (rest[2:] if namespace else rest) or [""]
        if resource not in self._known.get(at, {}):
            raise Refused(404, "NotFound", NOT_SERVED)
        if body.startswith(PROTOBUF):
            sent = {} if verb == "DELETE" else from_protobuf(body)  # a drain's options
        else:
            sent = yaml.safe_load(body) or {}
        with self._lock:
            if verb == "GET" and not more:
                return self._list(at, resource, namespace, query)
            key, part = (resource, namespace, more[0] if more else sent["metadata"]["name"]), "/".join(more[1:])
            if verb == "GET" and not part:
                if resource == "jobs" and key in self.objects:
                    self._asked[key[2]] = self._asked.get(key[2], 0) + 1
                    if self._asked[key[2]] >= COMPLETE_AFTER:
                        self._complete(namespace, key[2])
                return self._get(key)
            self.requests.append(Request(verb, key, sent, part))
            if part == "log":
                self._complete(namespace, self._get(key)["metadata"]["ownerReferences"][0]["name"])
                return LOG
            if part:
                raise Refused(500, "InternalError", NO_TUNNEL if part in ("portforward", "exec") else NOT_SERVED)
            return self._remove(key) if verb == "DELETE" else self._change(key, sent, kind_of_body)

    def _change(self, key: Key, sent: Object, kind_of_body: str) -> Object:
        resource, namespace, name = key
        if namespace and ("namespaces", None, namespace) not in self.objects:
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')
        old = self.objects.get(key)
        if "patch" in kind_of_body:
            sent = merged(old if "apply-patch" in kind_of_body else self._get(key), sent)
            sent = json.loads(json.dumps(sent), object_hook=_with_quantities)
        elif old:
            raise Refused(409, "AlreadyExists", f'{resource} "{name}" already exists')
        if resource == "jobs" and old and sent["spec"]["template"] != old["spec"]["template"]:
            raise Refused(422, "Invalid", f'Job.batch "{name}" is invalid: spec.template: Invalid value: {IMMUTABLE}')
        return self.put(resource, sent, namespace)

    def _list(
        self, at: str, resource: str, namespace: str | None, query: Mapping[str, str]
    ) -> Object | Iterator[Object]:
        labels = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
        wanted = query.get("fieldSelector", "").partition("metadata.name=")[2].partition(",")[0]
        found = [
            one
            for (there, where, name), one in sorted(self.objects.items(), key=str)
            if there == resource and namespace in (None, where) and wanted in ("", name)
            and all(_has_label(one, *label) for label in labels)
        ]  # fmt: skip
        if "watch" in query:
            return self._watch(resource, found)
        kind = f"{self._known[at][resource][0]}List"
        return {"apiVersion": at, "kind": kind, "metadata": {"resourceVersion": str(self._version)}, "items": found}

    def _watch(self, resource: str, found: Sequence[Object]) -> Iterator[Object]:
        """Who watches a Job waits for its end."""
        for one in found:
            if resource == "jobs":
                self._complete(one["metadata"]["namespace"], one["metadata"]["name"])
            yield {"type": "MODIFIED", "object": one}
        self._ended.wait(60)


def _has_label(one: Object, label: str, equals: str, value: str) -> bool:
    there = one["metadata"].get("labels", {})
    return there.get(label) == value if equals else label in there


def _with_quantities(value: Object) -> Object:
    """Quantities as the API server returns them: text, also those that were sent as numbers."""
    for name in {"requests", "limits"} & set(value):
        if isinstance(value[name], dict):
            value[name] = {what: str(amount) for what, amount in value[name].items()}
    return value


class _Handler(BaseHTTPRequestHandler):
    api: Api
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        code = 201 if self.command == "POST" else 200
        try:
            said = self.api.answer(self.command, self.path, self.headers.get("Content-Type") or "", body)
        except Refused as refusal:
            said, code = refusal.status, refusal.status["code"]
        self.send_response(code)
        if isinstance(said, dict | str):
            text = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_header("Content-Type", "text/plain" if isinstance(said, str) else "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):  # kubectl has seen enough
            for event in said:
                self.wfile.write(f"{json.dumps(event)}\n".encode())
                self.wfile.flush()

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

"""A stand-in for the hub that can be written to: the requests with which huggingface_hub makes repositories, commits.

with WritableHub({"hf_planted": "anna"}) as hub:
    ...  # HF_ENDPOINT=hub.address; hub.repos["anna/first"].branches["main"]

A client sees what git would show: commits with names and contents, branches that point at them, large files stored by
their hash apart from any commit. Files are served too, so what was sent can be loaded again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote

LARGE = (".safetensors", ".bin", ".parquet")
ROOT = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class BadAnswer:
    """Requests that get a wrong answer.

    Args:
        method: of the requests.
        path: a regular expression that is searched in their paths.
        status: of the answer; 0 closes the connection without one, -1 after half of the body was read, -2 never
            answers, -3 does what was asked and closes the connection without an answer.
        times: number of wrong answers.
        headers: of the answer.
        body: of it.
        after: number of matching requests that are answered correctly before.
    """

    method: str
    path: str
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": "planted"}'
    after: int = 0

    def matches(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path) or self.times <= 0:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Stored:
    """A repository of the stand-in."""

    private: bool
    commits: dict[str, dict[str, bytes]]
    titles: dict[str, str]
    branches: dict[str, str]
    history: dict[str, list[str]]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a branch or a commit."""
        return self.commits[self.branches.get(revision, revision)]


class WritableHub:
    """Serves on a free port.

    Args:
        tokens: the user of each token that may write.
        readers: tokens that can only read.
        multipart_from: bytes from which a file is sent in parts of `part` bytes.

    Attributes:
        address: for HF_ENDPOINT.
        repos: by `owner/name`.
        objects: large files by their SHA-256.
        asked: method and path of every request.
        put: hashes of the large files that came in, in order.
        errors: planted errors; the first that matches a request decides.
        leaks: requests with a token outside of their Authorization header, or in that of an upload's signed address.
    """

    def __init__(
        self,
        tokens: dict[str, str],
        *,
        readers: tuple[str, ...] = (),
        multipart_from: int = 1 << 40,
        part: int = 1 << 16,
    ) -> None:
        self.tokens, self.readers = tokens, readers
        self.repos: dict[str, Stored] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.put: list[str] = []
        self.errors: list[BadAnswer] = []
        self.leaks: list[str] = []
        self._multipart_from, self._part = multipart_from, part
        self._parts: dict[str, dict[int, bytes]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, *arguments: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> WritableHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def make(self, name: str, *, private: bool = True, **files: bytes) -> Stored:
        """Make a repository as on the hub's pages; `files` are those of main, with `__` for `.` in their names."""
        repo = Stored(private, {}, {}, {}, {})
        self.repos[name] = repo
        self._commit(repo, "main", {**ROOT, **{key.replace("__", "."): body for key, body in files.items()}}, "initial")
        return repo

    # --- requests ---

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        length = int(request.headers.get("Content-Length") or 0)
        with self._lock:
            self.asked.append(f"{request.command} {path}")
            error = next((error for error in self.errors if error.matches(request.command, path)), None)
        if error is not None and error.status == -2:
            self._ended.wait(600)
        if error is not None and -3 < error.status <= 0:
            request.rfile.read(length // 2 if error.status else 0)
            request.close_connection = True
            request.connection.close()
            return
        body = request.rfile.read(length) if length else _chunked(request)
        self._look_for_leaks(request, body)
        if error is not None and error.status != -3:
            return _send(request, error.status, error.body.encode(), **error.headers)
        with self._lock:
            status, answer, headers = self._route(request, path, parse_qs(query), body)
        if error is not None:
            request.close_connection = True
            request.connection.close()
            return None
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        _send(request, status, content, **headers)

    def _look_for_leaks(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        for token in (*self.tokens, *self.readers):
            if token in request.path or token.encode() in body:
                self.leaks.append(f"{request.command} {request.path}")
        if request.path.startswith("/store/") and request.headers.get("Authorization"):
            self.leaks.append(f"{request.command} {request.path} with Authorization")

    def _route(
        self, request: BaseHTTPRequestHandler, path: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        if path.startswith("/store/"):
            return self._store(request, path, body)
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        user = self.tokens.get(token)
        reads = user is not None or token in self.readers
        if token and not reads:
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        values = json.loads(body) if body and "ndjson" not in (request.headers.get("Content-Type") or "") else {}
        if path == "/api/whoami-v2":
            return (200, {"name": user or "reader", "type": "user"}, {}) if reads else (401, {"error": "no"}, {})
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self._create(user, reads, values)
        if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(request, reads, file[1], unquote(file[2]), unquote(file[3]))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.+))?", path)
        batch = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        name = match[1] if match else batch[1] if batch else ""
        repo = self.repos.get(name)
        if repo is None or (repo.private and not reads):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if request.command == "POST" and user is None:
            return 403, {"error": "You have read access but not the required permissions"}, {}
        if request.command == "POST" and name.partition("/")[0] != user:
            return 403, {"error": f"You don't have the rights to write to {name}"}, {}
        if batch:
            return 200, self._batch(values), {}
        return self._model(repo, name, match[2] or "" if match else "", query, values, body)

    def _create(self, user: str | None, reads: bool, values: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        if not reads:
            return 401, {"error": "Invalid username or password."}, {}
        owner = values.get("organization") or user
        if user is None or owner != user:
            return 403, {"error": f'You don\'t have the rights to create a model under the namespace "{owner}"'}, {}
        name = f"{owner}/{values['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}, {}
        self.make(name, private=bool(values.get("private")))
        return 200, {"url": f"{self.address}/{name}", "id": name}, {}

    def _model(
        self, repo: Stored, name: str, rest: str, query: dict[str, list[str]], values: dict[str, Any], body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        action, _, argument = rest.partition("/")
        revision = unquote(argument.partition("/")[0] if action == "tree" else argument) or "main"
        if action == "refs":
            refs = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                for branch, commit in repo.branches.items()
            ]
            return 200, {"branches": refs, "converts": [], "tags": []}, {}
        if action == "branch":
            if revision in repo.branches:
                return 409, {"error": "Reference already exists"}, {}
            start = values.get("startingPoint", "main")
            repo.branches[revision] = repo.branches.get(start, start)
            repo.history[revision] = [repo.branches[revision]]
            return 200, {}, {}
        if revision not in repo.branches and revision not in repo.commits:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        files = repo.files(revision)
        if action in ("", "revision"):
            return 200, self._info(repo, name, revision, files), {}
        if action == "tree":
            return 200, [_tree_entry(path, body) for path, body in files.items() if "/" not in path], {}
        if action == "commits":
            past = [
                {"id": commit, "title": repo.titles[commit], "message": "", "authors": [{"user": "x"}],
                 "date": "2025-02-01T00:00:00.000Z"}
                for commit in reversed(repo.history[revision])
            ]  # fmt: skip
            return 200, past, {}
        if action == "preupload":
            files_modes = [
                {
                    "path": path,
                    "uploadMode": "lfs" if _large(path) else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(path, files[path]) if path in files else None,
                }
                for path in (file["path"] for file in values["files"])
            ]
            return 200, {"files": files_modes}, {}
        if action == "commit":
            return self._take_commit(repo, name, revision, body)
        return 404, {"error": f"the stand-in knows no {action}"}, {}

    def _info(self, repo: Stored, name: str, revision: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for path, body in files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(body), "blobId": _oid(path, body)}
            if _large(path):
                entry["lfs"] = {"size": len(body), "sha256": _sha256(body), "pointerSize": 134}
            siblings.append(entry)
        commit = repo.branches.get(revision, revision)
        return {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}

    def _batch(self, values: dict[str, Any]) -> dict[str, Any]:
        objects = []
        for each in values["objects"]:
            oid, size = each["oid"], each["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.objects:
                header: dict[str, str] = {}
                href = f"{self.address}/store/whole/{oid}?X-Amz-Signature=signed"
                if size >= self._multipart_from:
                    href = f"{self.address}/store/complete/{oid}"
                    header = {"chunk_size": str(self._part)}
                    for number in range(1, -(-size // self._part) + 1):
                        header[str(number).zfill(5)] = f"{self.address}/store/part/{oid}/{number}?X-Amz-Signature=s"
                entry["actions"] = {
                    "upload": {"href": href, "header": header},
                }
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def _store(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        _, _, kind, oid, *rest = path.split("/")
        if kind == "part":
            self._parts.setdefault(oid, {})[int(rest[0])] = body
            return 200, b"", {"ETag": f'"{_sha256(body)[:32]}"'}
        if kind == "complete":
            parts = self._parts.pop(oid)
            body = b"".join(parts[number] for number in sorted(parts))
        if _sha256(body) != oid:
            return 400, {"error": "not what was announced"}, {}
        self.objects[oid] = body
        self.put.append(oid)
        return 200, b"{}", {}

    def _take_commit(self, repo: Stored, name: str, branch: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        files, title = dict(repo.files(branch)), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {"error": f"LFS pointer points to a file that does not exist: {value['path']}"}, {}
                files[value["path"]] = self.objects[value["oid"]]
            else:
                files.pop(value["path"], None)
        commit = self._commit(repo, branch, files, title)
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{commit}", "commitOid": commit}, {}

    def _commit(self, repo: Stored, branch: str, files: dict[str, bytes], title: str) -> str:
        commit = hashlib.sha1(f"{branch} {len(repo.commits)} {title}".encode()).hexdigest()
        repo.commits[commit], repo.titles[commit], repo.branches[branch] = files, title, commit
        repo.history.setdefault(branch, []).append(commit)
        return commit

    def _file(
        self, request: BaseHTTPRequestHandler, reads: bool, name: str, revision: str, file: str
    ) -> tuple[int, Any, dict[str, str]]:
        repo = self.repos.get(name)
        if repo is None or (repo.private and not reads):
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        if revision not in repo.branches and revision not in repo.commits:
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        commit = repo.branches.get(revision, revision)
        if file not in repo.commits[commit]:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
        body = repo.commits[commit][file]
        return 200, body, {"ETag": f'"{_sha256(body)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}


def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _chunked(request: BaseHTTPRequestHandler) -> bytes:
    """Return the body of a request without Content-Length."""
    if "chunked" not in (request.headers.get("Transfer-Encoding") or ""):
        return b""
    body = b""
    while size := int(request.rfile.readline().split(b";")[0], 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


def _tree_entry(path: str, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": _oid(path, body), "size": len(body), "path": path}
    if _large(path):
        entry["lfs"] = {"oid": _sha256(body), "size": len(body), "pointerSize": 134}
    return entry


def _large(path: str) -> bool:
    return path.endswith(LARGE) or "tfevents" in path


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _oid(path: str, body: bytes) -> str:
    """Return the hub's name of the content: git's hash, or the SHA-256 of a large file."""
    if _large(path):
        return _sha256(body)
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

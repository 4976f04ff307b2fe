"""A stand-in for the hub: the part of its HTTP interface that huggingface_hub 0.28 reads, with made-up repositories.

with Hub(Repo("nobody/tiny", files_of(folder))) as hub:
    ...  # HF_ENDPOINT=hub.address
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

_INFO = re.compile(r"/api/(?P<word>models|datasets)/(?P<name>[^/]+/[^/]+)(?:/revision/(?P<revision>.+)|/auth-check)?")
_FILE = re.compile(r"/(?P<data>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repo:
    """One repository with the branch main."""

    name: str
    files: Mapping[str, bytes]
    commit: str = "a" * 40
    is_data: bool = False
    token: str | None = None
    """Makes the repository gated: its files need this token, its file list is public, as on the hub."""
    announced: dict[str, int] = field(default_factory=dict)
    """Sizes that are announced instead of the real ones."""
    status: int = 200
    """Status of every answer, if not 200."""
    cut: dict[str, int] = field(default_factory=dict)
    """Files that end after this number of bytes, once."""
    hanging: set[str] = field(default_factory=set)
    """Files that stop after their first half and keep the connection open."""


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Hub:
    """Serves repositories on a free port.

    Attributes:
        address: for HF_ENDPOINT.
        fetched: `NAME/FILE` of every GET for a file, in order, with ` from N` for a request of a part.
        asked: the path of every request.
    """

    def __init__(self, *repos: Repo) -> None:
        self._repos = {(repo.is_data, repo.name): repo for repo in repos}
        self.fetched: list[str] = []
        self.asked: list[str] = []
        self._ended = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        self.asked.append(path)
        info, file = _INFO.fullmatch(path), _FILE.fullmatch(path)
        match = info or file
        is_data = bool(info and info["word"] == "datasets") or bool(file and file["data"])
        repo = self._repos.get((is_data, match["name"])) if match else None
        if match is None or repo is None:
            _send(request, 404, X_Error_Code="RepoNotFound")
        elif repo.status != 200:
            _send(request, repo.status)
        elif (match["revision"] or "main") not in ("main", repo.commit):
            _send(request, 404, X_Error_Code="RevisionNotFound")
        elif path.endswith("/auth-check"):
            if self._open(request, repo):
                _send(request, 200)
        elif info:
            _send(request, 200, _listing(repo, "blobs=true" in query.lower()), Content_Type="application/json")
        else:
            self._file(request, repo, unquote(match["file"]))

    def _open(self, request: BaseHTTPRequestHandler, repo: Repo) -> bool:
        if repo.token is None or request.headers.get("Authorization") == f"Bearer {repo.token}":
            return True
        _send(request, 403, X_Error_Code="GatedRepo")
        return False

    def _file(self, request: BaseHTTPRequestHandler, repo: Repo, name: str) -> None:
        if not self._open(request, repo):
            return
        if name not in repo.files:
            _send(request, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=repo.commit)
            return
        body, begin = repo.files[name], 0
        part = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if part:
            begin = int(part[1])
        if request.command == "GET":
            self.fetched.append(f"{repo.name}/{name}" + (f" from {begin}" if part else ""))
        headers = {"ETag": f'"{_hash(body)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if part:
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        end = len(body)
        if request.command == "GET":
            end = repo.cut.pop(name, len(body) // 2 if name in repo.hanging else end)
        _send(request, 206 if part else 200, body[begin:], end=end - begin, **headers)
        if end < len(body):
            if name in repo.hanging:
                request.wfile.flush()
                self._ended.wait(60)
            request.close_connection = True


def _send(
    request: BaseHTTPRequestHandler, status: int, body: bytes = b"", end: int | None = None, **headers: str
) -> None:
    """Send an answer; with `end` its body stops there, before the announced length."""
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body[:end])


def _listing(repo: Repo, blobs: bool) -> bytes:
    siblings: list[dict[str, Any]] = []
    for name, body in repo.files.items():
        entry: dict[str, Any] = {"rfilename": name}
        if blobs:
            size = repo.announced.get(name, len(body))
            entry |= {"size": size, "blobId": _hash(body)}
            if name.endswith((".safetensors", ".parquet")):
                entry |= {"blobId": "0" * 40, "lfs": {"size": size, "sha256": _hash(body), "pointerSize": 134}}
        siblings.append(entry)
    gated = "manual" if repo.token else False
    return json.dumps({"id": repo.name, "sha": repo.commit, "gated": gated, "siblings": siblings}).encode()


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()

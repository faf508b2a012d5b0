"""A server that speaks as much of the hub's HTTP as its client libraries ask for: repositories with commits and branches."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_KINDS = {"models": "", "datasets": "datasets/"}


@dataclass
class Repository:
    """Its files at each commit, and where its branches stand."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds files to what the branch has; returns the new commit."""
        whole = self.commits.get(self.branches.get(branch, ""), {}) | files
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(whole)}".encode()).hexdigest()
        self.commits[sha] = whole
        self.branches[branch] = sha
        return sha


class Hub:
    """The repositories by kind and id, and every request that came."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}  # "models/org/name"
        self.asked: list[str] = []
        self.url = ""

    def add(self, kind: str, name: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        """A repository with one commit on main; `kind` is models or datasets."""
        found = self.repositories[f"{kind}/{name}"] = Repository(private=private)
        found.commit(files)
        return found

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answers on loopback until the block ends."""
        handler = type("Bound", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/"):
            self._api(path.removeprefix("api/"), body)
        else:
            self._file(path, body)

    def _found(self, kind: str, name: str) -> Repository | None:
        found = self.hub.repositories.get(f"{kind}/{name}")
        if found is None or (found.private and "Authorization" not in self.headers):
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound" if found is None else "GatedRepo"}, True)
            return None
        return found

    def _api(self, path: str, body: bool) -> None:
        kind, org, name, *rest = path.split("/")
        repository = self._found(kind, f"{org}/{name}")
        if repository is None:
            return
        action = rest[0] if rest else "revision"
        revision = rest[1] if len(rest) > 1 else "main"
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            return
        files = repository.commits[sha]
        if action == "revision":
            answer: Any = {
                "id": f"{org}/{name}",
                "sha": sha,
                "siblings": [{"rfilename": file} for file in files],
                "tags": [],
                "private": False,
            }
        elif action in {"tree", "paths-info"}:
            under = "/".join(rest[2:])
            wanted = [file for file in files if file.startswith(f"{under}/" if under else "")]
            if action == "paths-info":
                length = int(self.headers.get("Content-Length", 0))
                text = self.rfile.read(length).decode()
                asked = (
                    json.loads(text)["paths"]
                    if text.startswith("{")
                    else [part.split("=", 1)[1] for part in text.split("&") if "paths" in part]
                )
                wanted = [file for file in files if file in asked]
            if under and not wanted:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
                return
            answer = [{"type": "file", "path": file, "size": len(files[file]), "oid": _etag(files[file])} for file in wanted]
        else:
            self._send(404, b"{}", {}, body)
            return
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)

    def _file(self, path: str, body: bool) -> None:
        kind = "datasets" if path.startswith("datasets/") else "models"
        org, name, _, revision, *rest = path.removeprefix("datasets/").split("/")
        repository = self._found(kind, f"{org}/{name}")
        if repository is None:
            return
        sha = repository.branches.get(revision, revision)
        content = repository.commits.get(sha, {}).get("/".join(rest))
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}, body)
            return
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            piece = content[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(piece) - 1}/{len(content)}"
            self._send(206, piece, headers, body)
            return
        self._send(200, content, headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

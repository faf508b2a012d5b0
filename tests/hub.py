"""A server that speaks as much of the hub's HTTP as its client libraries ask for: repositories with commits and branches, and pushes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_KINDS = {"models": "", "datasets": "datasets/"}
_LFS_BYTES = 100_000  # from here on a pushed file goes by LFS, as weights do


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
        self.objects: dict[str, bytes] = {}  # by sha256: what was uploaded by LFS
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
        path = self.path.partition("?")[0].strip("/")
        action = next((name for name in ("repos/create", "validate-yaml", "preupload", "objects/batch", "commit") if name in path), None)
        if action is None:
            self._answer(body=True)
            return
        self.hub.asked.append(f"{self.command} {self.path}")
        content = self._content()
        if "Authorization" not in self.headers:
            self._send(401, b'{"error": "Invalid username or password."}', {}, True)
        else:
            self._push(action, path, content)

    def do_PUT(self) -> None:
        """An object by LFS: its name is the checksum of its bytes."""
        self.hub.asked.append(f"{self.command} {self.path}")
        content, name = self._content(), self.path.rpartition("/")[2]
        good = hashlib.sha256(content).hexdigest() == name
        if good:
            self.hub.objects[name] = content
        self._send(200 if good else 400, b"", {}, True)

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def _push(self, action: str, path: str, content: bytes) -> None:
        """The calls of a push, in their order: create, check the card, ask how each file goes, upload the large ones, commit."""
        if action == "repos/create":
            asked = json.loads(content)
            name = f"models/{asked['organization']}/{asked['name']}"
            there = name in self.hub.repositories
            if not there:
                self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
                self.hub.repositories[name].commit({".gitattributes": b""})
            answer: Any = {"url": f"{self.hub.url}/{name.removeprefix('models/')}"} | ({"error": "it exists"} if there else {})
            self._json(answer, 409 if there else 200)
        elif action == "validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["size"] >= _LFS_BYTES else "regular", "shouldIgnore": False}
                for file in json.loads(content)["files"]
            ]
            self._json({"files": files})
        elif action == "objects/batch":
            objects = [
                one | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}} for one in json.loads(content)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        else:
            _, _, org, name, *_ = path.split("/")
            self._commit(f"{org}/{name}", content)

    def _commit(self, name: str, content: bytes) -> None:
        files = {}
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        sha = self.hub.repositories[f"models/{name}"].commit(files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def _json(self, answer: Any, status: int = 200) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

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

"""An S3 server on this machine (moto's), behind a front that counts what is asked for, and fails where a test wants it to."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import pytest

Fault = Callable[[str, str], str]  # of a method and a name: "500", "503", "hang", "lost", "lost answer", "stale", or ""
_ERRORS = {
    "403": ("403 Forbidden", "AccessDenied"),
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Slow Down", "SlowDown"),
}
_HOME = re.compile(r"^home/([0-9a-f]{8}/)?")
_COUNTS = "/-/counts"
_EMPTY = b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>'


class S3:
    """One bucket."""

    def __init__(self, hang_s: float = 5.0, host: str = "127.0.0.1") -> None:
        from moto.moto_api._internal import mock_random
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        assert mock_random
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.bucket, self._hang_s = f"spinflow-{uuid4().hex[:8]}", hang_s
        self.requests: Counter[str] = Counter()  # by method and first folder, as "GET manifests"
        self.names: Counter[str] = Counter()  # by method and name
        self.sent, self.received = 0, 0  # bytes of bodies, as the client sees them
        self.fault: Fault = lambda method, name: ""
        self.failed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(host, 0, self._front, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.port = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    @property
    def url(self) -> str:
        """A home in it."""
        return f"s3://{self.bucket}/home"

    def stop(self) -> None:
        """Ends it; what it held is gone."""
        self._server.shutdown()

    def reset(self) -> None:
        """Counts from zero."""
        with self._lock:
            self.requests, self.names, self.sent, self.received = Counter(), Counter(), 0, 0

    def _front(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == _COUNTS:
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps({"requests": self.requests, "sent": self.sent, "received": self.received}).encode()]
        method, query = environ["REQUEST_METHOD"], parse_qs(environ.get("QUERY_STRING", ""))
        path = environ["PATH_INFO"].removeprefix(f"/{self.bucket}").lstrip("/") or query.get("prefix", [""])[0]
        name = _HOME.sub("", path)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        listing = method == "GET" and "list-type" in query
        with self._lock:
            what = "LIST" if listing else method
            self.requests[f"{what} {name.partition('/')[0]}"] += 1
            self.names[f"{what} {name}"] += 1
            self.sent += len(body)
            fault = self.fault(what, name)
            if fault:
                self.failed[fault] += 1
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            start(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code></Error>".encode()]
        if fault == "stale" and listing:
            start("200 OK", [("Content-Type", "application/xml")])
            return [_EMPTY]
        if fault == "hang":
            time.sleep(self._hang_s)
        answer = b"".join(self._app(environ, start)) if fault != "lost" else b""
        if fault in ("lost", "lost answer", "hang"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        with self._lock:
            self.received += len(answer)
        return [answer]


@contextmanager
def s3(hang_s: float = 5.0, host: str = "127.0.0.1") -> Iterator[S3]:
    """The server, with its environment set. Skips where what it is made of is not installed."""
    pytest.importorskip("moto", reason="moto is not installed")
    pytest.importorskip("obstore", reason="obstore is not installed")
    import httpx

    server = S3(hang_s, host)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        try:
            httpx.put(f"{server.endpoint}/{server.bucket}").raise_for_status()
            server.reset()
            yield server
        finally:
            server.stop()


@contextmanager
def apart() -> Iterator[dict[str, str]]:
    """The server in a process of its own, for what is timed: its environment, a home as HOME_URL, and where its counts are as COUNTS."""
    command = [sys.executable, "-m", "tests.s3"]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())
    finally:
        child.kill()
        child.wait()


def _serve() -> None:
    import httpx

    server = S3()
    httpx.put(f"{server.endpoint}/{server.bucket}").raise_for_status()
    server.reset()
    print(json.dumps(server.environment | {"HOME_URL": server.url, "COUNTS": server.endpoint + _COUNTS}), flush=True)
    sys.stdin.read()  # until the other end goes


if __name__ == "__main__":
    _serve()

"""A proxy before the S3 server of the tests that fails as networks and stores do: real HTTP, on 127.0.0.1 only."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from remote_servers import Bucket

_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_HOP = {"connection", "transfer-encoding", "keep-alive", "server", "date", "expect", "content-length"}


@dataclass
class Flaky:
    """Requests on their way to a bucket.

    Attributes:
        host: of the proxy. fault: what becomes of request ``(number, method, name)``: None passes it on, a status is
            answered at once (503 busy, 403 denied), a float is waited for first, ``cut`` ends the answer in the middle,
            ``lost`` passes it on and drops the connection before the answer.
        asked: method and object of every request.
    """

    target: Bucket
    host: str = ""
    fault: Callable[[int, str, str], int | float | str | None] = lambda number, method, name: None
    asked: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def uri(self, key: str, bucket: str = "bucket") -> str:
        return f"s3://{bucket}/{key}?endpoint_override={self.host}&scheme=http&region=us-east-1"

    def wrote(self) -> list[str]:
        """Objects that were written, in order."""
        return [name for method, name in self.asked if method == "PUT"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    flaky: Flaky


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        flaky, body = self.server.flaky, self._body()
        name = unquote(urlsplit(self.path).path).partition("/bucket/")[2]
        with flaky.lock:
            number = len(flaky.asked)
            flaky.asked.append((self.command, name))
        fault = flaky.fault(number, self.command, name)
        if isinstance(fault, int):
            return self._answer(fault, _BUSY if fault >= 500 else _DENIED, {"Content-Type": "application/xml"})
        if isinstance(fault, float):
            time.sleep(fault)
        status, headers, content = self._forward(body)
        if fault == "lost":
            self.close_connection = True
            return None
        return self._answer(status, content, headers, cut=fault == "cut")

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.flaky.target.host, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        connection.request(self.command, self.path, body=body, headers={**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
        if self.command == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length") or "0"
        connection.close()
        return answer.status, kept, content

    def _answer(self, status: int, content: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            self.close_connection = True
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # the driver was killed, as the tests do
            super().handle()


@contextmanager
def flaky_proxy(bucket: Bucket) -> Iterator[Flaky]:
    flaky = Flaky(bucket)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.flaky = flaky
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flaky.host = f"127.0.0.1:{server.server_port}"
    try:
        yield flaky
    finally:
        server.shutdown()
        server.server_close()

"""A bucket and a hub on this machine, for tests: real HTTP, nothing leaves 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Bucket:
    """An S3 server (moto) with one bucket, ``bucket``."""

    client: Any
    host: str

    def uri(self, key: str, bucket: str = "bucket") -> str:
        return f"s3://{bucket}/{key}?endpoint_override={self.host}&scheme=http&region=us-east-1"

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket="bucket", Key=key, Body=body)


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[Bucket]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host = "{}:{}".format(*server.get_host_and_port())
    secrets = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}", **secrets)
    client.create_bucket(Bucket="bucket")
    yield Bucket(client, host)
    server.stop()


@pytest.fixture
def bucket(bucket_server: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for listed in bucket_server.client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        bucket_server.client.delete_object(Bucket="bucket", Key=listed["Key"])
    return bucket_server


@dataclass
class Hub:
    """The few endpoints of the Hugging Face hub that boom_ray's clients ask, over one dataset and one model.

    The next ``failing`` answers are 503; with ``cut`` the next range stops short; ``asked`` notes every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    repository: str = "owner/name"
    commit: str = COMMIT
    failing: int = 0
    cut: bool = False
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, Any]:
        """``(status, JSON or bytes)`` of a path."""
        for prefix in ("/api/datasets/", "/api/models/"):
            if path.startswith(prefix):
                return self._api(path.removeprefix(prefix))
        for prefix in ("/datasets/", "/"):
            rest = path.removeprefix(prefix + self.repository + "/resolve/")
            if rest != path:
                revision, _, name = rest.partition("/")
                return self._known(revision) or ((200, self.files[name]) if name in self.files else (404, "Entry"))
        return 404, "Repo"

    def _known(self, revision: str) -> tuple[int, Any] | None:
        return None if unquote(revision) in (self.commit, "main", "v1") else (404, "Revision")

    def _api(self, path: str) -> tuple[int, Any]:
        rest = path.removeprefix(self.repository)
        if rest == path:
            return 404, "Repo"
        kind, _, below = rest.lstrip("/").partition("/")
        revision, _, folder = below.partition("/")
        if missing := self._known(revision or "main"):
            return missing
        if kind == "tree":
            names = [n for n in self.files if not folder or n.startswith(folder + "/")]
            return 200, [{"type": "file", "path": n, **self._blob(n)} for n in names]
        siblings = [{"rfilename": n, **self._blob(n)} for n in self.files]
        return 200, {"id": self.repository, "sha": self.commit, "siblings": siblings}

    def _blob(self, name: str) -> dict[str, Any]:
        digest = hashlib.sha256(self.files[name]).hexdigest()
        return {"size": len(self.files[name]), "blobId": digest[:40], "oid": digest[:40]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import HfFileSystem, constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    HfFileSystem.clear_instance_cache()
    yield hub
    server.shutdown()
    server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            if hub.failing:
                hub.failing -= 1
                return self._send(503, b"busy", {})
            status, body = hub.answer(unquote(urlsplit(self.path).path))
            headers = {"X-Repo-Commit": hub.commit}
            if status != 200:
                headers["X-Error-Code"] = f"{body}NotFound"
                return self._send(status, b"{}", headers)
            if not isinstance(body, bytes):
                return self._send(status, json.dumps(body).encode(), headers)
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            if wanted := self.headers.get("Range"):
                start, _, stop = wanted.removeprefix("bytes=").partition("-")
                headers["Content-Range"] = f"bytes {start}-{stop}/{len(body)}"
                status, body = 206, body[int(start) : int(stop) + 1 if stop else None]
            return self._send(status, body, headers)

        do_HEAD = do_GET

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut and status == 206:
                hub.cut, self.close_connection = False, True
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler

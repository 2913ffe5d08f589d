"""A hub on this machine that models can be pushed to: repositories, branches, large files and commits, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_" + "c4nary" * 6
OWNER = "me"


@dataclass
class PushHub:
    """The endpoints that a push asks, for one owner and one token. The next ``failing`` answers are 503."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # branch -> file -> content
    public: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[dict[str, Any]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failing: int = 0
    address: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [{**o, "actions": self._actions(o["oid"])} for o in json.loads(body)["objects"]]
            return 200, {"transfer": "basic", "objects": objects}
        if path.startswith("/lfs/"):
            self.large[path.removeprefix("/lfs/")] = body
            return 200, {}
        return self._model(method, path.removeprefix("/api/models/").split("/"), body)

    def _create(self, asked: dict[str, str]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != OWNER:
            return 403, {"error": f"You have no rights to create a model under {asked['organization']}"}
        self.repositories[name] = {"main": {".gitattributes": b"*.safetensors filter=lfs"}}
        if asked["visibility"] == "public":
            self.public.add(name)
        return 200, {"url": f"{self.address}/{name}"}

    def _actions(self, oid: str) -> dict[str, Any]:
        return {"upload": {"href": f"{self.address}/lfs/{oid}"}}

    def _model(self, method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        name, verb, branch = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", unquote("/".join(parts[3:]))
        branches = self.repositories.get(name)
        if branches is None:
            return 404, "Repo"
        if verb == "branch":
            branches[branch] = dict(branches["main"])
            return 200, {}
        files = branches.get(branch or "main")
        if files is None:
            return 404, "Revision"
        if method == "GET":
            siblings = [{"rfilename": file} for file in files]
            return 200, {"id": name, "sha": "0" * 40, "private": name not in self.public, "siblings": siblings}
        if verb == "preupload":
            return 200, {"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]}
        return self._commit(name, files, [json.loads(line) for line in body.splitlines()])

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _commit(self, name: str, files: dict[str, bytes], lines: list[dict[str, Any]]) -> tuple[int, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.commits.append(lines)
        oid = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{oid}", "commitOid": oid}


@pytest.fixture
def push_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[PushHub]:
    from huggingface_hub import constants

    hub = PushHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    server.shutdown()
    server.server_close()


def _handler(hub: PushHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, body = urlsplit(self.path).path, self._body()
            hub.asked.append(f"{self.command} {path}")
            if hub.failing:
                hub.failing -= 1
                return self._send(503, {"error": "busy"})
            if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._send(401, {"error": "Invalid username or password."})
            return self._send(*hub.answer(self.command, path, body))

        do_POST = do_PUT = do_GET

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _send(self, status: int, content: Any) -> None:
            body = json.dumps(content if isinstance(content, dict) else {"error": f"{content} not found"}).encode()
            self.send_response(status)
            if isinstance(content, str):
                self.send_header("X-Error-Code", f"{content}NotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler

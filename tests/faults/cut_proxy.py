"""A forwarded port that breaks: a TCP proxy on 127.0.0.1 whose connections are all cut again and again."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType


class CutProxy:
    """Forwards ``address`` to ``port`` of this machine; ``cutting`` cuts all connections every ``seconds``."""

    def __init__(self, port: int) -> None:
        self._port, self._open, self._lock = port, set(), threading.Lock()
        self._ended, self.cuts = threading.Event(), 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cutting(self, seconds: float) -> None:
        threading.Thread(target=self._cut, args=[seconds], daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                with self._lock:
                    self._open |= {near, far}
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        self._close(source, sink)

    def _cut(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            with self._lock:
                doomed = list(self._open)
            self.cuts += len(doomed) // 2
            self._close(*doomed)

    def _close(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        with self._lock:
            self._open -= set(sockets)

    def __enter__(self) -> CutProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.close()
        self._close(*list(self._open))

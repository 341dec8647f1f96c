"""An HTTP server of a JWK Set, or of any other body."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

PATH: Final = "/.well-known/jwks.json"


class KeyServer(ThreadingHTTPServer):
    """Serves ``body`` with ``status``, and counts requests. Other paths get the initial body."""

    daemon_threads = True

    def __init__(self, body: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.body = self.first_body = body
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.go_on = threading.Event()
        """While cleared, no response is sent."""
        self.go_on.set()

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing when a client closes its connection."""

    @property
    def url(self) -> str:
        """The URL of the keys."""
        return f"http://127.0.0.1:{self.server_port}{PATH}"


class _Handler(BaseHTTPRequestHandler):
    server: KeyServer

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.go_on.wait(30)
        if self.path == PATH:
            self._answer(self.server.status, self.server.headers, self.server.body.encode())
        else:
            self._answer(200, {}, self.server.first_body.encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def serving(body: str, port: int = 0) -> Iterator[KeyServer]:
    """Serve meanwhile, on a free port unless one is given."""
    with KeyServer(body, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()

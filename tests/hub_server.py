"""A server on this machine that answers as TF Hub does."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

PAGE = b"<!DOCTYPE html>\n<html><body>A page about this model</body></html>\n" * 20


@dataclasses.dataclass
class Answer:
    body: bytes
    content_type: str = "application/gzip"
    # More than there is: the connection breaks in the middle.
    declared_length: int | None = None
    stalls: bool = False


class HubServer:
    """Serves what a test publishes, and keeps the path and query of every request."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._answers: dict[str, Answer] = {}
        self._handles: dict[str, str] = {}
        self._stopped = threading.Event()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(self.path)
                address = urlsplit(self.path)
                compressed = parse_qs(address.query).get("tf-hub-format") == ["compressed"]
                if compressed and address.path in hub._handles:
                    self.send_response(307)
                    self.send_header("Location", hub._handles[address.path])
                    self.end_headers()
                elif address.path in hub._handles:
                    self._send(Answer(PAGE, "text/html"))
                elif address.path in hub._answers:
                    self._send(hub._answers[address.path])
                else:
                    self.send_error(404)

            def _send(self, answer: Answer) -> None:
                if answer.stalls:
                    hub._stopped.wait()
                    return
                self.send_response(200)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(answer.declared_length or len(answer.body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def publish(self, handle: str, archive: bytes) -> str:
        """Serve an archive under a handle such as "/tensorflow/movinet/1"; return the URL."""
        self._handles[handle] = f"{self.url}/storage{handle}.tar.gz"
        self._answers[f"/storage{handle}.tar.gz"] = Answer(archive)
        return self.url + handle

    def serve(self, path: str, answer: Answer) -> str:
        """Give this answer, without a redirect, to every request for a path; return the URL."""
        self._answers[path] = answer
        return self.url + path

    @contextlib.contextmanager
    def running(self) -> Iterator[HubServer]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

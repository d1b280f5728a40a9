"""A server on this machine that answers as TF Hub and as Kaggle do."""

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
    # Seconds between bytes.
    pause: float = 0
    status: int = 200


class HubServer:
    """Serves what a test publishes, and keeps the path and query of every request."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._answers: dict[str, Answer] = {}
        self._handles: dict[str, str] = {}
        self._redirects: dict[str, str] = {}
        self._stopped = threading.Event()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(self.path)
                address = urlsplit(self.path)
                compressed = parse_qs(address.query).get("tf-hub-format") == ["compressed"]
                if compressed and address.path in hub._handles:
                    self._redirect(307, hub._handles[address.path])
                elif address.path in hub._redirects:
                    self._redirect(302, hub._redirects[address.path])
                elif address.path in hub._handles:
                    self._send(Answer(PAGE, "text/html"))
                elif address.path in hub._answers:
                    self._send(hub._answers[address.path])
                else:
                    self.send_error(404)

            def _redirect(self, status: int, target: str) -> None:
                self.send_response(status)
                self.send_header("Location", target)
                self.end_headers()

            def _send(self, answer: Answer) -> None:
                if answer.stalls:
                    hub._stopped.wait()
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(answer.declared_length or len(answer.body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    if answer.pause:
                        for byte in answer.body:
                            self.wfile.write(bytes([byte]))
                            if hub._stopped.wait(answer.pause):
                                return
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

    def publish_on_kaggle(self, model: str, archive: bytes) -> str:
        """Serve an archive as the model "owner/model/framework/variation/version"; return that."""
        path = f"/api/v1/models/{model}/download"
        self._redirects[path] = f"{self.url}/kaggle-storage/{model}.tar.gz"
        self._answers[f"/kaggle-storage/{model}.tar.gz"] = Answer(archive)
        return model

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

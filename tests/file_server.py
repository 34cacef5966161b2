"""A web server in this process, for tests of downloads."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Answer(NamedTuple):
    """What FileServer answers: length is the Content-Length, "right", None for none, or a number."""

    body: bytes
    kind: str = "application/octet-stream"
    status: int = 200
    length: str | int | None = "right"
    location: str | None = None


class FileServer:
    """A server on a loopback address: answers by path, and the paths that were asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files.asked.append(self.path)
                files.send(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        answer = self.answers.get(handler.path, Answer(b"", status=404))
        handler.send_response(answer.status)
        handler.send_header("Content-Type", answer.kind)
        if answer.location:
            handler.send_header("Location", answer.location)
        if answer.length is not None:
            length = len(answer.body) if answer.length == "right" else answer.length
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(answer.body)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def add(self, path: str, answer: Answer | bytes) -> str:
        """Answer a path; return its URL."""
        self.answers[path] = Answer(answer) if isinstance(answer, bytes) else answer
        return self.url(path)

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

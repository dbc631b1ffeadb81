"""A server of OpenAI's chat completions on the loopback, which can be told to misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What is sent back, ``delay`` seconds after the request came in; ``body`` is sent as it is where it is text.

    With ``trickle`` it comes byte by byte, so many seconds apart.
    """

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    trickle: float = 0.0


@dataclass
class Asked:
    """A request that came in."""

    body: dict[str, Any]
    headers: dict[str, str]
    time: float

    @property
    def said(self) -> str:
        """The last message."""
        return str(self.body["messages"][-1]["content"])


def completion(text: str | None, *, usage: Any = (10, 5), finish_reason: str = "stop") -> Answer:
    """A good answer; ``usage`` None: the server does not count."""
    counts = {} if usage is None else {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Answer({"id": "c", "object": "chat.completion", "choices": [choice], **counts})


def error(status: int, message: str, headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
    """An error in OpenAI's shape."""
    return Answer(
        {"error": {"message": message, "type": "error", "param": None, "code": None, **more}}, status, headers or {}
    )


class FakeServer(ThreadingHTTPServer):
    """Answers what ``reply(asked, number)`` returns; ``asked`` lists requests, ``most`` counts those at a time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply: Callable[[Asked, int], Answer] = lambda asked, number: completion("fine")
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.going = 0
        self.most = 0
        self.stopping = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are killed in the middle of a call."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, or the second waits 40 ms for the first to be acknowledged
    server: FakeServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        asked = Asked(
            json.loads(content), {name.lower(): value for name, value in self.headers.items()}, time.monotonic()
        )
        server = self.server
        with server.lock:
            server.asked.append(asked)
            number = len(server.asked)
            server.going += 1
            server.most = max(server.most, server.going)
        try:
            answer = server.reply(asked, number) if self.path == "/v1/chat/completions" else error(404, "no such route")
            server.stopping.wait(answer.delay)
        finally:
            with server.lock:
                server.going -= 1
        body = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
        try:
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if answer.trickle:
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    server.stopping.wait(answer.trickle)
            else:
                self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """A server that listens while the block runs."""
    with FakeServer() as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()

"""A bucket on this machine: moto's server, and a proxy before it that fails as networks do."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BUCKET = "lab"
_ERROR = (
    b'<?xml version="1.0"?><Error><Code>%s</Code><Message>%s</Message><RequestId>1</RequestId>'
    b"</Error>"
)
_HOPS = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@contextmanager
def bucket() -> Iterator[str]:
    """Serve a bucket `lab`, named by the usual variables; yield the endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with said(f"http://{host}:{port}"):
        connection = HTTPConnection(host, port)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        yield f"http://{host}:{port}"
    server.stop()


@contextmanager
def said(endpoint: str) -> Iterator[None]:
    """Say by the usual variables where buckets are, to this process and those it starts."""
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        S3FileSystem.clear_instance_cache()
        yield
    S3FileSystem.clear_instance_cache()


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server, but for those that fare otherwise. Takes the server's name.

    Args:
        server: `http://HOST:PORT`.
        rate: share of requests that are answered with 5xx, as many that are cut, as many that
            wait.
        pause: the longest wait, seconds.
        denies: answers every request with 403.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, server: str, rate: float = 0.0, pause: float = 0.5, denies: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = server.removeprefix("http://")
        self.denies = denies
        self.refuses = ""  # in the address
        self.fates: Counter[str] = Counter()
        self.pause = pause
        self._rate = rate
        self._chance = random.Random(0)
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        self._said = said(self.endpoint)
        self._said.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._said.__exit__(None, None, None)
        self.shutdown()
        self.server_close()

    def fate(self) -> str:
        with self._lock:
            drawn = int(self._chance.random() / self._rate) if self._rate else 3
            fate = ("error", "cut", "wait")[drawn] if drawn < 3 else "well"
            if fate in ("error", "cut"):
                fate += self._chance.choice((" before", " after"))
            self.fates[fate] += 1
        return fate

    def handle_error(self, *_: object) -> None:
        """Clients that were killed hang up: no matter."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        refused = bool(self.server.refuses) and self.server.refuses in self.path
        self.server.fates["refused"] += refused
        if self.server.denies or refused:
            self._answer(403, {}, _ERROR % (b"AccessDenied", b"Access Denied"))
            return
        fate = self.server.fate()
        if fate == "error before":
            self._answer(503, {}, _ERROR % (b"ServiceUnavailable", b"try again"))
        elif fate == "cut before":
            self.close_connection = True
        else:
            self._ask(fate, body)

    def _ask(self, fate: str, body: bytes) -> None:
        if fate == "wait":
            time.sleep(self.server._chance.uniform(0, self.server.pause))
        connection = HTTPConnection(self.server.server)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOPS}
        length = int(answer.getheader("Content-Length") or 0)
        connection.close()
        if fate == "error after":
            self._answer(500, {}, _ERROR % (b"InternalError", b"try again"))
        elif fate == "cut after":
            self._answer(answer.status, headers, data[: len(data) // 2], length)
            self.close_connection = True
        else:
            self._answer(answer.status, headers, data, length)

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _hand_on

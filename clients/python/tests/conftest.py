"""A server of the tests' own, of the executable that $ISOL8 names, and a scripted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import IO, Dict, Iterator, List, Optional, Tuple

import pytest

KEY = "clients-key-5b2e"
PATIENCE = 60.0


def _read_log(log: IO[str], found: SimpleQueue[Tuple[str, str]]) -> None:
    """Finds the address, or that there is none; gives it with the log. Reads on, so that the server never
    waits for its log to be read."""
    seen = ""
    for line in log:
        seen += line
        _, marked, rest = line.partition("address=")
        if marked:
            found.put((rest.strip(), seen))
    found.put(("", seen))


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The address of a running server; its end is a clean one."""
    if "ISOL8" not in os.environ:
        pytest.exit("ISOL8 is not set: name isol8's executable in it", returncode=2)
    with TemporaryDirectory(prefix="isol8-client-") as state:
        # The ids of sandboxes have no user here, and must pass through.
        os.chmod(state, 0o711)
        yield from _serve(Path(state))


def _serve(state: Path) -> Iterator[str]:
    config = state / "config.toml"
    config.touch()
    environment = {**os.environ, "ISOL8_API_KEY": KEY, "ISOL8_STATE_DIR": str(state)}
    environment.pop("RUST_LOG", None)
    server = subprocess.Popen(
        [os.environ["ISOL8"], "serve", "--port", "0", "--backend", "native", "--config", str(config)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    found: SimpleQueue[Tuple[str, str]] = SimpleQueue()
    reader = threading.Thread(target=_read_log, args=(server.stderr, found))
    reader.start()
    try:
        address, log = found.get(timeout=PATIENCE)
        if not address:
            pytest.exit(f"the server did not start: {log}", returncode=2)
        yield f"http://{address}"
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(PATIENCE)
        reader.join()
        server.stderr.close()
    assert status == 0


@pytest.fixture
def name() -> str:
    """A session that no other test uses."""
    return f"python-{uuid.uuid4()}"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Answer:
    """The answer of a scripted server to one request. Status 0: the server hangs up."""

    status: int
    body: object = None
    headers: Dict[str, str] = field(default_factory=dict)


@dataclass
class Stub:
    """A scripted server. ``asked`` holds its requests: method, path, key of idempotency."""

    url: str
    script: List[Answer]
    asked: List[Tuple[str, str, Optional[str]]]


@pytest.fixture
def stub() -> Iterator[Stub]:
    script: List[Answer] = []
    asked: List[Tuple[str, str, Optional[str]]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.command, self.path, self.headers.get("Idempotency-Key")))
            answer = script.pop(0)
            if answer.status == 0:
                self.close_connection = True
                return
            text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            self.send_response(answer.status)
            for header, value in answer.headers.items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield Stub(f"http://127.0.0.1:{server.server_port}", script, asked)
    server.shutdown()
    thread.join()
    server.server_close()

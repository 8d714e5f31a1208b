"""The client for programs without an event loop."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from ssl import SSLContext
from types import TracebackType
from typing import IO, Any, Iterable, Iterator, List, Mapping, Optional, Sequence, Type, Union

import httpx
from websockets.exceptions import InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from . import _wire
from ._retry import RetryPolicy
from ._settings import resolve
from .errors import Isol8Error
from .types import (
    DirectoryListing,
    ExecutionRequest,
    ExecutionResult,
    Health,
    Options,
    Runtime,
    Session,
    Signal,
    StreamEvent,
)


Content = Union[bytes, Iterable[bytes], IO[bytes]]
"""The types of a file's content."""



def _texts(socket: ClientConnection) -> Iterator[str]:
    for message in socket:
        yield str(message)


def _server_sent(response: httpx.Response) -> Iterator[str]:
    events = _wire.ServerSentEvents()
    for piece in response.iter_bytes():
        yield from events.feed(piece)


def _pieces(response: httpx.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_bytes()
    except httpx.TransportError as error:
        raise _wire.unreachable(error) from error


class ExecutionStream:
    """The events of a run, while it goes on. Iterate over it once; the last event is the ``exit``.

    Events that are not taken slow the program down. A run whose events are not taken for a minute is ended.
    """

    def __init__(
        self,
        texts: Iterator[str],
        socket: Optional[ClientConnection],
        told: Sequence[str] = (),
    ) -> None:
        self._texts = texts
        self._socket = socket
        self.warnings: List[str] = list(told)
        """Doubts of the server about the request, as far as server-sent events carry them."""

    def __iter__(self) -> Iterator[StreamEvent]:
        with _wire.noticing_the_end():
            for text in self._texts:
                event = _wire.event(text)
                yield event
                if event.type == "exit":
                    return
        raise _wire.broken_off()

    def send_stdin(self, text: Union[str, bytes]) -> None:
        """Writes to the program's standard input; waits for a program that does not read.

        A large input is written best from another thread than the one that takes the events.
        """
        for message in _wire.stdin_messages(text):
            self._send(message)

    def end_stdin(self) -> None:
        """Ends the program's standard input."""
        self._send(_wire.END_STDIN)

    def send_signal(self, signal: Signal) -> None:
        """Signals the program."""
        self._send(_wire.signal_message(signal))

    def resize(self, cols: int, rows: int) -> None:
        """Changes the size of the terminal of a run with ``tty``."""
        self._send(_wire.resize_message(cols, rows))

    def _send(self, message: str) -> None:
        if self._socket is None:
            raise _wire.no_socket()
        with _wire.noticing_the_end():
            self._socket.send(message)


class Isol8:
    """A server, and where ``session_id`` is given one session of it.

    Without ``url`` the server is that of ``ISOL8_HOST``, else that of ``isol8 login``; without ``key`` the key is
    that of ``ISOL8_API_KEY``, else the login's, which is sent to the server of the login only.

    With a session every run goes to it: files and variables live on until :meth:`stop`, which the end of a
    ``with`` block calls. Without one every run has a sandbox of its own. Threads may share a client.

    Calls are made again, ``retries`` times at most, where that cannot run anything twice: when the server
    cannot be connected to, when it asks for patience with 429, and, where a repetition does no harm (reading,
    deleting, writing bytes, :meth:`execute` with an ``idempotency_key``), also with 503 and after a broken
    connection. A server that wants more than ``max_retry_wait`` seconds of patience is not waited for.

    ``timeout`` is how many seconds the server may be silent in the middle of a call: a run says nothing until
    it ends, so there is no bound unless you set one. ``ssl_context`` replaces the usual trust.
    """

    def __init__(
        self,
        url: Optional[str] = None,
        key: Optional[str] = None,
        *,
        session_id: Optional[str] = None,
        retries: int = 2,
        max_retry_wait: float = 30.0,
        timeout: Optional[float] = None,
        ssl_context: Optional[SSLContext] = None,
    ) -> None:
        url, key = resolve(url, key)
        self._base = _wire.base_url(url)
        self._headers = {"Authorization": f"Bearer {key}"}
        self._ssl = ssl_context
        self._retry = RetryPolicy(retries, max_retry_wait)
        self._http = httpx.Client(
            base_url=self._base,
            headers=self._headers,
            timeout=httpx.Timeout(timeout, connect=_wire.CONNECT_TIMEOUT),
            verify=True if ssl_context is None else ssl_context,
        )
        self.session_id = session_id

    def __enter__(self) -> Isol8:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            self.stop()
        finally:
            self.close()

    def close(self) -> None:
        """Closes the connections. Sessions stay."""
        self._http.close()

    def stop(self) -> None:
        """Deletes the client's session, if it has one."""
        if self.session_id is not None:
            self.delete_session(self.session_id)

    def execute(
        self,
        request: ExecutionRequest,
        options: Optional[Options] = None,
        *,
        idempotency_key: Optional[str] = None,
    ) -> ExecutionResult:
        """Runs a program and waits for its end. A program that fails is a result.

        With an ``idempotency_key`` it runs once, however often the call is made; it then goes on where
        the client goes away.
        """
        response = self._request(
            "POST",
            "execute",
            repeatable=idempotency_key is not None,
            json=_wire.execute_body(request, options, self.session_id),
            headers={} if idempotency_key is None else {"Idempotency-Key": idempotency_key},
        )
        return _wire.executed(response)

    @contextmanager
    def execute_stream(
        self,
        request: ExecutionRequest,
        options: Optional[Options] = None,
        *,
        websocket: bool = True,
    ) -> Iterator[ExecutionStream]:
        """Runs a program and follows it: over a WebSocket, or if none is available by server-sent events,
        which take neither standard input nor signals. Leaving the block before the ``exit`` ends the run.

        ``websocket=False`` asks for server-sent events at once. Their refusals are known by ``code`` and
        ``status``, and calls are made again after them; those over a WebSocket have a text only.
        """
        body = _wire.execute_body(request, options, self.session_id)
        socket = self._connect() if websocket else None
        if socket is not None:
            with socket:
                run = ExecutionStream(_texts(socket), socket)
                run._send(_wire.execute_message(body))
                yield run
            return
        response = self._request(
            "POST", "execute/stream", repeatable=False, stream=True, json=body
        )
        with closing(response):
            told = _wire.warnings_of(response)
            yield ExecutionStream(_server_sent(response), None, told)

    def put_file(self, path: str, content: Content) -> None:
        """Writes a file of the session, parents created; what had its name is replaced once all of it is
        there. The path is absolute, within ``/sandbox`` or ``/tmp``. The content may be an open file or any
        source of bytes, which is then read once, and so sent once."""
        url = _wire.file_path(self.session_id, path)
        whole = isinstance(content, bytes)
        self._request("PUT", url, repeatable=whole, retryable=whole, content=content)

    def get_file(self, path: str) -> bytes:
        """Reads a file of the session."""
        url = _wire.file_path(self.session_id, path)
        return self._request("GET", url, repeatable=True).content

    @contextmanager
    def stream_file(self, path: str) -> Iterator[Iterator[bytes]]:
        """Reads a file of the session piece by piece."""
        url = _wire.file_path(self.session_id, path)
        response = self._request("GET", url, repeatable=True, stream=True)
        with closing(response):
            yield _pieces(response)

    def list_files(self, path: str) -> DirectoryListing:
        """Lists a directory of the session."""
        url = _wire.files_path(self.session_id)
        response = self._request("GET", url, repeatable=True, params={"path": path})
        return _wire.answer(response, _wire.listing)

    def sessions(self) -> List[Session]:
        """The sessions that the key may see."""
        return _wire.answer(self._request("GET", "sessions", repeatable=True), _wire.sessions)

    def create_session(
        self,
        runtime: Runtime,
        session_id: Optional[str] = None,
        *,
        options: Optional[Options] = None,
        env: Optional[Mapping[str, str]] = None,
        files: Optional[Mapping[str, Union[str, bytes]]] = None,
        metadata: Optional[Mapping[str, str]] = None,
    ) -> Session:
        """Creates a session before anything runs in it; without a name the server chooses one.

        ``options`` hold the sizes, image and network of its sandbox, ``env`` the variables of all its requests,
        ``files`` absolute paths to content. A session that exists raises the error ``SESSION_EXISTS``.
        A client for the session is ``Isol8(url, key, session_id=session.id)``.
        """
        body = _wire.session_body(runtime, session_id, options, env, files, metadata)
        response = self._request("POST", "sessions", repeatable=False, json=body)
        return _wire.answer(response, _wire.session)

    def delete_session(self, session_id: str) -> None:
        """Deletes a session; one that is not there is as good as deleted. Ends its run."""
        self._request("DELETE", _wire.session_path(session_id), repeatable=True)

    def health(self) -> Health:
        """Whether the server is up, which version it is, and its backend."""
        return _wire.answer(self._request("GET", "health", repeatable=True), _wire.health)

    def _request(
        self,
        method: str,
        url: str,
        *,
        repeatable: bool,
        retryable: bool = True,
        stream: bool = False,
        **parts: Any,
    ) -> httpx.Response:
        """A success; everything else is raised. The body is read, unless it is to be streamed."""
        tried = 0
        while True:
            tried += 1
            try:
                return self._try(self._http.build_request(method, url, **parts), stream)
            except Isol8Error as error:
                wait = self._retry.wait(error, tried, repeatable) if retryable else None
                if wait is None:
                    raise
            time.sleep(wait)

    def _try(self, request: httpx.Request, stream: bool) -> httpx.Response:
        try:
            response = self._http.send(request, stream=True)
            if response.is_success and stream:
                return response
            with closing(response):
                response.read()
        except httpx.TransportError as error:
            raise _wire.unreachable(error) from error
        if not response.is_success:
            raise _wire.refusal(response)
        return response

    def _connect(self) -> Optional[ClientConnection]:
        """Returns a WebSocket if one is available. If not, a request over HTTP will tell why."""
        try:
            socket: ClientConnection = connect(
                _wire.web_socket_url(self._base),
                additional_headers=self._headers,
                ssl=self._ssl if self._base.scheme == "https" else None,
                **_wire.WEB_SOCKET,
            )
            return socket
        except (OSError, InvalidHandshake):
            return None

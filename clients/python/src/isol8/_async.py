"""The client for programs that run in asyncio."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from ssl import SSLContext
from types import TracebackType
from typing import Any, AsyncIterable, AsyncIterator, List, Mapping, Optional, Sequence, Type, Union

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake

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

AsyncContent = Union[bytes, AsyncIterable[bytes]]
"""The types of a file's content."""


async def _texts(socket: ClientConnection) -> AsyncIterator[str]:
    async for message in socket:
        yield str(message)


async def _server_sent(response: httpx.Response) -> AsyncIterator[str]:
    events = _wire.ServerSentEvents()
    async for piece in response.aiter_bytes():
        for event in events.feed(piece):
            yield event


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in response.aiter_bytes():
            yield piece
    except httpx.TransportError as error:
        raise _wire.unreachable(error) from error


class AsyncExecutionStream:
    """The events of a run, while it goes on. Iterate over it once; the last event is the ``exit``.

    Events that are not taken slow the program down. A run whose events are not taken for a minute is ended.
    """

    def __init__(
        self,
        texts: AsyncIterator[str],
        socket: Optional[ClientConnection],
        told: Sequence[str] = (),
    ) -> None:
        self._texts = texts
        self._socket = socket
        self.warnings: List[str] = list(told)
        """Doubts of the server about the request, as far as server-sent events carry them."""

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        with _wire.noticing_the_end():
            async for text in self._texts:
                event = _wire.event(text)
                yield event
                if event.type == "exit":
                    return
        raise _wire.broken_off()

    async def send_stdin(self, text: Union[str, bytes]) -> None:
        """Writes to the program's standard input; waits for a program that does not read.

        A large input is written best from another task than the one that takes the events.
        """
        for message in _wire.stdin_messages(text):
            await self._send(message)

    async def end_stdin(self) -> None:
        """Ends the program's standard input."""
        await self._send(_wire.END_STDIN)

    async def send_signal(self, signal: Signal) -> None:
        """Signals the program."""
        await self._send(_wire.signal_message(signal))

    async def resize(self, cols: int, rows: int) -> None:
        """Changes the size of the terminal of a run with ``tty``."""
        await self._send(_wire.resize_message(cols, rows))

    async def _send(self, message: str) -> None:
        if self._socket is None:
            raise _wire.no_socket()
        with _wire.noticing_the_end():
            await self._socket.send(message)


class AsyncIsol8:
    """As :class:`~isol8.Isol8`, with the same arguments and methods, for asyncio."""

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
        self._http = httpx.AsyncClient(
            base_url=self._base,
            headers=self._headers,
            timeout=httpx.Timeout(timeout, connect=_wire.CONNECT_TIMEOUT),
            verify=True if ssl_context is None else ssl_context,
        )
        self.session_id = session_id

    async def __aenter__(self) -> AsyncIsol8:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            await self.stop()
        finally:
            await self.close()

    async def close(self) -> None:
        """Closes the connections. Sessions stay."""
        await self._http.aclose()

    async def stop(self) -> None:
        """Deletes the client's session, if it has one."""
        if self.session_id is not None:
            await self.delete_session(self.session_id)

    async def execute(
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
        response = await self._request(
            "POST",
            "execute",
            repeatable=idempotency_key is not None,
            json=_wire.execute_body(request, options, self.session_id),
            headers={} if idempotency_key is None else {"Idempotency-Key": idempotency_key},
        )
        return _wire.executed(response)

    @asynccontextmanager
    async def execute_stream(
        self,
        request: ExecutionRequest,
        options: Optional[Options] = None,
        *,
        websocket: bool = True,
    ) -> AsyncIterator[AsyncExecutionStream]:
        """Runs a program and follows it: over a WebSocket, or if none is available by server-sent events,
        which take neither standard input nor signals. Leaving the block before the ``exit`` ends the run.

        ``websocket=False`` asks for server-sent events at once. Their refusals are known by ``code`` and
        ``status``, and calls are made again after them; those over a WebSocket have a text only.
        """
        body = _wire.execute_body(request, options, self.session_id)
        socket = await self._connect() if websocket else None
        if socket is not None:
            async with socket:
                run = AsyncExecutionStream(_texts(socket), socket)
                await run._send(_wire.execute_message(body))
                yield run
            return
        response = await self._request(
            "POST", "execute/stream", repeatable=False, stream=True, json=body
        )
        try:
            told = _wire.warnings_of(response)
            yield AsyncExecutionStream(_server_sent(response), None, told)
        finally:
            await response.aclose()

    async def put_file(self, path: str, content: AsyncContent) -> None:
        """Writes a file of the session, parents created; what had its name is replaced once all of it is
        there. The path is absolute, within ``/sandbox`` or ``/tmp``. The content may be any source of
        bytes, which is then read once, and so sent once."""
        url = _wire.file_path(self.session_id, path)
        whole = isinstance(content, bytes)
        await self._request("PUT", url, repeatable=whole, retryable=whole, content=content)

    async def get_file(self, path: str) -> bytes:
        """Reads a file of the session."""
        url = _wire.file_path(self.session_id, path)
        return (await self._request("GET", url, repeatable=True)).content

    @asynccontextmanager
    async def stream_file(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Reads a file of the session piece by piece."""
        url = _wire.file_path(self.session_id, path)
        response = await self._request("GET", url, repeatable=True, stream=True)
        try:
            yield _pieces(response)
        finally:
            await response.aclose()

    async def list_files(self, path: str) -> DirectoryListing:
        """Lists a directory of the session."""
        url = _wire.files_path(self.session_id)
        response = await self._request("GET", url, repeatable=True, params={"path": path})
        return _wire.answer(response, _wire.listing)

    async def sessions(self) -> List[Session]:
        """The sessions that the key may see."""
        response = await self._request("GET", "sessions", repeatable=True)
        return _wire.answer(response, _wire.sessions)

    async def create_session(
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
        A client for the session is ``AsyncIsol8(url, key, session_id=session.id)``.
        """
        body = _wire.session_body(runtime, session_id, options, env, files, metadata)
        response = await self._request("POST", "sessions", repeatable=False, json=body)
        return _wire.answer(response, _wire.session)

    async def delete_session(self, session_id: str) -> None:
        """Deletes a session; one that is not there is as good as deleted. Ends its run."""
        await self._request("DELETE", _wire.session_path(session_id), repeatable=True)

    async def health(self) -> Health:
        """Whether the server is up, which version it is, and its backend."""
        response = await self._request("GET", "health", repeatable=True)
        return _wire.answer(response, _wire.health)

    async def _request(
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
                return await self._try(self._http.build_request(method, url, **parts), stream)
            except Isol8Error as error:
                wait = self._retry.wait(error, tried, repeatable) if retryable else None
                if wait is None:
                    raise
            await asyncio.sleep(wait)

    async def _try(self, request: httpx.Request, stream: bool) -> httpx.Response:
        try:
            response = await self._http.send(request, stream=True)
            if response.is_success and stream:
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise _wire.unreachable(error) from error
        if not response.is_success:
            raise _wire.refusal(response)
        return response

    async def _connect(self) -> Optional[ClientConnection]:
        """Returns a WebSocket if one is available. If not, a request over HTTP will tell why."""
        try:
            return await connect(
                _wire.web_socket_url(self._base),
                additional_headers=self._headers,
                ssl=self._ssl if self._base.scheme == "https" else None,
                **_wire.WEB_SOCKET,
            )
        except (OSError, InvalidHandshake):
            return None

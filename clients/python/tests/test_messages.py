"""The messages over a WebSocket, to a scripted server."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any, Callable, Iterator, List, Tuple

import pytest
from websockets.sync.server import ServerConnection, serve

from isol8 import AsyncIsol8, ExecutionRequest, Isol8, Isol8ConnectionError, Options

Said = List[Any]
EXIT = '{"type": "exit", "data": "0", "phase": "code", "stateLost": true, "ofALaterServer": 7}'


@pytest.fixture
def server() -> Iterator[Tuple[str, Said]]:
    """Ends each run at its third message, and without an exit where that is no resize."""
    said: Said = []

    def converse(socket: ServerConnection) -> None:
        said.append(socket.request.headers.get("Authorization") if socket.request else None)
        said.extend(json.loads(socket.recv()) for _ in range(3))
        if said[-1]["type"] == "resize":
            socket.send(EXIT)

    with serve(converse, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.socket.getsockname()[1]}/", said
        listening.shutdown()
        thread.join()


REQUEST = ExecutionRequest("bash", cmd="top", tty=True, cols=80, rows=24)


def in_sync(url: str, verb: str, *arguments: Any) -> List[Any]:
    client = Isol8(url, "key", session_id="s")
    try:
        with client.execute_stream(REQUEST, Options(timeout_ms=1)) as run:
            run.send_signal("SIGTERM")
            getattr(run, verb)(*arguments)
            return list(run)
    finally:
        client.close()


def in_asyncio(url: str, verb: str, *arguments: Any) -> List[Any]:
    async def talk() -> List[Any]:
        client = AsyncIsol8(url, "key", session_id="s")
        try:
            async with client.execute_stream(REQUEST, Options(timeout_ms=1)) as run:
                await run.send_signal("SIGTERM")
                await getattr(run, verb)(*arguments)
                return [event async for event in run]
        finally:
            await client.close()

    return asyncio.run(talk())


both = pytest.mark.parametrize("talk", [in_sync, in_asyncio])


@both
def test_messages_are_the_contracts(server: Tuple[str, Said], talk: Callable[..., List[Any]]) -> None:
    url, said = server
    (exit,) = talk(url, "resize", 120, 40)
    assert exit.exit_code == 0 and exit.state_lost and not exit.timed_out
    request = {"runtime": "bash", "cmd": "top", "tty": True, "cols": 80, "rows": 24}
    assert said == [
        "Bearer key",
        {"type": "execute", "request": request, "options": {"timeoutMs": 1}, "sessionId": "s"},
        {"type": "signal", "signal": "SIGTERM"},
        {"type": "resize", "cols": 120, "rows": 40},
    ]


@both
def test_a_stream_without_an_exit_broke_off(server: Tuple[str, Said], talk: Callable[..., List[Any]]) -> None:
    url, said = server
    with pytest.raises(Isol8ConnectionError, match="before the exit"):
        talk(url, "end_stdin")
    assert said[-1] == {"type": "stdinEnd"}

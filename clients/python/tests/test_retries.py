"""Calls that are tried again and calls that are not, with a scripted server."""

from __future__ import annotations

import asyncio
import json
import pickle
import socket
import threading
import time
from typing import Any, Callable, Dict, List

import pytest
from conftest import Answer, Stub

from isol8 import AsyncIsol8, ExecutionRequest, Isol8, Isol8ConnectionError, Isol8Error, NetworkLog
from isol8._wire import ServerSentEvents

REQUEST = ExecutionRequest("bash", "echo 1")
RESULT = {
    "stdout": "1",
    "stderr": "",
    "exitCode": 0,
    "durationMs": 1.5,
    "truncated": False,
    "executionId": "id",
    "runtime": "bash",
    "timestamp": "2026-01-01T00:00:00.000Z",
    "containerId": "box",
    "networkLogs": [
        {"timestamp": "t", "method": "CONNECT", "host": "h", "path": None, "action": "ALLOW", "durationMs": 0.5}
    ],
    "ofALaterServer": 7,
}
HANGS_UP = Answer(0)

Verb = Callable[..., Any]


def refusal(status: int, after: str) -> Answer:
    return Answer(status, {"error": "not now", "code": "UNAVAILABLE"}, {"Retry-After": after})


def in_sync(url: str, verb: str, arguments: Dict[str, Any], retries: int = 2) -> Any:
    client = Isol8(url, "key", session_id="s", max_retry_wait=2, retries=retries)
    try:
        return getattr(client, verb)(**arguments)
    finally:
        client.close()


def in_asyncio(url: str, verb: str, arguments: Dict[str, Any], retries: int = 2) -> Any:
    async def call() -> Any:
        client = AsyncIsol8(url, "key", session_id="s", max_retry_wait=2, retries=retries)
        try:
            return await getattr(client, verb)(**arguments)
        finally:
            await client.close()

    return asyncio.run(call())


both = pytest.mark.parametrize("call", [in_sync, in_asyncio])

EXECUTE = ("execute", {"request": REQUEST})
EXECUTE_ONCE = ("execute", {"request": REQUEST, "idempotency_key": "once"})
DELETE: Any = ("stop", {})
WRITE = ("put_file", {"path": "/tmp/x", "content": b"x"})


@both
@pytest.mark.parametrize(
    "verb, answers",
    [
        (EXECUTE, [refusal(429, "0"), refusal(429, "0"), Answer(200, RESULT)]),
        (EXECUTE_ONCE, [refusal(503, "0"), HANGS_UP, Answer(200, RESULT)]),
        (DELETE, [refusal(503, "0"), refusal(429, "0"), Answer(200, {"ok": True})]),
        (WRITE, [HANGS_UP, refusal(503, "0"), Answer(200, {"ok": True})]),
    ],
)
def test_what_does_no_harm_is_tried_again(stub: Stub, call: Verb, verb: Any, answers: List[Answer]) -> None:
    stub.script.extend(answers)
    call(stub.url, *verb)
    assert len(stub.asked) == 3 and len(set(stub.asked)) == 1, stub.asked


@both
@pytest.mark.parametrize(
    "verb, answer, status",
    [
        # The run may have started.
        (EXECUTE, refusal(503, "0"), 503),
        (EXECUTE, HANGS_UP, None),
        # Too long, at no time, or by a date.
        (EXECUTE, refusal(429, "3"), 429),
        (DELETE, Answer(503, {"error": "e", "code": "UNAVAILABLE"}), 503),
        (DELETE, refusal(503, "Wed, 21 Oct 2026 07:28:00 GMT"), 503),
        # The answer would be the same again.
        (EXECUTE_ONCE, refusal(500, "0"), 500),
    ],
)
def test_what_may_do_harm_is_not(stub: Stub, call: Verb, verb: Any, answer: Answer, status: Any) -> None:
    stub.script.append(answer)
    with pytest.raises(Isol8Error) as caught:
        call(stub.url, *verb)
    assert len(stub.asked) == 1
    assert caught.value.status == status
    if status is None:
        assert isinstance(caught.value, Isol8ConnectionError) and caught.value.maybe_sent


@both
def test_patience_ends(stub: Stub, call: Verb) -> None:
    stub.script.extend(refusal(429, "0") for _ in range(3))
    with pytest.raises(Isol8Error) as caught:
        call(stub.url, *EXECUTE)
    assert len(stub.asked) == 3
    assert (caught.value.retry_after, caught.value.code) == (0, "UNAVAILABLE")


@both
def test_the_server_says_how_long_to_wait(stub: Stub, call: Verb) -> None:
    stub.script.extend([refusal(429, "1"), Answer(200, RESULT)])
    started = time.monotonic()
    call(stub.url, *EXECUTE)
    assert time.monotonic() - started >= 1


@both
def test_a_source_that_is_read_once_is_sent_once(stub: Stub, call: Verb) -> None:
    async def pieces() -> Any:
        yield b"x"

    content = iter([b"x"]) if call is in_sync else pieces()
    stub.script.append(refusal(429, "0"))
    with pytest.raises(Isol8Error):
        call(stub.url, "put_file", {"path": "/tmp/x", "content": content})
    assert len(stub.asked) == 1


@both
def test_a_server_that_starts_late_is_found(call: Verb) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))

    def start() -> None:
        time.sleep(0.15)
        listener.listen()
        connection, _ = listener.accept()
        with connection:
            while not connection.recv(65_536).endswith(b"}"):
                pass
            body = json.dumps(RESULT).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    server = threading.Thread(target=start)
    server.start()
    with listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = call(url, *EXECUTE, retries=20)
        server.join()
    assert result.stdout == "1" and result.network_logs == [NetworkLog("t", "CONNECT", "h", None, "ALLOW", 0.5)]


@both
def test_a_server_that_is_not_there_is_an_error_of_the_connection(call: Verb) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Isol8ConnectionError) as caught:
            call(f"http://127.0.0.1:{unused.getsockname()[1]}", *EXECUTE)
    assert not caught.value.maybe_sent


@both
def test_answers_of_others_are_errors(stub: Stub, call: Verb) -> None:
    stub.script.extend([Answer(502, "<html>"), Answer(200, {"stdout": "1"})])
    with pytest.raises(Isol8Error) as caught:
        call(stub.url, *EXECUTE)
    assert (caught.value.status, caught.value.code) == (502, None)
    with pytest.raises(Isol8Error, match="not one of isol8's"):
        call(stub.url, *EXECUTE)


def stream_in_sync(url: str) -> List[Any]:
    client = Isol8(url, "key")
    try:
        with client.execute_stream(REQUEST) as run:
            return list(run)
    finally:
        client.close()


def stream_in_asyncio(url: str) -> List[Any]:
    async def call() -> List[Any]:
        client = AsyncIsol8(url, "key")
        try:
            async with client.execute_stream(REQUEST) as run:
                return [event async for event in run]
        finally:
            await client.close()

    return asyncio.run(call())


@pytest.mark.parametrize("follow", [stream_in_sync, stream_in_asyncio])
def test_events_are_sent_by_the_server_where_there_is_no_web_socket(
    stub: Stub, follow: Callable[[str], List[Any]]
) -> None:
    exit = 'data: {"type":"exit","data":"137","phase":"code","timedOut":true,"files":{"/tmp/x":"eA=="}}\n\n'
    no_upgrade = Answer(404, {"error": "no such route", "code": "NOT_FOUND"})
    stub.script.extend([no_upgrade, refusal(429, "0"), Answer(200, ":\n\n" + exit)])
    (event,) = follow(stub.url)
    assert [path for _, path, _ in stub.asked] == ["/execute/ws", "/execute/stream", "/execute/stream"]
    assert event.exit_code == 137 and event.timed_out and event.files == {"/tmp/x": b"x"}
    assert not event.truncated
    cut = Answer(200, 'data: {"type":"stdout","data":"1","phase":"code"}\n\n')
    stub.script.extend([no_upgrade, cut])
    with pytest.raises(Isol8ConnectionError, match="before the exit"):
        follow(stub.url)


def test_events_come_in_any_pieces() -> None:
    text = 'data: {"é": "\u2028\x85"}\n\n:\n\ndata: 2\r\n\r\ndata:3\n\n'.encode()
    for size in range(1, len(text) + 1):
        reader = ServerSentEvents()
        pieces = (text[start : start + size] for start in range(0, len(text), size))
        events = [event.strip() for piece in pieces for event in reader.feed(piece)]
        assert events == ['{"é": "\u2028\x85"}', "2", "3"], size


def test_an_address_that_is_no_server_is_refused_by_name() -> None:
    for bad in ("host", "localhost:3000", "ftp://host/"):
        for client in (Isol8, AsyncIsol8):
            with pytest.raises(ValueError, match="is not the URL of a server"):
                client(bad, "key")


def test_errors_pass_between_processes() -> None:
    refused = Isol8Error("later", code="UNAVAILABLE", status=503, retry_after=1)
    for error in (refused, Isol8ConnectionError("gone", maybe_sent=False)):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))

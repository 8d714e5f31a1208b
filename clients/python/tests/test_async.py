"""Every verb of the client for asyncio, against a real server."""

from __future__ import annotations

import asyncio
from typing import AsyncIterator, List

import pytest
from conftest import KEY, PATIENCE

from isol8 import (
    AsyncExecutionStream,
    AsyncIsol8,
    ExecutionRequest,
    Isol8Error,
    Options,
    StreamEvent,
)

pytestmark = pytest.mark.anyio


async def all_of(run: AsyncExecutionStream) -> List[StreamEvent]:
    return [event async for event in run]


def text_of(events: List[StreamEvent], kind: str = "stdout") -> str:
    return "".join(event.data for event in events if event.type == kind)


@pytest.fixture
async def isol8(url: str) -> AsyncIterator[AsyncIsol8]:
    async with AsyncIsol8(url, KEY) as client:
        yield client


@pytest.fixture
async def session(url: str, name: str) -> AsyncIterator[AsyncIsol8]:
    async with AsyncIsol8(url, KEY, session_id=name) as client:
        yield client


async def test_programs_run_at_the_same_time(isol8: AsyncIsol8) -> None:
    programs = (ExecutionRequest("bash", f"sleep 0.1; echo {number}") for number in range(3))
    results = await asyncio.gather(*map(isol8.execute, programs))
    assert [result.stdout for result in results] == ["0", "1", "2"]


async def test_a_session_keeps_variables_until_the_block_ends(url: str, name: str) -> None:
    async with AsyncIsol8(url, KEY, session_id=name) as session:
        await session.execute(ExecutionRequest("python", "x = 41"))
        result = await session.execute(ExecutionRequest("python", "print(x + 1)"))
        assert result.stdout == "42"
        assert name in [each.id for each in await session.sessions()]
    async with AsyncIsol8(url, KEY) as isol8:
        assert name not in [each.id for each in await isol8.sessions()]
        await isol8.delete_session(name)  # As good as deleted.
        assert (await isol8.health()).backend == "native"


async def test_a_session_is_created_before_anything_runs_in_it(isol8: AsyncIsol8, name: str) -> None:
    created = await isol8.create_session("bash", name, files={"/tmp/in": "42"})
    assert (created.id, created.runtime) == (name, "bash")
    await isol8.delete_session(name)


async def test_a_repeated_call_with_a_key_runs_once(isol8: AsyncIsol8, name: str) -> None:
    request = ExecutionRequest("bash", "echo $RANDOM$RANDOM")
    results = [await isol8.execute(request, idempotency_key=name) for _ in range(2)]
    assert results[0] == results[1]


async def test_files_go_in_and_out(session: AsyncIsol8) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    await session.execute(ExecutionRequest("bash", ":"))
    content = bytes(range(256)) * 16_384  # 4 MiB
    await session.put_file("/sandbox/new/a b", content)
    assert await session.get_file("/sandbox/new/a b") == content
    async with session.stream_file("/sandbox/new/a b") as read:
        lengths = [len(piece) async for piece in read]
    assert sum(lengths) == len(content) and len(lengths) > 1
    await session.put_file("/sandbox/new/pieces", pieces())
    assert await session.get_file("/sandbox/new/pieces") == b"onetwo"
    listing = await session.list_files("/sandbox/new")
    assert [(entry.name, entry.size) for entry in listing.entries] == [
        ("a b", len(content)),
        ("pieces", 6),
    ]
    with pytest.raises(Isol8Error) as caught:
        await session.get_file("/sandbox/none")
    assert (caught.value.code, caught.value.status) == ("FILE_NOT_FOUND", 404)


@pytest.mark.parametrize("websocket", [True, False])
async def test_a_run_is_followed(isol8: AsyncIsol8, websocket: bool) -> None:
    code = "printf 'out\\u2028\\n'; sleep 0.1; echo err >&2; exit 3"
    async with isol8.execute_stream(ExecutionRequest("bash", code), websocket=websocket) as run:
        events = await all_of(run)
    assert [(event.type, event.data) for event in events] == [
        ("stdout", "out\u2028\n"),
        ("stderr", "err\n"),
        ("exit", "3"),
    ]


async def test_a_program_is_written_to(session: AsyncIsol8) -> None:
    code = "import sys\nfor line in sys.stdin: print('got', len(line), flush=True)"
    async with session.execute_stream(ExecutionRequest("python", code)) as run:
        await run.send_stdin("é" * 150_000 + "\n")
        await run.end_stdin()
        events = await all_of(run)
    assert text_of(events) == "got 150001\n" and events[-1].exit_code == 0, events


async def test_one_task_may_write_while_another_reads(isol8: AsyncIsol8) -> None:
    async def write(run: AsyncExecutionStream) -> None:
        for _ in range(64):
            await run.send_stdin("x" * 65_535 + "\n")
        await run.end_stdin()

    request = ExecutionRequest("bash", "cat")
    async with isol8.execute_stream(request, Options(max_output_size=8 << 20)) as run:
        _, events = await asyncio.gather(write(run), all_of(run))
    assert len(text_of(events)) == 64 * 65_536


async def test_a_program_is_signalled(isol8: AsyncIsol8) -> None:
    code = "import time; print('ready', flush=True); time.sleep(60)"
    async with isol8.execute_stream(ExecutionRequest("python", code)) as run:
        events: List[StreamEvent] = []
        async for event in run:
            events.append(event)
            if event.type == "stdout":
                await run.send_signal("SIGINT")
    assert events[-1].exit_code == 130 and "KeyboardInterrupt" in text_of(events, "stderr")


@pytest.mark.parametrize("websocket", [True, False])
async def test_leaving_a_stream_ends_its_run(session: AsyncIsol8, websocket: bool) -> None:
    async def is_active() -> List[bool]:
        sessions = await session.sessions()
        return [each.is_active for each in sessions if each.id == session.session_id]

    async def idle() -> None:
        while await is_active() != [False]:
            await asyncio.sleep(0.01)

    request = ExecutionRequest("bash", "echo ready; sleep 600", timeout_ms=600_000)
    async with session.execute_stream(request, websocket=websocket) as run:
        async for event in run:
            assert event.data == "ready\n"
            assert await is_active() == [True]
            break
    await asyncio.wait_for(idle(), PATIENCE)


async def test_a_cancelled_call_ends_its_run(session: AsyncIsol8) -> None:
    async def is_active(expected: bool) -> None:
        while [each.is_active for each in await session.sessions() if each.id == session.session_id] != [expected]:
            await asyncio.sleep(0.01)

    request = ExecutionRequest("bash", "sleep 600", timeout_ms=600_000)
    call = asyncio.create_task(session.execute(request))
    await asyncio.wait_for(is_active(True), PATIENCE)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(is_active(False), PATIENCE)


@pytest.mark.parametrize("websocket", [True, False])
async def test_a_stream_that_fails_raises(isol8: AsyncIsol8, websocket: bool) -> None:
    broken = ExecutionRequest("bash", "echo never", setup_script="exit 4")
    with pytest.raises(Isol8Error, match="4"):
        async with isol8.execute_stream(broken, websocket=websocket) as run:
            await all_of(run)


async def test_server_sent_events_take_no_messages(isol8: AsyncIsol8) -> None:
    async with isol8.execute_stream(ExecutionRequest("bash", "cat"), websocket=False) as run:
        with pytest.raises(Isol8Error, match="no WebSocket"):
            await run.send_stdin("x")

"""Warnings of the server reach the program."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Callable, List

import pytest
from conftest import Answer, Stub

from isol8 import AsyncIsol8, ExecutionRequest, Isol8, Isol8Warning

REQUEST = ExecutionRequest("bash", "echo 1")
TOLD = "options.memorylimit is not known"
HEADERS = {"X-Isol8-Warning": TOLD}
RESULT = {
    "stdout": "1",
    "stderr": "",
    "exitCode": 0,
    "durationMs": 1,
    "truncated": False,
    "executionId": "id",
    "runtime": "bash",
    "timestamp": "t",
    "containerId": "c",
}
EXIT = 'data: {"type": "exit", "data": "0", "phase": "code"}\n\n'


def run_in_sync(url: str) -> List[str]:
    with Isol8(url, "key") as isol8:
        return isol8.execute(REQUEST).warnings


def stream_in_sync(url: str) -> List[str]:
    with Isol8(url, "key") as isol8, isol8.execute_stream(REQUEST, websocket=False) as run:
        list(run)
        return run.warnings


def run_in_asyncio(url: str) -> List[str]:
    async def talk() -> List[str]:
        async with AsyncIsol8(url, "key") as isol8:
            return (await isol8.execute(REQUEST)).warnings

    return asyncio.run(talk())


def stream_in_asyncio(url: str) -> List[str]:
    async def talk() -> List[str]:
        async with AsyncIsol8(url, "key") as isol8, isol8.execute_stream(REQUEST, websocket=False) as run:
            assert [event.type async for event in run] == ["exit"]
            return run.warnings

    return asyncio.run(talk())


@pytest.mark.parametrize("call", [run_in_sync, stream_in_sync, run_in_asyncio, stream_in_asyncio])
def test_a_warning_is_in_the_result_and_is_issued_at_the_callers_line(
    stub: Stub, call: Callable[[str], List[str]]
) -> None:
    body: Any = EXIT if "stream" in call.__name__ else RESULT
    stub.script.append(Answer(200, body, HEADERS))
    with pytest.warns(Isol8Warning, match=TOLD) as issued:
        assert call(stub.url) == [TOLD]
    first, last = inspect.getsourcelines(call)[1], inspect.getsourcelines(call)[1] + len(inspect.getsourcelines(call)[0])
    assert issued[0].filename == __file__ and first <= issued[0].lineno < last


def test_nothing_is_said_of_an_answer_without_one(stub: Stub) -> None:
    stub.script.append(Answer(200, RESULT))
    assert run_in_sync(stub.url) == []

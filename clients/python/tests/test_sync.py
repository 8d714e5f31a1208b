"""Every verb of the client for programs without an event loop, against a real server."""

from __future__ import annotations

import io
import threading
import time
from typing import Iterable, List

import pytest
from conftest import KEY, PATIENCE

from isol8 import (
    ExecutionRequest,
    ExecutionStream,
    Isol8,
    Isol8ConnectionError,
    Isol8Error,
    Options,
    StreamEvent,
)


def text_of(events: Iterable[StreamEvent], kind: str = "stdout") -> str:
    return "".join(event.data for event in events if event.type == kind)


def until_idle(isol8: Isol8, name: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(each.id == name and each.is_active for each in isol8.sessions()):
        assert time.monotonic() < deadline, "the run goes on"
        time.sleep(0.01)


@pytest.fixture
def isol8(url: str) -> Iterable[Isol8]:
    with Isol8(url, KEY) as client:
        yield client


@pytest.fixture
def session(url: str, name: str) -> Iterable[Isol8]:
    with Isol8(url, KEY, session_id=name) as client:
        yield client


def test_a_program_has_a_result(isol8: Isol8) -> None:
    result = isol8.execute(ExecutionRequest("python", "print(6 * 7)"))
    assert (result.stdout, result.stderr, result.exit_code) == ("42", "", 0)
    assert result.runtime == "python" and result.execution_id and not result.timed_out
    assert result.resource_usage is not None and result.resource_usage.peak_memory_mb > 0
    assert result.timings is not None and result.timings.run_ms > 0


def test_everything_that_a_request_may_hold_arrives(isol8: Isol8) -> None:
    request = ExecutionRequest(
        "bash",
        'read line; echo "$line $GIVEN $SECRET"; cat text bytes > made; exit 3',
        env={"GIVEN": "given"},
        stdin="told\n",
        files={"/sandbox/text": "é", "/sandbox/bytes": b"\x00\xff"},
        output_paths=("/sandbox/made", "/sandbox/none"),
        workdir="/sandbox",
        metadata={"who": "test"},
    )
    options = Options(memory_limit="128m", cpu_limit=0.5, secrets={"SECRET": "hunter2"})
    result = isol8.execute(request, options)
    assert (result.stdout, result.exit_code) == ("told given ***", 3), result
    assert result.files == {"/sandbox/made": "é".encode() + b"\x00\xff"}


def test_a_session_is_created_before_anything_runs_in_it(url: str, isol8: Isol8, name: str) -> None:
    created = isol8.create_session(
        "py", name, options=Options(memory_limit="256m"), env={"STAGE": "test"}, files={"/tmp/in": b"\xff42"}
    )
    assert (created.id, created.runtime, created.is_active) == (name, "python", False)
    with Isol8(url, KEY, session_id=name) as session:
        code = "import os; print(os.environ['STAGE'], open('/tmp/in', 'rb').read())"
        assert session.execute(ExecutionRequest("python", code)).stdout == "test b'\\xff42'"
        with pytest.raises(Isol8Error) as error:
            isol8.create_session("python", name)
        assert error.value.code == "SESSION_EXISTS"
    assert name not in [each.id for each in isol8.sessions()]


def test_bytes_pass_unchanged_in_both_directions(isol8: Isol8) -> None:
    content = b"\xff\x00\n "
    request = ExecutionRequest("bash", "cat; printf 'text ' >&2", stdin=content, trim=False, output_encoding="base64")
    result = isol8.execute(request)
    assert result.stdout_bytes == content and result.stdout_encoding == "base64"
    assert result.stderr == "text " and result.stderr_bytes == b"text "
    assert result.resource_usage is not None and result.resource_usage.cpu_ms > 0
    request = ExecutionRequest("bash", "cat", output_encoding="base64")
    with isol8.execute_stream(request) as run:
        run.send_stdin(content)
        run.end_stdin()
        written = [event.data_bytes for event in run if event.type == "stdout"]
    assert b"".join(written) == content


def test_a_timeout_is_a_result(isol8: Isol8) -> None:
    result = isol8.execute(ExecutionRequest("bash", "echo early; sleep 60", timeout_ms=200))
    assert result.timed_out and result.exit_code == 137 and result.stdout == "early"


def test_a_session_keeps_variables_until_the_block_ends(url: str, name: str) -> None:
    with Isol8(url, KEY, session_id=name) as session:
        session.execute(ExecutionRequest("python", "x = 41"))
        assert session.execute(ExecutionRequest("python", "print(x + 1)")).stdout == "42"
        (found,) = (each for each in session.sessions() if each.id == name)
        assert found.runtime == "python" and not found.is_active
        assert found.created_at <= found.last_accessed_at
    with Isol8(url, KEY) as isol8:
        assert name not in [each.id for each in isol8.sessions()]
        isol8.delete_session(name)  # As good as deleted.


def test_the_server_is_well(isol8: Isol8) -> None:
    health = isol8.health()
    assert (health.status, health.backend) == ("ok", "native") and health.version


def test_refusals_are_typed(url: str, session: Isol8) -> None:
    def refused(client: Isol8, request: ExecutionRequest) -> Isol8Error:
        with pytest.raises(Isol8Error) as caught:
            client.execute(request)
        return caught.value

    invalid = refused(session, ExecutionRequest("python", "1", timeout_ms=0))
    assert (invalid.code, invalid.status) == ("INVALID_REQUEST", 400)
    assert "timeoutMs" in str(invalid) and invalid.retry_after is None
    session.execute(ExecutionRequest("python", "1"))
    mismatch = refused(session, ExecutionRequest("bash", "1"))
    assert (mismatch.code, mismatch.status) == ("RUNTIME_MISMATCH", 409)
    wrong = refused(Isol8(url, "wrong"), ExecutionRequest("python", "1"))
    assert (wrong.code, wrong.status) == ("FORBIDDEN", 403)


def test_a_repeated_call_with_a_key_runs_once(isol8: Isol8, name: str) -> None:
    request = ExecutionRequest("bash", "echo $RANDOM$RANDOM")
    first, second = (isol8.execute(request, idempotency_key=name) for _ in range(2))
    assert first == second
    assert isol8.execute(request).execution_id != first.execution_id


def test_files_go_in_and_out(session: Isol8) -> None:
    session.execute(ExecutionRequest("bash", ":"))
    odd = "/sandbox/new/a b%2F?#é\n.bin"
    content = bytes(range(256)) * 16_384  # 4 MiB
    session.put_file(odd, content)
    assert session.get_file(odd) == content
    with session.stream_file(odd) as pieces:
        lengths = list(map(len, pieces))
    assert sum(lengths) == len(content) and len(lengths) > 1
    session.put_file("/sandbox/new/open", io.BytesIO(b"of a file"))
    session.put_file("/sandbox/new/pieces", (piece for piece in (b"one", b"two")))
    assert session.get_file("/sandbox/new/open") == b"of a file"
    assert session.get_file("/sandbox/new/pieces") == b"onetwo"
    listing = session.list_files("/sandbox/new")
    found = [(entry.name, entry.type, entry.size) for entry in listing.entries]
    expected = [("a b%2F?#é\n.bin", "file", len(content)), ("open", "file", 9), ("pieces", "file", 6)]
    assert found == expected and not listing.truncated


def test_files_that_cannot_be_had_are_refused(url: str, session: Isol8) -> None:
    session.execute(ExecutionRequest("bash", ":"))
    with pytest.raises(Isol8Error) as caught:
        session.get_file("/sandbox/none")
    assert (caught.value.code, caught.value.status) == ("FILE_NOT_FOUND", 404)
    with pytest.raises(Isol8Error) as caught, session.stream_file("/etc/passwd"):
        pass
    assert caught.value.status == 400
    with pytest.raises(ValueError, match="session_id"):
        Isol8(url, KEY).get_file("/sandbox/x")
    with pytest.raises(ValueError, match="URL"):
        session.get_file("/../../other/files/sandbox/secret")


@pytest.mark.parametrize("websocket", [True, False])
def test_a_run_is_followed(isol8: Isol8, websocket: bool) -> None:
    code = "printf 'out\\u2028\\n'; sleep 0.1; echo err >&2; exit 3"
    request = ExecutionRequest("bash", code, setup_script="echo setting up")
    with isol8.execute_stream(request, websocket=websocket) as run:
        events = list(run)
    assert [(event.type, event.data, event.phase) for event in events] == [
        ("stdout", "setting up\n", "setup"),
        ("stdout", "out\u2028\n", "code"),
        ("stderr", "err\n", "code"),
        ("exit", "3", "code"),
    ]
    assert [event.exit_code for event in events] == [None, None, None, 3]


def test_a_program_is_written_to(session: Isol8) -> None:
    code = "import sys\nfor line in sys.stdin: print('got', len(line), flush=True)"
    with session.execute_stream(ExecutionRequest("python", code)) as run:
        run.send_stdin("é" * 150_000 + "\n")
        events: List[StreamEvent] = []
        for event in run:
            events.append(event)
            if text_of(events) == "got 150001\n":
                run.send_stdin("x\n")
                run.end_stdin()
    assert text_of(events) == "got 150001\ngot 2\n", events
    assert events[-1].exit_code == 0


def test_one_thread_may_write_while_another_reads(isol8: Isol8) -> None:
    def write(run: ExecutionStream) -> None:
        for _ in range(64):
            run.send_stdin("x" * 65_535 + "\n")
        run.end_stdin()

    with isol8.execute_stream(ExecutionRequest("bash", "cat"), Options(max_output_size=8 << 20)) as run:
        writer = threading.Thread(target=write, args=(run,))
        writer.start()
        assert len(text_of(run)) == 64 * 65_536
        writer.join()


def test_a_program_is_signalled(isol8: Isol8) -> None:
    code = "import time; print('ready', flush=True); time.sleep(60)"
    with isol8.execute_stream(ExecutionRequest("python", code)) as run:
        events: List[StreamEvent] = []
        for event in run:
            events.append(event)
            if event.type == "stdout":
                run.send_signal("SIGINT")
    assert events[-1].exit_code == 130 and "KeyboardInterrupt" in text_of(events, "stderr")


@pytest.mark.parametrize("websocket", [True, False])
def test_leaving_a_stream_ends_its_run(session: Isol8, websocket: bool) -> None:
    request = ExecutionRequest("bash", "echo ready; sleep 600", timeout_ms=600_000)
    assert session.session_id is not None
    with session.execute_stream(request, websocket=websocket) as run:
        assert next(iter(run)).data == "ready\n"
        assert [each.is_active for each in session.sessions() if each.id == session.session_id] == [True]
    until_idle(session, session.session_id)


@pytest.mark.parametrize("websocket", [True, False])
def test_a_stream_that_fails_raises(isol8: Isol8, websocket: bool) -> None:
    broken = ExecutionRequest("bash", "echo never", setup_script="exit 4")
    with pytest.raises(Isol8Error, match="4") as caught:
        with isol8.execute_stream(broken, websocket=websocket) as run:
            assert text_of(run) == ""
    assert not isinstance(caught.value, Isol8ConnectionError)
    invalid = ExecutionRequest("bash", "1", timeout_ms=0)
    with pytest.raises(Isol8Error, match="timeoutMs"):
        with isol8.execute_stream(invalid, websocket=websocket) as run:
            list(run)


def test_a_stream_with_a_bad_key_is_refused_by_its_code(url: str) -> None:
    with pytest.raises(Isol8Error) as caught:
        with Isol8(url, "wrong").execute_stream(ExecutionRequest("bash", "1")):
            pass
    assert (caught.value.code, caught.value.status) == ("FORBIDDEN", 403)


def test_server_sent_events_take_no_messages(isol8: Isol8) -> None:
    with isol8.execute_stream(ExecutionRequest("bash", "cat"), websocket=False) as run:
        with pytest.raises(Isol8Error, match="no WebSocket"):
            run.send_stdin("x")

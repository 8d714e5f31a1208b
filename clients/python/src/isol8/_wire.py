"""Between the library's types and bytes: JSON, URLs, refusals. No I/O."""

from __future__ import annotations

import base64
import ipaddress
import json
import warnings
from contextlib import contextmanager
from dataclasses import Field, fields, is_dataclass
from typing import Any, Callable, Iterator, List, Mapping, Optional, Type, TypeVar, Union
from urllib.parse import quote

import httpx
from websockets.exceptions import ConnectionClosed

from .errors import Isol8ConnectionError, Isol8Error, Isol8Warning
from .types import (
    DirectoryEntry,
    DirectoryListing,
    ExecutionRequest,
    ExecutionResult,
    Health,
    NetworkLog,
    Options,
    ResourceUsage,
    Session,
    StreamEvent,
    Timings,
)

T = TypeVar("T")

STDIN_PIECE = 64 * 1024
"""Characters of one ``stdin`` message: escaped, still less than the mebibyte that a server takes."""

CONNECT_TIMEOUT = 10.0
"""Seconds that a connection may take to be made."""

WEB_SOCKET: Mapping[str, Any] = {
    "compression": None,
    "max_size": None,
    "open_timeout": CONNECT_TIMEOUT,
    # The server asks whether its client is there. The client does not ask, because the server does not answer while a
    # program does not read its standard input.
    "ping_interval": None,
    # Each side would wait for the other to let go of the connection, and by then everything is said.
    "close_timeout": 0,
}

END_STDIN = json.dumps({"type": "stdinEnd"})

WARNING = "X-Isol8-Warning"
"""The header with what the server finds doubtful about a request."""

NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def base_url(url: str) -> httpx.URL:
    """The address of a server, with the slash that keeps its path when routes are appended."""
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is not the URL of a server: expected http or https")
    if parsed.scheme == "http" and not is_loopback(parsed.host):
        text = f"the key and all that is sent to {parsed.host} can be read on the way: use https"
        # The caller of the client that is being made.
        warnings.warn(text, Isol8Warning, stacklevel=3)
    return parsed.copy_with(path=parsed.path.rstrip("/") + "/")


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def web_socket_url(base: httpx.URL) -> str:
    """Returns the address at which a server takes WebSockets."""
    scheme = "wss" if base.scheme == "https" else "ws"
    return str(base.copy_with(scheme=scheme, path=base.path + "execute/ws"))


def session_path(session: str) -> str:
    """The route of a session."""
    return f"session/{_segment(session)}"


def file_path(session: Optional[str], path: str) -> str:
    """The route of a file's bytes."""
    segments = "/".join(map(_segment, path.lstrip("/").split("/")))
    return f"{files_path(session)}/{segments}"


def files_path(session: Optional[str]) -> str:
    """The route of a session's directories."""
    if session is None:
        raise ValueError("File operations require a sessionId: give the client a session_id")
    return f"{session_path(session)}/files"


def _segment(text: str) -> str:
    # HTTP clients resolve these, and would ask for something else: even for another session.
    if text in (".", ".."):
        raise ValueError(f"{text!r} cannot be in the URL of a session or a file")
    return quote(text, safe="")


def execute_body(
    request: ExecutionRequest, options: Optional[Options], session: Optional[str]
) -> dict[str, Any]:
    """Returns the body of ``POST /execute``."""
    body = {"request": request, "options": options, "sessionId": session}
    sent = {name: _to_json(value) for name, value in body.items() if value is not None}
    if isinstance(request.stdin, bytes):
        stdin = base64.b64encode(request.stdin).decode()
        sent["request"].update(stdin=stdin, stdinEncoding="base64")
    return sent


def session_body(
    runtime: str,
    session: Optional[str],
    options: Optional[Options],
    env: Optional[Mapping[str, str]],
    files: Optional[Mapping[str, Union[str, bytes]]],
    metadata: Optional[Mapping[str, str]],
) -> dict[str, Any]:
    """Returns the body of ``POST /sessions``."""
    body = {
        "runtime": runtime,
        "id": session,
        "options": options,
        "env": env,
        "files": files,
        "metadata": metadata,
    }
    return {name: _to_json(value) for name, value in body.items() if value is not None}


def execute_message(body: Mapping[str, Any]) -> str:
    """The first message over a WebSocket."""
    return json.dumps({"type": "execute", **body})


def stdin_messages(text: Union[str, bytes]) -> Iterator[str]:
    """Yields the messages that write an input to the program."""
    if isinstance(text, bytes):
        for start in range(0, len(text), STDIN_PIECE):
            data = base64.b64encode(text[start : start + STDIN_PIECE]).decode()
            yield json.dumps({"type": "stdin", "data": data, "encoding": "base64"})
        return
    for start in range(0, len(text), STDIN_PIECE):
        yield json.dumps({"type": "stdin", "data": text[start : start + STDIN_PIECE]})


def signal_message(signal: str) -> str:
    """Returns the message that signals the program."""
    return json.dumps({"type": "signal", "signal": signal})


def resize_message(cols: int, rows: int) -> str:
    """Returns the message that changes the size of the program's terminal."""
    return json.dumps({"type": "resize", "cols": cols, "rows": rows})


def _to_json(value: Any) -> Any:
    if is_dataclass(value):
        members = ((_json_name(each), getattr(value, each.name)) for each in fields(value))
        return {name: _to_json(member) for name, member in members if member is not None}
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {name: _to_json(member) for name, member in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _json_name(member: Field[Any]) -> str:
    first, *rest = member.name.split("_")
    return str(member.metadata.get("json") or first + "".join(map(str.capitalize, rest)))


def _from_json(kind: Type[T], value: Any, **given: Any) -> T:
    """Members that the type does not have are ignored: later servers may have more to tell."""
    members = {each.name: _json_name(each) for each in fields(kind)}  # type: ignore[arg-type]
    known = {name: value[json] for name, json in members.items() if json in value}
    return kind(**{**known, **given})


def executed(response: httpx.Response) -> ExecutionResult:
    """A run's result, with the warnings that the answer's header carries."""
    told = warnings_of(response)
    return answer(response, lambda value: result(value, told))


def warnings_of(response: httpx.Response) -> List[str]:
    """The warnings of an answer, each of which is issued as well."""
    told = [str(text) for text in response.headers.get_list(WARNING)]
    for text in told:
        # The caller of the client's method.
        warnings.warn(text, Isol8Warning, stacklevel=4)
    return told


def result(value: Any, told: List[str]) -> ExecutionResult:
    """A run's result."""
    usage, timings = value.get("resourceUsage"), value.get("timings")
    return _from_json(
        ExecutionResult,
        value,
        files=_files(value),
        resource_usage=None if usage is None else _from_json(ResourceUsage, usage),
        network_logs=[_from_json(NetworkLog, log) for log in value.get("networkLogs") or ()],
        timings=None if timings is None else _from_json(Timings, timings),
        # The header repeats those of unknown members.
        warnings=list(dict.fromkeys([*map(str, value.get("warnings") or ()), *told])),
    )


def _files(value: Any) -> dict[str, bytes]:
    files = value.get("files") or {}
    return {path: base64.b64decode(content) for path, content in files.items()}


def event(text: str) -> StreamEvent:
    """An event of a stream. An ``error`` is raised: nothing that matters comes after it."""
    value = json.loads(text)
    if value["type"] == "error":
        raise Isol8Error(value["data"])
    return _from_json(StreamEvent, value, files=_files(value))


def session(value: Any) -> Session:
    """Returns the session that an answer describes."""
    return _from_json(Session, value)


def sessions(value: Any) -> List[Session]:
    """The list of sessions."""
    return [_from_json(Session, each) for each in value["sessions"]]


def listing(value: Any) -> DirectoryListing:
    """A directory."""
    entries = [_from_json(DirectoryEntry, each) for each in value["entries"]]
    return _from_json(DirectoryListing, value, entries=entries)


def health(value: Any) -> Health:
    """The state of a server."""
    return _from_json(Health, value)


def answer(response: httpx.Response, convert: Callable[[Any], T]) -> T:
    """Converts the body of a success, which has been read."""
    try:
        return convert(response.json())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"answer is not one of isol8's: {error!r}"
        raise Isol8Error(problem, status=response.status_code) from error


def refusal(response: httpx.Response) -> Isol8Error:
    """Returns the error of an unsuccessful answer, whose body has been read."""
    after = response.headers.get("Retry-After", "")
    retry_after = float(after) if after.isdecimal() else None
    status = response.status_code
    try:
        body = response.json()
        message, code = str(body["error"]), str(body["code"])
    except (ValueError, KeyError, TypeError):
        # Not isol8's: of a proxy, perhaps.
        return Isol8Error(f"server answered {status}", status=status, retry_after=retry_after)
    return Isol8Error(message, code=code, status=status, retry_after=retry_after)


def unreachable(error: httpx.TransportError) -> Isol8ConnectionError:
    """Returns the error of a request that has no answer."""
    sent = not isinstance(error, NOTHING_SENT)
    return Isol8ConnectionError(f"server cannot be reached: {error!r}", maybe_sent=sent)


def broken_off() -> Isol8ConnectionError:
    """A stream without an end."""
    return Isol8ConnectionError("stream broke off before the exit", maybe_sent=True)


@contextmanager
def noticing_the_end() -> Iterator[None]:
    """Turns the libraries' errors about a stream's connection into this library's."""
    try:
        yield
    except (ConnectionClosed, httpx.TransportError) as error:
        raise broken_off() from error


def no_socket() -> Isol8Error:
    """Why nothing can be said to a program that is followed by server-sent events."""
    return Isol8Error("this stream has no WebSocket, and takes no messages")


class ServerSentEvents:
    """The texts of events, from the bytes of an answer that arrive in any pieces.

    Not by the HTTP client's lines: those end at U+2028 as well, which JSON may hold.
    """

    def __init__(self) -> None:
        self._begun: List[bytes] = []

    def feed(self, piece: bytes) -> List[str]:
        """The events that this piece completes. Each is one line; the others are heartbeats."""
        *ends, rest = piece.split(b"\n")
        if not ends:
            self._begun.append(rest)
            return []
        lines = [b"".join([*self._begun, ends[0]]), *ends[1:]]
        self._begun = [rest]
        return [line[len(b"data:") :].decode() for line in lines if line.startswith(b"data:")]

"""Requests to a server and its answers, member for member the JSON of its contract.

A member that is ``None`` is left out, and the server's default counts. Durations are milliseconds,
points in time milliseconds since 1970, unless a member says otherwise.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Dict, List, Literal, Mapping, Optional, Sequence, Union

Runtime = Literal[
    "python", "node", "bun", "deno", "bash",
    "py", "python3", "javascript", "js", "typescript", "ts", "sh", "shell",
]
"""The language of a program, and so the kind of its sandbox. The names of the second line are aliases."""

Encoding = Literal["utf8", "base64"]
"""How a text carries what was written: as it is, or as base64."""


def _bytes_of(text: str, encoding: Encoding) -> bytes:
    return base64.b64decode(text) if encoding == "base64" else text.encode()

Signal = Literal["SIGINT", "SIGTERM"]
"""The signals that can be sent to a program."""


@dataclass(frozen=True)
class ExecutionRequest:
    """A program and everything that its run needs. Exactly one of ``code``, ``code_url`` and ``cmd`` is given."""

    runtime: Runtime
    """The language of the source text, and so the kind of sandbox."""
    code: Optional[str] = None
    """The source text."""
    code_url: Optional[str] = None
    """The address from which the server fetches the source text."""
    cmd: Optional[str] = None
    """A command line for ``bash -c``."""
    timeout_ms: Optional[int] = None
    """Until the run is ended."""
    env: Optional[Mapping[str, str]] = None
    """Environment of this run only."""
    file_extension: Optional[str] = None
    """Extension of the script file, with its dot."""
    stdin: Union[str, bytes, None] = None
    """All of standard input. Bytes arrive as they are, UTF-8 or not."""
    trim: Optional[bool] = None
    """``False`` keeps the white space at the end of the result's output, so that checksums fit."""
    output_encoding: Optional[Encoding] = None
    """``"base64"`` has output that is not UTF-8 arrive whole, as base64; see :attr:`ExecutionResult.stdout_bytes`."""
    files: Optional[Mapping[str, Union[str, bytes]]] = None
    """Absolute path to content; written before the run."""
    output_paths: Optional[Sequence[str]] = None
    """Absolute paths, read after the run into the result's ``files``."""
    install_packages: Optional[Sequence[str]] = None
    """Packages installed before the run."""
    setup_script: Optional[str] = None
    """Bash, run before the program."""
    workdir: Optional[str] = None
    """Working directory: absolute under ``/sandbox``, or relative to it."""
    code_hash: Optional[str] = None
    """SHA-256 of what ``code_url`` must give, in hex."""
    allow_insecure_code_url: Optional[bool] = None
    """Accept an ``http:`` ``code_url``."""
    metadata: Optional[Mapping[str, str]] = None
    """Names and texts of the client's own; nothing on the server uses them yet."""
    tty: Optional[bool] = None
    """Run at a terminal; only for a stream over a WebSocket."""
    cols: Optional[int] = None
    """Characters in a line of the terminal at first."""
    rows: Optional[int] = None
    """Lines of the terminal at first."""


@dataclass(frozen=True)
class NetworkFilter:
    """Regular expressions on the names of hosts; the blacklist wins."""

    whitelist: Sequence[str] = ()
    blacklist: Sequence[str] = ()


@dataclass(frozen=True)
class Options:
    """Limits and behaviour of a run, merged over the server's defaults."""

    network: Optional[Literal["none", "host", "filtered"]] = None
    """How far the program may reach: nowhere, as the filter says, or as the host may."""
    network_filter: Optional[NetworkFilter] = None
    log_network: Optional[bool] = None
    """Tell what the program reached, in the result's ``network_logs``."""
    cpu_limit: Optional[float] = None
    """Processor cores."""
    memory_limit: Union[int, str, None] = None
    """Memory of the whole sandbox; bytes, or text such as ``"512m"``."""
    pids_limit: Optional[int] = None
    """Processes and threads."""
    sandbox_size: Union[int, str, None] = None
    """Size of ``/sandbox``; bytes, or text such as ``"512m"``."""
    tmp_size: Union[int, str, None] = None
    """Size of ``/tmp``; bytes, or text such as ``"256m"``."""
    max_output_size: Optional[int] = None
    """Bytes kept of each of stdout and stderr."""
    timeout_ms: Optional[int] = None
    """Until the run is ended."""
    secrets: Optional[Mapping[str, str]] = None
    """Set in the environment, and masked in the output."""
    image: Optional[str] = None
    """A custom image."""


@dataclass(frozen=True)
class ResourceUsage:
    """Resources that a run used."""

    cpu_percent: float
    """Processor time as a share of wall time; 100 is one core."""
    memory_mb: float = field(metadata={"json": "memoryMB"})
    """Memory of the sandbox at the end, in MiB."""
    peak_memory_mb: float = field(metadata={"json": "peakMemoryMB"})
    """Most memory that the sandbox held, in MiB."""
    network_bytes_in: int
    """Received through the network."""
    network_bytes_out: int
    """Sent through the network."""
    cpu_ms: float = 0.0
    """Processor time of all processes of the run, in milliseconds."""


@dataclass(frozen=True)
class NetworkLog:
    """A request of a program to another host."""

    timestamp: str
    """When it was made, ISO 8601 in UTC."""
    method: str
    """The HTTP method; ``CONNECT`` for a tunnel."""
    host: str
    """The host that was asked for, without the port."""
    path: Optional[str]
    """The path and the query; ``None`` for a tunnel."""
    action: Literal["ALLOW", "BLOCK"]
    """Whether the rules let it through."""
    duration_ms: float
    """From the request to its end."""


@dataclass(frozen=True)
class Timings:
    """Durations of a request's steps."""

    queue_ms: float
    """Waiting for its turn."""
    acquire_ms: float
    """Getting a sandbox."""
    setup_ms: float
    """Files and the setup script."""
    run_ms: float
    """The program itself."""


@dataclass(frozen=True)
class ExecutionResult:
    """How a run went. A program that fails or runs out of time is a result, not an error."""

    stdout: str
    """Standard output, trailing white space trimmed unless the request says ``trim=False``."""
    stderr: str
    """Standard error, trailing white space trimmed unless the request says ``trim=False``."""
    exit_code: int
    """128 and the signal's number where a signal ended it."""
    duration_ms: float
    """From the arrival of the request at the sandbox to its result."""
    truncated: bool
    """Output was cut at ``max_output_size``."""
    execution_id: str
    """Names this run; a UUID."""
    runtime: str
    """The runtime that was asked for."""
    timestamp: str
    """Start of the run, ISO 8601 in UTC."""
    container_id: str
    """The sandbox it ran in."""
    files: Dict[str, bytes] = field(default_factory=dict)
    """Content of each of ``output_paths`` that exists."""
    resource_usage: Optional[ResourceUsage] = None
    """Resources that the run used."""
    network_logs: List[NetworkLog] = field(default_factory=list)
    """The program's requests to the network, if ``log_network`` asked for them."""
    timed_out: bool = False
    """The run was ended because its time was over."""
    oom_killed: bool = False
    """The kernel ended a process of the run because the sandbox was out of memory."""
    state_lost: bool = False
    """The session's interpreter ended with this run; its variables are gone, its files are not."""
    timings: Optional[Timings] = None
    """Durations of the request's steps."""
    warnings: List[str] = field(default_factory=list)
    """Doubts of the server about the request; each is raised as an :class:`Isol8Warning` too."""
    stdout_encoding: Encoding = "utf8"
    """How ``stdout`` carries what was written."""
    stderr_encoding: Encoding = "utf8"
    """How ``stderr`` carries what was written."""

    @property
    def stdout_bytes(self) -> bytes:
        """Standard output as bytes, decoded if it came as base64."""
        return _bytes_of(self.stdout, self.stdout_encoding)

    @property
    def stderr_bytes(self) -> bytes:
        """Standard error as bytes, decoded if it came as base64."""
        return _bytes_of(self.stderr, self.stderr_encoding)


@dataclass(frozen=True)
class StreamEvent:
    """An event of a run that is followed while it goes on."""

    type: Literal["stdout", "stderr", "exit"]
    """``exit`` comes last, and once."""
    data: str
    """The output; for ``exit`` the exit code."""
    phase: Literal["setup", "code"]
    """Whether it is of the setup script or of the program."""
    truncated: bool = False
    """``exit`` only, as the members below: as in :class:`ExecutionResult`."""
    timed_out: bool = False
    oom_killed: bool = False
    state_lost: bool = False
    files: Dict[str, bytes] = field(default_factory=dict)
    encoding: Encoding = "utf8"
    """How ``data`` carries what was written."""

    @property
    def exit_code(self) -> Optional[int]:
        """The exit code, of an ``exit``."""
        return int(self.data) if self.type == "exit" else None

    @property
    def data_bytes(self) -> bytes:
        """The data as bytes, decoded if it came as base64."""
        return _bytes_of(self.data, self.encoding)


@dataclass(frozen=True)
class Session:
    """A session of the server."""

    id: str
    """The client's name for it."""
    is_active: bool
    """Whether a request is running in it."""
    last_accessed_at: int
    """End of the last request."""
    runtime: str
    """The runtime it is bound to."""
    created_at: int
    """Its first request."""
    container_id: str
    """The sandbox it owns."""
    expires_at: Optional[int] = None
    """When the session ends if it stays idle; ``None`` if sessions do not end by themselves."""
    tenant_id: Optional[str] = None
    """The tenant that owns the session; shown to the master key only."""


@dataclass(frozen=True)
class DirectoryEntry:
    """An entry of a directory."""

    name: str
    """The name. Bytes that are not UTF-8 are replaced by U+FFFD."""
    type: Literal["file", "directory", "symlink", "other"]
    """The kind of entry; a link is not followed."""
    size: int
    """Bytes."""
    mode: str
    """Permission bits as four octal digits, for example ``"0644"``."""
    mtime: int
    """Last change of its content."""


@dataclass(frozen=True)
class DirectoryListing:
    """The content of a directory, sorted by name."""

    entries: List[DirectoryEntry]
    """Each name in it."""
    truncated: bool
    """There is more than one answer holds, and some of it is left out."""


@dataclass(frozen=True)
class Health:
    """A server that is up."""

    status: str
    """``"ok"``."""
    version: str
    """The server's version."""
    backend: str
    """The backend that runs its sandboxes: ``"native"`` or ``"docker"``."""

"""An isol8 server, for Python programs: :class:`Isol8`, and :class:`AsyncIsol8` for those with an event loop.

::

    with Isol8("http://127.0.0.1:3000", "my-key") as isol8:
        assert isol8.execute(ExecutionRequest("python", "print(6 * 7)")).stdout == "42"
"""

from ._async import AsyncExecutionStream, AsyncIsol8
from ._sync import ExecutionStream, Isol8
from .errors import Isol8ConnectionError, Isol8Error, Isol8Warning
from .types import (
    DirectoryEntry,
    DirectoryListing,
    Encoding,
    ExecutionRequest,
    ExecutionResult,
    Health,
    NetworkFilter,
    NetworkLog,
    Options,
    ResourceUsage,
    Runtime,
    Session,
    Signal,
    StreamEvent,
    Timings,
)

__all__ = [
    "AsyncExecutionStream",
    "AsyncIsol8",
    "DirectoryEntry",
    "DirectoryListing",
    "Encoding",
    "ExecutionRequest",
    "ExecutionResult",
    "ExecutionStream",
    "Health",
    "Isol8",
    "Isol8ConnectionError",
    "Isol8Error",
    "Isol8Warning",
    "NetworkFilter",
    "NetworkLog",
    "Options",
    "ResourceUsage",
    "Runtime",
    "Session",
    "Signal",
    "StreamEvent",
    "Timings",
]

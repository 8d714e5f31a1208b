"""When a call is made again. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from .errors import Isol8ConnectionError, Isol8Error

FIRST_WAIT = 0.1
"""Seconds before a connection is tried again; doubled each time."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and how patiently."""

    retries: int
    max_wait: float
    """Seconds. A server that wants more patience is not waited for."""

    def wait(self, error: Isol8Error, tried: int, repeatable: bool) -> Optional[float]:
        """Returns the seconds until the next try; ``None`` if there is none.

        A call that is not repeatable is tried again only if it certainly was not carried out: a server that
        answers 503 may be going down, and have ended a run that had begun.
        """
        if tried > self.retries:
            return None
        if isinstance(error, Isol8ConnectionError):
            safe = repeatable or not error.maybe_sent
            return min(FIRST_WAIT * 2.0 ** (tried - 1), self.max_wait) if safe else None
        safe = error.status == 429 or (error.status == 503 and repeatable)
        if not safe or error.retry_after is None or error.retry_after > self.max_wait:
            return None
        return error.retry_after

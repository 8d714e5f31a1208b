"""Calls that have no result, and those whose result comes with a warning."""

from __future__ import annotations

from typing import Optional


class Isol8Error(Exception):
    """The server refused, or a stream ended with an error. The text says what went wrong and what to do."""

    def __init__(
        self,
        message: str,
        *,
        code: Optional[str] = None,
        status: Optional[int] = None,
        retry_after: Optional[float] = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        """The kind, for example ``"SESSION_NOT_FOUND"``; ``None`` where the answer is not one of isol8's, and
        for errors within a stream, which have a text only."""
        self.status = status
        """HTTP status, if there was an answer over HTTP."""
        self.retry_after = retry_after
        """Seconds after which the server wants to be asked again, if it said so."""


class Isol8ConnectionError(Isol8Error):
    """The server could not be reached, or its answer did not arrive."""

    def __init__(self, message: str, *, maybe_sent: bool = True) -> None:
        super().__init__(message)
        self.maybe_sent = maybe_sent
        """Whether the request may have reached the server, and have been carried out."""


class Isol8Warning(UserWarning):
    """A doubt of the server about a request, or a key that is sent unencrypted."""

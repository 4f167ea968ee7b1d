"""What a request can end with when it has no usable answer: one hierarchy under `ClientError`.

No message shows credentials: the URL in it is redacted, and the causes name none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unwait.web.response import Response


IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"))
RETRIED = frozenset(
    (408, 425, 429, 500, 502, 503, 504)
)  # statuses after which another try may end differently


class ClientError(Exception):
    """A request without a usable answer.

    `cause` says in one line what went wrong, `hint` what to do about it where that is known; `method` and
    `url` (redacted) are the request's, `attempts` how often it was tried, `waited` the seconds that went by in limits
    and back-off; `retryable` whether the same request may be made again without harm and with some hope.
    """

    overloaded = False
    waited = 0.0
    retry_after: float | None = None
    retryable = False

    def __init__(
        self,
        cause: str = "",
        *,
        method: str = "",
        url: str = "",
        hint: str = "",
        attempts: int = 0,
        retryable: bool = False,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.method = method
        self.url = url
        self.hint = hint
        self.attempts = attempts
        self.retryable = retryable

    def __str__(self) -> str:
        request = f"{self.method} {self.url}".strip()
        text = f"{request}: {self.cause}" if request else self.cause
        if self.attempts > 1:
            text += f" ({self.attempts} attempts)"
        return f"{text}; {self.hint}" if self.hint else text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class InvalidURL(ClientError, ValueError):
    """The text is not a URL that can be fetched; the message says why and shows no credentials."""


class ConnectionFailed(ClientError, ConnectionError):
    """No connection to the server or its proxy could be made: nothing was sent."""


class ConnectionLost(ClientError, ConnectionError):
    """The connection ended before the whole answer was there."""


class TimedOut(ClientError, TimeoutError):
    """The time for one attempt, or for the request in all, was over."""


class InvalidAnswer(ClientError, ValueError):
    """What came back is not HTTP, not what its encoding says, or not JSON where that was asked for."""


class TooLarge(ClientError):
    """The body is larger than `max_bytes`."""


class RedirectError(ClientError):
    """The answer leads to where the client does not follow: too far, not http, or in clear with secrets."""


class NotSaved(ClientError):
    """The body could not be written to its file."""


class StatusError(ClientError):
    """An answer whose status is an error, raised by `Response.raise_for_status`; it is in `response`.

    `retry_after` is the delay in seconds that the server named; `overloaded` is true for 429 and 503. `retryable`
    where the status says that another try may end differently, the method may be repeated, and the client made one
    attempt only: its own retries are not to be multiplied.
    """

    def __init__(self, cause: str = "", *, response: Response | None = None, attempts: int = 0) -> None:
        super().__init__(
            cause,
            method=response.method if response else "",
            url=response.url if response else "",
            attempts=attempts,
        )
        self.response = response
        if response is not None:
            self.retry_after = response.retry_after
            self.overloaded = response.status in (429, 503)
            repeatable = response.method in IDEMPOTENT or response.status == 429
            self.retryable = response.attempts <= 1 and repeatable and response.status in RETRIED

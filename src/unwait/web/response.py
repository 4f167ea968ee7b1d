"""What came back for a request: small, typed, complete."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy

from unwait.web.causes import status_cause
from unwait.web.errors import InvalidAnswer, StatusError
from unwait.web.headers import retry_after
from unwait.web.text import encoding_of, first_characters


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Response:
    """An answer, whatever its status, with its whole body.

    `url` is where the answer came from, after redirects, with credentials and secrets replaced by `***`;
    `headers` is a mapping that ignores case (`getall` for headers that are there more than once); `content`
    the decoded body, or the part of it that was asked for with `keep`; `size` the bytes of the decoded body
    that were read; `path` the file it was saved to. The body of an error status may be incomplete.

    `attempts` counts the requests made for it, retries included (0 from the cache); `waited` the seconds in
    limits and back-off; `elapsed` all seconds. `from_cache` says whether the content comes from the cache,
    `deduplicated` whether another request for the same was in flight and this is its answer.
    """

    status: int
    reason: str
    method: str
    url: str
    headers: CIMultiDictProxy[str]
    content: bytes = b""
    size: int = 0
    path: Path | None = None
    attempts: int = 1
    waited: float = 0.0
    elapsed: float = 0.0
    from_cache: bool = False
    deduplicated: bool = False

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status < 400

    @property
    def charset(self) -> str | None:
        """The charset that the `Content-Type` names."""
        for parameter in self.headers.get("Content-Type", "").split(";")[1:]:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "charset":
                return value.strip(" \t\"'") or None
        return None

    @property
    def text(self) -> str:
        """The body as text: a byte-order mark wins over the header's charset, UTF-8 is the default.

        What cannot be decoded becomes U+FFFD.
        """
        return self.content.decode(encoding_of(self.content, self.charset), "replace")

    def json(self) -> Any:
        """The body as JSON; raises `InvalidAnswer`, a ValueError, if it is none."""
        charset = (self.charset or "utf-8").lower()
        try:
            # From bytes, UTF-8, -16 and -32 are told apart.
            return json.loads(self.content if charset.startswith("utf") else self.text)
        except (ValueError, RecursionError):
            begins = first_characters(self.content[:400], self.charset, 40)
            kind = self.headers.get("Content-Type", "no content type").partition(";")[0]
            cause = (
                f"the body is not JSON ({kind}, begins {begins!r})"
                if self.content
                else "the body is empty, not JSON"
            )
            raise InvalidAnswer(cause, method=self.method, url=self.url, attempts=self.attempts) from None

    @property
    def retry_after(self) -> float | None:
        """The seconds to wait that the server named, if it did."""
        return retry_after(self.headers)

    def raise_for_status(self) -> Response:
        """The response itself; raises `StatusError` if its status is 400 or above."""
        if self.status >= 400:
            raise StatusError(status_cause(self.status, self.reason), response=self, attempts=self.attempts)
        return self

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.method} {self.url} {self.size} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, name) for name in self.__slots__]
        values[4] = CIMultiDict(self.headers)
        return _restored, tuple(values)


def _restored(*values: Any) -> Response:
    fields = list(values)
    fields[4] = CIMultiDictProxy(fields[4])
    return Response(*fields)

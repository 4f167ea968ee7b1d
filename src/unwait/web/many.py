"""What fetching many URLs and sending many requests have in common: a client, and an engine that leaves retrying to it.

The limits are the client's and not the engine's, because an attempt must take its permits of all of them (the
host's too) at the same moment: a permit of a rate taken earlier would be used later, and a window exceeded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

from unwait.flow.calls import Calling
from unwait.flow.faults import is_overload, retry_after
from unwait.flow.limits import Limits, as_limits
from unwait.flow.outcome import Outcome
from unwait.flow.rates import Rate
from unwait.flow.retry import Retry, RetryBudget, transient
from unwait.flow.stats import Report
from unwait.web.cache import Cache
from unwait.web.client import Client
from unwait.web.errors import RETRIED, ClientError, StatusError
from unwait.web.response import Response
from unwait.web.urls import redact

LONGEST_DELAY = 600.0  # s; who is told to come back later than that fails, and is for another day's run
_AUTO_TASKS = 1000  # with limit="auto"; how many of them run is found below it


class ClientOptions(TypedDict, total=False):
    """What a function that opens a client of its own takes for it.

    As for `Client`: `limits`, `per_host` (any number), `retry` (5), `timeout` of an attempt (60 s), `max_bytes`
    (50 MiB), `max_redirects` (10), `headers` and `cache`; as for `map`, `rate` ("50/s") and `tokens` ("90000/min").
    """

    limits: Limits | Sequence[Limits] | None
    rate: str | Rate | None
    tokens: str | Rate | None
    per_host: int | None
    retry: Retry | int | None
    timeout: float
    max_bytes: int
    max_redirects: int
    headers: Mapping[str, str] | None
    cache: Cache | Path | str | None


def worthwhile(error: BaseException) -> bool:
    """Whether a failed attempt is made again: if it is `transient`, and not put off for longer than ten minutes."""
    return transient(error) and (retry_after(error) or 0) <= LONGEST_DELAY


def _yields(error: BaseException) -> bool:
    """Whether all requests are to yield to an overload: not for longer than the one that met it would wait."""
    return is_overload(error) and (retry_after(error) or 0) <= LONGEST_DELAY


def is_final(status: int) -> bool:
    """Whether asking again would give the same answer: not after a 408, 425, 429 or 5xx."""
    return status < 500 and status not in RETRIED


@asynccontextmanager
async def opened(
    client: Client | None, limit: int | Literal["auto"], options: ClientOptions
) -> AsyncIterator[Client]:
    """The client given, which stays open, or one with these options, which is closed at the end.

    Raises ValueError where there are both.
    """
    if client is not None:
        if options:
            names = ", ".join(f"{name}=" for name in options)
            raise ValueError(f"{names} is for a client that is opened here: give it to the Client in client=")
        if limit == "auto":
            raise ValueError('limit="auto" needs limits of the client: give it Limits(concurrency="auto")')
        yield client
        return
    if unknown := options.keys() - ClientOptions.__annotations__.keys():
        raise TypeError(f"no such option: {', '.join(f'{name}=' for name in sorted(unknown))}")
    async with new_client(limit, **options) as client:
        yield client


def new_client(
    limit: int | Literal["auto"],
    *,
    limits: Limits | Sequence[Limits] | None = None,
    rate: str | Rate | None = None,
    tokens: str | Rate | None = None,
    per_host: int | None = None,
    retry: Retry | int | None = 5,
    timeout: float = 60.0,
    max_bytes: int = 50 << 20,
    max_redirects: int = 10,
    headers: Mapping[str, str] | None = None,
    cache: Cache | Path | str | None = None,
    deduplicate: bool = True,
) -> Client:
    """A client with the limits that these options stand for."""
    each = as_limits(limits)
    if rate is not None or tokens is not None or limit == "auto":
        concurrency: Literal["auto"] | None = "auto" if limit == "auto" else None
        each.append(Limits(concurrency=concurrency, rate=rate, tokens=tokens, overload=_yields))
    if isinstance(retry, int):
        retry = Retry(retry, on=worthwhile, budget=RetryBudget())
    return Client(
        limits=each,
        per_host=per_host,
        retry=retry,
        timeout=timeout,
        # Waiting for a slow rate is no fault of the request.
        total=None,
        max_bytes=max_bytes,
        max_redirects=max_redirects,
        headers=headers,
        cache=cache,
        deduplicate=deduplicate,
    )


def tasks(limit: int | Literal["auto"]) -> int:
    """How many tasks the engine is to have."""
    return _AUTO_TASKS if limit == "auto" else limit


def calling(
    client: Client,
    limit: int | Literal["auto"],
    send: Callable[[Outcome[Any, Any]], Awaitable[Response]],
    value: Callable[[Outcome[Any, Any], Response], Any],
) -> Callable[[Report], Calling]:
    """How the engine calls: `send` with the outcome to be filled in, and `value` for what is kept of a final answer.

    An answer that another try may change is a failure: a StatusError, with the response in it.
    """

    def make(report: Report) -> Calling:
        report.watch(
            lambda: min([tasks(limit), *(n for limits in client.limits if (n := limits.in_force()))])
        )

        async def call(outcome: Outcome[Any, Any]) -> None:
            try:
                response = await send(outcome)
                if is_final(response.status):
                    outcome.value = value(outcome, response)
                else:
                    response.raise_for_status()
            except StatusError as error:
                outcome.error = error
            except ClientError as error:
                outcome.error = error
                count(outcome, error.attempts, error.waited)
                return
            except Exception as error:
                outcome.error = error
                return
            count(outcome, 0 if response.deduplicated else response.attempts, response.waited)
            report.calling += response.elapsed - response.waited

        def count(outcome: Outcome[Any, Any], attempts: int, waited: float) -> None:
            outcome.attempts = attempts
            outcome.waited = waited
            report.attempts += attempts
            report.retried += max(0, attempts - 1)
            # With its back-off, which the client does not tell apart.
            report.limited += waited

        return call

    return make


def count_refusal(report: Report, status: int | None) -> None:
    """Count as failed what the engine counted as done: a call with a final answer, which is an error status."""
    report.done -= 1
    report.failed += 1
    report.causes[f"HTTP {status}"] += 1


class Keys:
    """A URL's name in the journal: itself, without its secrets; with a number where it comes again."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def __call__(self, url: str) -> str:
        key = redact(url)
        if key != url:
            # Two that differ only in their secrets are two.
            key = f"{key} {hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        self._given[key] += 1
        return key if (number := self._given[key]) == 1 else f"{key} #{number}"

"""The bulk job: requests from JSON Lines, a result line for each, and a journal so that none is made twice."""

from __future__ import annotations

import asyncio
import codecs
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, Unpack

from unwait.flow.fanout import Run, Stream
from unwait.flow.journal import Journal
from unwait.flow.outcome import Outcome
from unwait.flow.stats import OTHER, Report
from unwait.web.many import ClientOptions, calling, count_refusal, new_client, tasks
from unwait.web.request_lines import (
    LONGEST_LINE,
    BadLine,
    Call,
    answered,
    bad_result,
    failed,
    parse_call,
    result_line,
)
from unwait.web.response import Response

_CAUSES = 100  # distinct ones that are counted


@dataclass(slots=True)
class Totals:
    """What became of all lines.

    `report` is that of the calls that were made or found in the journal, where answers with an error status count as
    failed; `malformed` counts lines that were no requests, `unfinished` calls that a later run makes again, `too_many`
    those whose last answer was 429; `causes` counts all that went wrong by its cause.
    """

    report: Report
    malformed: int = 0
    unfinished: int = 0
    too_many: int = 0
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, error: BaseException | None, result: bytes) -> None:
        """Count a call that ended, by its result."""
        if error is None and result.startswith(b'{"ok": true'):
            return
        facts = json.loads(result)
        cause = facts["error"]
        self.unfinished += error is not None
        if error is None:
            count_refusal(self.report, facts["status"])
        self.too_many += facts["status"] == 429
        self.causes[cause if len(self.causes) < _CAUSES or cause in self.causes else OTHER] += 1


async def send(
    lines: AsyncGenerator[tuple[int, bytes | None], None],
    write: Callable[[bytes], Awaitable[None]],
    *,
    limit: int | Literal["auto"] = 100,
    journal: str | os.PathLike[str] | None = None,
    started: Callable[[], None] = lambda: None,
    complain: Callable[[int, str], None] = lambda number, problem: None,
    progress: bool | Callable[[Report], None] | None = None,
    grace: float = 10.0,
    **options: Unpack[ClientOptions],
) -> Totals:
    """Make the request on each line (with its number; None for one that is too long), many at once.

    `write` gets a result line as soon as a call is done and, with `journal`, saved there; one at a time. What an
    earlier run saved is written again and not called: so `write` begins with nothing in a new run. `started` is
    called before the first line is read and after the journal was opened. `complain` is told about lines that are
    no requests; they have result lines too. The digests of all ids are held in memory, about 80 bytes each.

    The other parameters are those of `fetch`. Returns the totals. Raises what `lines`, `write` and the journal raise.
    """
    writing = asyncio.Lock()

    async def write_whole(line: bytes) -> None:
        async with writing:
            await write(line)

    requests = _Requests(lines, write_whole, complain)
    # Whoever has two lines for the same wants two answers.
    async with new_client(limit, deduplicate=False, **options) as client:

        def request(outcome: Outcome[Call, bytes]) -> Awaitable[Response]:
            call = outcome.item
            return client.request(
                call.method,
                call.url,
                headers=call.headers,
                data=call.body,
                timeout=call.timeout,
                cost=call.cost,
                idempotent=call.idempotent,
            )

        run = Run(
            send,  # type: ignore[arg-type]  # only names the run
            requests.calls(),
            limit=tasks(limit),
            journal=None if journal is None else Journal(journal, codec=_Written()),
            key=None if journal is None else lambda call: call.key,
            progress=progress,
            grace=grace,
            caller=calling(
                client, limit, request, lambda outcome, response: answered(outcome.item, response)
            ),
        )
        stream: Stream[Call, bytes] = Stream(run, tasks(limit))
        async with stream:
            started()
            totals = Totals(stream.report)
            async for outcome in stream:
                result = outcome.value
                if result is None or outcome.error is not None:
                    # An answer that could not be saved is none: a later run asks again.
                    result = failed(
                        outcome.item, outcome.error, outcome.attempts, outcome.waited, outcome.elapsed
                    )
                totals.add(outcome.error, result)
                await write_whole(result_line(outcome.item, result))
        totals.malformed = requests.malformed
        return totals


class _Requests:
    """The calls that lines stand for; what is none is written as its own result."""

    def __init__(
        self,
        lines: AsyncGenerator[tuple[int, bytes | None], None],
        write: Callable[[bytes], Awaitable[None]],
        complain: Callable[[int, str], None],
    ) -> None:
        self._lines = lines
        self._write = write
        self._complain = complain
        self._ids: set[bytes] = set()
        self.malformed = 0

    async def calls(self) -> AsyncGenerator[Call, None]:
        async with aclosing(self._lines):
            async for number, line in self._lines:
                if number == 1 and line is not None:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line is not None and not line.strip():
                    continue
                try:
                    if line is None:
                        raise BadLine(f"the line is longer than {LONGEST_LINE >> 20} MiB")
                    call = parse_call(line, number)
                    if not self._is_new(call.id):
                        raise BadLine("the id is that of an earlier line")
                except BadLine as bad:
                    self.malformed += 1
                    self._complain(number, str(bad))
                    id = bad.id if bad.id is not None and self._is_new(bad.id) else None
                    await self._write(bad_result(str(bad), id, number))
                else:
                    yield call

    def _is_new(self, id: str | int) -> bool:
        """Whether no line before had this id."""
        digest = blake2b(f"{type(id).__name__} {id}".encode("utf-8", "surrogatepass"), digest_size=9).digest()
        known = len(self._ids)
        self._ids.add(digest)
        return len(self._ids) > known


class _Written:
    """Results, which are JSON already: in the journal they are what the codec "json" would have made of them."""

    name = "json"

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, data: bytes) -> Any:
        return data

"""`fetch`, its responses in order, and what a second run with the same journal fetches again."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import unwait
from unwait.flow.journal import JournalError
from unwait.flow.journal_reader import JournalReader
from unwait.flow.limits import Limits
from unwait.flow.outcome import MapError
from unwait.flow.stats import Report
from unwait.web.client import Client
from unwait.web.errors import ClientError, InvalidURL, StatusError
from unwait.web.fetch import Fetched, ResponseCodec, fetch, fetch_as_completed
from unwait.web.response import Response

Serve = Callable[..., Any]
Run = Callable[..., Any]


class Counting:
    """Answers with the path, and counts how often it was asked for each; `statuses` are those of each path."""

    def __init__(self, **statuses: list[int]) -> None:
        self.counts: Counter[str] = Counter()
        self.most = self.now = 0
        self._statuses = statuses

    async def __call__(self, request: web.Request) -> web.Response:
        name = request.path.strip("/")
        statuses = self._statuses.get(name, [200])
        status = statuses[min(self.counts[name], len(statuses) - 1)]
        self.counts[name] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        headers = {"Set-Cookie": "session=s3cret", "X-Kept": "yes"}
        return web.Response(status=status, body=f"body of {name}\n".encode() + b"\x00\xff", headers=headers)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def bodies(responses: list[Response]) -> list[str]:
    return [response.text.splitlines()[0] for response in responses]


def test_responses_come_in_the_order_of_the_urls(run: Run, serve: Serve) -> None:
    async def main() -> None:
        handler = Counting(p3=[404], p5=[503, 200])
        async with serve({"/{n}": handler}) as base:
            urls = [f"{base}/p{n}" for n in range(40)]
            results = await fetch(urls, limit=7, per_host=5)
        assert [response.url for response in results] == urls
        assert bodies(results) == [f"body of p{n}" for n in range(40)]
        assert [response.status for response in results if not response.ok] == [404]
        report = results.report
        assert (report.total, report.done, report.failed, report.attempts, report.retried) == (
            40,
            40,
            0,
            41,
            1,
        )
        assert report.calling > 0
        assert report.limited > 0
        assert results.outcomes[5].attempts == 2
        assert results.outcomes[5].waited == results[5].waited > 0
        assert handler.most == 5

    run(main())


def test_no_urls(run: Run) -> None:
    assert run(fetch([])) == []


def test_urls_may_come_one_by_one(run: Run, serve: Serve) -> None:
    async def urls(base: str) -> AsyncIterator[str]:
        for number in range(5):
            await asyncio.sleep(0)
            yield f"{base}/{number}"

    async def main() -> list[Response]:
        async with serve({"/{n}": Counting()}) as base:
            return await fetch(urls(base))

    assert bodies(run(main())) == [f"body of {n}" for n in range(5)]


@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
def test_what_another_try_may_change_is_a_failure(run: Run, serve: Serve, errors: Any) -> None:
    async def main() -> list[Any]:
        async with serve({"/{n}": Counting(bad=[503])}) as base:
            urls = [f"{base}/good", f"{base}/bad", "http://user:s3cret@[::1", f"{base}/fine"]
            return await fetch(urls, errors=errors, retry=1, limit=1)

    if errors == "raise":
        with pytest.raises(MapError) as caught:
            run(main())
        (error,) = caught.value.exceptions
        assert isinstance(error, StatusError)
        good, bad = caught.value.outcomes
        assert good.value is not None
        assert good.value.status == 200
        assert bad.attempts == 2
    elif errors == "return":
        good, bad, invalid, fine = run(main())
        assert (good.status, fine.status) == (200, 200)
        assert isinstance(bad, StatusError)
        assert bad.response is not None
        assert bad.response.text.startswith("body of bad")
        assert isinstance(invalid, InvalidURL)
        assert "s3cret" not in str(invalid)
    else:
        assert bodies(run(main())) == ["body of good", "body of fine"]


def test_limits_hold_and_are_shared(run: Run, serve: Serve) -> None:
    async def main() -> None:
        handler = Counting()
        shared = Limits(concurrency=3)
        async with serve({"/{n}": handler}) as base:
            await asyncio.gather(
                *(fetch([f"{base}/{half}{n}" for n in range(20)], limits=shared) for half in ("a", "b"))
            )
            assert handler.most == 3
            started = asyncio.get_running_loop().time()
            await fetch([f"{base}/c{n}" for n in range(6)], rate="20/s")
            assert asyncio.get_running_loop().time() - started > 0.15
            results = await fetch([f"{base}/d{n}" for n in range(6)], tokens="100/s", cost=lambda url: 20)
            assert results.report.limited > 0
            results = await fetch([f"{base}/e{n}" for n in range(6)], limit="auto")
            assert results.report.in_force is not None

    run(main())


def test_who_is_told_to_come_back_tomorrow_fails_at_once_and_keeps_nobody_waiting(
    run: Run, serve: Serve
) -> None:
    async def tomorrow(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "86400"})

    async def main() -> None:
        async with serve({"/no/{n}": tomorrow, "/{n}": Counting()}) as base:
            urls = [f"{base}/{'no/' if n % 2 else ''}{n}" for n in range(10)]
            async with asyncio.timeout(20):
                results = await fetch(urls, rate="1000/s", limit="auto", per_host=4, errors="return")
            assert [isinstance(result, StatusError) for result in results] == [n % 2 == 1 for n in range(10)]
            assert results.report.attempts == 10

    run(main())


def test_over_a_client_of_ones_own(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve({"/{n}": Counting()}) as base, Client(headers={"X-A": "b"}) as client:
            assert bodies(await fetch([f"{base}/1"], client=client)) == ["body of 1"]
            assert not client.closed
            with pytest.raises(ValueError, match="timeout=, rate= is for a client that is opened here"):
                await fetch([], client=client, timeout=5, rate="5/s")
            with pytest.raises(ValueError, match="auto"):
                await fetch([], client=client, limit="auto")

    run(main())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"errors": "ignore"}, "errors must be"),
        ({"tokens": "5/s"}, "cost="),
        ({"limit": 0}, "at least 1"),
        ({"per_host": 0}, "per_host"),
        ({"rate": "often"}, "often"),
        ({"timeout": -1}, "positive"),
        ({"headers": {"a": "b\r\nc: d"}}, "line break"),
        ({"grace": -1}, "grace"),
    ],
)
def test_options_that_make_no_sense(run: Run, options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        run(fetch(["http://127.0.0.1:1/"], **options))


def test_what_is_no_url_fails_alone(run: Run, serve: Serve) -> None:
    async def main() -> list[Any]:
        async with serve({"/{n}": Counting()}) as base:
            return await fetch([None, f"{base}/1", 17], errors="return")  # type: ignore[list-item]

    nothing, response, number = run(main())
    assert str(nothing) == "a URL is a str, not NoneType"
    assert response.status == 200
    assert isinstance(number, ClientError)


def test_progress_is_told(run: Run, serve: Serve) -> None:
    reports: list[Report] = []

    async def main() -> None:
        async with serve({"/{n}": Counting(p1=[404])}) as base:
            await fetch([f"{base}/p{n}" for n in range(3)], progress=reports.append)

    run(main())
    assert reports[-1].done == 3


def test_cancelling_leaves_nothing_behind(run: Run, serve: Serve, journal: Path) -> None:
    async def main() -> None:
        begun = asyncio.Semaphore(0)

        async def silent(_: web.Request) -> web.Response:
            begun.release()
            await asyncio.Event().wait()
            raise AssertionError

        async with serve({"/{n}": silent}) as base:
            fetching = asyncio.create_task(
                fetch([f"{base}/{n}" for n in range(50)], limit=5, journal=journal)
            )
            for _ in range(5):
                await begun.acquire()
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching
            assert not [task for task in asyncio.all_tasks() if "Engine" in repr(task.get_coro())]

    run(main())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_every_outcome_leaves_no_task_no_permit_and_no_descriptor(
    run: Run, serve: Serve, serve_raw: Serve, journal: Path
) -> None:
    async def reset(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")

    async def silent(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        limits = Limits(concurrency=3)
        mine = asyncio.current_task()
        async with (
            serve({"/silent/{n}": silent, "/{n}": Counting(bad=[503])}) as base,
            serve_raw(reset) as broken,
        ):
            urls = [
                f"{base}/1",
                f"{base}/bad",
                broken,
                f"{base}/silent/1",
                "nonsense",
                "http://127.0.0.1:1/",
            ] * 3
            options: dict[str, Any] = {"limits": limits, "timeout": 0.2, "retry": 1}
            await fetch(urls, errors="skip", **options)  # whatever is made once is made now
            for _ in range(20):
                await asyncio.sleep(0.01)  # the server's ends
            before = descriptors()
            await fetch(urls, errors="return", journal=journal, **options)
            with pytest.raises(MapError):
                await fetch(urls, **options)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(fetch(urls, errors="skip", **{**options, "timeout": 50}), 0.1)
            async with aclosing(fetch_as_completed(urls, **options)) as rows:
                await anext(rows)
            for _ in range(200):
                if descriptors() <= before:
                    break
                await asyncio.sleep(0.01)
            assert descriptors() <= before
            permits = [limits.try_acquire() for _ in range(3)]
            assert all(permits)
            for permit in permits:
                assert permit is not None
                permit.release()
            left = [task for task in asyncio.all_tasks() if task is not mine and "aiohttp" not in repr(task)]
            assert left == []

    run(main())


# With a journal.


def test_a_second_run_fetches_only_what_is_missing(run: Run, serve: Serve, journal: Path) -> None:
    handler = Counting(bad=[503, 503, 200], gone=[410])

    async def main() -> None:
        async with serve({"/{n}": handler}) as base:
            urls = [f"{base}/{name}" for name in ("a", "bad", "gone", "b", "a")]
            first = await fetch(urls, journal=journal, retry=1, errors="return")
            assert isinstance(first[1], StatusError)
            assert handler.counts == {"a": 1, "b": 1, "bad": 2, "gone": 1}
            assert len(first.outcomes) == 5, "the same URL twice is two items"
            again = await fetch([*urls, f"{base}/new"], journal=journal, retry=1)
            assert handler.counts == {"a": 1, "b": 1, "bad": 3, "gone": 1, "new": 1}
            assert bodies(again) == [f"body of {name}" for name in ("a", "bad", "gone", "b", "a", "new")]
            assert [outcome.resumed for outcome in again.outcomes] == [True, False, True, True, True, False]
            assert again.report.resumed == 4
            for before, after in zip(first, again, strict=False):
                if isinstance(before, Response):
                    # The second run has all that the first one had, byte for byte.
                    for name in (
                        "status",
                        "reason",
                        "method",
                        "url",
                        "content",
                        "size",
                        "attempts",
                        "elapsed",
                    ):
                        assert getattr(before, name) == getattr(after, name)
                    assert before.headers == after.headers

    run(main())


def test_the_journal_keeps_no_secrets(run: Run, serve: Serve, journal: Path) -> None:
    async def main() -> None:
        async with serve({"/{n}": Counting(bad=[503])}) as base:
            private = base.replace("//", "//user:pa55word@")
            urls = [f"{private}/1?token=t0ken", f"{private}/bad?sid=t0ken", f"{base}/1?token=other"]
            for _ in range(2):
                good, _, other = await fetch(urls, journal=journal, retry=0, errors="return")
                assert isinstance(good, Response)
                assert isinstance(other, Response)
                assert "Set-Cookie" not in good.headers
                assert good.headers["X-Kept"] == "yes"

    run(main())
    stored = b"".join(path.read_bytes() for path in journal.parent.iterdir())
    for secret in (b"pa55word", b"t0ken", b"s3cret", b"user:"):
        assert secret not in stored
    with JournalReader(journal) as reader:
        assert reader.count() == (2, 1)
        assert [item.key for item in reader.items() if "***" not in item.key] == []


def test_a_journal_of_something_else_is_refused(
    run: Run, serve: Serve, journal: Path, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serve({"/{n}": Counting()}) as base:
            await unwait.map(asyncio.sleep, [0], journal=journal)
            with pytest.raises(JournalError, match="holds results of the function"):
                await fetch([f"{base}/1"], journal=journal)
            rows = tmp_path / "rows.db"
            assert len(await collected([f"{base}/1"], journal=rows)) == 1
            with pytest.raises(JournalError, match="codec"):
                await fetch([f"{base}/1"], journal=rows)

    run(main())


def test_a_response_in_a_journal_is_what_it_was(run: Run, serve: Serve, tmp_path: Path) -> None:
    async def main() -> Response:
        async with serve({"/{n}": Counting()}) as base, Client() as client:
            return await client.get(f"{base}/x", save_to=tmp_path / "x", keep=5)

    before = run(main())
    codec = ResponseCodec()
    after = codec.decode(codec.encode(before))
    assert after.headers.keys() == before.headers.keys() - {"Set-Cookie"}
    for name in Response.__slots__:
        assert name == "headers" or getattr(after, name) == getattr(before, name)
    assert pickle.loads(pickle.dumps(after)).content == b"body "


# Rows with a journal.


async def collected(urls: Any, **options: Any) -> list[Fetched]:
    async with aclosing(fetch_as_completed(urls, **{"retry": 0, **options})) as fetching:
        rows = [row async for row in fetching]
    return sorted(rows, key=lambda row: row.index)


def test_rows_are_resumed_and_files_that_vanished_fetched_again(
    run: Run, serve: Serve, journal: Path, tmp_path: Path
) -> None:
    handler = Counting(bad=[503], gone=[404])
    pages, elsewhere = tmp_path / "pages", tmp_path / "elsewhere"
    pages.mkdir()
    elsewhere.mkdir()

    async def main() -> None:
        async with serve({"/{n}": handler}) as base:
            urls = [f"{base}/{name}" for name in ("a", "b", "bad", "gone", "c")]
            first = await collected(urls, journal=journal, directory=pages)
            assert [row.error is None for row in first] == [True, True, False, False, True]
            for row in first:
                assert row.path is None or row.path.read_bytes().startswith(b"body of ")
            assert first[1].path is not None
            assert first[4].path is not None
            first[1].path.unlink()
            first[4].path.write_text("cut short")
            again = await collected(urls, journal=journal, directory=pages)
            assert handler.counts == {"a": 1, "b": 2, "bad": 2, "gone": 1, "c": 2}
            assert [row.resumed for row in again] == [True, False, False, True, False]
            assert [(row.index, row.url, row.status, row.error, row.begins) for row in again] == [
                (row.index, row.url, row.status, row.error, row.begins) for row in first
            ]
            assert first[4].path.read_bytes().startswith(b"body of c")
            moved = await collected(urls[:1], journal=journal, directory=elsewhere)
            assert not moved[0].resumed
            assert moved[0].path is not None
            assert moved[0].path.parent == elsewhere

    run(main())


def test_no_file_of_an_earlier_run_is_written_over(
    run: Run, serve: Serve, journal: Path, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serve({"/{n:.*}": Counting()}) as base:
            options = {"journal": journal, "directory": tmp_path / "pages"}
            options["directory"].mkdir()
            (one,) = await collected([f"{base}/a_b.html"], **options)
            # Its name would be the same.
            other, same = await collected([f"{base}/a/b.html", f"{base}/a_b.html"], **options)
            assert same.resumed
            assert one.path is not None
            assert other.path is not None
            assert one.path == same.path != other.path
            assert one.path.read_bytes().startswith(b"body of a_b.html")
            assert other.path.read_bytes().startswith(b"body of a/b.html")

    run(main())


def test_rows_in_a_journal_can_be_exported(run: Run, serve: Serve, journal: Path) -> None:
    async def main() -> list[Fetched]:
        async with serve({"/{n}": Counting()}) as base:
            return await collected([f"{base}/1"], journal=journal)

    (row,) = run(main())
    with JournalReader(journal) as reader:
        (item,) = reader.items()
        assert reader.codec == "json"
        assert item.data is not None
        assert json.loads(item.data)["begins"] == row.begins


def test_urls_are_pulled_lazily_with_a_journal_too(run: Run, serve: Serve, journal: Path) -> None:
    pulled = 0

    def endless(base: str) -> Iterator[str]:
        nonlocal pulled
        while True:
            yield f"{base}/{pulled}"
            pulled += 1

    async def main() -> None:
        async with serve({"/{n}": Counting()}) as base:
            fetching = fetch_as_completed(endless(base), limit=4, journal=journal)
            async with aclosing(fetching):
                for _ in range(10):
                    assert (await anext(fetching)).error is None

    run(main())
    assert pulled <= 10 + 4 + 4 + 256, "the journal's batch and what waits for the consumer bound it"

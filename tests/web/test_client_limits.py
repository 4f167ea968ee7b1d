"""What `Client` asks for again, what it waits for, and what it does not ask for at all."""

from __future__ import annotations

import asyncio
import copy
import gzip
import pickle
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from unwait.flow.fanout import map as flow_map
from unwait.flow.limits import Limits
from unwait.flow.retry import Retry
from unwait.web.breaker import Breaker, CircuitOpen
from unwait.web.client import Client
from unwait.web.errors import (
    ConnectionFailed,
    StatusError,
    TimedOut,
    TooLarge,
)
from unwait.web.urls import host

from .handlers import Gate, Script, idle_until_settled, redirect

pytestmark = pytest.mark.usefixtures("loop")

Serve = Callable[..., AbstractAsyncContextManager[str]]
QUICK = Retry(5, base=0.001, cap=0.01)


# Retries


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_a_status_that_may_pass_is_retried(serve: Serve, status: int) -> None:
    script = Script(status, status)
    async with serve({"/": script}) as base, Client(retry=QUICK) as client:
        response = await client.get(base)
    assert (response.status, response.text, response.attempts, script.seen) == (200, "answer 3", 3, 3)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422, 501, 505])
async def test_a_status_that_stays_is_not_retried(serve: Serve, status: int) -> None:
    script = Script(status)
    async with serve({"/": script}) as base, Client(retry=QUICK) as client:
        response = await client.get(base)
    assert (response.status, response.attempts, script.seen) == (status, 1, 1)


@pytest.mark.parametrize(
    ("method", "status", "options", "retried"),
    [
        ("PUT", 503, {}, True),
        ("DELETE", 500, {}, True),
        ("POST", 503, {}, False),
        ("POST", 500, {}, False),
        ("PATCH", 408, {}, False),
        ("POST", 429, {}, True),
        ("POST", 503, {"idempotent": True}, True),
        ("PATCH", 502, {"headers": {"idempotency-key": "1"}}, True),
        ("GET", 503, {"idempotent": False}, False),
        ("GET", 503, {"retry": 0}, False),
    ],
)
async def test_what_may_not_be_done_twice_is_not(
    serve: Serve, method: str, status: int, options: dict[str, Any], retried: bool
) -> None:
    script = Script(status)
    async with serve({"/": script}, method="*") as base, Client(retry=QUICK) as client:
        response = await client.request(method, base, data=b"x" if method == "POST" else None, **options)
    assert (response.status, script.seen) == ((200, 2) if retried else (status, 1))


async def test_when_retries_are_used_up_the_last_answer_comes(serve: Serve) -> None:
    script = Script(*[503] * 10)
    async with serve({"/": script}) as base, Client(retry=Retry(2, base=0)) as client:
        response = await client.get(base)
    assert (response.status, response.text, response.attempts, script.seen) == (503, "answer 3", 3, 3)


async def test_the_servers_delay_is_kept(serve: Serve) -> None:
    script = Script(503, headers={"Retry-After": "0.2"})
    async with serve({"/": script}) as base, Client(retry=Retry(1, base=0)) as client:
        response = await client.get(base)
    assert response.status == 200
    assert 0.2 <= response.waited <= response.elapsed


async def test_a_delay_beyond_the_total_is_not_begun(serve: Serve) -> None:
    script = Script(429, headers={"Retry-After": "3600"})
    async with serve({"/": script}) as base, Client(total=30) as client:
        response = await client.get(base)
    assert (response.status, response.attempts) == (429, 1)
    assert response.elapsed < 5


async def test_a_delay_that_one_request_was_told_holds_for_all_within_its_limits(serve: Serve) -> None:
    script = Script(429, headers={"Retry-After": "0.3"})
    async with serve({"/{name}": script}) as base, Client(limits=Limits(concurrency=5), retry=None) as client:
        assert (await client.get(f"{base}/a")).status == 429
        later = await client.get(f"{base}/b")
    assert later.status == 200
    assert later.waited >= 0.25


async def test_what_the_server_says_is_left_bounds_the_next_request(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.Response:
        left = {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "0.3"}
        return web.Response(headers=left)

    async with serve({"/{name}": handler}) as base, Client() as client:
        first = await client.get(f"{base}/a")
        second = await client.get(f"{base}/b")
    assert first.waited < 0.25 <= second.waited


async def test_what_the_server_says_is_left_bounds_the_callers_own_limits(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        left = {"x-ratelimit-limit": "9", "x-ratelimit-remaining": "1", "x-ratelimit-reset": "0.4"}
        return web.Response(headers=left if request.path == "/0" else {})

    async with serve({"/{name}": handler}) as base, Client(limits=Limits(rate="1000/s")) as client:
        waited = [(await client.get(f"{base}/{number}")).waited for number in range(3)]
    assert waited[1] < 0.2 <= waited[2]


async def test_the_callers_limits_alone_say_whom_the_servers_words_concern(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"})

    each = Limits(concurrency=5, per=lambda url: url)
    async with serve({"/{name}": handler}) as base, Client(limits=each) as client:
        waited = [(await client.get(f"{base}/{number}")).waited for number in range(3)]
    assert max(waited) < 1


async def test_a_host_that_says_when_to_come_back_is_left_alone_until_then(serve: Serve) -> None:
    script = Script(503, headers={"Retry-After": "0.3"})
    other = Script()
    async with (
        serve({"/{name}": script}) as base,
        serve({"/{name}": other}) as second,
        Client(retry=None) as client,
    ):
        assert (await client.get(f"{base}/a")).status == 503
        assert (await client.get(f"{second}/b")).waited < 0.1
        assert (await client.get(f"{base}/b")).waited >= 0.2


async def test_a_host_that_says_come_back_tomorrow_keeps_nobody_waiting(serve: Serve) -> None:
    script = Script(
        429, 429, headers={"Retry-After": "80000", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "80000"}
    )
    async with serve({"/{name}": script}) as base, Client() as client:
        first, second = await client.get(f"{base}/a"), await client.get(f"{base}/b")
    assert (first.status, second.status) == (429, 429)
    assert second.elapsed < 5


# Bounds


async def test_attempts_at_one_host_are_bounded(serve: Serve) -> None:
    gate = Gate()
    other = Gate()
    async with (
        serve({"/{name}": gate}) as base,
        serve({"/{name}": other}) as second,
        Client(per_host=3) as client,
        asyncio.TaskGroup() as group,
    ):
        for number in range(10):
            group.create_task(client.get(f"{base}/{number}"))
        await gate.reached(3)
        async with idle_until_settled():
            group.create_task(client.get(f"{second}/x"))
        await other.reached(1)
        assert gate.inside == 3
        gate.open.set()
        other.open.set()
    assert (gate.seen, gate.most, other.most) == (10, 3, 1)


async def test_connections_to_where_redirects_lead_are_bounded_too(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/{name}": gate}) as target, AsyncExitStack() as stack, Client(per_host=2) as client:
        bases = [await stack.enter_async_context(serve({"/": redirect(f"{target}/x")})) for _ in range(5)]
        tasks = [asyncio.create_task(client.get(base)) for base in bases]
        await gate.reached(2)
        async with idle_until_settled():
            pass
        gate.open.set()
        assert all([(await task).ok for task in tasks])
    assert (gate.seen, gate.most) == (5, 2)


async def test_limits_are_shared_by_clients_and_keyed_by_the_url(serve: Serve) -> None:
    gate = Gate()
    limits = Limits(concurrency=2, per=host)
    async with serve({"/{name}": gate}) as base, Client(limits=limits) as one, Client(limits=limits) as two:
        tasks = [asyncio.create_task((one, two)[number % 2].get(f"{base}/{number}")) for number in range(6)]
        await gate.reached(2)
        async with idle_until_settled():
            pass
        gate.open.set()
        await asyncio.gather(*tasks)
    assert (gate.seen, gate.most) == (6, 2)


async def test_an_attempt_that_takes_too_long_is_made_again(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}) as base, Client(timeout=0.1, retry=Retry(1, base=0)) as client:
        with pytest.raises(TimedOut) as caught:
            await client.get(f"{base}/?token=s3cret")
        assert (
            str(caught.value)
            == f"GET {base}/?token=***: timed out after 0.1 s without an answer (2 attempts)"
        )
        assert isinstance(caught.value, TimeoutError)
        assert gate.seen == 2
        gate.open.set()


async def test_an_attempt_at_a_post_that_takes_too_long_is_not_made_again(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}, method="*") as base, Client(timeout=0.1, retry=Retry(1, base=0)) as client:
        with pytest.raises(TimedOut, match=r"without an answer$"):
            await client.post(base, json={})
        gate.open.set()
    assert gate.seen == 1


async def test_the_total_bounds_retries_and_waiting(serve: Serve) -> None:
    script = Script(*[503] * 100)
    async with (
        serve({"/": script}) as base,
        Client(total=0.5, retry=Retry(50, base=60, random=lambda: 1.0)) as client,
    ):
        with pytest.raises(
            TimedOut, match=r"not done within 0\.5 s; the last answer was HTTP 503 Service Unav"
        ):
            await client.get(base)
    gate = Gate()
    async with serve({"/{name}": gate}) as base, Client(total=0.5, per_host=1) as client:
        first, second = await asyncio.gather(
            client.get(f"{base}/a"), client.get(f"{base}/b"), return_exceptions=True
        )
        gate.open.set()
    assert [str(error).partition(": ")[2] for error in (first, second)] == ["not done within 0.5 s"] * 2
    assert gate.seen == 1


async def test_a_body_is_bounded(serve: Serve) -> None:
    async def large(request: web.Request) -> web.StreamResponse:
        body = b"x" * 1001
        if request.path == "/gzip":
            return web.Response(body=gzip.compress(b"\0" * (100 << 20)), headers={"Content-Encoding": "gzip"})
        if request.path == "/sized":
            return web.Response(body=body)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(body)
        return response

    async with serve({"/{name}": large}) as base, Client(max_bytes=1000, retry=QUICK) as client:
        for name in ("sized", "streamed", "gzip"):
            with pytest.raises(TooLarge, match="body is larger than 1000 bytes; raise max_bytes="):
                await client.get(f"{base}/{name}")
        for keep in (None, 0):
            assert (await client.head(f"{base}/sized", keep=keep)).headers["Content-Length"] == "1001"


async def test_the_body_of_an_error_is_bounded_and_does_not_hide_the_status(serve: Serve) -> None:
    async def large(_: web.Request) -> web.Response:
        return web.Response(status=404, body=b"x" * 1001)

    async with serve({"/": large}) as base, Client(max_bytes=1000) as client:
        response = await client.get(base)
    assert response.status == 404
    assert len(response.content) <= 1000


async def test_bodies_are_decoded(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(b"hello" * 100), headers={"Content-Encoding": "gzip"})

    async with serve({"/": handler}) as base, Client() as client:
        response = await client.get(base)
    assert response.content == b"hello" * 100
    assert response.size == 500


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"total": -1}, {"max_bytes": 0}, {"max_redirects": -1}, {"per_host": 0}, {"retry": -1}],
)
async def test_bounds_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Client(**options)


# One request for the same


async def test_gets_for_the_same_are_one_request(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}) as base, Client() as client:
        async with idle_until_settled():
            tasks = [asyncio.create_task(client.get(base)) for _ in range(5)]
        other = asyncio.create_task(client.get(base, headers={"Authorization": "Bearer b"}))
        secret = asyncio.create_task(client.get(base.replace("//", "//user:pass@")))
        await gate.reached(3)
        gate.open.set()
        responses = [await task for task in tasks]
        apart = [await other, await secret]
        later = await client.get(base)
    assert [response.deduplicated for response in responses] == [False, True, True, True, True]
    assert len({response.text for response in responses}) == 1
    assert not any(response.deduplicated for response in [*apart, later])
    assert gate.seen == 4


async def test_requests_that_differ_or_do_something_are_not_shared(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}, method="*") as base, Client() as client, Client(deduplicate=False) as each:
        tasks = [asyncio.create_task(client.post(base)) for _ in range(2)]
        tasks += [asyncio.create_task(each.get(base)) for _ in range(2)]
        await gate.reached(4)
        gate.open.set()
        assert not any(response.deduplicated for response in await asyncio.gather(*tasks))
    assert gate.seen == 4


async def test_when_the_first_is_cancelled_the_others_still_get_their_answer(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}) as base, Client() as client:
        async with idle_until_settled():
            tasks = [asyncio.create_task(client.get(base)) for _ in range(5)]
        await gate.reached(1)
        # Also one that waits, and one that takes over and is cancelled before it has run.
        tasks[3].cancel()
        tasks[0].cancel()
        tasks[1].cancel()
        for task in (tasks[0], tasks[1], tasks[3]):
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.open.set()
        assert [(await task).status for task in (tasks[2], tasks[4])] == [200, 200]
        assert (await client.get(base)).status == 200
    assert gate.seen == 3


async def test_a_successor_that_is_cancelled_as_it_takes_over_hands_on(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}) as base, Client() as client:
        async with idle_until_settled():
            tasks = [asyncio.create_task(client.get(base)) for _ in range(3)]
        await gate.reached(1)
        tasks[0].add_done_callback(lambda _: tasks[1].cancel())
        tasks[0].cancel()
        gate.open.set()
        assert (await tasks[2]).status == 200
        assert tasks[1].cancelled()


async def test_an_error_is_shared_too_and_each_raises_its_own(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}) as base, Client(timeout=0.1, retry=None) as client:
        errors = await asyncio.gather(*(client.get(base) for _ in range(3)), return_exceptions=True)
        gate.open.set()
    assert gate.seen == 1
    assert {str(error) for error in errors} == {f"GET {base}: timed out after 0.1 s without an answer"}
    assert len({id(error) for error in errors}) == 3


async def test_who_joins_late_has_all_of_the_total_time(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}) as base, Client(total=0.6, retry=None) as client:
        first = asyncio.create_task(client.get(base))
        await gate.reached(1)
        await asyncio.sleep(0.3)
        late = asyncio.create_task(client.get(base))
        with pytest.raises(TimedOut, match="not done within"):
            await first
        gate.open.set()
        assert (await late).status == 200
    assert gate.seen == 2


async def test_who_takes_over_has_no_more_than_the_total_time(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}) as base, Client(total=0.5, retry=None) as client:
        started = client.loop.time()
        leader, follower = (asyncio.create_task(client.get(base)) for _ in range(2))
        await asyncio.sleep(0.45)
        leader.cancel()
        with pytest.raises(TimedOut, match="not done within"):
            await follower
        took = client.loop.time() - started
        gate.open.set()
    assert took < 0.9


def test_errors_can_be_copied_and_pickled() -> None:
    error = ConnectionFailed("no", method="GET", url="http://h/", hint="do", attempts=2, retryable=True)
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), str(twin), twin.retryable) == (ConnectionFailed, str(error), True)
    assert str(error) == "GET http://h/: no (2 attempts); do"


# Breaker


async def test_a_host_that_only_fails_is_left_alone_and_then_asked_again(serve: Serve) -> None:
    script = Script(*[500] * 3)
    breaker = Breaker(3, cooldown=0.2)
    async with serve({"/": script}) as base, Client(breaker=breaker, retry=None) as client:
        for _ in range(3):
            assert (await client.get(base)).status == 500
        with pytest.raises(CircuitOpen, match="circuit open") as caught:
            await client.get(base)
        assert caught.value.retry_after is not None
        assert script.seen == 3
        response = await client.get(base, retry=Retry(1, base=0))
    assert (response.status, response.attempts, script.seen) == (200, 2, 4)


async def test_a_host_that_does_not_answer_is_left_alone_too(serve: Serve) -> None:
    gate = Gate()
    async with serve({"/": gate}) as base, Client(breaker=Breaker(2), timeout=0.05, retry=None) as client:
        for _ in range(2):
            task = asyncio.create_task(client.get(base))
            await gate.reached(1)
            task.cancel()
            await asyncio.wait([task])
        for _ in range(2):
            with pytest.raises(TimedOut):
                await client.get(base)
        with pytest.raises(CircuitOpen, match="circuit open"):
            await client.get(base)
        gate.open.set()
        for _ in range(2):
            with pytest.raises(ConnectionFailed, match="Connection refused"):
                await client.get("http://127.0.0.1:1/")
        with pytest.raises(CircuitOpen, match="circuit open"):
            await client.get("http://127.0.0.1:1/")


async def test_without_a_breaker_every_request_is_made(serve: Serve) -> None:
    script = Script(*[500] * 30)
    async with serve({"/": script}) as base, Client(breaker=False, retry=None) as client:
        for _ in range(30):
            assert (await client.get(base)).status == 500


async def test_retries_of_the_client_and_of_whoever_calls_it_do_not_multiply(serve: Serve) -> None:
    asked = 0

    async def failing(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=503)

    async with serve({"/": failing}) as base:
        for own, around, expected in ((0, 2, 3), (2, 2, 3), (2, 0, 3)):
            async with Client(retry=Retry(own, base=0)) as client:

                async def get(url: str, client: Client = client) -> int:
                    return (await client.get(url)).raise_for_status().status

                asked = 0
                results = await flow_map(get, [base], retry=Retry(around, base=0), errors="return")
                assert isinstance(results[0], StatusError)
                assert asked == expected

"""The flaky API does what it says, does it again with the same seed, and counts right: other tests trust it."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Coroutine
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import aiohttp
import flaky_api
import pytest
from flaky_api import Faults, FlakyApi
from flaky_faults import Fate, Stats, Window
from hypothesis import given, settings
from hypothesis import strategies as st

Run = Callable[[Coroutine[Any, Any, Any]], Any]
TROUBLE: dict[str, Any] = {"latency": 0.1, "errors": 0.2, "drops": 0.05, "slow": 0.03, "redirects": 0.02}
property_test = settings(max_examples=200, derandomize=True, deadline=None, database=None)


async def raw(url: str, path: str, headers: str = "") -> tuple[bytes, OSError | None]:
    """All that comes for one GET on a connection of its own, and the error that ended it, if one did."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received = b""
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode())
        while piece := await reader.read(65536):
            received += piece
    except ConnectionResetError as error:
        return received, error
    finally:
        writer.close()
    return received, None


async def statuses(session: aiohttp.ClientSession, url: str, times: int) -> list[int]:
    """The statuses of that many GETs, one after the other; redirects are not followed."""
    found = []
    for _ in range(times):
        async with session.get(url, allow_redirects=False) as response:
            await response.read()
            found.append(response.status)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The server's clock, which stands still at `clock.now` unless moved."""
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    clock.time = lambda: 1_800_000_000.0 + clock.now
    monkeypatch.setattr(flaky_api, "time", clock)
    return clock


# What happens to whom.


def fates(faults: Faults) -> dict[tuple[int, int], Fate]:
    return {(n, attempt): faults.fate(f"/items/{n}", attempt) for n in range(200) for attempt in range(3)}


def test_fates_depend_on_the_seed_and_on_what_is_asked_but_not_on_the_order() -> None:
    first = fates(Faults(seed=7, **TROUBLE))
    again = Faults(seed=7, **TROUBLE)
    for (number, attempt), fate in reversed(first.items()):
        assert again.fate(f"/items/{number}", attempt) == fate
    assert fates(Faults(seed=8, **TROUBLE)) != first


def test_each_fault_has_its_share_of_the_attempts() -> None:
    expected = {"drop": 0.10, "reset": 0.05, "stall": 0.02, "slow": 0.08, "redirect": 0.03, "close": 0.20}
    faults = Faults(drops=0.10, resets=0.05, stalls=0.02, slow=0.08, redirects=0.03, closes=0.20)
    kinds = [faults.fate(f"/items/{number}", 0).kind for number in range(20_000)]
    for kind, share in expected.items():
        assert kinds.count(kind) / len(kinds) == pytest.approx(share, abs=0.01)
    assert set(kinds) == {"ok", *expected}


def test_errors_come_in_bursts_of_neighbours_and_pass() -> None:
    faults = Faults(seed=3, errors=0.25, burst=10, persist=3)
    counts = []
    for start in range(0, 4000, 10):
        failures = []
        for number in range(start, start + 10):
            found = [faults.fate(f"/items/{number}", attempt).status for attempt in range(5)]
            failed = [status in (500, 502, 503, 504) for status in found]
            assert failed == sorted(failed, reverse=True), "what has recovered stays so"
            failures.append(sum(failed))
        assert all(failures) or not any(failures), "neighbours fail together"
        counts.append(failures)
    assert {count for failures in counts for count in failures} == {0, 1, 2, 3}
    assert sum(map(any, counts)) / len(counts) == pytest.approx(0.25, abs=0.05)


def test_latency_is_log_normal_around_its_median_and_bounded() -> None:
    faults = Faults(latency=0.2, spread=0.8)
    latencies = [faults.fate(f"/items/{number}", 0).latency for number in range(5000)]
    logarithms = [math.log(latency) for latency in latencies]
    assert statistics.median(latencies) == pytest.approx(0.2, rel=0.05)
    assert statistics.stdev(logarithms) == pytest.approx(0.8, rel=0.05)
    assert max(Faults(latency=0.2, spread=9).fate(f"/items/{n}", 0).latency for n in range(50)) == 2.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rpm": 0}, "rpm must be positive"),
        ({"window": -1.0}, "window must be positive"),
        ({"latency": -0.1}, "latency must be finite"),
        ({"latency": math.nan}, "latency must be finite"),
        ({"drops": 1.5}, "drops is a share"),
        ({"drops": 0.6, "slow": 0.6}, "more than 1"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Faults(**wrong)


# The windows, and the count that judges them.


def most(times: list[float], seconds: float, weights: list[int]) -> int:
    """The largest sum of weights in any half-open window, found the slow way."""
    return max(
        sum(weight for other, weight in zip(times, weights, strict=True) if time - seconds < other <= time)
        for time in times
    )


gaps_and_costs = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), min_size=1, max_size=60)


@property_test
@given(gaps_and_costs, st.integers(12, 30))
def test_a_window_admits_all_that_fits_and_nothing_more(arrivals: list[tuple[int, int]], limit: int) -> None:
    seconds = 64.0
    window = Window(limit, seconds)
    now = 0.0
    times: list[float] = []
    costs: list[int] = []
    for gap, cost in arrivals:
        now += gap
        held = sum(old for when, old in zip(times, costs, strict=True) if when > now - seconds)
        assert window.remaining(now) == limit - held
        wait = window.wait(now, cost)
        assert (wait == 0) == (held + cost <= limit)
        if wait:
            # Not a moment too long, and long enough.
            assert window.wait(now + wait - 0.5, cost) > 0 or wait < 0.5
            now += wait
            assert window.remaining(now) >= cost
        window.admit(now, cost)
        times.append(now)
        costs.append(cost)
    assert most(times, seconds, costs) <= limit


def test_what_is_larger_than_a_window_never_fits() -> None:
    assert Window(10, 1.0).wait(0.0, 11) == math.inf


@property_test
@given(gaps_and_costs, st.integers(1, 200))
def test_the_maxima_are_those_of_any_window(arrivals: list[tuple[int, int]], seconds: int) -> None:
    stats = Stats(float(seconds))
    now = 0.0
    times = []
    for number, (gap, cost) in enumerate(arrivals):
        now += gap
        times.append(now)
        seen = stats.arrived("x", cost, now)
        if number % 3:
            stats.admit(seen)
    costs = [cost for _, cost in arrivals]
    assert stats.most_tokens() == most(times, seconds, costs)
    assert stats.most_requests() == most(times, seconds, [1] * len(times))
    kept = [index for index in range(len(times)) if index % 3]
    if kept:
        assert stats.most_tokens(admitted=True) == most(
            [times[index] for index in kept], seconds, [costs[index] for index in kept]
        )


def test_retries_after_an_overload_are_counted_by_when_they_came() -> None:
    stats = Stats(60.0)
    for number, status in enumerate((429, 503, 429, 500, 429)):
        stats.answered(stats.arrived(f"/items/{number}", 1, 0.0), status)
    for number, when in enumerate((1.00, 1.04, 1.30, 1.31)):
        stats.arrived(f"/items/{number}", 1, when)
    stats.arrived("/items/0", 1, 1.35)
    # Not the one after a 500, nor the second after one 429; and the last has not come back yet.
    assert list(stats.retries) == [1.00, 1.04, 1.30]
    assert [stats.largest_burst(seconds) for seconds in (0.01, 0.1, 1.0)] == [1, 2, 3]


@pytest.mark.parametrize(("form", "seconds"), [("seconds", 5.0), ("date", 4.75), ("none", 0.0)])
def test_a_retry_before_the_time_that_was_named_is_counted(
    run: Run, clock: SimpleNamespace, form: Any, seconds: float
) -> None:
    async def main() -> None:
        faults = Faults(rpm=1, window=4.5, retry_after=form)
        async with FlakyApi(faults) as api, aiohttp.ClientSession() as session:
            clock.now += 0.25
            assert await statuses(session, f"{api.url}/items/1", 2) == [200, 429]
            clock.now += seconds
            await statuses(session, f"{api.url}/items/1", 1)
            assert api.stats.early == 0
            await statuses(session, f"{api.url}/items/2", 1)
            clock.now += max(seconds - 0.25, 0.0)
            await statuses(session, f"{api.url}/items/2", 1)
            assert api.stats.early == (form != "none")

    run(main())


# The limits, as a client meets them.


def test_more_requests_than_the_window_holds_are_told_when_to_come_back(
    run: Run, clock: SimpleNamespace
) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(rpm=20, window=10.0)) as api, aiohttp.ClientSession() as session:
            forms = set()
            for number in range(60):
                async with session.get(f"{api.url}/items/{number}") as response:
                    error = await response.json()
                    assert response.status == (200 if number < 20 else 429)
                    assert response.headers["x-ratelimit-limit-requests"] == "20"
                    left = int(response.headers["x-ratelimit-remaining-requests"])
                    assert left == max(0, 19 - number)
                    assert "x-ratelimit-limit-tokens" not in response.headers
                if response.status == 200:
                    clock.now += 0.25
                    continue
                # The first was admitted 5 s ago: its place is free in 5 s more.
                assert "5.000 s" in error["error"]["message"]
                assert response.headers["x-ratelimit-reset-requests"] == "9.750s"
                after = response.headers["Retry-After"]
                if after.isdigit():
                    forms.add("seconds")
                    assert after == "5"
                else:
                    forms.add("date")
                    assert parsedate_to_datetime(after).timestamp() == clock.time() + 5
            assert forms == {"seconds", "date"}
            clock.now += 5.0
            assert await statuses(session, f"{api.url}/items/20", 2) == [200, 429]
            assert (api.stats.refused, api.stats.completed) == (41, 21)
            assert api.stats.most_requests(admitted=True) == 20
            # All but the first, which came just as long before the last.
            assert api.stats.most_requests() == 61

    run(main())


@pytest.mark.parametrize("form", ["seconds", "date", "none"])
def test_one_form_of_retry_after_can_be_chosen(run: Run, form: Any) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(rpm=1, retry_after=form)) as api, aiohttp.ClientSession() as session:
            await statuses(session, f"{api.url}/items/1", 1)
            for number in range(8):
                async with session.get(f"{api.url}/items/{number}") as response:
                    after = response.headers.get("Retry-After")
                    found = "none" if after is None else "seconds" if after.isdigit() else "date"
                    assert (response.status, found) == (429, form)

    run(main())


def test_tokens_are_counted_from_the_request(run: Run, clock: SimpleNamespace) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(tpm=100, rpm=1000)) as api, aiohttp.ClientSession() as session:

            async def complete(**body: Any) -> tuple[int, Any, str]:
                async with session.post(f"{api.url}/v1/complete", json=body) as response:
                    left = response.headers["x-ratelimit-remaining-tokens"]
                    return response.status, await response.json(), left

            status, answer, left = await complete(id="a", prompt="what is  the answer", max_tokens=56)
            usage = {"prompt_tokens": 4, "completion_tokens": 56, "total_tokens": 60}
            assert (status, answer["id"], answer["usage"], left) == (200, "a", usage, "40")
            assert len(answer["text"].split()) == 56
            status, answer, left = await complete(id="b", prompt="too much", max_tokens=39)
            assert (status, answer["error"]["type"], left) == (429, "rate_limit", "40")
            status, answer, left = await complete(id="c", prompt="just enough", max_tokens=38)
            assert (status, left) == (200, "0")
            status, answer, left = await complete(id="d", prompt="never", max_tokens=100)
            assert (status, left) == (413, "0")
            clock.now += 60.0
            assert (await complete(id="b", prompt="too much", max_tokens=39))[0] == 200
            # Refused for its tokens, a request takes nothing from the other window.
            assert api.stats.most_requests(admitted=True) == 2
            assert api.stats.most_tokens(admitted=True) == 100

    run(main())


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"prompt": 7}',
        '{"prompt": "x", "max_tokens": -1}',
        '{"prompt": "x", "max_tokens": 1e999}',
    ],
)
def test_what_is_no_completion_request_is_a_400(run: Run, body: str) -> None:
    async def main() -> None:
        async with (
            FlakyApi() as api,
            aiohttp.ClientSession() as session,
            session.post(f"{api.url}/v1/complete", data=body) as response,
        ):
            assert response.status == 400
            assert "needs a prompt" in (await response.json())["error"]["message"]

    run(main())


def test_a_call_is_known_by_its_id_or_else_by_its_body(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api, aiohttp.ClientSession() as session:
            bodies: list[dict[str, Any]] = [{"id": 0}, {"id": "0"}, {"prompt": "x y"}, {"prompt": "y"}]
            for body in [*bodies, bodies[-1]]:
                async with session.post(f"{api.url}/v1/complete", json={"prompt": "x", **body}) as response:
                    answer = await response.json()
                    assert answer["id"] == body.get("id", answer["id"])
            counts = [seen.completed for seen in api.stats.seen.values()]
            assert counts == [2, 1, 2]
            assert next(iter(api.stats.seen)) == "/v1/complete#0"

    run(main())


# Each fault on the wire.


def test_items_and_pages_are_the_same_each_time(run: Run) -> None:
    async def bodies(seed: int) -> list[bytes]:
        async with FlakyApi(Faults(seed=seed)) as api, aiohttp.ClientSession() as session:
            found = []
            for path in [f"/{kind}/{number}" for kind in ("items", "pages") for number in range(20)]:
                async with session.get(api.url + path) as response:
                    found.append(await response.read())
            return found

    first = run(bodies(1))
    assert run(bodies(1)) == first
    assert run(bodies(2)) != first
    assert json.loads(first[7])["id"] == "7"
    assert len({len(page) for page in first[20:]}) == 20
    assert b"<title>Page 7</title>" in first[27]


def test_a_dropped_connection_is_reset_before_a_byte(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api:
            received, error = await raw(api.url, "/items/1?faults=drop")
            assert (received, type(error)) == (b"", ConnectionResetError)
            assert (api.stats.faults, api.stats.completed) == ({"drop": 1}, 0)

    run(main())


def test_a_reset_comes_in_the_middle_of_the_body(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api:
            whole, _ = await raw(api.url, "/pages/1", "Connection: close\r\n")
            received, error = await raw(api.url, "/pages/1?faults=ok,reset")
            assert isinstance(error, ConnectionResetError)
            body = whole.partition(b"\r\n\r\n")[2]
            head, _, half = received.partition(b"\r\n\r\n")
            assert half == body[: len(body) // 2]
            assert f"content-length: {len(body)}".encode() in head.lower()
            assert api.stats.completed == 1

    run(main())


def test_a_closed_connection_was_not_announced(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api:
            received, error = await raw(api.url, "/items/1?faults=close")
            assert error is None
            head, _, body = received.partition(b"\r\n\r\n")
            assert json.loads(body)["id"] == "1"
            assert b"connection:" not in head.lower()
            assert api.stats.completed == 1

    run(main())


def test_a_stalled_request_is_given_up_when_its_client_goes(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api:
            stalled = asyncio.create_task(raw(api.url, "/items/1?faults=stall"))
            while not api.stats.concurrent:
                await asyncio.sleep(0.001)
            await raw(api.url, "/items/2", "Connection: close\r\n")
            assert (api.stats.concurrent, api.stats.concurrent_max) == (1, 2)
            stalled.cancel()
            await asyncio.wait([stalled])
            while api.stats.concurrent:
                await asyncio.sleep(0.001)
            stalled = asyncio.create_task(raw(api.url, "/items/1?faults=stall,stall"))
            while not api.stats.concurrent:
                await asyncio.sleep(0.001)
        assert (await stalled)[0] == b"", "the server ends whoever still waits"

    run(main())


@pytest.mark.parametrize("path", ["/slow?seconds=0.2&pieces=4", "/items/1?faults=slow"])
def test_a_slow_body_trickles(run: Run, path: str) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(slow_seconds=0.2)) as api, aiohttp.ClientSession() as session:
            started = asyncio.get_running_loop().time()
            async with session.get(api.url + path) as response:
                pieces = [piece async for piece in response.content.iter_any()]
                assert len(pieces) >= 3
                assert asyncio.get_running_loop().time() - started >= 0.19
                assert len(b"".join(pieces)) == response.content_length
            assert api.stats.faults == {"slow": 1}
            assert api.stats.completed == 1

    run(main())


def test_scripted_fates_come_in_order_and_then_all_is_well(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(errors=1.0)) as api, aiohttp.ClientSession() as session:
            url = f"{api.url}/items/1?faults=503,429,404,redirect,308"
            found = await statuses(session, url, 7)
            assert found[:3] == [503, 429, 404]
            assert found[3] in (301, 302, 307, 308)
            assert found[4:] == [308, 200, 200]
            assert await statuses(session, f"{api.url}/items/2?faults=flood", 1) == [400]
            assert await statuses(session, f"{api.url}/items/3?faults=200", 1) == [400]

    run(main())


def test_only_a_scripted_503_names_a_delay(run: Run) -> None:
    async def main() -> None:
        faults = Faults(errors=1.0, retry_after="seconds")
        async with FlakyApi(faults) as api, aiohttp.ClientSession() as session:
            for status in (429, 503):
                async with session.get(f"{api.url}/items/x?faults=ok,{status},{status}") as response:
                    assert "Retry-After" not in response.headers
                async with session.get(f"{api.url}/items/x?faults=ok,{status},{status}") as response:
                    assert (response.status, response.headers["Retry-After"]) == (status, "1")
                api.reset()
            found = set()
            for number in range(40):
                async with session.get(f"{api.url}/items/{number}") as response:
                    found.add(response.status)
                    assert "Retry-After" not in response.headers
            assert found == {500, 502, 503, 504}

    run(main())


def test_redirects_lead_through_all_four_statuses_to_an_end(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api, aiohttp.ClientSession() as session:
            async with session.get(f"{api.url}/redirect/5") as response:
                assert await response.json() == {"arrived": True}
                assert [step.status for step in response.history] == [302, 301, 308, 307, 302]
            async with session.get(f"{api.url}/redirect/2?status=308") as response:
                assert [step.status for step in response.history] == [308, 308]
            with pytest.raises(aiohttp.TooManyRedirects):
                await session.get(f"{api.url}/redirect/loop")
            assert await statuses(session, f"{api.url}/redirect/x", 1) == [404]

    run(main())


def test_a_redirected_post_stays_a_post(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api, aiohttp.ClientSession() as session:
            url = f"{api.url}/v1/complete?faults=301,302"
            async with session.post(url, json={"id": "a", "prompt": "x", "max_tokens": 1}) as response:
                assert [step.status for step in response.history] == [308, 307]
                assert (await response.json())["id"] == "a"

    run(main())


def test_bodies_are_compressed_for_those_who_ask(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(gzip=1.0)) as api:
            plain, _ = await raw(api.url, "/pages/1", "Connection: close\r\n")
            packed, _ = await raw(api.url, "/pages/1", "Connection: close\r\nAccept-Encoding: gzip\r\n")
            head, _, body = packed.partition(b"\r\n\r\n")
            assert b"content-encoding: gzip" in head.lower()
            assert gzip.decompress(body) == plain.partition(b"\r\n\r\n")[2]

    run(main())


def test_the_bomb_is_small_until_it_is_opened(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api:
            sent, _ = await raw(api.url, "/gzip-bomb?mib=3", "Connection: close\r\n")
            assert len(sent) < 10_000
            assert gzip.decompress(sent.partition(b"\r\n\r\n")[2]) == bytes(3 << 20)

    run(main())


def test_what_has_not_changed_is_a_304(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api, aiohttp.ClientSession() as session:
            url = f"{api.url}/etag/1?max_age=9"

            async def get(**headers: str) -> tuple[int, Any, Any]:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                async with session.get(url, headers=named) as response:
                    assert response.headers["Cache-Control"] == "max-age=9"
                    body = await response.read()
                    return response.status, response.headers, json.loads(body) if body else None

            status, first, body = await get()
            assert (status, body["version"]) == (200, 0)
            assert (await get(If_None_Match=first["ETag"]))[0] == 304
            assert (await get(If_Modified_Since=first["Last-Modified"]))[0] == 304
            assert (await get(If_None_Match='"other"', If_Modified_Since=first["Last-Modified"]))[0] == 200
            await session.put(url)
            for headers in ({"If_None_Match": first["ETag"]}, {"If_Modified_Since": first["Last-Modified"]}):
                status, second, body = await get(**headers)
                assert (status, body["version"]) == (200, 1)
                assert second["ETag"] != first["ETag"]

    run(main())


# What it counts.


def test_a_run_after_a_reset_meets_the_same_again(run: Run) -> None:
    async def main() -> None:
        faults = Faults(seed=5, errors=0.5, redirects=0.3, rpm=1000)
        async with FlakyApi(faults) as api, aiohttp.ClientSession() as session:

            async def one_run(order: int) -> tuple[dict[int, list[int]], Any]:
                found = {n: await statuses(session, f"{api.url}/items/{n}", 3) for n in range(100)[::order]}
                async with session.get(f"{api.url}/stats") as response:
                    summary = await response.json()
                await session.post(f"{api.url}/reset")
                return found, {
                    name: summary[name] for name in ("completed", "statuses", "faults", "received")
                }

            first = await one_run(1)
            assert first[1]["received"] == 300
            assert len(first[1]["statuses"]) > 5
            assert await one_run(-1) == first
            assert api.stats.seen == {}

    run(main())


def test_what_was_completed_twice_is_named(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi() as api, aiohttp.ClientSession() as session:
            await statuses(session, f"{api.url}/items/1?faults=500,503", 3)
            await statuses(session, f"{api.url}/items/2", 2)
            assert api.stats.repeated == ["/items/2"]
            assert (api.stats.seen["/items/1"].received, api.stats.seen["/items/1"].completed) == (3, 1)
            assert api.stats.completed == 3
            async with session.get(f"{api.url}/stats?window=0.5&burst=0.25") as response:
                summary = await response.json()
            assert summary["ids"] == {"/items/1": [3, 1], "/items/2": [2, 2]}
            assert (summary["repeated"], summary["retries_after_overload"]) == (["/items/2"], 1)
            assert (summary["window"]["seconds"], summary["largest_burst"]["seconds"]) == (0.5, 0.25)
            async with session.get(f"{api.url}/stats?window=soon") as response:
                assert response.status == 400

    run(main())


def test_an_answer_whose_client_has_gone_is_not_completed(run: Run) -> None:
    async def main() -> None:
        async with FlakyApi(Faults(slow_seconds=30.0)) as api:
            fetching = asyncio.create_task(raw(api.url, "/pages/1?faults=slow"))
            while not api.stats.faults:
                await asyncio.sleep(0.001)
            fetching.cancel()
            await asyncio.wait([fetching])
            while api.stats.concurrent:
                await asyncio.sleep(0.001)
            assert (api.stats.seen["/pages/1"].received, api.stats.completed) == (1, 0)

    run(main())


# The command.


def command(examples: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(examples / "flaky_api.py"), *arguments]


def test_the_command_prints_its_address_when_it_answers(examples: Path) -> None:
    line = command(examples, "--port", "0", "--seed", "7", "--rpm", "2", "--window", "30")
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            asked = Request(f"{url}/v1/complete", b'{"id": 1, "prompt": "one two"}')
            assert json.load(urlopen(asked))["usage"]["prompt_tokens"] == 2
            assert json.load(urlopen(f"{url}/items/4"))["id"] == "4"
            summary = json.load(urlopen(f"{url}/stats"))
            assert (summary["completed"], summary["window"]["seconds"]) == (2, 30.0)
        finally:
            process.terminate()


def test_the_help_shows_examples_and_what_the_server_answers(examples: Path) -> None:
    done = subprocess.run(command(examples, "--help"), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    for text in ("--bad-day", "POST /v1/complete", "python examples/flaky_api.py", "--retry-after"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rpm", "0"), "rpm must be positive"),
        (("--drops", "1", "--slow", "1"), "add up to more than 1"),
        (("--errors", "many"), "--errors"),
        (("--retry-after", "soon"), "--retry-after"),
    ],
)
def test_bad_options_are_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        flaky_api.parse(list(arguments))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_options_beside_bad_day_win() -> None:
    port, faults = flaky_api.parse(["--bad-day", "--errors", "0.5", "--tpm", "900", "--port", "0"])
    assert (port, faults.errors, faults.tpm, faults.rpm) == (0, 0.5, 900, None)
    assert faults.closes > 0

"""`map` with a journal: what is saved is not called again, and nothing is reported before it is saved."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter

import pytest

from unwait.flow.codec import CodecError
from unwait.flow.fanout import map, stream
from unwait.flow.journal import Journal, JournalError
from unwait.flow.outcome import MapError
from unwait.flow.saving import DuplicateKey


class Calls:
    """Squares numbers, fails for some, and counts its calls."""

    __qualname__ = "Calls"

    def __init__(self, *failing):
        self.failing = set(failing)
        self.made = Counter()

    async def __call__(self, n):
        self.made[n] += 1
        await asyncio.sleep(0)
        if n in self.failing:
            raise OSError(f"no {n}")
        return n * n


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.db"


async def test_a_second_run_calls_nothing(loop, path):
    calls = Calls()
    first = await map(calls, range(300), journal=path)
    second = await map(calls, range(300), journal=path)
    assert first == second == [n * n for n in range(300)]
    assert set(calls.made.values()) == {1}
    assert (first.report.resumed, second.report.resumed) == (0, 300)
    assert second.report.attempts == 0
    assert all(outcome.resumed for outcome in second.outcomes)


async def test_the_report_of_a_second_run_is_about_what_it_did(loop, path):
    await map(Calls(), range(100), journal=path)
    report = (await map(Calls(), range(101), journal=path)).report
    assert (report.done, report.resumed, report.attempts) == (101, 100, 1)
    assert report.throughput == pytest.approx(1 / report.elapsed)
    assert report.p50 == report.p95 > 0
    assert repr(report).startswith("<Report: 101 done, 100 of them from the journal")


async def test_what_failed_is_called_again(loop, path):
    calls = Calls(3, 5)
    first = await map(calls, range(8), journal=path, errors="return")
    assert [type(first[n]) for n in (3, 5)] == [OSError, OSError]
    calls.failing.clear()
    assert await map(calls, range(8), journal=path) == [n * n for n in range(8)]
    assert {n for n, made in calls.made.items() if made == 2} == {3, 5}


async def test_a_run_that_raised_has_saved_what_was_done(loop, path):
    calls = Calls(50)
    with pytest.raises(MapError) as caught:
        await map(calls, range(100), limit=4, journal=path)
    done = {outcome.item for outcome in caught.value.outcomes if outcome.ok}
    assert done
    calls.failing.clear()
    await map(calls, range(100), journal=path)
    assert all(calls.made[n] == 1 for n in done)


async def test_leaving_a_stream_early_keeps_what_it_reported(loop, path):
    calls = Calls()
    reported = []
    async with stream(calls, range(1000), limit=5, journal=path) as outcomes:
        async for outcome in outcomes:
            reported.append(outcome.item)
            if len(reported) == 20:
                break
    await map(calls, range(1000), journal=path)
    assert all(calls.made[n] == 1 for n in reported)


async def test_an_outcome_is_reported_only_when_it_is_in_the_file(loop, path):
    async for outcome in stream(Calls(7), range(40), limit=3, journal=path):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as reader:
            row = reader.execute("SELECT count(*) FROM items WHERE key = ?", (outcome.key,)).fetchone()
        reader.close()
        assert row == (1,)


async def test_keys_may_be_given(loop, path):
    calls = Calls()
    results = await map(calls, [1, 2, 3], journal=path, key=lambda n: f"number {n}")
    assert [outcome.key for outcome in results.outcomes] == ["number 1", "number 2", "number 3"]


async def test_a_key_that_is_none_fails_its_item_alone(loop, path):
    def key(n):
        return [n] if n == 2 else n

    results = await map(Calls(), [1, 2, 3], journal=path, key=key, errors="return")
    assert [results[0], results[2]] == [1, 9]
    assert isinstance(results[1], TypeError)
    assert "list" in str(results[1])


@pytest.mark.parametrize("limit", [1, 10])
async def test_a_second_item_with_the_same_key_is_an_error_in_every_run(loop, path, limit):
    calls = Calls()
    for _ in range(2):
        results = await map(calls, [1, 2, 1], limit=limit, journal=path, errors="return")
        assert results[:2] == [1, 4]
        assert isinstance(results[2], DuplicateKey)
        assert "tell them apart with key=" in str(results[2])
    assert calls.made == {1: 1, 2: 1}


async def test_a_value_that_cannot_be_stored_is_not_lost(loop, path):
    async def unstorable(n):
        return {1, 2} if n == 1 else n

    results = await map(unstorable, [0, 1, 2], journal=path, errors="return")
    assert isinstance(results[1], CodecError)
    assert results[1].value == {1, 2}
    assert results[2] == 2
    pickled = Journal(path.with_name("pickled.db"), codec="pickle")
    assert await map(unstorable, [0, 1, 2], journal=pickled) == [0, {1, 2}, 2]
    assert await map(unstorable, [0, 1, 2], journal=pickled) == [0, {1, 2}, 2]


async def test_values_are_the_same_in_both_runs(loop, path):
    async def pair(n):
        return (n, {"a": n})

    assert await map(pair, [1], journal=path) == await map(pair, [1], journal=path)


async def test_the_journal_of_another_function_or_version_is_refused(loop, path):
    async def other(n):
        return n

    await map(Calls(), [1], journal=path)
    with pytest.raises(JournalError, match=r"other") as raised:
        await map(other, [1], journal=path)
    assert "Calls" in str(raised.value)
    with pytest.raises(JournalError, match="version"):
        await map(Calls(), [1], journal=Journal(path, version="2"))


async def test_the_journal_of_a_running_run_is_refused(loop, path):
    async with stream(Calls(), iter(range(1000)), journal=path, limit=1) as outcomes:
        await anext(outcomes)
        with pytest.raises(JournalError):
            await map(Calls(), [1], journal=path)


async def test_retries_and_waits_are_in_the_journal(loop, path):
    class FailsOnce(Calls):
        async def __call__(self, n):
            self.made[n] += 1
            if self.made[n] == 1:
                raise OSError
            return n

    from unwait.flow.retry import Retry

    await map(FailsOnce(), [1], journal=path, retry=Retry(3, base=0))
    resumed = await map(FailsOnce(), [1], journal=path)
    assert resumed.outcomes[0].attempts == 0
    assert resumed.report.attempts == 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as reader:
        assert reader.execute("SELECT attempts FROM items").fetchone() == (2,)
    reader.close()


CHILD = """
import asyncio, sys, unwait

async def call(n):
    await asyncio.sleep(0)
    print("called", n, flush=True)
    await asyncio.sleep(0.0005 * (n % 3))
    return n * n

async def main():
    async for outcome in unwait.stream(call, range(int(sys.argv[2])), limit=8, journal=sys.argv[1]):
        print("reported", outcome.item, outcome.value, flush=True)

unwait.run(main())
"""


@pytest.mark.parametrize("seed", range(3))
def test_nothing_reported_is_lost_or_repeated_after_kills(tmp_path, seed):
    """A real process, killed over and over after so many calls; then all is there, each once."""
    script, path, items = tmp_path / "child.py", tmp_path / "run.db", 400
    script.write_text(textwrap.dedent(CHILD))
    chance = random.Random(seed)
    reported: set[int] = set()
    kills = 0
    while True:
        calls_until_kill = chance.randrange(1, 45)
        child = subprocess.Popen(
            [sys.executable, str(script), str(path), str(items)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        again = []
        seen_now: set[int] = set()
        for line in child.stdout:
            if not line.endswith("\n"):
                break
            what, number, *_ = line.split()
            if what == "called" and int(number) in reported:
                again.append(int(number))
            if what == "reported":
                seen_now.add(int(number))
            calls_until_kill -= what == "called"
            if calls_until_kill == 0:
                child.kill()
        child.stdout.close()
        code = child.wait()
        assert again == []
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        reported |= seen_now
    assert kills >= 10
    assert seen_now == set(range(items))
    journal = sqlite3.connect(path)
    rows = journal.execute("SELECT key, value FROM items").fetchall()
    assert {int(key.partition(":")[2]): json.loads(value) for key, value in rows} == {
        n: n * n for n in range(items)
    }
    assert journal.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    journal.close()

"""Ctrl-C and SIGTERM during a `map` or `stream`, in a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PROGRAM = """
import asyncio, sys, unwait

journal, what, run = sys.argv[1:4]
started = 0

async def call(n):
    global started
    started += 1
    if n >= 10:
        if started == 14:
            print("waiting", flush=True)
        await asyncio.sleep(0.3 if what != "stuck" else 1000)
    print("done", n, flush=True)
    return n

async def nested(n):
    return sum(await unwait.map(call, range(10 * n, 10 * n + 10), limit=4))

async def main():
    try:
        if what == "stream":
            async for outcome in unwait.stream(call, iter(range(10**9)), limit=4, journal=journal):
                print("reported", outcome.item, flush=True)
        elif what == "limited":
            await unwait.map(call, range(100), limit=50, rate=unwait.Rate(14, 3600, burst=14), journal=journal)
        elif what == "nested":
            await unwait.map(nested, iter(range(10**9)), limit=1, journal=journal)
        elif what == "whole":
            print("whole", await unwait.map(call, range(14), limit=4, journal=journal), flush=True)
            await asyncio.sleep(0)
        else:
            await unwait.map(call, iter(range(10**9)), limit=4, journal=journal, errors="return", grace=60)
        print("went on", flush=True)
    finally:
        print("cleaned up", flush=True)

if run == "by hand":
    asyncio.new_event_loop().run_until_complete(main())
else:
    (unwait.run if run == "unwait" else asyncio.run)(main())
"""


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    @contextmanager
    def start(what: str, run: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, str(script), str(tmp_path / "run.db"), what, run]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                for line in child.stdout:
                    if line == "waiting\n":
                        break
                yield child
            finally:
                child.kill()

    return start


@pytest.mark.parametrize("run", ["unwait", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("what", ["map", "stream"])
def test_the_first_signal_lets_what_runs_finish_and_saves_it(start, what, number, run):
    with start(what, run) as child:
        child.send_signal(number)
        out, err = child.communicate()
    finished = {line for line in out.splitlines() if line.startswith("done")}
    assert finished == {f"done {n}" for n in range(10, 14)}
    assert "went on" not in out
    assert "cleaned up" in out
    assert "14 done and saved in" in err
    assert "run again to resume" in err
    assert child.returncode == -signal.SIGINT


def test_a_run_that_has_taken_all_its_items_ends_whole(start):
    with start("whole", "unwait") as child:
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate()
    assert f"whole {list(range(14))}" in out
    assert "went on" not in out
    assert child.returncode == -signal.SIGINT


def test_nested_runs_end_together(start):
    with start("nested", "unwait") as child:
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
    assert {line for line in out.splitlines() if line.startswith("done")} == {
        f"done {n}" for n in range(10, 14)
    }
    assert "1 done and saved in" in err
    assert "CallCancelled" not in err
    assert child.returncode == -signal.SIGINT


@pytest.mark.parametrize("run", ["unwait", "asyncio", "by hand"])
def test_the_second_signal_stops_at_once(start, run):
    with start("stuck", run) as child:
        child.send_signal(signal.SIGINT)
        while "again" not in (line := child.stderr.readline()):
            assert line
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
    assert "done" not in out
    assert "10 done and saved in" in err
    assert child.returncode == -signal.SIGINT


def test_what_waits_for_its_first_call_is_not_called_any_more(start):
    with start("limited", "unwait") as child:
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
    assert "finishing 4 running items" in err
    assert {line for line in out.splitlines() if line.startswith("done")} == {
        f"done {n}" for n in range(10, 14)
    }
    assert "14 done and saved in" in err
    assert child.returncode == -signal.SIGINT

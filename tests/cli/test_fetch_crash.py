"""`unwait fetch --requests` killed by SIGKILL at random points, 50 times and more, and what is then in its output."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

ITEMS = 80
JOBS = 5
KILLS = 10  # of each job


def calls(base: str) -> str:
    """Requests of all kinds: most are answered 200, some with a final error, some at the second attempt."""
    lines = []
    for number in range(ITEMS):
        statuses = "404" if number % 20 == 7 else "429,200" if number % 20 == 11 else "200"
        call: dict[str, Any] = {"id": f"n{number}", "url": f"{base}/call/n{number}?statuses={statuses}"}
        if number % 3:
            call["json"] = {"number": number}
        lines.append(json.dumps(call))
    lines.insert(ITEMS // 2, "no request")
    return "\n".join(lines)


def complete_lines(output: Path) -> list[dict[str, Any]]:
    """The result lines of a file that may end in the middle of one."""
    text = output.read_bytes() if output.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def facts(output: Path) -> list[tuple[Any, ...]]:
    """What results say, without times and attempts, in one order."""
    lines = [json.loads(line) for line in output.read_bytes().splitlines()]
    found = [
        (line["line"], line["id"], line["ok"], line["status"], repr(line.get("body")), line.get("error"))
        for line in lines
    ]
    return sorted(found)


def count_done(journal: Path) -> int:
    if not journal.exists():
        return 0
    with closing(sqlite3.connect(journal)) as database:
        if not database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'items'").fetchone():
            return 0
        return int(database.execute("SELECT count(*) FROM items WHERE state = 1").fetchone()[0])


class Killer:
    """Kills the process `victim` when the server has seen `before` calls and sees one more."""

    def __init__(self, before: int) -> None:
        self.before = before
        self.victim: Future[int] = Future()

    def __call__(self, _: str) -> None:
        self.before -= 1
        if self.before == -1:
            # It may ask before who started it knows its number.
            os.kill(self.victim.result(30), signal.SIGKILL)


@pytest.mark.parametrize("job", range(JOBS))
def test_killed_ten_times_it_repeats_no_finished_call_and_has_each_id_once(
    unwait: Any, start: Callable[..., subprocess.Popen[str]], api: Any, tmp_path: Path, job: int
) -> None:
    chance = random.Random(job)
    source, output, plain = (tmp_path / name for name in ("calls.jsonl", "results.jsonl", "plain.jsonl"))
    journal = Path(f"{output}.journal")
    source.write_text(calls(api.base))
    command = ("fetch", "--requests", str(source), "-o", str(output), "--limit", "6", "--no-progress")
    written: dict[str, int] = {}  # how often each id was called when its result line was there

    def note_written() -> None:
        for line in complete_lines(output):
            if line["id"] is not None:
                written.setdefault(line["id"], api.counts[line["id"]])

    for kill in range(KILLS):
        # As many calls before it as leave some for the kills after it.
        share = (ITEMS - count_done(journal)) // (KILLS - kill)
        api.on_call = killer = Killer(chance.randrange(max(1, share)))
        process = start(*command, "--resume")
        killer.victim.set_result(process.pid)
        process.communicate(timeout=30)
        api.on_call = lambda _: None
        assert process.returncode == -signal.SIGKILL
        note_written()
    for _ in range(2):
        # At any moment of its life: while it starts, opens the journal, writes again what is done.
        process = start(*command, "--resume")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.1, 0.6))
        process.kill()
        process.communicate(timeout=30)
        note_written()

    done = unwait(*command, "--resume")
    assert done.returncode == 1
    assert done.stderr.startswith(f"unwait fetch: line {ITEMS // 2 + 1}: not JSON")
    again = {id: api.counts[id] - count for id, count in written.items() if api.counts[id] != count}
    assert again == {}, "requests were repeated whose results had been written"
    ids = Counter(json.loads(line)["id"] for line in output.read_bytes().splitlines())
    assert ids == Counter([None, *(f"n{number}" for number in range(ITEMS))])
    assert count_done(journal) == ITEMS
    with closing(sqlite3.connect(journal)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    api.counts.clear()
    uninterrupted = unwait("fetch", "--requests", str(source), "-o", str(plain))
    assert (uninterrupted.returncode, "Traceback" in uninterrupted.stderr) == (1, False), uninterrupted.stderr
    assert facts(output) == facts(plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "calls.jsonl",
        "plain.jsonl",
        "plain.jsonl.journal",
        "results.jsonl",
        "results.jsonl.journal",
    ]

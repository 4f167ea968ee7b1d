"""kill -9 at random points: what was reported is in the file, and the next run goes on from there."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from unwait.flow.codec import JsonCodec
from unwait.flow.journal import JournalError
from unwait.flow.journal_reader import JournalReader

ITEMS = 20_000
ROUNDS = 15

# Journals items as fast as it can, in uneven portions, and says of each key that it is committed.
PROGRAM = """
import asyncio, sys
from unwait.flow.journal import Journal

async def main(path, count):
    def committed(keys):
        print(*keys, sep="\\n", flush=True)
        room.set()

    room = asyncio.Event()
    print("opening", flush=True)
    session = Journal(path).session("crash", committed, sys.exit)
    for number in range(count):
        key = f"item {number * 7919 % count}"
        if session.find(key) is None:
            session.done(key, {"of": key, "text": "x" * (number % 300)}, key, attempts=1, waited=0.0, elapsed=0.0)
            if number % 13 == 0:
                await asyncio.sleep(0)
            if number % 500 == 0:
                room.clear()
                await room.wait()
    await session.close()
    print("closed", flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, path, str(ITEMS)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore::RuntimeWarning"},
    )


def contents(path: Path) -> dict[str, object]:
    decode = JsonCodec().decode
    with JournalReader(path) as journal:
        return {item.key: decode(item.data or b"") for item in journal.items()}


@pytest.mark.parametrize("seed", [1])
def test_what_was_reported_before_a_kill_is_in_the_journal(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    path = tmp_path / "run.db"
    reported: set[str] = set()
    for killed in range(1, ROUNDS + 1):
        # In the first rounds while the file is being made, then anywhere.
        lines = 1 if killed <= 4 else choose.randrange(2, 1200)
        with start(path) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(lines)]
            if killed <= 4:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(choose.uniform(0, 0.01))
            process.kill()
            # What it still said before it died; its last line may be cut off.
            said += process.stdout
        assert "closed\n" not in said
        fresh = {line[:-1] for line in said if line.endswith("\n")} - {"opening"}
        assert killed <= 4 or fresh
        reported |= fresh
        try:
            found = contents(path)
        except JournalError:
            # Killed while it made the file, which the next round goes on with.
            assert killed <= 4
            assert not reported
        else:
            assert reported <= found.keys()
            assert all(value["of"] == key for key, value in found.items())  # type: ignore[index]
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert ITEMS / 10 < len(reported) < ITEMS

    with start(path) as process:
        said = list(process.stdout or ())
    assert said[-1] == "closed\n"
    undisturbed = tmp_path / "undisturbed.db"
    with start(undisturbed) as process:
        assert list(process.stdout or ())[-1] == "closed\n"
    assert contents(path) == contents(undisturbed)
    assert len(contents(path)) == ITEMS
    # No item whose commit was reported was stored a second time.
    assert not {line[:-1] for line in said} & reported


READ_WHILE_IT_BREAKS = """
import asyncio, sys
from unwait.flow.journal import Journal, JournalError

async def round(path):
    broken = asyncio.Event()
    session = Journal(path).session("f", lambda tags: None, lambda error: broken.set())
    for number in range(50):
        session.done(str(number), number, number, attempts=1, waited=0.0, elapsed=0.0)
    while session._pending:
        await asyncio.sleep(0)

    def full(rows):
        raise OSError("disk full")

    session._store = full
    session.done("more", 1, 1, attempts=1, waited=0.0, elapsed=0.0)
    session._hand_over()
    try:
        for number in range(10_000_000):
            session.find(str(number % 50))
    except JournalError:
        print("refused", flush=True)
    await broken.wait()
    await session.close()

for number in range(25):
    asyncio.run(round(f"{sys.argv[1]}/{number}.db"))
"""


def test_reading_while_the_writer_breaks_is_refused_and_does_not_crash(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_WHILE_IT_BREAKS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["refused"] * 25

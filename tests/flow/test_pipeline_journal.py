"""Pipelines that are interrupted and run again: nothing reported is done twice, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import unwait
from unwait.flow.journal import Journal, JournalMismatch
from unwait.flow.pipeline import Pipeline, Stage
from unwait.flow.saving import DuplicateKey

SOURCE = Path(unwait.__file__).parent.parent


async def inc(number: int) -> int:
    return number + 1


async def double(number: int) -> int:
    return 2 * number


class Recorder:
    """Two stages, of which each call is remembered."""

    def __init__(self) -> None:
        self.downloads: list[int] = []
        self.parses: list[int] = []
        self.broken: set[int] = set()

    async def download(self, number: int) -> dict[str, int]:
        self.downloads.append(number)
        await asyncio.sleep(0)
        return {"body": number}

    async def parse(self, page: dict[str, int]) -> int:
        number = page["body"]
        self.parses.append(number)
        await asyncio.sleep(0)
        if number in self.broken:
            raise ValueError(f"cannot parse {number}")
        return number * 10

    def pipeline(self, path: Path, **options: Any) -> Pipeline:
        return Pipeline([Stage(self.download, save=True), self.parse], journal=path, **options)


async def test_a_second_run_does_nothing(loop: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    pipeline = recorder.pipeline(tmp_path / "run.db")
    first = await pipeline.run(range(300))
    assert first == [10 * number for number in range(300)]
    second = await pipeline.run(range(300))
    assert second == first
    assert (len(recorder.downloads), len(recorder.parses)) == (300, 300)
    assert all(outcome.resumed and outcome.key == f"item:{outcome.item}" for outcome in second.outcomes)
    assert (second.report.resumed, second.report.attempts) == (300, 0)


async def test_an_item_goes_on_behind_its_last_saved_stage(loop: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.broken = {2, 5}
    pipeline = recorder.pipeline(tmp_path / "run.db", key=lambda number: f"page {number}")
    results = await pipeline.run(range(8), errors="skip")
    assert results == [0, 10, 30, 40, 60, 70]
    recorder.broken = set()
    results = await pipeline.run(range(10))
    assert results == [10 * number for number in range(10)]
    assert Counter(recorder.downloads) == dict.fromkeys(range(10), 1)
    assert Counter(recorder.parses) == {number: 2 if number in (2, 5) else 1 for number in range(10)}
    assert [outcome.resumed for outcome in results.outcomes] == [n not in (2, 5, 8, 9) for n in range(10)]
    assert results.outcomes[2].attempts == 1
    assert results.outcomes[2].key == "page 2"
    report: Any = results.report
    assert [stage.taken for stage in report.stages] == [2, 4]


async def test_a_saved_value_whose_size_fails_is_the_error_of_its_item(loop: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.broken = {1, 2}

    def pipeline(size: Callable[[Any], float]) -> Pipeline:
        stages = [Stage(recorder.download, save=True), Stage(recorder.parse, size=size)]
        return Pipeline(stages, journal=tmp_path / "run.db")

    await pipeline(lambda page: 1).run(range(3), errors="skip")
    results = await pipeline(lambda page: 1 // (page["body"] - 2)).run(range(3), errors="return")
    assert results[0] == 0
    assert isinstance(results[1], ValueError)
    assert isinstance(results[2], ZeroDivisionError)
    outcome: Any = results.outcomes[2]
    assert outcome.stage == "parse"


async def test_what_was_reported_is_never_done_again(loop: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    seen: list[int] = []
    while len(seen) < 200:
        reported = len(seen)
        before = Counter(recorder.parses)
        async with recorder.pipeline(tmp_path / "run.db").stream(range(200)) as stream:
            async for outcome in stream:
                assert outcome.ok
                assert outcome.value == 10 * outcome.item
                if not outcome.resumed:
                    seen.append(outcome.item)
                if len(seen) - reported == 23:
                    break
        again = Counter(recorder.parses) - before
        assert not any(again[number] for number in seen[:reported])
        if len(seen) == reported:
            break  # the rest was done in the runs before, and not taken
    results = await recorder.pipeline(tmp_path / "run.db").run(range(200))
    assert results == [10 * number for number in range(200)]


async def test_two_items_with_one_key_are_refused_as_one_item(loop: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    results = await recorder.pipeline(tmp_path / "run.db").run([1, 2, 1], errors="return")
    assert results[:2] == [10, 20]
    assert isinstance(results[2], DuplicateKey)
    assert sorted(recorder.downloads) == [1, 2]


async def test_an_item_without_a_key_is_refused_as_one_item(loop: Any, tmp_path: Path) -> None:
    async def anything(item: Any) -> int:
        return 1

    pipeline = Pipeline([anything], journal=tmp_path / "run.db")
    results = await pipeline.run([object(), 2], errors="return")
    assert isinstance(results[0], TypeError)
    assert "give key=" in str(results[0])
    assert results[1] == 1


async def test_a_value_that_cannot_be_saved_is_the_error_of_its_item(loop: Any, tmp_path: Path) -> None:
    async def maybe_set(number: int) -> Any:
        return {1, 2} if number == 1 else number

    for stages in ([Stage(maybe_set, save=True), inc], [maybe_set]):
        pipeline = Pipeline(stages, journal=tmp_path / f"{len(stages)}.db")
        results = await pipeline.run(range(3), errors="return")
        assert type(results[1]).__name__ == "CodecError"
        outcome: Any = results.outcomes[1]
        assert outcome.stage == "maybe_set"


async def test_the_journal_of_another_pipeline_is_refused(loop: Any, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run.db")
    await Pipeline([inc, double], journal=journal).run([1])
    with pytest.raises(JournalMismatch):
        await Pipeline([inc, inc], journal=journal).run([1])
    with pytest.raises(JournalMismatch):
        async for _ in Pipeline([double], journal=journal).stream([1]):
            pass
    assert await Pipeline([inc, double], journal=journal).run([1]) == [4]


async def test_a_pipeline_that_cannot_begin_leaves_the_journal_free(loop: Any, tmp_path: Path) -> None:
    async with Pipeline([inc], journal=tmp_path / "run.db").stream(range(3)) as stream:
        await anext(stream)
        with pytest.raises(unwait.JournalError):
            await Pipeline([inc], journal=tmp_path / "run.db").run(range(3))
    with pytest.raises(TypeError, match="top level"):
        await Pipeline([Stage(lambda item: item, where="process")], journal=tmp_path / "run.db").run([1])
    assert await Pipeline([inc], journal=tmp_path / "run.db").run(range(3)) == [1, 2, 3]


PROGRAM = """
    import asyncio, sys, time
    from unwait.flow.pipeline import Pipeline, Stage

    calls = open(sys.argv[2], "a", buffering=1)

    async def download(number):
        calls.write(f"download {number}\\n")
        await asyncio.sleep(0.002)
        return number

    async def parse(number):
        await asyncio.sleep(0.002 if str(number) not in sys.argv[3:] else 1000)
        calls.write(f"parse {number}\\n")
        return number + 1

    async def main():
        pipeline = Pipeline([Stage(download, limit=5, save=True), Stage(parse, limit=5)], journal=sys.argv[1])
        count = 0
        async for outcome in pipeline.stream(range(400), progress=False):
            assert outcome.value == outcome.item + 1
            calls.write(f"reported {outcome.item}\\n")
            count += 1
        print(count)

    asyncio.run(main())
    """


def start(tmp_path: Path, *hanging: int) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    return subprocess.Popen(
        [
            sys.executable,
            str(program),
            str(tmp_path / "run.db"),
            str(tmp_path / "calls.txt"),
            *map(str, hanging),
        ],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def calls_of(path: Path) -> Counter[str]:
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def wait_for_calls(path: Path, more: int) -> None:
    wanted = sum(calls_of(path).values()) + more
    while sum(calls_of(path).values()) < wanted:
        time.sleep(0.002)


def test_killed_at_any_moment_it_goes_on_and_repeats_nothing_reported(tmp_path: Path) -> None:
    calls = tmp_path / "calls.txt"
    reported: dict[str, int] = {}

    def parses(number: str) -> int:
        return calls_of(calls)[f"parse {number}"]

    for more in (100, 171, 133, 60):
        with start(tmp_path) as process:
            wait_for_calls(calls, more)
            process.kill()
        assert {number: parses(number) for number in reported} == reported
        numbers = {line.split()[1] for line in calls_of(calls) if line.startswith("reported")}
        reported = {number: parses(number) for number in numbers}
        assert reported
    with start(tmp_path) as process:
        out, err = process.communicate()
    assert (out, err) == ("400\n", "")
    assert {number: parses(number) for number in reported} == reported


def test_ctrl_c_takes_no_more_items_finishes_those_taken_and_says_how_to_go_on(tmp_path: Path) -> None:
    calls = tmp_path / "calls.txt"
    with start(tmp_path) as process:
        wait_for_calls(calls, 200)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert "saved in" in err
    assert "run again to resume" in err
    downloads = {line.split()[1] for line in calls_of(calls) if line.startswith("download")}
    parses = {line.split()[1] for line in calls_of(calls) if line.startswith("parse")}
    assert downloads == parses
    assert 0 < len(downloads) < 400
    with start(tmp_path) as process:
        out, err = process.communicate()
    assert (out, err) == ("400\n", "")
    assert {calls_of(calls)[f"parse {number}"] for number in range(400)} == {1}


def test_a_second_ctrl_c_ends_it_at_once_and_nothing_reported_is_lost(tmp_path: Path) -> None:
    calls = tmp_path / "calls.txt"
    with start(tmp_path, 20) as process:
        assert process.stderr is not None
        wait_for_calls(calls, 200)
        process.send_signal(signal.SIGINT)
        assert "interrupted: finishing" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    reported = [line.split()[1] for line in calls_of(calls) if line.startswith("reported")]
    before = calls_of(calls)
    assert reported
    assert before["parse 20"] == 0
    with start(tmp_path) as process:
        out, err = process.communicate()
    assert (out, err) == ("400\n", "")
    assert {calls_of(calls)[f"parse {number}"] - before[f"parse {number}"] for number in reported} == {0}


async def test_what_stages_saved_is_told_apart_from_what_the_whole_made(loop, tmp_path):
    from unwait.flow.journal_reader import JournalReader

    async def first(n):
        return n + 1

    async def second(n):
        return n * 10

    path = tmp_path / "run.db"
    pipeline = Pipeline([Stage(first, save=True), second], journal=path)
    await pipeline.run([1, 2])
    with JournalReader(path) as journal:
        assert journal.count() == (2, 0)
        assert journal.stages() == {"first": 2}
        assert [run.done for run in journal.runs()] == [2]
        rows = {(item.key, item.stage): item.data for item in journal.items()}
    assert rows == {
        ("item:1", "first"): b"2",
        ("item:2", "first"): b"3",
        ("item:1", ""): b"20",
        ("item:2", ""): b"30",
    }

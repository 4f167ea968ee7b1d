"""Pipelines: calls that cancel themselves, sizes that are none, names that meet, items that come twice."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from unwait.flow.calls import CallCancelled
from unwait.flow.pipeline import Pipeline, Stage
from unwait.flow.saving import DuplicateKey


async def inc(number: int) -> int:
    await asyncio.sleep(0)
    return number + 1


async def same(number: int) -> int:
    await asyncio.sleep(0)
    return number


async def cancel_own_task_for_multiples_of_3(number: int) -> int:
    await asyncio.sleep(0)
    if number % 3 == 0:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
    return number


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(
    "stages", [[cancel_own_task_for_multiples_of_3, same], [same, cancel_own_task_for_multiples_of_3]]
)
async def test_a_call_that_cancels_its_own_task_is_its_items_failure_and_not_the_runs_end(
    loop: Any, stages: list[Any], count: int
) -> None:
    pipeline = Pipeline([Stage(stage, limit=2) for stage in stages])
    results = await pipeline.run(range(count), errors="return")
    failed = [number for number, value in enumerate(results) if isinstance(value, CallCancelled)]
    assert failed == list(range(0, count, 3))
    assert [value for value in results if value not in [results[number] for number in failed]] == [
        number for number in range(count) if number % 3
    ]
    assert (pipeline.report.taken, pipeline.report.failed) == (count, len(failed))
    stage = pipeline.report.stages[stages.index(cancel_own_task_for_multiples_of_3)]
    assert (stage.taken, stage.passed, stage.failed) == (count, count - len(failed), len(failed))


async def test_a_stream_of_a_pipeline_goes_on_past_calls_that_cancel_their_own_tasks(loop: Any) -> None:
    pipeline = Pipeline([Stage(cancel_own_task_for_multiples_of_3, limit=1)])
    outcomes = [outcome async for outcome in pipeline.stream(range(4))]
    assert [(outcome.index, outcome.ok) for outcome in outcomes] == [
        (0, False),
        (1, True),
        (2, True),
        (3, False),
    ]
    assert outcomes[0].stage == "cancel_own_task_for_multiples_of_3"  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [math.nan, math.inf, -1, "large", None])
async def test_a_size_that_is_none_is_its_items_error_and_harms_no_other(loop: Any, size: Any) -> None:
    pipeline = Pipeline([inc, Stage(inc, size=lambda number: size if number == 3 else 1, limit=2, queue=2)])
    results = await pipeline.run(range(8), errors="return")
    assert isinstance(results[2], ValueError | TypeError)
    assert "raised by size=" in results[2].__notes__
    assert results[:2] + results[3:] == [2, 3, 5, 6, 7, 8, 9]
    assert pipeline.report.taken == pipeline.report.done + pipeline.report.failed == 8


async def test_stages_never_share_a_name_whatever_names_are_given(loop: Any, tmp_path: Path) -> None:
    stages = [Stage(inc, save=True), Stage(inc, save=True, name="inc (3)"), Stage(inc, save=True), inc]
    pipeline = Pipeline(stages, journal=tmp_path / "run.db")
    assert await pipeline.run([0]) == [4]
    assert len({stage.name for stage in pipeline.report.stages}) == 4


async def test_an_item_that_comes_twice_is_told_also_where_an_earlier_run_has_it(
    loop: Any, tmp_path: Path
) -> None:
    pipeline = Pipeline([inc], journal=tmp_path / "run.db")
    await pipeline.run(range(300))
    # A slow consumer: items that were found wait for room before they are handed out.
    outcomes = []
    async for outcome in pipeline.stream([number for number in range(300) for _ in "ab"]):
        outcomes.append(outcome)
        await asyncio.sleep(0)
    assert sorted(outcome.value for outcome in outcomes if outcome.ok) == list(range(1, 301))
    repeated = [outcome for outcome in outcomes if not outcome.ok]
    assert len(repeated) == 300
    assert all(isinstance(outcome.error, DuplicateKey) and outcome.value is None for outcome in repeated)

"""What a pipeline says of itself: the counts of each stage, and which of them is the bottleneck."""

from __future__ import annotations

from typing import Any

import pytest

from unwait.flow.pipeline import Pipeline, Stage

from .test_pipeline import double, inc, runs, taking


def test_the_bottleneck_is_the_slowest_stage_which_alone_sets_the_pace() -> None:
    async def main() -> None:
        stages = [taking(0.010, "fetch"), taking(0.050, "parse"), taking(0.020, "store")]
        pipeline = Pipeline([Stage(stage, limit=4) for stage in stages])
        results = await pipeline.run(range(400))
        report = pipeline.report
        assert results.report is report
        assert report.bottleneck == "parse"
        assert report.elapsed == pytest.approx(400 * 0.050 / 4, rel=0.02)
        fetch, parse, store = report.stages
        assert parse.busy == pytest.approx(1, abs=0.02)
        assert store.busy == pytest.approx(0.4, abs=0.02)
        assert store.waiting == pytest.approx(0.6, abs=0.02)
        assert fetch.busy == pytest.approx(0.2, abs=0.02)
        assert fetch.blocked > 0.5
        assert (parse.p50, parse.p95) == (pytest.approx(0.05), pytest.approx(0.05))
        assert parse.deepest == 100
        lines = str(report).splitlines()
        assert lines[0].startswith("400 done, 0 failed, 1200 calls")
        assert lines[-1] == "bottleneck: parse"
        assert [line.split()[:5] for line in lines[-4:-1]] == [
            [name, "4", "400", "400", "0"] for name in ("fetch", "parse", "store")
        ]

    runs(main())


@pytest.mark.parametrize(
    ("stages", "bottleneck"),
    [
        # More at once outweighs longer.
        ([Stage(taking(0.5), limit=100, name="a"), Stage(taking(0.02), limit=1, name="b")], "b"),
        # Waiting for a rate holds up as much as work does.
        ([Stage(taking(0.1), limit=20, name="a"), Stage(taking(0.001), limit=5, rate="20/s", name="b")], "b"),
        ([Stage(taking(1), batch=10, limit=2, name="a"), Stage(taking(0.04), limit=1, name="b")], "a"),
        ([Stage(taking(1), batch=10, limit=2, name="a"), Stage(taking(0.1), limit=1, name="b")], "b"),
    ],
)
def test_the_bottleneck_is_told_relative_to_what_may_run(stages: list[Stage], bottleneck: str) -> None:
    async def main() -> None:
        pipeline = Pipeline(stages)
        await pipeline.run(range(1000))
        assert pipeline.report.bottleneck == bottleneck

    runs(main())


def test_a_report_is_true_while_the_run_lasts() -> None:
    async def main() -> None:
        pipeline = Pipeline([inc, Stage(taking(1), limit=2)])
        with pytest.raises(RuntimeError, match="has not run"):
            _ = pipeline.report
        reports: list[tuple[int, int]] = []

        def progress(report: Any) -> None:
            reports.append((report.done, report.running))
            assert report is pipeline.report
            assert "sleeper" in str(report)

        await pipeline.run(range(10), progress=progress)
        assert reports[0] == (0, 10)
        assert reports[-1] == (10, 0)
        assert pipeline.report.bottleneck == "sleeper"
        assert pipeline.report.total == 10

    runs(main())


def test_stages_of_the_same_name_are_told_apart() -> None:
    async def main() -> None:
        pipeline = Pipeline([inc, inc, double])
        await pipeline.run([1])
        assert [stage.name for stage in pipeline.report.stages] == ["inc", "inc (2)", "double"]

    runs(main())


def test_without_a_call_there_is_no_bottleneck() -> None:
    async def main() -> None:
        pipeline = Pipeline([inc])
        await pipeline.run([])
        assert pipeline.report.bottleneck is None
        assert "bottleneck" not in str(pipeline.report)

    runs(main())

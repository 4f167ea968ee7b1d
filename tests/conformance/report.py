"""What a run prints, and the JSON it leaves."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from module_run import ModuleResult, Test

BEST_PUBLISHED = "88 of 92"
"""mixin tests passed by the third-party loop with the best published figure"""

HEADER = f"{'module':28}{'passed':>8}{'failed':>8}{'skipped':>9}{'excluded':>10}{'seconds':>9}"


def excluded_count(tests: Iterable[Test]) -> int:
    return sum(test.outcome.startswith("excluded") for test in tests)


def line(name: str, tests: list[Test], seconds: float) -> str:
    counts = Counter(test.outcome for test in tests)
    text = f"{name:28}{counts['passed']:8}{counts['failed']:8}{counts['skipped']:9}"
    text += f"{excluded_count(tests):10}{seconds:9.1f}"
    return text + (f"  ({counts['broken here']} broken on this machine)" if counts["broken here"] else "")


def module_line(result: ModuleResult) -> str:
    if result.skipped:
        return f"{result.module:28}  skipped: {result.skipped}"
    return line(result.module, list(result.tests.values()), result.seconds)


def mixin_lines(tests: list[Test]) -> list[str]:
    """How many of the loop-facing mixins' tests pass: of all that this platform does not skip, excluded ones
    included.
    """
    faced = [test for test in tests if test.mixin and test.outcome not in ("skipped", "broken here")]
    if not faced:
        return []
    total, passed = (
        Counter(test.mixin for test in faced),
        Counter(t.mixin for t in faced if t.outcome == "passed"),
    )
    lines = [
        f"mixin tests: {passed.total()} of {total.total()} "
        f"(best published by any third-party loop: {BEST_PUBLISHED})"
    ]
    lines += [f"    {mixin}: {passed[mixin]} of {total[mixin]}" for mixin in total]
    for outcome in ("skipped", "excluded"):
        lines += [
            f"    {outcome}: {test.id}: {test.cause}"
            for test in tests
            if test.mixin and test.outcome == outcome
        ]
    return lines


def listing(title: str, tests: list[Test], *, tracebacks: bool = False) -> list[str]:
    lines = [f"\n{title} ({len(tests)}):"] if tests else []
    for test in tests:
        lines.append(f"  {test.id}: {test.cause}" if test.cause else f"  {test.id}")
        if tracebacks:
            lines.extend("      " + text for text in test.traceback.splitlines())
    return lines


def summary(results: list[ModuleResult], stale: list[str], version: str, options: argparse.Namespace) -> str:
    tests = [test for result in results for test in result.tests.values()]

    def having(outcome: str) -> list[Test]:
        return [test for test in tests if test.outcome == outcome]

    built = sum(test.built > 0 for test in having("passed"))
    lines = [
        line("total", tests, sum(result.seconds for result in results)),
        f"Python {version}, loop {options.loop}; {built} of the passed tests built the loop themselves",
        *mixin_lines(tests),
        *listing("broken on this machine, not counted", having("broken here"), tracebacks=options.verbose),
        *listing("excluded but pass", having("excluded but passes")),
    ]
    if stale:
        lines += [f"\nrows of excluded.toml that match no test of Python {version} ({len(stale)}):"]
        lines += [f"  {pattern}" for pattern in stale]
    lines += listing("failed", having("failed"), tracebacks=options.verbose)
    return "\n".join(lines)


def write_json(path: Path, results: list[ModuleResult], stale: list[str], version: str, loop: str) -> None:
    content = {
        "python": version,
        "loop": loop,
        "stale_rows": stale,
        "modules": [
            {
                "module": result.module,
                "skipped": result.skipped,
                "seconds": round(result.seconds, 3),
                "tests": [vars(test) for test in result.tests.values()],
            }
            for result in results
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")

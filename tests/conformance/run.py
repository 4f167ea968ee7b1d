"""Runs CPython's own asyncio test suite, the one of this interpreter, on another event loop.

    python tests/conformance/run.py [MODULE…] [--loop LOOP] [-v] [--json FILE] [--strict-excluded]

Each test module runs in a fresh process. A test that hangs or crashes costs itself only: the process is
ended, and another one runs the rest of the module. A test that fails is run once more on asyncio itself, by
CPython's own classes; if it fails there too, this machine is the cause, and it is counted apart. Exit code 0:
nothing failed; 1: something did; 2: the run was not possible.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

import report
import table
from bindings import LOOPS, unavailable
from module_run import Limits, ModuleResult, run_module


def suite_directory() -> Path | None:
    """Where this interpreter keeps `test.test_asyncio`, or None if it came without it."""
    try:
        spec = importlib.util.find_spec("test.test_asyncio")
    except ModuleNotFoundError:
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="conformance", description="CPython's own asyncio tests, on another event loop."
    )
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="test_events, events, … or a test: events.Class.test_x"
    )
    parser.add_argument(
        "--loop", choices=sorted(LOOPS), default="unwait", help="the loop under test (default: unwait)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the traceback of every failure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every test's outcome to FILE")
    parser.add_argument(
        "--strict-excluded",
        action="store_true",
        help="run the excluded tests too; fail if one passes on the loop, or a row matches no test",
    )
    parser.add_argument(
        "--test-limit", type=float, default=60, metavar="S", help="seconds a test may take (default: 60)"
    )
    parser.add_argument(
        "--module-limit",
        type=float,
        default=300,
        metavar="S",
        help="seconds a module may take (default: 300)",
    )
    return parser.parse_args(arguments)


def select(wanted: list[str], known: list[str]) -> dict[str, list[str]]:
    """Module → ids of the tests to run (none: all). Raises ValueError for a module that is not in `known`."""
    if not wanted:
        return {module: [] for module in known}
    selected: dict[str, list[str]] = {}
    for name in wanted:
        full = name if name.startswith("test_") else f"test_{name}"
        module, _, rest = full.partition(".")
        if module not in known:
            raise ValueError(f"no test module {module} in this Python; there are: {' '.join(known)}")
        selected.setdefault(module, [])
        if rest:
            selected[module].append(full)
    return selected


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    directory = suite_directory()
    version = ".".join(map(str, sys.version_info[:3]))
    if directory is None:
        print(f"conformance: not available: Python {version} ({sys.executable}) has no test.test_asyncio")
        return 0
    why_not = unavailable(options.loop)
    if why_not:
        print(f"conformance: {why_not}", file=sys.stderr)
        return 2
    try:
        selected = select(options.modules, sorted(path.stem for path in directory.glob("test_*.py")))
    except ValueError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2

    rows = [row for row in table.load() if row.applies_to(sys.version_info[:2])]
    limits = Limits(test=options.test_limit, module=options.module_limit)
    print(f"CPython {version}'s own test.test_asyncio, on the loop of {options.loop}\n", flush=True)
    print(report.HEADER, flush=True)
    results: list[ModuleResult] = []
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        for module, only in selected.items():
            result = run_module(
                module, options.loop, limits, Path(scratch), only, run_excluded=options.strict_excluded
            )
            results.append(result)
            print(report.module_line(result), flush=True)

    whole = [result for result in results if result.ids and not selected[result.module]]
    ran = {result.module for result in whole}
    stale = table.unmatched(
        [row for row in rows if row.module in ran], [test for result in whole for test in result.ids]
    )
    print(report.summary(results, stale, version, options))
    if options.json:
        report.write_json(options.json, results, stale, version, options.loop)
    failed = any(result.count("failed") for result in results)
    strict = options.strict_excluded and (
        stale or any(result.count("excluded but passes") for result in results)
    )
    return 1 if failed or strict else 0


if __name__ == "__main__":
    sys.exit(main())

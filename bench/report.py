"""Renders the saved results: docs/performance.md, and the short table between the marks of README.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cells import BASELINE, CELLS, OURS, ROWS, YARDSTICK, Row

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
NOTES = Path(__file__).resolve().parent / "notes.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PEERS = ("asyncio", "rloop", "blazio", YARDSTICK)
NOISE = 0.99
UNITS = {"cpu_us": "µs", "p50_us": "µs", "memory_kib": "KiB"}

METHOD = """\
# Performance

This page is rendered by `make bench` from `bench/results.json`; it is never edited by hand, so it says what
was measured, losses too. Another machine gives other microseconds; the ratios to uvloop are what travels.

## How it is measured
- **Interleaved.** A round measures every cell once on every loop, each in a fresh process, and each round
  turns the order of the loops by one, so that no loop always comes first, last, or after the same
  neighbour.
- **One core each.** The server runs on one core, the load generator on another. Micro-benchmarks run on the
  server's.
- **The figure is CPU, not throughput:** user + system CPU time of the server process, all its threads, per
  message. The load generator reads the server's CPU clock at both ends of the measured window, in the same
  moments as its own count of messages.
- **No flattering start.** Before timing, one connection is served to EOF: a loop that allocates a large
  `bytes` per read (asyncio's own) pays an mmap and munmap each until a first EOF has freed one, and looks
  up to three times slower than it is in any server that has run for a second. Then all connections warm up,
  and every byte that comes back is compared; in the measured window byte counts are.
- **Closed loop.** Each connection sends, waits for the whole answer, sends again. Nagle's algorithm is off
  on both sides.
- **Best and median.** Every figure is the best of the rounds, as the one least disturbed by others on the
  machine; the median of the rounds stands beside in brackets. Ratios divide best by best, and median by
  median. Below 1 is less than uvloop needs.
- **Micro-benchmarks** run one kind of work for about a tenth of a second of CPU, after a tenth as much
  warm-up; the figure is the CPU of the process per operation. `call_soon_threadsafe` is measured twice:
  from another thread, which calls it as fast as it can while the loop runs the callbacks (CPU of both
  threads), and from a callback of the loop's own thread that schedules itself again (so each call finds the
  loop awake, and pays what waking it costs anyway).
- **Memory per idle connection** is the growth of the server's resident memory over 2,000 connections that
  have each echoed one message and then wait; kernel socket buffers are not in it.
- **TLS** is TLS 1.3 with a P-256 certificate; the load generator uses the same OpenSSL library as Python's
  `ssl`.
- **The yardstick "C"** is a bare epoll echo server in C (`bench/echo_server.c`): what the kernel alone
  costs.
- A loop that is not installed, or has no such feature, is "n/a". unwait is never measured where it would
  fall back to asyncio's loop.
"""

GENERATOR = """\
## Is the load generator fast enough?
It must not be what limits a server. It is fast enough where the server's core is busy and its own less so.
With one connection the two take turns, and neither is busy.
"""


class Results:
    """What was saved, with the statistics that the tables need."""

    def __init__(self, cells: dict[str, Any]) -> None:
        self.cells = cells

    def values(self, row: Row, loop: str) -> list[float]:
        entry = self.cells.get(row.cell, {}).get(loop, {})
        return [measured[row.metric] for measured in entry.get("rounds", ()) if row.metric in measured]

    def why_missing(self, row: Row, loop: str) -> str:
        entry = self.cells.get(row.cell, {}).get(loop)
        if entry is None:
            return ""
        return "failed" if "failed" in entry else "n/a"

    def ratios(self, row: Row, loop: str) -> tuple[float, float] | None:
        """(best, median) against the baseline, or None where either was not measured."""
        ours, base = self.values(row, loop), self.values(row, BASELINE)
        if not ours or not base:
            return None
        return min(ours) / min(base), statistics.median(ours) / statistics.median(base)

    def verdict(self, row: Row) -> str:
        ratios = self.ratios(row, OURS)
        if ratios is None:
            return "not measured"
        return "hit" if ratios[0] <= row.target else "**miss**"

    def rows(self) -> list[Row]:
        return [row for row in ROWS if row.cell in self.cells]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    header = list(header)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ratio_text(results: Results, row: Row, loop: str) -> str:
    ratios = results.ratios(row, loop)
    if ratios is None:
        return results.why_missing(row, loop)
    return f"{ratios[0]:.2f} ({ratios[1]:.2f})"


def value_text(results: Results, row: Row, loop: str) -> str:
    values = results.values(row, loop)
    if not values:
        return results.why_missing(row, loop)
    digits = 2 if min(values) >= 1 else 3
    return f"{min(values):.{digits}f} ({statistics.median(values):.{digits}f})"


def ratio_table(results: Results) -> str:
    header = ("work, as ratio to uvloop", "target", "unwait", "", *PEERS, "best peer known before")
    return table(
        header,
        (
            (
                row.title,
                f"≤ {row.target:.2f}",
                ratio_text(results, row, OURS),
                results.verdict(row),
                *(ratio_text(results, row, peer) for peer in PEERS),
                row.best_peer,
            )
            for row in results.rows()
        ),
    )


def value_table(results: Results) -> str:
    loops = (OURS, BASELINE, *PEERS)
    return table(
        ("work", "unit", *loops),
        (
            (row.title, UNITS[row.metric], *(value_text(results, row, loop) for loop in loops))
            for row in results.rows()
        ),
    )


def generator_table(results: Results) -> str:
    """Messages a second and both sides' share of their core, for the yardstick and for the fastest loop."""
    lines = []
    for name, cell in CELLS.items():
        speeds = {
            loop: max(entry["rounds"], key=lambda measured: measured["per_second"])
            for loop, entry in results.cells.get(name, {}).items()
            if entry["rounds"] and "per_second" in entry["rounds"][0]
        }
        if not speeds:
            continue
        loops = sorted(
            (loop for loop in speeds if loop != YARDSTICK), key=lambda loop: speeds[loop]["per_second"]
        )
        for loop in ([YARDSTICK] if YARDSTICK in speeds else []) + loops[-1:]:
            best = speeds[loop]
            shares = (f"{100 * best[side]:.0f} %" for side in ("server_share", "client_share"))
            lines.append((f"{cell.name}: {loop}", f"{best['per_second']:,.0f}", *shares))
    return table(("server", "messages/s", "server's core busy", "load generator's core busy"), lines)


def terminal_table(cells: dict[str, Any]) -> str:
    """The ratios of one run, for the terminal."""
    results = Results(cells)
    return ratio_table(results) + "\n" + value_table(results)


def read_notes() -> dict[str, str]:
    """The explanations of misses: sections of bench/notes.md, titled with the name of a row."""
    if not NOTES.exists():
        return {}
    sections = NOTES.read_text().split("\n## ")[1:]
    parts = (section.partition("\n") for section in sections)
    return {title.strip(): text.strip() for title, _, text in parts}


def misses(results: Results) -> str:
    notes = read_notes()
    missed = [row for row in results.rows() if results.verdict(row) == "**miss**"]
    if not missed:
        return "None of the measured ones.\n"
    lines = []
    for row in missed:
        ratios = results.ratios(row, OURS)
        assert ratios is not None
        why = notes.get(row.name, "Not explained yet.")
        lines.append(f"- **{row.title}**: {ratios[0]:.3f}, wanted ≤ {row.target:.2f}. {why}\n")
    return "".join(lines)


def losses(results: Results) -> str:
    lines = []
    for row in results.rows():
        ours = results.values(row, OURS)
        faster = {
            loop: min(values)
            for loop in (BASELINE, *PEERS)
            if loop != YARDSTICK
            and (values := results.values(row, loop))
            and ours
            and min(values) < NOISE * min(ours)
        }
        if faster:
            said = ", ".join(f"{loop} {100 * (1 - best / min(ours)):.0f} %" for loop, best in faster.items())
            lines.append(f"- {row.title}: {said} less than unwait\n")
    return "".join(lines) or "Nowhere by more than 1 % in what was measured.\n"


def disturbance_text(cells: dict[str, Any]) -> str:
    entries = (entry for row in cells.values() for entry in row.values())
    shares = [one["others_share"] for entry in entries for one in entry["rounds"] if "others_share" in one]
    if not shares:
        return ""
    middle, worst = statistics.median(shares), max(shares)
    said = (
        f"{100 * middle:.0f} % of the two cores in the median measurement, {100 * worst:.0f} % in the worst"
    )
    return f"Other processes took {said}.\n"


def runs_text(saved: dict[str, Any]) -> str:
    lines = []
    for name, run in saved["runs"].items():
        of = sorted(cell for cell, run_name in saved["run_of"].items() if run_name == name)
        what = "" if len(saved["runs"]) == 1 else f" (cells: {', '.join(of)})"
        lines.append(f"Run of {run['date']}{what}: {run['rounds']} rounds, windows of {run['seconds']} s.\n")
        lines.append(f"- machine: {run['machine']}\n- kernel: {run['kernel']}\n")
        lines.append(f"- Python: {run['python']}, {run['openssl']}\n- stacks: {run['stacks']}\n")
        lines += [f"- {loop}: {version}\n" for loop, version in run["versions"].items() if loop != "asyncio"]
        lines.append("\n")
    return "".join(lines)


def page(saved: dict[str, Any]) -> str:
    results = Results(saved["cells"])
    return "\n".join(
        (
            METHOD,
            "## Results\nBest of the rounds, the median in brackets.\n",
            ratio_table(results),
            "## Missed targets\n",
            misses(results),
            "## Where a peer is ahead\n",
            losses(results),
            "## The figures themselves\nCPU per message or operation, latency, memory.\n",
            value_table(results),
            GENERATOR,
            generator_table(results),
            "## Where and when\n",
            runs_text(saved) + disturbance_text(results.cells),
            "Printed again by `make bench`; one cell by `python bench/run.py --only NAME`.\n",
        )
    )


def readme_table(saved: dict[str, Any]) -> str:
    results = Results(saved["cells"])
    rows = [row for row in results.rows() if row.headline and results.ratios(row, OURS)]
    loops = ("asyncio", BASELINE, OURS)

    def best(row: Row, loop: str) -> str:
        values = results.values(row, loop)
        return f"{min(values):.2f}" if values else "n/a"

    lines = []
    for row in rows:
        ratios = results.ratios(row, OURS)
        assert ratios is not None
        lines.append((row.title, *(best(row, loop) for loop in loops), f"{ratios[0]:.2f}"))
    return table(("CPU µs per message or operation", *loops, "unwait / uvloop"), lines)


def save(path: Path, run: dict[str, Any], found: dict[str, Any], part: str | None = None) -> None:
    """Put the cells of one run into the saved results, or a part of them, in the place of what was known."""
    everything = json.loads(path.read_text()) if path.exists() else {}
    saved = everything if part is None else everything.setdefault(part, {})
    for key in ("runs", "run_of", "cells"):
        saved.setdefault(key, {})
    saved["runs"][run["date"]] = run
    for name, row in found.items():
        saved["cells"][name] = row
        saved["run_of"][name] = run["date"]
    saved["runs"] = {name: kept for name, kept in saved["runs"].items() if name in saved["run_of"].values()}
    for row in saved["cells"].values():
        for entry in row.values():
            entry["rounds"] = [
                {key: round(value, 4) for key, value in one.items()} for one in entry["rounds"]
            ]
    path.write_text(json.dumps(everything, indent=1) + "\n")


def replace_between_marks(document: Path, text: str) -> None:
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        document.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def render(path: Path) -> None:
    """Write docs/performance.md, and the short table of README.md where that has the two marks."""
    if not path.exists():
        raise SystemExit("run.py: no saved results yet; run without --render-only first")
    saved = json.loads(path.read_text())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(saved))
    if README.exists():
        replace_between_marks(README, readme_table(saved))

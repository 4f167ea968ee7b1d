"""Renders the saved results of a part of unwait: the figures between the marks of its page, docs/flow.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from flow_cells import FlowCell, FlowRow, Metric, Part
from report import NOISE, disturbance_text, read_notes, replace_between_marks, table


def best(values: list[float], metric: Metric) -> float:
    return min(values) if metric.best in ("least", "worst most") else max(values)


def written(chosen: float, median: float, digits: int) -> str:
    """The figure chosen among the rounds, and the median in brackets where that is another."""
    text, middle = f"{chosen:,.{digits}f}", f"{median:,.{digits}f}"
    return text if text == middle else f"{text} ({middle})"


class FlowResults:
    """What was saved, with the figures that the tables need."""

    def __init__(self, part: Part, cells: dict[str, Any]) -> None:
        self.part = part
        self.cells = cells

    def values(self, cell: str, contender: str, metric: str) -> list[float]:
        entry = self.cells.get(cell, {}).get(contender, {})
        return [measured[metric] for measured in entry.get("rounds", ()) if metric in measured]

    def figure(self, cell: FlowCell, contender: str, name: str) -> str:
        values, metric = self.values(cell.name, contender, name), self.part.metrics[name]
        if not values:
            return "failed" if "failed" in self.cells[cell.name].get(contender, {}) else "n/a"
        return written(best(values, metric), statistics.median(values), metric.digits)

    def measured(self, row: FlowRow) -> tuple[float, float] | None:
        """(best, median) of what the row's target is about, or None where it was not measured."""
        metric = self.part.metrics[row.metric]
        ours = self.values(row.cell, row.of or self.part.cells[row.cell].contenders[0], row.metric)
        theirs = self.values(row.cell, row.against, row.metric)
        if not ours or (row.by != "itself" and not theirs):
            return None
        found = best(ours, metric), statistics.median(ours)
        if row.by == "itself":
            return found
        others = best(theirs, metric), statistics.median(theirs)
        if row.by == "ratio":
            return found[0] / others[0], found[1] / others[1]
        return found[0] - others[0], found[1] - others[1]

    def verdict(self, row: FlowRow) -> str:
        measured = self.measured(row)
        if measured is None:
            return "not measured"
        hit = measured[0] <= row.target if row.limit == "at most" else measured[0] >= row.target
        return "hit" if hit else "**miss**"

    def rows(self) -> list[FlowRow]:
        return [row for row in self.part.rows if row.cell in self.cells]


def target_table(results: FlowResults) -> str:
    lines = []
    for row in results.rows():
        sign = "≤" if row.limit == "at most" else "≥"
        measured = results.measured(row)
        said = written(*measured, row.digits) if measured else ""
        lines.append((row.title, f"{sign} {row.target:g}", said, results.verdict(row)))
    return table(("work", "target", "measured", ""), lines)


def cell_tables(results: FlowResults) -> str:
    """For each cell a table, a contender a line."""
    parts = []
    for cell in results.part.cells.values():
        if cell.name not in results.cells:
            continue
        header = (cell.title, *(results.part.metrics[name].title for name in cell.metrics))
        lines = (
            (contender, *(results.figure(cell, contender, name) for name in cell.metrics))
            for contender in cell.contenders
        )
        parts.append(table(header, lines))
    return "\n".join(parts)


def misses(results: FlowResults) -> str:
    missed = [row for row in results.rows() if results.verdict(row) == "**miss**"]
    if not missed:
        return "Missed targets: none of the measured ones.\n"
    notes = read_notes()
    lines = (f"- **{row.title}**: {notes.get(row.name, 'Not explained yet.')}\n" for row in missed)
    return "Missed targets:\n" + "".join(lines)


def losses(results: FlowResults) -> str:
    """Where another contender costs less, or does more, than unwait."""
    lines = []
    # What leaves out the very thing that is measured is no rival.
    without = {row.against for row in results.part.rows if row.by == "difference"}
    for cell in results.part.cells.values():
        for name in cell.metrics:
            metric = results.part.metrics[name]
            ours = results.values(cell.name, cell.contenders[0], name)
            if metric.best not in ("least", "most") or not ours or name == "items":
                continue
            ahead = []
            for contender in cell.contenders[1:]:
                if contender in without or contender in cell.yardsticks:
                    continue
                theirs = results.values(cell.name, contender, name)
                ratio = best(theirs, metric) / best(ours, metric) if theirs else 1.0
                if (ratio if metric.best == "least" else 1 / ratio) < NOISE:
                    ahead.append(f"{contender} {ratio:.2f}")
            if ahead:
                lines.append(f"- {cell.title}, {metric.title}: {'; '.join(ahead)} of unwait's\n")
    return "Where another is ahead:\n" + "".join(lines) if lines else ""


def missing(results: FlowResults) -> str:
    """What was not measured, and why, each reason once."""
    reasons: dict[str, list[str]] = {}
    for cell, row in results.cells.items():
        for contender, entry in row.items():
            if why := entry.get("unsupported"):
                reasons.setdefault(why, []).append(f"{cell}: {contender}")
    return "".join(f"Not measured: {why} ({'; '.join(what)}).\n" for why, what in reasons.items())


def runs_text(saved: dict[str, Any]) -> str:
    lines = []
    for name, run in saved["runs"].items():
        of = sorted(cell for cell, run_name in saved["run_of"].items() if run_name == name)
        what = "" if len(saved["runs"]) == 1 else f" ({', '.join(of)})"
        versions = ", ".join(f"{peer} {version}" for peer, version in run["versions"].items())
        lines.append(
            f"Run of {run['date']}{what}: {run['machine']}, {run['kernel']}, {run['python']}; {versions}.\n"
        )
    return "".join(lines)


def terminal_tables(part: Part, cells: dict[str, Any]) -> str:
    """The targets and figures of one run, for the terminal."""
    results = FlowResults(part, cells)
    targets = target_table(results) + "\n" if results.rows() else ""
    return targets + cell_tables(results)


def figures(part: Part, saved: dict[str, Any]) -> str:
    """What stands between the marks."""
    results = FlowResults(part, saved["cells"])
    parts = (
        target_table(results),
        misses(results),
        losses(results),
        cell_tables(results),
        *filter(None, [missing(results)]),
        runs_text(saved) + disturbance_text(results.cells),
    )
    return "\n".join(parts)


def render(path: Path, part: Part) -> None:
    """Write the figures of the part between the two marks of its page."""
    saved = json.loads(path.read_text()).get(part.name)
    if saved is not None and part.page.exists():
        replace_between_marks(part.page, figures(part, saved))

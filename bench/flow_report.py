"""Renders the saved results of unwait.flow: the figures between the marks of docs/flow.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from flow_cells import FLOW_CELLS, FLOW_ROWS, METRICS, FlowCell, FlowRow, Metric
from report import NOISE, ROOT, disturbance_text, read_notes, replace_between_marks, table

PAGE = ROOT / "docs" / "flow.md"


def best(values: list[float], metric: Metric) -> float:
    return min(values) if metric.best in ("least", "worst most") else max(values)


def written(chosen: float, median: float, digits: int) -> str:
    """The figure chosen among the rounds, and the median in brackets where that is another."""
    text, middle = f"{chosen:,.{digits}f}", f"{median:,.{digits}f}"
    return text if text == middle else f"{text} ({middle})"


class FlowResults:
    """What was saved, with the figures that the tables need."""

    def __init__(self, cells: dict[str, Any]) -> None:
        self.cells = cells

    def values(self, cell: str, contender: str, metric: str) -> list[float]:
        entry = self.cells.get(cell, {}).get(contender, {})
        return [measured[metric] for measured in entry.get("rounds", ()) if metric in measured]

    def figure(self, cell: FlowCell, contender: str, name: str) -> str:
        values, metric = self.values(cell.name, contender, name), METRICS[name]
        if not values:
            return "failed" if "failed" in self.cells[cell.name].get(contender, {}) else "n/a"
        return written(best(values, metric), statistics.median(values), metric.digits)

    def measured(self, row: FlowRow) -> tuple[float, float] | None:
        """(best, median) of what the row's target is about, or None where it was not measured."""
        metric = METRICS[row.metric]
        ours = self.values(row.cell, FLOW_CELLS[row.cell].contenders[0], row.metric)
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
        return [row for row in FLOW_ROWS if row.cell in self.cells]


def target_table(results: FlowResults) -> str:
    lines = []
    for row in results.rows():
        sign = "≤" if row.limit == "at most" else "≥"
        measured = results.measured(row)
        digits = 0 if row.metric == "exceeded" else 2
        said = written(*measured, digits) if measured else ""
        lines.append((row.title, f"{sign} {row.target:g}", said, results.verdict(row)))
    return table(("work", "target", "measured", ""), lines)


def cell_tables(results: FlowResults) -> str:
    """For each cell a table, a contender a line."""
    parts = []
    for cell in FLOW_CELLS.values():
        if cell.name not in results.cells:
            continue
        header = (cell.title, *(METRICS[name].title for name in cell.metrics))
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
    without = {row.against for row in FLOW_ROWS if row.by == "difference"}
    for cell in FLOW_CELLS.values():
        for name in cell.metrics:
            metric = METRICS[name]
            ours = results.values(cell.name, cell.contenders[0], name)
            if metric.best not in ("least", "most") or not ours or name == "items":
                continue
            ahead = []
            for contender in cell.contenders[1:]:
                if contender in without:
                    continue
                theirs = results.values(cell.name, contender, name)
                ratio = best(theirs, metric) / best(ours, metric) if theirs else 1.0
                if (ratio if metric.best == "least" else 1 / ratio) < NOISE:
                    ahead.append(f"{contender} {ratio:.2f}")
            if ahead:
                lines.append(f"- {cell.title}, {metric.title}: {'; '.join(ahead)} of unwait's\n")
    return "Where another is ahead:\n" + "".join(lines) if lines else ""


def runs_text(part: dict[str, Any]) -> str:
    lines = []
    for name, run in part["runs"].items():
        of = sorted(cell for cell, run_name in part["run_of"].items() if run_name == name)
        what = "" if len(part["runs"]) == 1 else f" ({', '.join(of)})"
        versions = ", ".join(f"{peer} {version}" for peer, version in run["versions"].items())
        lines.append(
            f"Run of {run['date']}{what}: {run['machine']}, {run['kernel']}, {run['python']}; {versions}.\n"
        )
    return "".join(lines)


def terminal_tables(cells: dict[str, Any]) -> str:
    """The targets and figures of one run, for the terminal."""
    results = FlowResults(cells)
    targets = target_table(results) + "\n" if results.rows() else ""
    return targets + cell_tables(results)


def figures(part: dict[str, Any]) -> str:
    """What stands between the marks."""
    results = FlowResults(part["cells"])
    parts = (
        target_table(results),
        misses(results),
        losses(results),
        cell_tables(results),
        runs_text(part) + disturbance_text(results.cells),
    )
    return "\n".join(parts)


def render(path: Path) -> None:
    """Write the figures between the two marks of docs/flow.md."""
    part = json.loads(path.read_text()).get("flow")
    if part is not None and PAGE.exists():
        replace_between_marks(PAGE, figures(part))

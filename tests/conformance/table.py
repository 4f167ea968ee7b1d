"""The table of excluded tests (`excluded.toml`): reading it, and asking it about one test."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

PATH = Path(__file__).with_name("excluded.toml")


@dataclass(frozen=True)
class Row:
    """`tests` are patterns of `Class.test` in one module; `since`, `until` its first and last Python."""

    module: str
    tests: tuple[str, ...]
    reason: str
    since: tuple[int, ...] = ()
    until: tuple[int, ...] = ()

    def applies_to(self, version: tuple[int, int]) -> bool:
        return version >= self.since and (not self.until or version <= self.until)

    def pattern_of(self, test_id: str) -> str | None:
        """The pattern of this row that matches `module.Class.test`, or None."""
        module, _, name = test_id.partition(".")
        if module != self.module:
            return None
        return next((pattern for pattern in self.tests if fnmatchcase(name, pattern)), None)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def load(path: Path = PATH) -> list[Row]:
    """All rows of the table, in its order. Raises TypeError or KeyError where a row has a wrong or missing
    field.
    """
    with path.open("rb") as file:
        rows = tomllib.load(file)["excluded"]
    return [
        Row(
            **row
            | {"tests": tuple(row["tests"])}
            | {bound: version(row[bound]) for bound in ("since", "until") if bound in row}
        )
        for row in rows
    ]


def reason(rows: list[Row], test_id: str) -> str | None:
    """Why the test is excluded, or None. `rows` are those that apply to the running Python."""
    return next((row.reason for row in rows if row.pattern_of(test_id)), None)


def unmatched(rows: list[Row], test_ids: list[str]) -> list[str]:
    """`module.pattern` of every pattern that matches none of the tests."""
    matched = {(row, row.pattern_of(test_id)) for test_id in test_ids for row in rows}
    return [
        f"{row.module}.{pattern}" for row in rows for pattern in row.tests if (row, pattern) not in matched
    ]

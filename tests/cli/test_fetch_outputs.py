"""`unwait fetch` where its input and outputs are closed or full: one clear line, and nothing lost."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest


def one_line(done: Any) -> str:
    """What it wrote to stderr, on one line: typer breaks lines."""
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


def test_a_journal_that_cannot_grow_ends_the_run_and_loses_nothing(
    unwait: Any, site: Any, tmp_path: Path
) -> None:
    calls, journal = tmp_path / "calls.jsonl", tmp_path / "run.journal"
    # Long ids, which the journal keeps, make it grow.
    ids = [f"{number:0600}" for number in range(300)]
    calls.write_text("".join(json.dumps({"id": id, "url": f"{site.base}/{id}"}) + "\n" for id in ids))
    command = ("fetch", "--requests", str(calls), "--journal", str(journal), "--limit", "10")
    full = unwait(*command, preexec_fn=small_files)
    assert full.returncode == 2
    assert "cannot write the journal" in one_line(full)
    lines = [json.loads(line) for line in full.stdout.splitlines()]
    finished = {line["id"] for line in lines if line["ok"]}
    assert 0 < len(finished) < len(ids)
    assert all("cannot write the journal" in line["error"] for line in lines if not line["ok"])
    site.requests.clear()
    again = unwait(*command, "--resume")
    assert again.returncode == 0
    assert sorted(json.loads(line)["id"] for line in again.stdout.splitlines()) == ids
    assert not {f"/{id}" for id in finished} & set(site.requests)


@pytest.mark.parametrize("options", [["--json"], []], ids=["lines", "table"])
def test_an_output_that_is_full_is_one_line(unwait: Any, site: Any, options: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = unwait("fetch", f"{site.base}/", *options, stdout=full, stderr=-1, capture_output=False)
    assert done.returncode == 1
    assert "unwait fetch: No space left on device" in one_line(done)


@pytest.mark.parametrize(
    ("arguments", "closed", "cause"),
    [
        (["--requests", "-"], 0, "stdin is closed"),
        (["--from", "-"], 0, "stdin is closed"),
        (["--requests", os.devnull], 1, "stdout is closed"),
        (["http://127.0.0.1:1/", "--json"], 1, "stdout is closed"),
    ],
)
def test_what_is_closed_is_told(unwait: Any, arguments: list[str], closed: int, cause: str) -> None:
    done = unwait("fetch", *arguments, preexec_fn=lambda: os.close(closed))
    assert done.returncode == 2
    assert cause in one_line(done)

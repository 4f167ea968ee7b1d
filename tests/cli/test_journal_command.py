"""`unwait journal`: what it shows of journals that are finished, being written, or left by a killed run."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unwait.flow.journal import Journal

Command = Callable[..., subprocess.CompletedProcess[str]]


def write(path: Path, done: dict[str, Any], failed: dict[str, Exception], **options: Any) -> None:
    """One run that stores these."""

    async def run() -> None:
        session = Journal(path, **options).session("app.get", lambda tags: None, pytest.fail)
        for key, value in done.items():
            session.done(key, value, None, attempts=1, waited=0.25, elapsed=1.5)
        for key, error in failed.items():
            session.failed(key, error, None, attempts=3, waited=2.0, elapsed=4.0)
        await session.close()

    asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@pytest.fixture
def journal(path: Path) -> Path:
    write(path, {f"item {n}": {"n": n} for n in range(1200)}, {"late": TimeoutError("after 30 s")})
    write(
        path,
        {"größe": "\ud800\x1b[2J"},
        {
            "bad\x1b[2J": ValueError("line\nline \x1b[2J"),
            "worse": ValueError("last"),
            "secret": OSError("pwd=hunter2"),
        },
        version="",
    )
    return path


def test_show_tells_whose_it_is_and_what_is_in_it(unwait: Command, journal: Path) -> None:
    shown = unwait("journal", "show", str(journal))
    assert shown.returncode == 0
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()
    assert re.fullmatch(r"made      \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", lines.pop(2))
    assert lines[:4] == [
        f"journal   {journal}",
        "function  app.get",
        "values    json",
        "items     1,205: 1,201 done, 4 failed",
    ]
    assert lines[5:9] == [
        "failures by cause",
        "        2  ValueError, the latest: ValueError: last",
        "        1  OSError, the latest: OSError: pwd=***",
        "        1  TimeoutError, the latest: TimeoutError: after 30 s",
    ]
    runs = [re.split(r" {2,}", line.strip()) for line in lines[10:]]
    assert runs[0] == ["run", "started", "took", "done", "failed", "reused", "items/s", "ended"]
    assert [(run[0], *run[3:6], run[7]) for run in runs[1:]] == [
        ("1", "1,200", "1", "0", "yes"),
        ("2", "1", "3", "0", "yes"),
    ]


def test_show_of_a_journal_in_which_nothing_is(unwait: Command, path: Path) -> None:
    write(path, {}, {}, version="3", codec="pickle")
    shown = unwait("journal", "show", str(path))
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[1] == "function  app.get"
    assert lines[3:6] == ["version   3", "values    pickle", "items     0: 0 done, 0 failed"]
    assert [line.split()[0] for line in lines[7:]] == ["run", "1"]


RUNNING = """
import asyncio, sys
from unwait.flow.journal import Journal

async def main():
    session = Journal(sys.argv[1]).session("app.get", lambda tags: print("committed", flush=True), print)
    session.done("a", 1, None, attempts=1, waited=0.0, elapsed=0.0)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_show_works_while_a_run_writes_and_after_it_was_killed(
    unwait: Command, path: Path, environment: dict[str, str]
) -> None:
    running = subprocess.Popen([sys.executable, "-c", RUNNING, path], stdout=subprocess.PIPE, env=environment)
    with running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"committed\n"
            shown = unwait("journal", "show", str(path))
        finally:
            running.kill()
    assert "items     1: 1 done, 0 failed\n" in shown.stdout
    assert f"running, pid {running.pid}\n" in shown.stdout
    left = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")}
    shown = unwait("journal", "show", str(path))
    assert "items     1: 1 done, 0 failed\n" in shown.stdout
    assert "no: it was interrupted\n" in shown.stdout
    exported = unwait("journal", "export", str(path))
    assert json.loads(exported.stdout)["key"] == "a"
    # Reading changed nothing, not even by bringing the log into the file.
    assert left == {
        file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")
    }


def test_failed_lists_what_failed_and_says_so_by_its_exit_code(unwait: Command, journal: Path) -> None:
    shown = unwait("journal", "failed", str(journal))
    assert shown.returncode == 1
    assert [re.sub(r"^\S+ \S+  ", "", line) for line in shown.stdout.splitlines()] == [
        " 3 attempts  late  TimeoutError: after 30 s",
        " 3 attempts  bad\N{REPLACEMENT CHARACTER}[2J  ValueError: line line \N{REPLACEMENT CHARACTER}[2J",
        " 3 attempts  worse  ValueError: last",
        " 3 attempts  secret  OSError: pwd=***",
    ]
    shown = unwait("journal", "failed", str(journal), "--json")
    assert shown.returncode == 1
    first = json.loads(shown.stdout.splitlines()[0])
    assert first.keys() == {"key", "attempts", "error", "at"}
    assert (first["key"], first["attempts"], first["error"]) == ("late", 3, "TimeoutError: after 30 s")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", first["at"])


def test_failed_of_a_journal_without_failures(unwait: Command, path: Path) -> None:
    write(path, {"a": 1}, {})
    shown = unwait("journal", "failed", str(path))
    assert (shown.returncode, shown.stdout) == (0, "no item failed\n")
    shown = unwait("journal", "failed", str(path), "--json")
    assert (shown.returncode, shown.stdout) == (0, "")


def test_export_writes_each_item_as_a_line(unwait: Command, journal: Path, tmp_path: Path) -> None:
    shown = unwait("journal", "export", str(journal))
    assert shown.returncode == 0
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(lines) == 1205
    assert lines[3] == {
        "key": "item 3",
        "ok": True,
        "value": {"n": 3},
        "error": None,
        "attempts": 1,
        "waited": 0.25,
        "elapsed": 1.5,
    }
    assert lines[1201]["key"] == "größe"
    assert lines[1201]["value"] == "\ud800\x1b[2J"
    assert lines[-1] == {
        "key": "secret",
        "ok": False,
        "value": None,
        "error": "OSError: pwd=***",
        "attempts": 3,
        "waited": 2.0,
        "elapsed": 4.0,
    }
    out = tmp_path / "out.jsonl"
    written = unwait("journal", "export", str(journal), "-o", str(out))
    assert (written.returncode, written.stdout, written.stderr) == (0, "", "")
    assert out.read_text() == shown.stdout
    failed = unwait("journal", "export", str(journal), "--failed")
    assert [json.loads(line)["key"] for line in failed.stdout.splitlines()] == [
        line["key"] for line in lines if not line["ok"]
    ]
    assert not list(tmp_path.glob("*.part"))


def test_export_into_a_pipe_that_is_closed_early_says_nothing(
    journal: Path, environment: dict[str, str]
) -> None:
    piped = subprocess.run(
        f"{sys.executable} -m unwait journal export {journal} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert json.loads(piped.stdout)["key"] == "item 0"
    assert piped.stderr == ""


def test_export_never_writes_over_the_journal_or_leaves_half_a_file(
    unwait: Command, journal: Path, tmp_path: Path
) -> None:
    before = journal.read_bytes()
    refused = unwait("journal", "export", str(journal), "-o", str(journal))
    assert refused.returncode == 2
    assert "that is the journal itself" in refused.stderr
    assert journal.read_bytes() == before
    missing = tmp_path / "missing" / "out.jsonl"
    refused = unwait("journal", "export", str(journal), "-o", str(missing))
    assert refused.returncode == 2
    assert refused.stderr == f"unwait journal: cannot write {missing}: No such file or directory\n"


PICKLED = """
import os, pathlib
class Page:
    def __init__(self, title): self.title = title
    def __repr__(self): return f"Page({self.title!r})"
class Trap:
    def __reduce__(self): return pathlib.Path.touch, (pathlib.Path("sprung"),)
"""


def test_export_runs_no_code_of_a_pickle_unless_asked_to(
    unwait: Command, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pages.py").write_text(PICKLED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import pages  # type: ignore[import-not-found]

    write(path, {"plain": {"n": 1}, "page": pages.Page("x"), "trap": pages.Trap()}, {}, codec="pickle")
    os.unlink("sprung")  # storing it decoded it
    shown = unwait("journal", "export", str(path), cwd=tmp_path)
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [line["value"] for line in lines] == [None, None, None]
    assert pickle.loads(base64.b64decode(lines[0]["encoded"])) == {"n": 1}
    assert not Path("sprung").exists()
    shown = unwait("journal", "export", str(path), "--unpickle", cwd=tmp_path)
    assert [json.loads(line)["value"] for line in shown.stdout.splitlines()] == [{"n": 1}, "Page('x')", None]
    assert Path("sprung").exists()
    os.unlink("pages.py")
    shown = unwait("journal", "export", str(path), "--unpickle", cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr == (
        "unwait journal: cannot decode the value of page: ModuleNotFoundError: No module named 'pages'\n"
    )


def test_what_is_no_journal_is_told_and_left_as_it_is(unwait: Command, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a journal\n" * 100)
    missing = tmp_path / "missing.db"
    for command, path, message in (
        ("show", text, f"{text} is no journal: it holds something else; name another file"),
        ("failed", tmp_path, f"{tmp_path} is no journal: it is a directory; name another file"),
        ("export", missing, f"cannot read the journal {missing}: No such file or directory"),
    ):
        refused = unwait("journal", command, str(path))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == f"unwait journal: {message}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_help_has_examples(unwait: Command) -> None:
    for arguments in (["journal", "--help"], ["journal", "export", "--help"]):
        shown = unwait(*arguments)
        assert shown.returncode == 0
        assert "\n    unwait journal export run.db" in shown.stdout
    assert "runs whatever code the file names" in " ".join(shown.stdout.split())
    assert unwait("journal", "show").returncode == 2

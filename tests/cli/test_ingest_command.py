"""`unwait ingest` as a process: summary, report, exit codes, interruptions."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

PAGE = "<html><head><title>Timeouts</title></head><body><h1>Timeouts</h1><p>The default is a minute.</p></body></html>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five sources: three documents, a broken one and an empty one."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "keys.md").write_text("# Keys\n\nTo rotate a key, call rotate and wait.\n")
    (docs / "timeouts.html").write_text(PAGE)
    (docs / "plain.txt").write_text("Plain words about invoices.\n")
    (docs / "broken.pdf").write_bytes(b"%PDF-1.7\n\x1b[2J broken")
    (docs / "empty.txt").write_text("")
    return docs


@pytest.fixture
def ingest(unwait: Any, folder: Path) -> Any:
    """Runs `unwait ingest` beside the folder."""
    return lambda *arguments, **options: unwait("ingest", *arguments, cwd=folder.parent, **options)


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a report by the name of their source."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {re.split("[/#]", line["uri"])[-1]: line for line in lines}


def test_a_folder_becomes_a_store_that_is_searched(ingest: Any, unwait: Any, folder: Path) -> None:
    done = ingest("docs")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("5 sources in ")
    assert "3 added, 2 failed" in done.stdout.splitlines()[0]
    for part in ("chunks      3: 3 embedded", "bottleneck  ", "loop lag    p99 ", "1 failed: empty"):
        assert part in done.stdout
    told = done.stdout.partition("\nfailed\n")[2].splitlines()
    assert sorted(line.split(": ")[1] for line in told[:2]) == [
        str(folder / "broken.pdf"),
        str(folder / "empty.txt"),
    ]
    assert told[2:] == [
        "all of them: unwait documents failed --db kb.db",
        "once more:   unwait ingest --retry-failed --db kb.db",
    ]
    found = unwait("search", "rotate", "-k1", cwd=folder.parent)
    assert (found.returncode, found.stderr) == (0, "")
    assert "keys.md" in found.stdout
    assert "\x1b" not in done.stdout + found.stdout


def test_all_well_is_exit_code_0_and_a_second_run_does_nothing(ingest: Any) -> None:
    done = ingest("docs", "--exclude", "*.pdf", "--exclude", "empty*")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 added" in done.stdout
    assert "failed" not in done.stdout
    again = ingest("docs", "--include", "*.md", "--include", "*.html", "--json")
    assert again.returncode == 0
    (line,) = again.stdout.splitlines()
    counts = json.loads(line)
    assert counts["outcomes"] == {"added": 0, "updated": 0, "unchanged": 2, "pruned": 0, "failed": 0}
    assert (counts["embedded"], counts["model_calls"], counts["store"]) == (0, 0, "kb.db")


def test_the_report_has_a_line_for_each_source(ingest: Any, folder: Path) -> None:
    report = folder.parent / "rows.jsonl"
    report.write_text("of an earlier run\n" * 100)
    assert ingest("docs", "--report", "rows.jsonl").returncode == 1
    rows = rows_of(report)
    assert {name: row["outcome"] for name, row in rows.items()} == {
        **dict.fromkeys(("keys.md", "timeouts.html", "plain.txt"), "added"),
        **dict.fromkeys(("broken.pdf", "empty.txt"), "failed"),
    }
    assert (rows["keys.md"]["chunks"], rows["keys.md"]["embedded"]) == (1, 1)
    assert (rows["empty.txt"]["stage"], rows["empty.txt"]["kind"]) == ("read", "empty")
    (folder / "keys.md").unlink()
    assert ingest("docs", "--prune", "--report", "rows.jsonl").returncode == 1
    rows = rows_of(report)
    assert rows["keys.md"]["outcome"] == "pruned"
    assert rows["plain.txt"]["outcome"] == "unchanged"


def test_what_failed_is_tried_again_without_naming_it(ingest: Any, unwait: Any, folder: Path) -> None:
    assert ingest("docs").returncode == 1
    (folder / "empty.txt").write_text("No longer.")
    again = ingest("--retry-failed", "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["outcomes"]["added"] == 1
    (folder / "broken.pdf").write_text("No longer either.")
    assert ingest("--retry-failed", "--db", "kb.db").returncode == 0
    assert unwait("documents", "failed", cwd=folder.parent).returncode == 0


def test_sources_from_stdin(ingest: Any, folder: Path) -> None:
    done = ingest("-", "--report", "rows.jsonl", input="docs/keys.md\n\ndocs/plain.txt\nno/such.md\n")
    assert (done.returncode, done.stderr) == (1, "")
    assert {name: row["outcome"] for name, row in rows_of(folder.parent / "rows.jsonl").items()} == {
        "keys.md": "added",
        "plain.txt": "added",
        "such.md": "failed",
    }


def test_of_many_failures_some_are_shown_and_each_cause(ingest: Any, folder: Path) -> None:
    for number in range(30):
        (folder / f"{number}.txt").write_text("")
        (folder / f"{number}.jsonl").write_text("x" + " " * number + "{")
        (folder / f"at-{number}.jsonl").write_text('{"text": "a"' + " " * number + "x")
    done = ingest("docs")
    told = done.stdout.partition("\nfailed, for example\n")[2].splitlines()[:-2]
    assert "     31 failed: empty" in done.stdout
    assert "     61 failed: broken" in done.stdout
    assert len(told) <= 10
    assert Counter(line.split(":")[0].strip() for line in told) == {"broken": 5, "empty": 1}
    assert sum(line.endswith(": it is empty (the same for 30 more)") for line in told) == 1


def test_a_model_gets_the_key_of_the_environment_and_nobody_else(
    ingest: Any, unwait: Any, folder: Path, models: Any
) -> None:
    key = "sk-very-secret-0123456789"
    options = ["--embed=openai:tiny", f"--base-url={models.base}/v1", "--rate=1000/s", "--tokens=1000000/min"]
    done = ingest("docs/keys.md", *options, "--json", env={"OPENAI_API_KEY": key})
    assert (done.returncode, done.stderr) == (0, "")
    counts = json.loads(done.stdout)
    assert (counts["model_calls"], counts["embedded"]) == (1, 1)
    assert counts["tokens"] > 0
    # The store knows the model, and where it is.
    found = unwait("search", "rotate", "--mode=vector", cwd=folder.parent, env={"OPENAI_API_KEY": key})
    assert (found.returncode, found.stderr) == (0, "")
    assert "keys.md" in found.stdout
    assert models.keys == {f"Bearer {key}"}
    assert models.texts[-1] == "rotate"
    for path in folder.parent.glob("kb.db*"):
        assert key.encode() not in path.read_bytes()
    assert "api-key" not in ingest("--help").stdout


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_two_interrupts_keep_what_was_done_and_the_next_run_goes_on(
    start: Any, unwait: Any, api: Any, folder: Path, options: list[str]
) -> None:
    api.answers["a"] = web.Response(text=PAGE, content_type="text/html")
    command = ["ingest", "docs/keys.md", f"{api.base}/hold/x", "--report", "rows.jsonl", *options]
    process = start(*command, cwd=folder.parent)
    assert api.held.acquire(timeout=30)
    wait_for_line(folder.parent / "rows.jsonl", "keys.md")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("interrupted: finishing")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "unwait ingest: interrupted; 1 added; the same command does the rest"
    api.release()
    again = unwait(*command, cwd=folder.parent)
    assert again.returncode == 0
    assert {name: row["outcome"] for name, row in rows_of(folder.parent / "rows.jsonl").items()} == {
        "keys.md": "unchanged",
        "x": "added",
    }


def test_the_first_interrupt_finishes_what_is_under_way(start: Any, api: Any, folder: Path) -> None:
    process = start(
        "ingest", "docs/keys.md", f"{api.base}/hold/x", "--report", "rows.jsonl", cwd=folder.parent
    )
    assert api.held.acquire(timeout=30)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("interrupted: finishing")
    api.release()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "unwait ingest: interrupted; 2 added; the same command does the rest"
    assert {row["outcome"] for row in rows_of(folder.parent / "rows.jsonl").values()} == {"added"}


def wait_for_line(path: Path, text: str) -> None:
    """Until the file has it: a report is to be read while the run goes on."""
    until = time.monotonic() + 30
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_store_in_use_is_exit_code_2(start: Any, ingest: Any, api: Any, folder: Path) -> None:
    report = folder.parent / "rows.jsonl"
    report.write_text("kept\n")
    start("ingest", f"{api.base}/hold/x", cwd=folder.parent)
    assert api.held.acquire(timeout=30)
    done = ingest("docs", "--report", "rows.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("unwait ingest: ")
    assert "kb.db" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert report.read_text() == "kept\n", "nothing is taken away for a run that cannot begin"


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([], "SOURCE: name files, directories or URLs"),
        (["docs", "--embed", "word2vec"], "word2vec"),
        (["docs", "--summarise", "openai"], "openai"),
        (["docs", "--records", "no_such.py:Invoice", "--chat", "openai:x"], "no_such.py"),
        (["docs", "--records", "models.py:Invoice"], "--chat"),
        (["docs", "--chunk-size", "0"], "--chunk-size"),
        (["docs", "--chunk-size", "10", "--overlap", "10"], "overlap"),
        (["docs", "--overlap", "-1"], "--overlap"),
        (["docs", "--rate", "fast"], "--rate"),
        (["docs", "--tokens", "1M/min"], "--tokens"),
        (["docs", "--max-bytes", "5X"], "'5X' is not a size"),
        (["docs", "--limit", "0"], "--limit"),
        (["docs", "--engine", "spark"], "--engine"),
        (["docs", "--db", "docs"], "docs"),
        (["docs", "--db", "docs/plain.txt"], "docs/plain.txt is no"),
        (["docs", "--db", "mysql://u:pa55@h/d"], "not mysql://"),
        (["docs", "--db", "no/such/kb.db"], "no/such"),
        (["docs", "--report", "no/such/rows.jsonl"], "cannot write no/such/rows.jsonl: No such file"),
        (["docs", "--report", os.devnull], "/dev/null is not a file"),
        (["docs", "--report", "kb.db"], "that is the store itself"),
        (["docs", "--api-key", "x"], "--api-key"),
    ],
)
def test_bad_usage_is_exit_code_2(ingest: Any, folder: Path, arguments: list[str], cause: str) -> None:
    done = ingest(*arguments, env={"OPENAI_API_KEY": "none"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert cause in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "pa55" not in done.stderr
    assert (folder / "plain.txt").read_text() == "Plain words about invoices.\n"


def test_a_closed_stdin_is_told(ingest: Any) -> None:
    done = ingest("-", preexec_fn=lambda: os.close(0))
    assert done.returncode == 2
    assert "stdin is closed" in done.stderr


def test_a_missing_library_is_one_line(python: Any, folder: Path) -> None:
    for package in ("numpy", "wordllama", "semantic_text_splitter"):
        code = f"import sys; sys.modules[{package!r}] = None; import unwait.cli; unwait.cli.main()"
        done = python("-c", code, "ingest", "docs", "--json", cwd=folder.parent)
        assert (package, done.returncode, done.stdout) == (package, 2, "")
        assert 'pip install "unwait[documents]"' in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_on_a_terminal_each_stage_has_a_bar_and_the_bottleneck_a_name(on_terminal: Any, folder: Path) -> None:
    code, seen, output = on_terminal("ingest", "docs", "--progress", stream="stderr", cwd=folder.parent)
    assert code == 1
    rows = [
        row.split()
        for row in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen))
        if row.strip()
    ]
    last = {row[0]: " ".join(row[2:]) for row in rows}
    assert list(last)[:2] == ["load", "read"]
    assert list(last)[-2:] == ["save", "all"]
    assert re.fullmatch(r"3 \d+(\.\d)?/s \d+ % busy queue 0", last["save"])
    assert re.match(r"bottleneck \w+ 3/5 done 2 failed", last["all"])
    assert output.startswith("5 sources in ")


def test_progress_off_a_terminal_only_if_it_is_asked_for(ingest: Any) -> None:
    assert ingest("docs").stderr == ""
    assert re.fullmatch(
        r"load → .* → save: 3/5 done, 2 failed, .*, in 0 s, bottleneck \w+ \(\d+ % busy\)\n",
        ingest("docs", "--progress", "--chunk-size", "900").stderr.replace("in 1 s", "in 0 s"),
    )


def test_a_report_that_cannot_be_written_on_costs_no_document(python: Any, unwait: Any, folder: Path) -> None:
    code = """
import os, unwait.cli, unwait.cli.ingest_run as ingest_run
class Full:
    def __getattr__(self, name):
        return getattr(os, name)
    def write(self, descriptor, data):
        raise OSError(28, "No space left on device")
ingest_run.os = Full()
unwait.cli.main()
"""
    done = python("-c", code, "ingest", "docs/keys.md", "--report", "rows.jsonl", cwd=folder.parent)
    assert done.returncode == 1
    assert "1 added" in done.stdout
    assert (
        done.stderr == "unwait ingest: cannot write rows.jsonl: No space left on device; it is not complete\n"
    )
    assert "keys.md" in unwait("documents", "list", cwd=folder.parent).stdout


def test_an_empty_name_is_not_the_directory_one_is_in(ingest: Any, folder: Path) -> None:
    done = ingest("")
    assert done.returncode == 2
    assert "a name is empty" in done.stderr
    assert not (folder.parent / "kb.db").exists()


def test_what_failed_is_not_tried_again_from_a_store_that_is_not_there(ingest: Any, folder: Path) -> None:
    done = ingest("--retry-failed", "--db", "typo.db")
    assert done.returncode == 2
    assert "there is no typo.db" in done.stderr
    assert not (folder.parent / "typo.db").exists()


def test_a_store_that_cannot_grow_ends_the_run_and_tells_what_was_stored(ingest: Any, folder: Path) -> None:
    for number in range(200):
        (folder / f"{number}.txt").write_text(f"Number {number} of many.\n\n" * 200)
    done = ingest("docs", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"unwait ingest: not finished: .*\d+ added.*; the same command does the rest\n"
        r"unwait ingest: cannot write the store kb\.db: .+\n",
        done.stderr,
    )

"""`unwait documents` as a process: what a store holds, shown and exported, and nothing of it trusted."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KEYS = "https://docs.example/keys"
TEXT = "To rotate a key, call rotate and wait.\n\nA lost key\x1b[2J\x07\u202e\0 is\ud800 gone."
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def steers(text: str) -> bool:
    return any(c in text for c in "\x1b\x07\u202e\0")


@pytest.fixture
def documents(unwait: Any, knowledge: Path) -> Any:
    """Runs `unwait documents` in the directory of the store."""
    return lambda *arguments, **options: unwait("documents", *arguments, cwd=knowledge.parent, **options)


def test_list_has_a_line_for_each_document(documents: Any, knowledge: Path) -> None:
    done = documents("list")
    assert (done.returncode, done.stderr) == (0, "")
    head, note, keys = done.stdout.splitlines()
    assert head.split() == ["saved", "chunks", "characters", "document"]
    assert re.fullmatch(rf"{MOMENT} +1 +18  {re.escape(str(knowledge.parent))}/notes/a\.md", note)
    assert re.fullmatch(rf"{MOMENT} +2 +{len(TEXT)}  {KEYS}  Keys�\[2J��", keys)


def test_list_as_json(documents: Any) -> None:
    done = documents("list", "--json", "--source", "https://*")
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["uri"] == KEYS
    assert (found["title"], found["chunks"], found["records"]) == ("Keys\x1b[2J\x07\u202e", 2, 2)
    assert (found["characters"], found["metadata"]) == (len(TEXT), {"lang": "en", "year": 2024})


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--where", "lang=de"], 1),
        (["--source", "notes/"], 1),
        (["--source", "https://"], 1),
        (["--where", "a=b"], 0),
    ],
)
def test_list_filters(documents: Any, options: list[str], count: int) -> None:
    assert len(documents("list", "--json", *options).stdout.splitlines()) == count


def test_an_empty_list_says_so(documents: Any) -> None:
    done = documents("list", "--where", "lang=xx")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no documents\n")


def test_show_tells_what_is_known_of_a_document(documents: Any) -> None:
    done = documents("show", KEYS)
    assert (done.returncode, done.stderr) == (0, "")
    facts, summary, chunks = done.stdout.split("\n\n")
    assert dict(line.split(maxsplit=1) for line in facts.splitlines()).keys() == {
        *("document", "title", "format", "from", "saved", "characters", "chunks", "records", "vectors"),
        *("lang", "year"),
    }
    assert summary == "summary\n  All about keys�[2J��."
    assert chunks.splitlines() == [
        "chunks",
        "    0  Keys�[2J�� > Rotation, characters 0 to 40",
        "       To rotate a key, call rotate and wait.",
        f"    1  Keys�[2J�� > Loss, characters 40 to {len(TEXT)}",
        "       A lost key�[2J��� is� gone.",
    ]
    assert not steers(done.stdout)


def test_show_text_is_exact_where_it_does_not_go_to_a_terminal(
    documents: Any, on_terminal: Any, knowledge: Path
) -> None:
    done = documents("show", KEYS, "--text", text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == TEXT.encode("utf-8", "surrogatepass")
    code, seen, _ = on_terminal("documents", "show", KEYS, "--text", cwd=knowledge.parent)
    assert code == 0
    assert seen.splitlines()[0] == "To rotate a key, call rotate and wait."
    assert not steers(seen)


def test_show_json_has_everything(documents: Any) -> None:
    done = documents("show", KEYS, "--json")
    found = json.loads(done.stdout)
    assert "".join(chunk["text"] for chunk in found["chunks"]) == TEXT
    assert [chunk["section"][1] for chunk in found["chunks"]] == ["Rotation", "Loss"]
    assert found["versions"]["vectors"] == "wordllama-256"
    assert [record["data"]["total"] for record in found["records"]] == [-5, 7.5]


@pytest.mark.parametrize("name", ["notes/a.md", "./notes/../notes/a.md"])
def test_show_takes_a_path_as_it_is_typed(documents: Any, name: str) -> None:
    assert documents("show", name, "--text").stdout == "Notes on timeouts."


def test_show_of_nothing_is_exit_code_1(documents: Any) -> None:
    done = documents("show", "https://docs.example/\x1b[2J")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "unwait documents: there is no document https://docs.example/�[2J in kb.db\n"


def test_failed_names_stage_and_cause(documents: Any) -> None:
    done = documents("failed")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "not found (load): https://docs.example/gone�[2J��: HTTP 404�[2J��\n"
    done = documents("failed", "--json")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {
        "uri": "https://docs.example/gone\x1b[2J\x07\u202e",
        "origin": "/origin",
        "stage": "load",
        "kind": "not found",
        "error": "HTTP 404\x1b[2J\x07\u202e",
    }


def test_failed_of_nothing_is_exit_code_0(documents: Any, knowledge: Path) -> None:
    async def repair() -> None:
        from unwait.documents.store import open_store

        async with open_store(str(knowledge)) as store:
            run = await store.begin({})
            await store.prune(run, ["/origin"])

    asyncio.run(repair())
    done = documents("failed")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing failed\n", "")
    assert documents("failed", "--json").stdout == ""


def test_records_are_lines_with_their_span(documents: Any) -> None:
    plain, asked = documents("records"), documents("records", "--jsonl")
    assert plain.returncode == asked.returncode == 0
    assert plain.stdout == asked.stdout
    lines = [json.loads(line) for line in plain.stdout.splitlines()]
    assert [(line["schema"], line["start"], line["end"]) for line in lines] == [
        ("Person", 0, 5),
        ("Invoice", 0, 12),
        ("Invoice", 12, 40),
    ]
    assert lines[1]["data"] == {"total": -5, "name": "=HYPERLINK(1)", "items": [{"n": 1}], "uri": "+1"}


def test_no_records_are_said_to_be_none(documents: Any) -> None:
    for options, header in (((), ""), (("--csv",), "uri,start,end\n")):
        done = documents("records", "--schema", "None", *options)
        assert (done.returncode, done.stdout, done.stderr) == (0, header, "no records\n")


def test_records_as_csv_hold_no_formula(documents: Any) -> None:
    done = documents("records", "--csv", "--schema", "Invoice")
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert rows == [
        ["uri", "start", "end", "total", "name", "items", "data.uri", "paid", "note"],
        [KEYS, "0", "12", "-5", "'=HYPERLINK(1)", '[{"n": 1}]', "'+1", "", ""],
        [KEYS, "12", "40", "7.5", 'Größe, "x"', "", "", "true", ""],
    ]


def test_records_go_to_a_file_that_is_there_when_it_is_whole(documents: Any, knowledge: Path) -> None:
    out = knowledge.parent / "out.csv"
    out.write_text("as it was")
    missing = documents("records", "--csv", "-o", "no/such/out.csv")
    assert missing.returncode == 2
    assert missing.stderr == "unwait documents: cannot write no/such/out.csv: No such file or directory\n"
    done = documents("records", "--csv", "-o", "out.csv", "--source", "notes/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_text() == f"uri,start,end,name\n{knowledge.parent}/notes/a.md,0,5,Ada\n"
    refused = documents("records", "-o", "kb.db")
    assert refused.returncode == 2
    assert "that is the store itself" in refused.stderr
    assert documents("records").returncode == 0
    assert sorted(path.name for path in knowledge.parent.iterdir() if not path.name.startswith("kb.db")) == [
        "out.csv"
    ]


def test_records_to_a_pipe_of_the_shell(documents: Any) -> None:
    done = documents("records", "-o", "/dev/stdout")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (
            ["list", "--db", "no.db"],
            "unwait documents: there is no no.db; unwait ingest SOURCE… --db no.db makes it",
        ),
        (["list", "--db", "mysql://u:pa55@h/d"], "unwait documents: "),
        (["list", "--where", "x"], "'x' is not KEY=VALUE"),
        (["records", "--csv", "--jsonl"], "--jsonl another"),
        (["show", KEYS, "--text", "--json"], "--json"),
        (["show"], "URI"),
        (["drop"], "drop"),
    ],
)
def test_bad_usage_is_exit_code_2(documents: Any, knowledge: Path, arguments: list[str], cause: str) -> None:
    before = sorted(path.name for path in knowledge.parent.iterdir())
    done = documents(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert cause in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "pa55" not in done.stderr
    assert sorted(path.name for path in knowledge.parent.iterdir()) == before


def test_a_file_with_a_name_that_is_no_text_is_found_by_it(
    unwait: Any, documents: Any, knowledge: Path
) -> None:
    name = os.fsdecode(b"bad\xff.txt")
    (knowledge.parent / name).write_text("Words.")
    assert unwait("ingest", name, cwd=knowledge.parent).returncode == 0
    done = documents("show", name, "--text")
    assert (done.returncode, done.stdout) == (0, "Words.")


def test_an_empty_file_does_not_become_a_store(documents: Any, knowledge: Path) -> None:
    empty = knowledge.parent / "empty.db"
    empty.touch()
    done = documents("list", "--db", "empty.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no empty.db" in done.stderr
    assert empty.stat().st_size == 0


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("command", ["documents list", "documents records --csv", "search key --mode=text"])
def test_an_output_that_is_full_is_one_line(
    unwait: Any, knowledge: Path, command: str, buffered: str
) -> None:
    with open("/dev/full", "w") as full:
        done = unwait(
            *command.split(),
            *("--db", str(knowledge)),
            **{"stdout": full, "stderr": subprocess.PIPE, "capture_output": False},
            env={"PYTHONUNBUFFERED": buffered},
        )
    name = command.split()[0]
    assert (done.returncode, done.stderr) == (1, f"unwait {name}: No space left on device\n")


def test_a_file_that_is_no_store_is_left_alone(documents: Any, knowledge: Path) -> None:
    other = knowledge.parent / "other"
    other.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    done = documents("list", "--db", "other")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("unwait documents: other is no")
    assert len(done.stderr.splitlines()) == 1
    assert other.read_bytes() == b"SQLite format 3\0" + b"x" * 5000


def test_a_reader_that_leaves_is_no_traceback(knowledge: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "unwait", "documents", "records", "--db", str(knowledge)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1

"""`unwait search` as a process: what is shown of a hit, and that no document steers the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

HIT = """\
1. Keys�[2J�� > Rotation
   https://docs.example/keys, characters 0 to 40
   score N (text 1)
   To rotate a key, call rotate and wait.

"""


def without_score(shown: str) -> str:
    return re.sub(r"score \d\.\d{4} ", "score N ", shown)


def test_a_hit_says_what_it_is_where_it_stands_and_which_ranking_found_it(
    unwait: Any, knowledge: Path
) -> None:
    done = unwait("search", "rotate it", "--db", str(knowledge), "--mode", "text")
    assert (done.returncode, done.stderr) == (0, "")
    assert without_score(done.stdout) == HIT


def test_the_default_asks_both_rankings(unwait: Any, knowledge: Path) -> None:
    done = unwait("search", "rotate", "-k", "2", "--db", "kb.db", cwd=knowledge.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^   score 0\.\d{4} \(text 1, vectors \d\)$", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^\d\. ", done.stdout, re.MULTILINE)) == 2
    assert "2. " in done.stdout


def test_json_has_a_hit_a_line(unwait: Any, knowledge: Path) -> None:
    done = unwait("search", "key", "--db", str(knowledge), "--mode", "text", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(hit["rank"], hit["text_rank"], hit["vector_rank"]) for hit in hits] == [
        (1, 1, None),
        (2, 2, None),
    ]
    lost = next(hit for hit in hits if "lost" in hit["text"])
    assert lost["text"] == "A lost key\x1b[2J\x07\u202e\0 is\ud800 gone."
    assert (lost["uri"], lost["start"], lost["end"]) == (
        "https://docs.example/keys",
        40,
        40 + len(lost["text"]),
    )
    assert lost["metadata"] == {"lang": "en", "year": 2024}
    assert done.stdout.isascii()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nothing_found_is_said_and_exit_code_1(unwait: Any, knowledge: Path, options: list[str]) -> None:
    done = unwait("search", "zebra", "--db", str(knowledge), "--mode", "text", *options)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "nothing found\n")


@pytest.mark.parametrize(
    ("options", "uris"),
    [
        (["--where", "lang=de"], ["a.md"]),
        (["--where", "lang=en", "--where", "year=2024"], ["keys"]),
        (["--where", "lang=en", "--where", "year=2025"], []),
        (["--source", "https://docs.example/*"], ["keys"]),
        (["--source", "notes/"], ["a.md"]),
        (["--source", "notes/a.md"], ["a.md"]),
        (["--source", "*/a.md"], ["a.md"]),
        (["--source", "other/"], []),
    ],
)
def test_filters(unwait: Any, knowledge: Path, options: list[str], uris: list[str]) -> None:
    done = unwait("search", "rotate timeouts", "--mode=text", "--json", *options, cwd=knowledge.parent)
    assert [json.loads(line)["uri"].rpartition("/")[2] for line in done.stdout.splitlines()] == uris
    assert done.returncode == (0 if uris else 1)


def test_on_a_terminal_the_words_stand_out_and_no_document_steers_it(
    on_terminal: Any, knowledge: Path
) -> None:
    code, seen, errors = on_terminal("search", "ROTATE [key", "--db", str(knowledge), "--mode", "text")
    assert (code, errors) == (0, "")
    assert "\x1b[1mKeys�[2J�� > Rotation\x1b[0m" in seen
    assert "To \x1b[1mrotate\x1b[0m a \x1b[1mkey\x1b[0m, call \x1b[1mrotate\x1b[0m and wait." in seen
    assert set(re.findall(r"\x1b[^m]*m?", seen)) == {"\x1b[1m", "\x1b[32m", "\x1b[0m"}
    assert "\x07" not in seen
    assert "\u202e" not in seen


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_switched_off(on_terminal: Any, knowledge: Path, env: dict[str, str]) -> None:
    code, seen, _ = on_terminal("search", "rotate it", "--db", str(knowledge), "--mode", "text", env=env)
    assert code == 0
    assert without_score(seen.replace("\r\n", "\n")) == HIT


def test_on_a_narrow_terminal_lines_are_folded(on_terminal: Any, knowledge: Path) -> None:
    _, seen, _ = on_terminal("search", "rotate", "--db", str(knowledge), "--mode=text", env={"COLUMNS": "24"})
    text = re.sub(r"\x1b\[\d*m", "", seen).splitlines()[3:]
    assert [line.strip() for line in text if line] == ["To rotate a key, call", "rotate and wait."]


def test_output_that_cannot_show_the_text(unwait: Any, knowledge: Path) -> None:
    done = unwait(
        "search", "rotate", "--db", str(knowledge), "--mode=text", env={"PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"Keys\ufffd[2J" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (
            ["x", "--db", "no.db"],
            "unwait search: there is no no.db; unwait ingest SOURCE… --db no.db makes it",
        ),
        (["x", "--db", "text.txt"], "unwait search: text.txt is no"),
        (["x", "--db", "."], "unwait search: "),
        (["x", "--db", "mysql://u:pa55@h/d"], "not mysql://"),
        (["x", "--mode", "best"], "--mode"),
        (["x", "-k", "0"], "-k"),
        (["x", "--where", "lang"], "'lang' is not KEY=VALUE"),
        (["x", "--where", "=en"], "'=en' is not KEY=VALUE"),
        ([], "QUERY"),
    ],
)
def test_bad_usage_is_exit_code_2(unwait: Any, knowledge: Path, arguments: list[str], cause: str) -> None:
    (knowledge.parent / "text.txt").write_text("no store" * 1000)
    before = sorted(path.name for path in knowledge.parent.iterdir())
    done = unwait("search", *arguments, cwd=knowledge.parent)
    assert done.returncode == 2
    assert done.stdout == ""
    assert cause in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "pa55" not in done.stderr
    assert sorted(path.name for path in knowledge.parent.iterdir()) == before, "nothing is made"


def test_a_missing_library_is_one_line(python: Any, knowledge: Path) -> None:
    code = "import sys; sys.modules['numpy'] = None; import unwait.cli; unwait.cli.main()"
    done = python("-c", code, "search", "x", "--db", str(knowledge))
    assert (done.returncode, done.stdout) == (2, "")
    assert "numpy" in done.stderr
    assert 'pip install "unwait[documents]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nothing_is_loaded_that_a_search_does_not_need(python: Any, knowledge: Path) -> None:
    code = """
import sys, unwait.cli
try:
    unwait.cli.main()
finally:
    print(sorted({name.partition(".")[0] for name in sys.modules} & {
        "aiohttp", "rich", "wordllama", "selectolax", "pypdfium2", "ray", "asyncpg"}))
"""
    done = python("-c", code, "search", "rotate", "--mode=text", "--db", str(knowledge))
    assert done.stdout.splitlines()[-1] == "[]"
    assert python("-c", code, "--help").stdout.splitlines()[-1] == "[]"


def test_a_title_that_goes_on_behind_the_first_heading_is_not_shown_twice(
    unwait: Any, tmp_path: Path
) -> None:
    page = "<html><head><title>Keys — The Manual</title></head><body><h1>Keys</h1><h2>Rotation</h2><p>Call it.</p>"
    (tmp_path / "keys.html").write_text(page, encoding="utf-8")
    assert unwait("ingest", "keys.html", cwd=tmp_path).returncode == 0
    assert unwait("search", "rotation", cwd=tmp_path).stdout.startswith("1. Keys\n")

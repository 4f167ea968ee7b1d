"""The examples of docs/documents.md: those in Python run, on both loops; those for the shell are commands there are."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import typer
from flaky_api import FlakyApi
from flaky_faults import Faults

import unwait
from unwait.cli.app import app

PAGES = Path(__file__).resolve().parents[2]
PAGE = PAGES / "docs" / "documents.md"
_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """The blocks in these languages, each with its first line's number."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        if match["language"] in languages:
            yield text.count("\n", 0, match.start("code")) + 1, match["code"]


def _python() -> list[Any]:
    """Each block of Python that is not a file of its own, which begins with its name."""
    return [
        pytest.param("\n" * (line - 1) + code, id=f"line {line}")
        for line, code in _blocks(PAGE, "python")
        if not code.startswith("# ")
    ]


def _commands() -> list[Any]:
    """Each command of the guide and of the README's part on documents."""
    found = []
    for page in (PAGE, PAGES / "README.md"):
        for _, code in _blocks(page, "", "console"):
            for line in code.replace("\\\n", " ").splitlines():
                # Behind two spaces or more, there is what it does.
                command = re.split(r"\s{4,}", line.removeprefix("$ ").strip())[0]
                if re.match(r"unwait (ingest|search|documents) ", command):
                    found.append(pytest.param(command, id=f"{page.name}: {command}"))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one is: notes, and the file with the model of an invoice."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "keys.md").write_text("# Keys\n\n## Rotation\n\nTo rotate a key, call rotate and wait.\n")
    (notes / "invoice.txt").write_text("Invoice R-17 of Ada: 41.50 EUR in all.\n")
    (file,) = (code for _, code in _blocks(PAGE, "python") if code.startswith("# invoices.py\n"))
    (tmp_path / "invoices.py").write_text(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def _execute(code: CodeType, names: dict[str, Any]) -> None:
    await unwait.ingest(["notes/"], store="kb.db")
    ran = eval(code, names)
    if inspect.isawaitable(ran):
        await ran


@pytest.mark.parametrize("code", _python())
def test_an_example_in_python_runs(
    code: str,
    folder: Path,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: dict[str, Any] = {"__name__": "example_of_the_page"}
    compiled = compile(code, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    run(_execute(compiled, names))
    if "print(" in code:
        told = capsys.readouterr().out
        assert "2 unchanged" in told
        assert "To rotate a key" in told
    else:
        # Nobody has metadata there, and no error came instead.
        assert names["hits"] == []
        assert "error" not in names


def test_the_model_of_the_example_is_extracted(
    folder: Path, run: Callable[[Coroutine[Any, Any, Any]], Any]
) -> None:
    async def extracted() -> tuple[unwait.IngestReport, list[Any]]:
        async with FlakyApi(Faults(seed=1, api_key="key", invalid=1)) as api:
            report = await unwait.ingest(
                ["notes/"],
                store="kb.db",
                embed="openai:text-embedding-3-small",
                summarise="openai:gpt-4o-mini",
                records="invoices.py:Invoice",
                base_url=f"{api.url}/v1",
                api_key="key",
            )
        async with unwait.open_store("kb.db") as store:
            return report, [record async for _, record in store.records()]

    report, records = run(extracted())
    assert (report.failed, len(records)) == (0, report.records)
    assert records
    assert all(record.data.keys() == {"number", "total", "currency"} for record in records)


@pytest.mark.parametrize("line", _commands())
def test_an_example_for_the_shell_has_the_options_there_are(line: str, folder: Path) -> None:
    _, *arguments = shlex.split(line)
    group: Any = typer.main.get_command(app)
    context = None
    while hasattr(group, "commands"):
        name, *arguments = arguments
        group = group.commands[name]
        context = group.make_context(name, arguments if not hasattr(group, "commands") else [arguments[0]])
    assert context is not None


def test_each_option_of_the_page_is_one_there_is() -> None:
    root: Any = typer.main.get_command(app)
    commands = [
        root.commands["ingest"],
        root.commands["search"],
        *root.commands["documents"].commands.values(),
    ]
    there = {name for command in commands for option in command.params for name in option.opts}
    named = set(re.findall(r"(?<!<!)(?<![\w-])--[a-z][a-z-]*", PAGE.read_text()))
    assert len(named) >= 15
    assert named <= there


def test_the_page_has_examples() -> None:
    assert len(_python()) >= 2
    assert len(_commands()) >= 9

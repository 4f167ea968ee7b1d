"""The examples of docs/flow.md run, on both loops; those that name https://api.example get a server for it."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

PAGE = Path(__file__).resolve().parents[2] / "docs" / "flow.md"
HOST = "https://api.example"
_BLOCK = re.compile(r"^## (?P<heading>[^\n]+)$|^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def _examples() -> list[Any]:
    """Each block of Python, named by the section it stands in."""
    found: list[Any] = []
    heading = "opening"
    for match in _BLOCK.finditer(PAGE.read_text()):
        if match["heading"]:
            heading = match["heading"]
        else:
            line = PAGE.read_text().count("\n", 0, match.start("code"))
            found.append(
                pytest.param("\n" * line + match["code"], id=f"{heading.split(':')[0]}, line {line + 1}")
            )
    return found


async def _serve(request: web.Request) -> web.Response:
    return web.json_response({"path": request.path, "sent": await request.text()})


async def _execute(code: str, name: str) -> None:
    runner = None
    if HOST in code:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", _serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        code = code.replace(HOST, f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        compiled = compile(code, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        ran = eval(compiled, sys.modules[name].__dict__)
        if inspect.isawaitable(ran):
            await ran
    finally:
        if runner is not None:
            await runner.cleanup()


@pytest.mark.parametrize("code", _examples())
def test_an_example_of_the_page_runs(
    code: str, run: Callable[[Coroutine[Any, Any, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A module as any other, so that what it defines can be found by its name.
    module = types.ModuleType("example_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if "unwait.run(" in code:
        exec(compile(code, str(PAGE), "exec", dont_inherit=True), module.__dict__)
    else:
        run(_execute(code, module.__name__))


def test_the_page_has_examples() -> None:
    assert len(_examples()) >= 8


@pytest.mark.parametrize("page", ["flow", "documents"])
def test_the_figures_of_a_page_are_those_that_were_saved(page: str) -> None:
    bench = PAGE.parents[1] / "bench"
    script = (
        f"import json, flow_report, {page}_cells as cells; "
        f"print(flow_report.figures(cells.{page.upper()}, json.load(open('results.json'))[{page!r}]), end='')"
    )
    figures = subprocess.run(
        [sys.executable, "-c", script], cwd=bench, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert f"<!-- bench:begin -->\n{figures}<!-- bench:end -->" in PAGE.with_name(f"{page}.md").read_text()

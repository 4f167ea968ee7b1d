"""The pytest plugins' ways to choose a loop: a small test suite of a user, run by a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import unwait

TESTS = """
import asyncio

import pytest

{marks}

def module():
    return type(asyncio.get_running_loop()).__module__

@pytest.fixture
{fixture_mark}
async def served():
    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        assert module().startswith({loop_name!r})
        yield server.sockets[0].getsockname()

{test_mark}
async def test_runs_on_the_chosen_loop():
    assert module().startswith({loop_name!r})

{test_mark}
async def test_shares_the_loop_with_its_fixture(served):
    reader, writer = await asyncio.open_connection(*served)
    writer.write(b"hello\\n")
    assert await reader.read() == b"hello\\n"
    writer.close()
    await writer.wait_closed()

{test_mark}
@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_sleeps(seconds):
    await asyncio.sleep(seconds)

{test_mark}
async def test_fails():
    await asyncio.sleep(0)
    raise LookupError("meant to fail")
"""


def run_pytest(folder: Path, *options: str) -> str:
    """Run pytest on the folder, on the unwait that this test has imported; give its output."""
    environment = os.environ | {"PYTHONPATH": str(Path(unwait.__file__).parents[1])}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "--rootdir",
        str(folder),
    ]
    done = subprocess.run(
        [*command, *options, str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout + done.stderr


def loop_import(loop_name: str) -> str:
    if loop_name == "unwait":
        return "from unwait import new_event_loop"
    return "from asyncio import SelectorEventLoop as new_event_loop"


@pytest.mark.skipif(
    tuple(map(int, version("pytest-asyncio").split(".")[:2])) < (1, 4),
    reason="the hook pytest_asyncio_loop_factories came with pytest-asyncio 1.4",
)
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_pytest_asyncio_loop_factories(tmp_path: Path, loop_name: str, mode: str) -> None:
    strict = mode == "strict"
    (tmp_path / "conftest.py").write_text(
        f"""
{loop_import(loop_name)}

def pytest_asyncio_loop_factories(config, item):
    return {{"chosen": new_event_loop}}
"""
    )
    text = TESTS.format(
        loop_name=loop_name,
        marks="import pytest_asyncio" if strict else "",
        fixture_mark="",
        test_mark="@pytest.mark.asyncio" if strict else "",
    )
    if strict:
        text = text.replace("@pytest.fixture\n", "@pytest_asyncio.fixture\n")
    (tmp_path / "test_user.py").write_text(text)
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n"
    )
    output = run_pytest(tmp_path)
    assert "1 failed, 4 passed" in output, output
    assert "LookupError: meant to fail" in output


@pytest.mark.skipif(
    tuple(map(int, version("pytest-asyncio").split(".")[:2])) < (1, 4),
    reason="the hook pytest_asyncio_loop_factories came with pytest-asyncio 1.4",
)
def test_pytest_asyncio_with_both_loops_side_by_side(tmp_path: Path) -> None:
    """Each test once on each factory; a mark narrows the choice; a wider loop scope shares one loop."""
    (tmp_path / "conftest.py").write_text(
        """
import asyncio
import unwait

def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.SelectorEventLoop, "unwait": unwait.new_event_loop}
"""
    )
    (tmp_path / "test_user.py").write_text(
        """
import asyncio
import pytest

seen = []

@pytest.mark.asyncio
async def test_on_both(request):
    module = type(asyncio.get_running_loop()).__module__
    assert module.split(".")[0] in request.node.name

@pytest.mark.asyncio(loop_factories=["unwait"])
async def test_on_one():
    assert type(asyncio.get_running_loop()).__module__.startswith("unwait")

@pytest.mark.asyncio(loop_scope="module", loop_factories=["unwait"])
async def test_first_of_the_module():
    seen.append(asyncio.get_running_loop())

@pytest.mark.asyncio(loop_scope="module", loop_factories=["unwait"])
async def test_second_of_the_module():
    assert seen == [asyncio.get_running_loop()]
"""
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    output = run_pytest(tmp_path)
    assert "5 passed" in output, output


def test_anyio_backend_options(tmp_path: Path, loop_name: str) -> None:
    (tmp_path / "conftest.py").write_text(
        f"""
import pytest
{loop_import(loop_name)}

@pytest.fixture(params=[pytest.param(("asyncio", {{"loop_factory": new_event_loop}}), id="chosen")])
def anyio_backend(request):
    return request.param
"""
    )
    text = TESTS.format(
        loop_name=loop_name, marks="pytestmark = pytest.mark.anyio", fixture_mark="", test_mark=""
    )
    (tmp_path / "test_user.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    output = run_pytest(tmp_path, "-p", "no:asyncio")
    assert "1 failed, 4 passed" in output, output
    assert "LookupError: meant to fail" in output

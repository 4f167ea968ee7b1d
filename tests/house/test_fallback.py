"""Where the loop is not built, or only in part, everything works on asyncio's own, and one warning says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unwait

PACKAGE = Path(unwait.__file__).parent

PROGRAM = """
import asyncio, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import unwait, unwait.loop
    loops = [unwait.new_event_loop() for _ in range(3)]
for loop in loops:
    loop.close()
said = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
assert unwait.loop.COMPILED is False
assert len(said) == 1 and "asyncio's own is used instead" in said[0], said
assert type(loops[0]) is unwait.Loop is asyncio.SelectorEventLoop
assert unwait.loop.live_objects() == {}

async def greet(reader, writer):
    writer.write(b"hello, " + await reader.readline())
    writer.close()

async def main():
    async with await unwait.start_server(greet, "127.0.0.1", 0) as server:
        reader, writer = await unwait.open_connection(*server.sockets[0].getsockname())
        writer.write(b"world\\n")
        answer = await reader.read()
        writer.close()
        return answer

assert unwait.run(main()) == b"hello, world\\n"
with unwait.Runner() as runner:
    assert runner.run(main()) == b"hello, world\\n"
unwait.install()
assert asyncio.run(main()) == b"hello, world\\n"
print("fine")
"""


@pytest.mark.parametrize(
    "built", [(), ("kernel",), ("kernel", "handles", "core")], ids=["nothing", "kernel", "half"]
)
def test_asyncio_stands_in_where_the_loop_is_not_built(tmp_path: Path, built: tuple[str, ...]) -> None:
    def unbuilt(folder: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if name == "__pycache__"
            or (name.endswith(".so") and not any(name.startswith(f"{module}.") for module in built))
        ]

    shutil.copytree(PACKAGE, tmp_path / "unwait", ignore=unbuilt)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr) == ("fine\n", "")

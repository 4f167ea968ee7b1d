"""Lines over files, pipes and sockets, whatever the pieces are that they come in."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwait.web.lines import read_lines, write_line

Run = Callable[..., Any]

TEXTS = [
    b"",
    b"\n",
    b"a",
    b"a\n",
    b"a\nb",
    b"\n\na\n\n",
    b"a\r\nb\r\n",
    b"x" * 700_000 + b"\n" + b"y" * 600_000,
]


async def collected(descriptor: int, longest: int = 1 << 30) -> list[tuple[int, bytes | None]]:
    return [line async for line in read_lines(descriptor, longest)]


def expected(text: bytes, longest: int = 1 << 30) -> list[tuple[int, bytes | None]]:
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [(number, line if len(line) <= longest else None) for number, line in enumerate(lines, 1)]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_lines_of_a_file_and_of_a_pipe(run: Run, tmp_path: Path, text: bytes) -> None:
    async def main() -> None:
        path = tmp_path / "lines"
        path.write_bytes(text)
        with path.open("rb") as file:
            assert await collected(file.fileno()) == expected(text)
        reader, writer = os.pipe()
        reading = asyncio.create_task(collected(reader))
        await asyncio.to_thread(_fill, writer, text)
        assert await reading == expected(text)
        os.close(reader)

    run(main())


def _fill(descriptor: int, text: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)


@given(
    pieces=st.lists(st.sampled_from([b"", b"\n", b"a", b"bb\n", b"ccccc", b"\n\n"]).map(bytes), max_size=12),
    longest=st.integers(0, 6),
)
def test_lines_in_any_pieces_and_none_that_is_too_long(pieces: list[bytes], longest: int) -> None:
    async def main() -> list[tuple[int, bytes | None]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            reading = asyncio.create_task(collected(ours.fileno(), longest))
            for piece in pieces:
                if piece:
                    theirs.send(piece)
                await asyncio.sleep(0)
            theirs.close()
            return await reading

    assert asyncio.run(main()) == expected(b"".join(pieces), longest)


def test_waiting_for_lines_can_be_cancelled_and_others_go_on(run: Run) -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        reading = asyncio.create_task(collected(reader))
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        os.write(writer, b"later\n")
        os.close(writer)
        assert await collected(reader) == [(1, b"later")]
        os.close(reader)

    run(main())


def test_a_directory_cannot_be_read(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(IsADirectoryError):
                await collected(descriptor)
        finally:
            os.close(descriptor)

    run(main())


def test_writing_into_a_full_pipe_waits_for_its_reader_without_blocking(run: Run) -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        line = b"x" * 50_000 + b"\n"
        writing = asyncio.create_task(write_line(writer, line))
        while struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))[0] < 4096:
            await asyncio.sleep(0)
        assert not writing.done()
        assert await anext(read_lines(reader, 1 << 20)) == (1, line[:-1])
        await writing
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            await write_line(writer, b"nobody reads\n")
        os.close(writer)

    run(main())

"""asyncpg against a real PostgreSQL server, over TCP and a Unix socket."""

from __future__ import annotations

import asyncio
import datetime
import io
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest


@pytest.fixture(params=["tcp", "unix"])
def options(request: pytest.FixtureRequest, postgres_server: Any) -> dict[str, Any]:
    host = "127.0.0.1" if request.param == "tcp" else postgres_server.unix
    return {
        "host": host,
        "port": postgres_server.port,
        "user": "postgres",
        "database": "postgres",
        "ssl": False,
    }


@asynccontextmanager
async def connected(options: dict[str, Any]) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**options)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def table(connection: asyncpg.Connection, columns: str) -> AsyncIterator[None]:
    await connection.execute(f"CREATE TABLE things ({columns})")
    try:
        yield
    finally:
        await connection.execute("DROP TABLE things")


async def test_values_rows_and_prepared_statements(options: dict[str, Any]) -> None:
    async with connected(options) as connection:
        assert await connection.fetchval("SELECT $1::int + $2::int", 20, 22) == 42
        rows = await connection.fetch("SELECT n, repeat('x', n) AS x FROM generate_series(1, 3000) AS n")
        assert [len(row["x"]) for row in rows] == [row["n"] for row in rows] == list(range(1, 3_001))
        blob = random.Random(1).randbytes(8_000_000)
        assert await connection.fetchval("SELECT $1::bytea", blob) == blob
        moment = datetime.datetime(2026, 2, 28, 12, 30, tzinfo=datetime.UTC)
        squares = await connection.prepare("SELECT $1::bigint * $1, $2::timestamptz")
        for number in range(200):
            assert tuple(await squares.fetchrow(number, moment)) == (number * number, moment)
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.fetch("SELECT * FROM nothing")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("SELECT 1 / $1::int", 0)


async def test_transactions_savepoints_and_cursors(options: dict[str, Any]) -> None:
    async with connected(options) as connection, table(connection, "n int PRIMARY KEY"):
        async with connection.transaction():
            await connection.executemany("INSERT INTO things VALUES ($1)", [(n,) for n in range(1_000)])
            with pytest.raises(asyncpg.UniqueViolationError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO things VALUES (5000), (1)")
            got = [
                row["n"] async for row in connection.cursor("SELECT n FROM things ORDER BY n", prefetch=50)
            ]
            assert got == list(range(1_000))
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("DELETE FROM things")
        await transaction.rollback()
        assert await connection.fetchval("SELECT count(*) FROM things") == 1_000


async def test_serializable_increments_lose_none(options: dict[str, Any]) -> None:
    async with (
        asyncpg.create_pool(**options, min_size=8, max_size=8) as pool,
        pool.acquire() as connection,
        table(connection, "n int"),
    ):
        await connection.execute("INSERT INTO things VALUES (0)")

        async def increment() -> int:
            failures = 0
            while True:
                try:
                    async with pool.acquire() as mine, mine.transaction(isolation="serializable"):
                        n = await mine.fetchval("SELECT n FROM things")
                        await mine.execute("UPDATE things SET n = $1", n + 1)
                        return failures
                except asyncpg.SerializationError:
                    failures += 1

        failures = await asyncio.gather(*(increment() for _ in range(40)))
        assert await connection.fetchval("SELECT n FROM things") == 40
        assert sum(failures) > 0


async def test_listen_and_notify(options: dict[str, Any]) -> None:
    async with connected(options) as speaker, connected(options) as listener:
        heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

        def on_notice(connection: object, pid: int, channel: str, payload: str) -> None:
            assert pid == speaker.get_server_pid()
            heard.put_nowait((channel, payload))

        for channel in ("left", "right"):
            await listener.add_listener(channel, on_notice)
        for number in range(300):
            await speaker.execute("SELECT pg_notify($1, $2)", ("left", "right")[number % 2], str(number))
        for number in range(300):
            assert await heard.get() == (("left", "right")[number % 2], str(number))
        async with speaker.transaction():  # what a transaction notifies comes when it commits, all at once
            for number in range(100):
                await speaker.execute("SELECT pg_notify('left', $1)", f"{number}:" + "x" * 7_000)
            assert await listener.fetchval("SELECT 1") == 1
            assert heard.empty()
        for number in range(100):
            assert (await heard.get())[1].startswith(f"{number}:")
        await listener.remove_listener("left", on_notice)
        await listener.remove_listener("right", on_notice)


async def test_copy_in_and_out(options: dict[str, Any]) -> None:
    rows = 50_000
    async with connected(options) as connection, table(connection, "n int, text text"):
        records = [(n, f"row {n}") for n in range(rows)]
        assert await connection.copy_records_to_table("things", records=records) == f"COPY {rows}"
        out = io.BytesIO()
        await connection.copy_from_table("things", output=out, format="csv")
        lines = out.getvalue().splitlines()
        assert lines == [b"%d,row %d" % (n, n) for n in range(rows)]

        async def source() -> AsyncIterator[bytes]:
            for start in range(0, rows, 500):
                await asyncio.sleep(0)
                yield b"\n".join(lines[start : start + 500]) + b"\n"

        assert await connection.copy_to_table("things", source=source(), format="csv") == f"COPY {rows}"
        assert await connection.fetchval("SELECT sum(n) FROM things") == rows * (rows - 1)

        # A source that fails in the middle undoes its own COPY, and the connection goes on.
        async def fails() -> AsyncIterator[bytes]:
            yield b"1,one\n" * 10_000
            raise LookupError("the source has dried up")

        with pytest.raises(LookupError, match="dried up"):
            await connection.copy_to_table("things", source=fails(), format="csv")
        assert await connection.fetchval("SELECT count(*) FROM things") == 2 * rows

        # So does a sink that fails while the server is sending.
        async def refuses(data: bytes) -> None:
            raise LookupError("the sink is full")

        with pytest.raises(LookupError, match="full"):
            await connection.copy_from_query("SELECT * FROM things", output=refuses, format="csv")
        assert await connection.fetchval("SELECT 1") == 1


async def test_cancelled_query_stops_on_the_server(options: dict[str, Any]) -> None:
    async with connected(options) as connection, connected(options) as observer:
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'"
        pid = connection.get_server_pid()
        for _ in range(5):
            query = asyncio.ensure_future(connection.fetchval("SELECT pg_sleep(1000)"))
            while not await observer.fetchval(sleeping, pid):
                await asyncio.sleep(0.001)
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            assert await connection.fetchval("SELECT 7") == 7
            assert await observer.fetchval(sleeping, pid) == 0
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT pg_sleep(1000)", timeout=0.1)
        assert await connection.fetchval("SELECT 8") == 8


async def test_pool_under_load_with_cancellations_mixes_up_no_answers(options: dict[str, Any]) -> None:
    """1,500 queries through 10 connections, every third one cancelled somewhere on its way."""
    rng = random.Random(11)
    outcomes: Counter[str] = Counter()
    async with asyncpg.create_pool(**options, min_size=2, max_size=10) as pool:

        async def ask(number: int, size: int) -> str:
            async with pool.acquire() as connection, connection.transaction():
                text = await connection.fetchval("SELECT repeat($1, $2)", f"{number}:", size)
                assert text == f"{number}:" * size, "another query's answer"
            return "answered"

        async def ask_or_cancel(number: int) -> str:
            task = asyncio.ensure_future(ask(number, rng.choice((1, 20, 20_000))))
            if number % 3 == 0:
                for _ in range(rng.randrange(60)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            return "cancelled" if task.cancelled() else task.result()

        numbers = iter(range(1_500))

        async def worker() -> None:
            for number in numbers:
                outcomes[await ask_or_cancel(number)] += 1

        await asyncio.gather(*(worker() for _ in range(30)))
        assert outcomes.total() == 1_500
        assert outcomes["answered"] >= 1_000
        assert outcomes["cancelled"] > 100
        assert pool.get_size() <= 10
        assert await pool.fetchval("SELECT 1") == 1


async def test_connection_that_the_server_ends(options: dict[str, Any]) -> None:
    async with connected(options) as killer:
        victim = await asyncpg.connect(**options)
        ended = asyncio.Event()
        victim.add_termination_listener(lambda connection: ended.set())
        query = asyncio.ensure_future(victim.fetchval("SELECT pg_sleep(1000)"))
        await asyncio.sleep(0)
        assert await killer.fetchval("SELECT pg_terminate_backend($1)", victim.get_server_pid())
        with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)):
            await query
        await ended.wait()
        assert victim.is_closed()


async def test_connects_cancelled_at_every_stage(options: dict[str, Any]) -> None:
    """Nothing is left of them here (the fds are counted) nor on the server."""
    async with connected(options) as observer:
        for ticks in range(60):
            connecting = asyncio.ensure_future(asyncpg.connect(**options))
            for _ in range(ticks % 20):
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.wait([connecting])
            if not connecting.cancelled():
                await connecting.result().close()
        others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        while await observer.fetchval(others) > 1:
            await asyncio.sleep(0.01)


async def test_refused_and_unknown(options: dict[str, Any], postgres_server: Any) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(**options | {"database": "nothing"})
    with pytest.raises(OSError):  # noqa: PT011  # ConnectionRefusedError of TCP, FileNotFoundError of a Unix socket
        await asyncpg.connect(**options | {"port": 1})

"""The stores to be tested: a file, and a database of a real PostgreSQL with pgvector.

The server starts when a test first asks for it, and ends with the test session, however that ends.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..servers import NoServer, postgres, postgres_programs


@pytest.fixture(scope="session")
def postgres_address() -> Iterator[str]:
    """The address of a server's own database, as its superuser.

    It asks no one for a password but the role `with_password`, which there is not unless a test makes it.
    """
    try:
        with postgres(
            postgres_programs(pgvector=True), "host all with_password 127.0.0.1/32 scram-sha-256"
        ) as server:
            yield f"postgresql://postgres@127.0.0.1:{server.port}/postgres"
    except NoServer as error:
        pytest.fail(str(error))


_numbers = itertools.count()


@pytest.fixture
def postgres_database(postgres_address: str) -> Iterator[str]:
    """The address of a new, empty database, which is dropped after the test, whoever is still connected."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    on_server(postgres_address, f"CREATE DATABASE {name}")
    yield f"{postgres_address.rpartition('/')[0]}/{name}"
    on_server(postgres_address, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.full)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a fresh database is, in each of the stores."""
    if request.param == "sqlite":
        return str(tmp_path / "kb.db")
    return str(request.getfixturevalue("postgres_database"))


def on_server(address: str, statement: str) -> None:
    import asyncpg

    async def execute() -> None:
        connection = await asyncpg.connect(address, ssl=False)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(execute())

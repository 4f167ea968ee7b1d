"""The connections of the PostgreSQL store: a bounded pool, the one that holds the right to write, and their errors.

What is asked here is asked again where a connection was lost, or two transactions were in each other's way: all of it
may be done twice. An error of the server becomes a StoreError that names the database, and never the password.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np

try:
    import asyncpg
except ImportError as error:
    raise ImportError('a store in PostgreSQL needs asyncpg: pip install "unwait[documents]"') from error

from unwait.documents.postgres_schema import LOCKS, WRITER_LOCK, prepare
from unwait.documents.store import StoreBusy, StoreError
from unwait.flow.faults import describe, scrub

T = TypeVar("T")

MOST_CONNECTIONS = 8
_CONNECT_SECONDS = 20.0
_CLOSE_SECONDS = 10.0
_DELAYS = (0.05, 0.2, 0.8, 2.0)  # s before each further attempt
_SETTINGS = {
    "application_name": "unwait",
    # A plan made while the tables are empty would be kept when they are not.
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
    # Whatever the database has there: a function of the name of one of the server's would be taken in its place.
    "search_path": "pg_catalog",
    # Those of a database are for other uses of it; here one waits for another in good order.
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    # To start other processes takes longer than to look through 100,000 vectors.
    "min_parallel_table_scan_size": "128MB",
    # A machine that is gone leaves the right to write after two minutes.
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "15",
    "tcp_keepalives_count": "4",
}
_PASSING = (
    asyncpg.PostgresConnectionError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    # What the library loses count with, when the server ends a connection at the wrong moment.
    asyncpg.InternalClientError,
    ConnectionError,
)
_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)


def public_name(address: str) -> str:
    """The address without its password and parameters."""
    scheme, _, rest = address.partition("://")
    server = re.split(r"[?#]", rest, maxsplit=1)[0]
    credentials, at, server = server.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}://{user}{at}{server}"


class Connections:
    """Connections to one database, between `open` and `close`."""

    def __init__(self, address: str) -> None:
        self.name = public_name(address)
        try:
            parts = urlsplit(address)
            _ = parts.port if "," not in parts.netloc else None
            # Where a password is not quoted as it must be, its rest looks like a host or a database.
            wrong = "@" in parts.path + parts.query + parts.fragment or parts.fragment
        except ValueError:
            wrong = True
        if wrong:
            raise ValueError(
                "the address of the store is not postgresql://USER:PASSWORD@HOST:PORT/DATABASE; in the user and the "
                "password / ? # [ ] @ : and % are written as %2F %3F %23 %5B %5D %40 %3A and %25"
            )
        self._database = unquote(parts.path.lstrip("/"))
        self._address = address
        self._pool: Any = None
        self._writer: Any = None
        self._writer_lost = False
        self.extension = ""
        """The schema of pgvector, as it is written in a statement."""
        self._extension_name = ""

    async def open(self) -> None:
        """Connect, and make what the database lacks. Raises StoreError."""
        try:
            await self._again(self._open, (asyncpg.TooManyConnectionsError, asyncpg.CannotConnectNowError))
        except (*_ERRORS, ValueError) as error:
            raise self._explained(error) from None

    async def _open(self) -> None:
        connection = await self._connect()
        try:
            self.extension, self._extension_name = await prepare(connection, self.name)
        finally:
            await _end(connection)
        self._pool = await asyncpg.create_pool(
            self._address,
            min_size=0,
            max_size=MOST_CONNECTIONS,
            timeout=_CONNECT_SECONDS,
            server_settings=_SETTINGS,
            init=self._teach_vectors,
            reset=_reset,
        )

    async def close(self) -> None:
        """End all connections, also where this is cancelled."""
        pool, self._pool = self._pool, None
        writer, self._writer = self._writer, None
        try:
            if pool is not None:
                try:
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await pool.close()
                except (TimeoutError, *_ERRORS):
                    pool.terminate()
        finally:
            if writer is not None:
                await _end(writer)

    async def claim(self) -> None:
        """Take the right to write, until the end. Raises StoreBusy if another has it."""
        if self._writer is not None:
            return
        try:
            connection = await self._again(self._connect, _PASSING)
            claimed = False
            try:
                claimed = await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCKS, WRITER_LOCK)
            finally:
                if not claimed:
                    await _end(connection)
        except _ERRORS as error:
            raise self._explained(error) from None
        if not claimed:
            raise StoreBusy(f"another run is writing into {self.name}: wait for its end")
        self._writer = connection
        connection.add_termination_listener(self._on_writer_lost)

    async def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """What `work` returns, given a connection. It is called again where that was lost. Raises StoreError."""
        try:
            return await self._again(lambda: self._run(work), _PASSING)
        except _ERRORS as error:
            raise self._explained(error) from None

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        if self._pool is None:
            raise StoreError(f"the store {self.name} is not open")
        if self._writer_lost:
            raise StoreError(
                f"the connection to {self.name} that held the right to write was lost: begin another run"
            )
        async with self._pool.acquire() as connection:
            try:
                return await work(connection)
            except asyncpg.InternalClientError:
                connection.terminate()
                raise
            except asyncpg.InterfaceError as error:
                # What the library says of a connection that ended while nobody looked.
                if connection.is_closed():
                    raise ConnectionError("the server closed the connection") from error
                raise

    async def _again(self, work: Callable[[], Awaitable[T]], passing: tuple[type[BaseException], ...]) -> T:
        """What `work` returns, which is called again after an error that may pass, a few times."""
        for delay in _DELAYS:
            try:
                return await work()
            except passing:
                await asyncio.sleep(delay)
        return await work()

    async def transaction(self, work: Callable[[Any], Awaitable[T]], *, snapshot: bool = False) -> T:
        """As `run`, in one transaction; with `snapshot`, one that only reads, and sees one state throughout."""

        async def within(connection: Any) -> T:
            options = {"isolation": "repeatable_read", "readonly": True} if snapshot else {}
            async with connection.transaction(**options):
                return await work(connection)

        return await self.run(within)

    async def _connect(self) -> Any:
        return await asyncpg.connect(self._address, timeout=_CONNECT_SECONDS, server_settings=_SETTINGS)

    async def _teach_vectors(self, connection: Any) -> None:
        await connection.set_type_codec(
            "vector", schema=self._extension_name, encoder=bytes, decoder=bytes, format="binary"
        )

    def _on_writer_lost(self, connection: Any) -> None:
        # Ended by `close`, it is not lost.
        self._writer_lost = self._writer is connection

    def _explained(self, error: BaseException) -> StoreError:
        if isinstance(error, StoreError):
            return error
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            return StoreError(f"{self.name} refuses this user or this password")
        if isinstance(error, asyncpg.InvalidCatalogNameError):
            return StoreError(
                f"there is no database {self._database!r} at {self.name}: create it with createdb"
            )
        if isinstance(error, asyncpg.TooManyConnectionsError):
            return StoreError(
                f"{self.name} takes no more connections: raise its max_connections, or try later"
            )
        if isinstance(error, asyncpg.QueryCanceledError):
            return StoreError(
                f"{self.name} ended a statement that took longer than it allows: raise statement_timeout for this "
                "user (ALTER ROLE … SET statement_timeout)"
            )
        if isinstance(error, OSError):
            return StoreError(f"cannot reach {self.name}: {describe(error)}; is the server running there?")
        # The rest of what a server says may quote rows, and with them the documents.
        text = getattr(error, "message", None) or str(error)
        return StoreError(f"{self.name}: {type(error).__name__}: {' '.join(scrub(text).split())[:300]}")


async def _reset(connection: Any) -> None:
    # Nothing here changes a session. Without this, the pool would ask for it after each use.
    if connection.is_in_transaction():
        await connection.reset()


async def _end(connection: Any) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await connection.close()
    except (TimeoutError, *_ERRORS):
        connection.terminate()
    except BaseException:
        connection.terminate()
        raise


def encode_vectors(vectors: Any) -> list[bytes]:
    """Each row as pgvector sends it: its length, two bytes of zero, its numbers in network order."""
    count, dimensions = vectors.shape
    rows = np.empty((count, 4 + 4 * dimensions), np.uint8)
    rows[:, :4] = np.frombuffer(struct.pack(">HH", dimensions, 0), np.uint8)
    rows[:, 4:] = np.ascontiguousarray(vectors, ">f4").view(np.uint8)
    return [row.tobytes() for row in rows]


def decode_vector(data: bytes) -> Any:
    """The numbers of a vector as pgvector sends it."""
    return np.frombuffer(data, ">f4", offset=4).astype(np.float32)

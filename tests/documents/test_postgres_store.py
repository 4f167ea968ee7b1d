"""What is special to the store in PostgreSQL: its schema, its connections and what they go through, its own BM25."""

from __future__ import annotations

import asyncio
import collections
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.documents.model import Failure, Filter
from unwait.documents.postgres_rank import Postings, bm25
from unwait.documents.postgres_store import PostgresStore
from unwait.documents.store import StoreBusy, StoreError

from .store_support import SPACE, assert_same, make_document, positions, vector

pytestmark = pytest.mark.full

EVERYWHERE = Filter()
SECRET = "hunter2-secret"
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
END_OTHERS = f"SELECT pg_terminate_backend(pid) {OTHERS}"


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(address, ssl=False)
    try:
        yield connection
    finally:
        await connection.close()


def as_role(address: str, role: str, database: str | None = None) -> str:
    server, _, same = address.partition("@")[2].rpartition("/")
    return f"postgresql://{role}@{server}/{database or same}"


async def check(connection: Any) -> None:
    """Assert that each document has all that belongs to it, and that nothing is left of any other."""
    for table in ("chunks", "vectors", "postings", "records"):
        orphans = await connection.fetchval(
            f"SELECT count(*) FROM unwait.{table} t WHERE NOT EXISTS "
            "(SELECT 1 FROM unwait.documents d WHERE d.id = t.document)"
        )
        assert orphans == 0, table
    rows = await connection.fetch(
        """
        SELECT d.chunks, d.characters,
            (SELECT count(*) FROM unwait.chunks c WHERE c.document = d.id) AS chunk_rows,
            (SELECT max(ends) FROM unwait.chunks c WHERE c.document = d.id) AS ends,
            (SELECT count(*) FROM unwait.vectors v WHERE v.document = d.id) AS vector_rows,
            (SELECT count(*) FROM unwait.records r WHERE r.document = d.id) AS record_rows, d.records
        FROM unwait.documents d
        """
    )
    for row in rows:
        assert row["chunks"] == row["chunk_rows"] == row["vector_rows"]
        assert row["characters"] == (row["ends"] or 0)
        assert row["records"] == row["record_rows"]
    totals = await connection.fetchrow(
        "SELECT coalesce(sum(chunks), 0), coalesce(sum(words), 0) FROM unwait.documents"
    )
    counted = await connection.fetchrow(
        "SELECT coalesce(sum(chunks), 0), coalesce(sum(words), 0) FROM unwait.counts"
    )
    assert tuple(totals) == tuple(counted)


class TestOpening:
    async def test_many_may_make_the_schema_at_the_same_time(self, loop: Any, postgres_database: str) -> None:
        async def open_and_save(number: int) -> None:
            async with PostgresStore(postgres_database) as store:
                await store.save(make_document(f"uri {number}"), 1)

        await asyncio.gather(*(open_and_save(number) for number in range(4)))
        async with PostgresStore(postgres_database) as store:
            assert len([row async for row in store.documents()]) == 4

    async def test_another_version_is_refused(self, loop: Any, postgres_database: str) -> None:
        async with PostgresStore(postgres_database):
            pass
        async with connected(postgres_database) as connection:
            for version, said in ((99, "a newer unwait .*: update"), (1, "an older unwait .*: ingest")):
                await connection.execute("UPDATE unwait.store SET version = $1", version)
                with pytest.raises(StoreError, match=said):
                    await PostgresStore(postgres_database).__aenter__()

    async def test_tables_of_somebody_else_are_left_alone(self, loop: Any, postgres_database: str) -> None:
        async with connected(postgres_database) as connection:
            await connection.execute("CREATE SCHEMA unwait CREATE TABLE chunks (n int)")
            with pytest.raises(StoreError, match="has tables that unwait has not made"):
                await PostgresStore(postgres_database).__aenter__()
            tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'unwait'"
            assert await connection.fetchval(tables) == 1

    async def test_pgvector_may_be_in_any_schema(self, loop: Any, postgres_database: str) -> None:
        async with connected(postgres_database) as connection:
            await connection.execute('CREATE SCHEMA "Its ""own"" place"')
            await connection.execute('CREATE EXTENSION vector SCHEMA "Its ""own"" place"')
        async with PostgresStore(postgres_database) as store:
            await store.save(make_document("a", ["alpha beta"]), 1)
            _, near = await store.find("", vector("alpha"), SPACE, 1, EVERYWHERE)
            assert positions(near) == [("a", 0)]

    async def test_pgvector_is_added_where_there_is_no_public(
        self, loop: Any, postgres_database: str
    ) -> None:
        async with connected(postgres_database) as connection:
            await connection.execute("DROP SCHEMA public")
        for _ in range(2):
            async with PostgresStore(postgres_database) as store:
                await store.save(make_document("a", ["alpha beta"]), 1)
                _, near = await store.find("", vector("alpha"), SPACE, 1, EVERYWHERE)
                assert positions(near) == [("a", 0)]

    async def test_functions_of_others_are_not_called(self, loop: Any, postgres_database: str) -> None:
        """Who may create functions is given no right of those who use the store."""
        stolen = "LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''stolen''; END'"
        async with connected(postgres_database) as connection:
            await connection.execute(
                f"""
                CREATE FUNCTION public.cardinality(text[]) RETURNS int {stolen};
                CREATE FUNCTION public.unnest(text[]) RETURNS SETOF text {stolen};
                CREATE FUNCTION public.starts_with(text, text) RETURNS bool {stolen};
                CREATE SCHEMA evil;
                CREATE FUNCTION evil.pg_try_advisory_lock(int, int) RETURNS bool {stolen};
                CREATE FUNCTION evil.hashtextextended(text, bigint) RETURNS bigint {stolen};
                DO $$ BEGIN
                    EXECUTE format('ALTER DATABASE %I SET search_path = evil, pg_catalog, public', current_database());
                END $$
                """
            )
        async with PostgresStore(postgres_database) as store:
            run = await store.begin({})
            await store.save(make_document("a", ["alpha beta"]), run)
            for ranking in await store.find("alpha", vector("alpha"), SPACE, 1, Filter("a")):
                assert positions(ranking) == [("a", 0)]
            await store.keep_calls({"a": {"embed:1": b""}})
            await store.forget_calls("a", "embed:")
            assert await store.prune(run + 1, ["here"]) == ["a"]

    async def test_timeouts_of_the_database_are_for_others(self, loop: Any, postgres_database: str) -> None:
        async with connected(postgres_database) as connection:
            name = postgres_database.rpartition("/")[2]
            for setting in (
                "lock_timeout = 1",
                "idle_in_transaction_session_timeout = 1",
                "default_transaction_isolation = serializable",
            ):
                await connection.execute(f"ALTER DATABASE {name} SET {setting}")
            long = make_document("a", [f"word{n} common" for n in range(500)])
            async with PostgresStore(postgres_database) as store:
                await asyncio.gather(*(store.save(long, 1) for _ in range(8)))
                assert_same(await store.document("a"), long)
            # But this one limits what a statement may cost.
            await connection.execute(f"ALTER DATABASE {name} SET statement_timeout = 20")
            await connection.execute("BEGIN; LOCK TABLE unwait.documents")
            async with PostgresStore(postgres_database) as store:
                with pytest.raises(StoreError, match="raise statement_timeout for this user"):
                    await store.save(long, 1)
            await connection.execute("ROLLBACK")

    async def test_a_user_without_the_right_is_told_what_to_do(
        self, loop: Any, postgres_database: str
    ) -> None:
        role = f"user_{postgres_database.rpartition('/')[2]}"
        address = as_role(postgres_database, role)
        async with connected(postgres_database) as connection:
            await connection.execute(f"CREATE ROLE {role} LOGIN")
            try:
                with pytest.raises(StoreError, match="CREATE EXTENSION vector"):
                    await PostgresStore(address).__aenter__()
                await connection.execute("CREATE EXTENSION vector")
                with pytest.raises(StoreError, match="CREATE SCHEMA unwait AUTHORIZATION"):
                    await PostgresStore(address).__aenter__()
                # What it says is enough.
                await connection.execute(f"CREATE SCHEMA unwait AUTHORIZATION {role}")
                async with PostgresStore(address) as store:
                    run = await store.begin({})
                    await store.save(make_document("a"), run)
                    assert_same(await store.document("a"), make_document("a"))
            finally:
                await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

    async def test_what_cannot_be_reached_is_named_without_the_password(
        self, loop: Any, postgres_database: str
    ) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            store = PostgresStore(f"postgresql://me:{SECRET}@127.0.0.1:{port}/kb?password={SECRET}")
            assert store.name == f"postgresql://me@127.0.0.1:{port}/kb"
            with pytest.raises(
                StoreError, match=rf"cannot reach postgresql://me@127.0.0.1:{port}/kb"
            ) as failed:
                await store.__aenter__()
        assert SECRET not in f"{failed.value!r}{failed.value.__cause__!r}{store!r}"
        with pytest.raises(StoreError, match="no database 'nothing here'"):
            await PostgresStore(as_role(postgres_database, "postgres", "nothing%20here")).__aenter__()
        with pytest.raises(StoreError, match="refuses this user"):
            await PostgresStore(as_role(postgres_database, "nobody_there")).__aenter__()
        with pytest.raises(StoreError, match="refuses this user or this password") as failed:
            await PostgresStore(as_role(postgres_database, f"with_password:{SECRET}")).__aenter__()
        assert SECRET not in str(failed.value)

    @pytest.mark.parametrize("password", ["a/b", "a#b", "a?b", "1@2", "a[b"])
    def test_a_password_that_is_not_quoted_is_not_shown(self, password: str) -> None:
        with pytest.raises(ValueError, match="%2F") as failed:
            PostgresStore(f"postgresql://me:{SECRET}{password}{SECRET}/x@127.0.0.1/kb")
        assert SECRET not in str(failed.value)

    async def test_a_server_that_takes_no_more_connections(
        self, loop: Any, postgres_database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("unwait.documents.postgres_connections._DELAYS", (0.05,) * 10)
        role = f"user_{postgres_database.rpartition('/')[2]}"
        async with connected(postgres_database) as connection:
            await connection.execute("CREATE EXTENSION vector")
            await connection.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
            await connection.execute(f"CREATE SCHEMA unwait AUTHORIZATION {role}")
            try:
                async with PostgresStore(as_role(postgres_database, role)) as store:
                    # One is enough for what does not need two.
                    await asyncio.gather(*(store.save(make_document(f"uri {n}"), 1) for n in range(3)))
                    with pytest.raises(StoreError, match="max_connections"):
                        await store.begin({})
            finally:
                await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


class TestConnections:
    async def test_lost_connections_are_replaced(self, loop: Any, postgres_database: str) -> None:
        """The server ends them before and in the middle: no document is lost, none is half there."""
        documents = [make_document(f"uri {n}", [f"word{n} common"] * 3) for n in range(60)]
        async with connected(postgres_database) as killer, PostgresStore(postgres_database) as store:
            for number, document in enumerate(documents):
                saving = asyncio.ensure_future(store.save(document, 1))
                for _ in range(number % 20):
                    await asyncio.sleep(0)
                await killer.execute(END_OTHERS)
                await saving
                assert await store.state(document.uri) is not None
            await check(killer)
            for document in documents:
                assert_same(await store.document(document.uri), document)

    async def test_a_run_that_lost_its_right_to_write_ends(self, loop: Any, postgres_database: str) -> None:
        async with connected(postgres_database) as killer, PostgresStore(postgres_database) as store:
            run = await store.begin({})
            await store.save(make_document("a"), run)
            await killer.execute(END_OTHERS)

            async def go_on() -> None:
                while True:
                    await store.save(make_document("b"), run)
                    await asyncio.sleep(0.01)

            with pytest.raises(StoreError, match="right to write was lost"):
                await go_on()
            async with PostgresStore(postgres_database) as other:
                assert await other.begin({}) == run + 1

    async def test_cancelled_calls_leave_whole_documents_and_no_connections(
        self, loop: Any, postgres_database: str
    ) -> None:
        old, new = make_document("a", ["old text"] * 40), make_document("a", ["new text"] * 40)
        # asyncpg drops an error, which asyncio then reports, where it is cancelled while it asks whether there is TLS.
        address = f"{postgres_database}?sslmode=disable"
        async with connected(postgres_database) as observer:
            async with PostgresStore(address) as store:
                await store.save(old, 1)
                for ticks in range(60):
                    saving = asyncio.ensure_future(store.save(new if ticks % 2 else old, 1))
                    finding = asyncio.ensure_future(
                        store.find("old new text", vector("old"), SPACE, 5, EVERYWHERE)
                    )
                    for _ in range(ticks):
                        await asyncio.sleep(0)
                    saving.cancel()
                    finding.cancel()
                    await asyncio.wait([saving, finding])
                    document = await store.document("a")
                    assert document is not None
                    assert {chunk.text for chunk in document.chunks} in ({"old text"}, {"new text"})
                await check(observer)

            # The end of the store itself may be cancelled as well.
            async def use() -> None:
                async with PostgresStore(address) as store:
                    await store.begin({})
                    await store.touch("a", "here", 1)

            for ticks in range(0, 300, 15):
                using = asyncio.ensure_future(use())
                for _ in range(ticks):
                    await asyncio.sleep(0)
                using.cancel()
                await asyncio.wait([using])
            while await observer.fetchval(f"SELECT count(*) {OTHERS}"):
                await asyncio.sleep(0.01)

    async def test_a_store_that_is_not_open_says_so(self, loop: Any, postgres_database: str) -> None:
        store = PostgresStore(postgres_database)
        with pytest.raises(StoreError, match="is not open"):
            await store.state("a")
        async with store:
            await store.state("a")
        with pytest.raises(StoreError, match="is not open"):
            await store.state("a")


class TestDocuments:
    async def test_a_run_that_is_over_cannot_save(self, loop: Any, postgres_database: str) -> None:
        async with PostgresStore(postgres_database) as store, PostgresStore(postgres_database) as late:
            first = await store.begin({})
            await store.save(make_document("a"), first)
            second = await store.begin({})
            await store.save(make_document("a"), second)
            with pytest.raises(StoreError, match="another run has begun since"):
                await late.save(make_document("a", ["late"]), first)
            await late.fail(Failure("a", "here", "load", "broken", "late"), first)
            assert await store.prune(second, ["here"]) == []
            assert_same(await store.document("a"), make_document("a"))

    async def test_a_long_document_is_saved_in_one_transaction(
        self, loop: Any, postgres_database: str
    ) -> None:
        old = make_document("a", ["old"], records=())
        texts = [f"chunk{n} common \x00" for n in range(700)]
        # More words in one chunk than PostgreSQL takes for one text.
        texts[300] = " ".join(f"{n:x}".rjust(60, "u") + "of" for n in range(20_000))
        long = make_document("a", texts)
        async with PostgresStore(postgres_database) as store, connected(postgres_database) as connection:
            await store.save(old, 1)
            broken = make_document("a", texts)
            broken.vectors[-1] = math.nan
            with pytest.raises(StoreError, match="NaN"):
                await store.save(broken, 1)
            assert_same(await store.document("a"), old)
            await check(connection)
            await store.save(long, 1)
            assert_same(await store.document("a"), long)
            await check(connection)
            for word, position in (
                ("chunk699", 699),
                *((word, 300) for word in (texts[300].split()[0], texts[300].split()[-1])),
            ):
                found, _ = await store.find(word, None, SPACE, 5, EVERYWHERE)
                assert [candidate.start for candidate in found] == [long.chunks[position].start]
            assert await store.prune(2, ["here"]) == ["a"]
            await check(connection)
            assert await connection.fetchval("SELECT count(*) FROM unwait.postings") == 0
            # In pieces, of which each has the word.
            await store.save(make_document("b", ["common " * 20_000]), 2)
            assert positions((await store.find("common", None, SPACE, 5, EVERYWHERE))[0]) == [("b", 0)]

    async def test_the_same_document_saved_by_several_at_once(
        self, loop: Any, postgres_database: str
    ) -> None:
        async with (
            PostgresStore(postgres_database) as one,
            PostgresStore(postgres_database) as two,
            connected(postgres_database) as connection,
        ):
            versions = [make_document("a", [f"version{n}"] * (n + 1)) for n in range(12)]
            await asyncio.gather(*((one, two)[n % 2].save(version, 1) for n, version in enumerate(versions)))
            await check(connection)
            found = await one.document("a")
            assert found is not None
            assert_same(found, versions[len(found.chunks) - 1])

    async def test_a_uri_longer_than_an_index_takes(self, loop: Any, postgres_database: str) -> None:
        random = np.random.default_rng(5)
        long = "https://example.org/" + random.bytes(4_000).hex()
        uris = [long + "a", long + "b", "https://example.org/0", "zzz"]
        async with PostgresStore(postgres_database) as store:
            for uri in uris:
                await store.save(make_document(uri), 1)
                await store.fail(Failure(uri + "!", "here", "load", "broken", "it is"), 1)
                await store.keep_calls({uri: {uri: b"1"}})
            assert [row.uri async for row in store.documents()] == sorted(uris)
            assert [failure.uri async for failure in store.failures()] == sorted(uri + "!" for uri in uris)
            assert await store.kept_calls(uris) == dict.fromkeys(uris, b"1")

    async def test_a_find_sees_one_state(self, loop: Any, postgres_database: str) -> None:
        versions = [make_document("a", [f"common version{n}"]) for n in range(2)]
        done = asyncio.Event()
        async with PostgresStore(postgres_database) as store:
            await store.save(versions[0], 1)

            async def rewrite() -> None:
                n = 0
                while not done.is_set():
                    n += 1
                    await store.save(versions[n % 2], 1)

            rewriting = asyncio.ensure_future(rewrite())
            seen = collections.Counter[str]()
            for _ in range(150):
                (text,), (near,) = await store.find("common", vector("common"), SPACE, 3, EVERYWHERE)
                assert text.text == near.text
                seen[text.text] += 1
            done.set()
            await rewriting
            assert len(seen) == 2

    async def test_touches_are_written_together_and_before_the_end(
        self, loop: Any, postgres_database: str
    ) -> None:
        async with PostgresStore(postgres_database) as other:
            async with PostgresStore(postgres_database) as store:
                run = await store.begin({})
                for n in range(300):
                    await store.save(make_document(f"uri {n:03}"), run)
                second = await store.begin({})
                for n in range(300):
                    await store.touch(f"uri {n:03}", "there", second)
                rows = [await other.state(f"uri {n:03}") for n in range(300)]
                assert collections.Counter(row.run for row in rows if row) == {run: 44, second: 256}
                # What fails after it was touched has failed.
                await store.fail(Failure("uri 299", "there", "load", "broken", "it is"), second)
            rows = [await other.state(f"uri {n:03}") for n in range(300)]
            assert {row.run for row in rows if row} == {second}
            assert [failure.uri async for failure in other.failures()] == ["uri 299"]


WRITER = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from store_support import make_document
from unwait.documents.store import open_store

async def main():
    async with open_store(sys.argv[1]) as store:
        run = await store.begin({})
        async def write(mine):
            version = 0
            while True:
                version += 1
                texts = [f"version{version} of document{mine}"] * (1 + version % 200)
                await store.save(make_document(f"uri {mine}", texts), run)
                await store.keep_calls({f"uri {mine}": {f"embed:{mine}": b"x"}})
                print(mine, version, flush=True)
        await asyncio.gather(*map(write, range(6)))

asyncio.run(main())
"""


def test_a_process_that_is_killed_leaves_whole_documents(postgres_database: str) -> None:
    """What it said was saved is there, in that version or the next, and another can write at once."""
    for killed_after in (1, 15, 40, 83):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, postgres_database, str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        said: dict[int, int] = {}
        with process:
            assert process.stdout is not None
            for _, line in zip(range(killed_after), process.stdout, strict=False):
                mine, version = map(int, line.split())
                said[mine] = version
            process.send_signal(signal.SIGKILL)
            for line in process.stdout:
                mine, version = map(int, line.split())
                said[mine] = version
        assert process.returncode == -signal.SIGKILL
        assert sum(said.values()) >= killed_after

        async def look(said: dict[int, int] = said) -> None:
            async with PostgresStore(postgres_database) as store, connected(postgres_database) as connection:
                while True:
                    try:
                        await store.begin({})
                        break
                    except StoreBusy:
                        # The server has still to notice.
                        await asyncio.sleep(0.01)
                await check(connection)
                for mine, version in said.items():
                    document = await store.document(f"uri {mine}")
                    assert document is not None
                    (text,) = {chunk.text for chunk in document.chunks}
                    matched = re.fullmatch(rf"version(\d+) of document{mine}", text)
                    assert matched is not None
                    found = int(matched[1])
                    assert found in (version, version + 1)
                    assert len(document.chunks) == 1 + found % 200

        asyncio.run(look())


class TestRanking:
    @given(
        st.lists(st.lists(st.sampled_from("abcdef"), max_size=12), min_size=1, max_size=30),
        st.sets(st.sampled_from("abcdefg"), min_size=1),
        st.integers(1, 10),
        st.booleans(),
    )
    @settings(max_examples=200, deadline=None)
    def test_it_is_bm25(self, texts: list[list[str]], query: set[str], depth: int, filtered: bool) -> None:
        # Three chunks a document.
        lengths = [len(text) for text in texts]
        average = sum(lengths) / len(lengths)
        expected: dict[tuple[int, int], float] = {}
        postings = []
        for word in sorted(query):
            matching = [(n, text.count(word)) for n, text in enumerate(texts) if word in text]
            if not matching:
                continue
            documents = sorted({n // 3 for n, _ in matching})
            postings.append(
                Postings(
                    np.array(documents, ">i8").tobytes(),
                    np.array([sum(n // 3 == d for n, _ in matching) for d in documents], ">i4").tobytes(),
                    np.array([(n % 3, f, lengths[n]) for n, f in matching], ">i4").tobytes(),
                )
            )
            idf = max(1e-6, math.log((len(texts) - len(matching) + 0.5) / (len(matching) + 0.5)))
            for n, f in matching:
                if not filtered or n // 3 % 2:
                    score = idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * lengths[n] / average))
                    expected[n // 3, n % 3] = expected.get((n // 3, n % 3), 0.0) + score
        if not postings:
            return
        allowed = list(range(1, 10, 2)) if filtered else None
        ranked = bm25(postings, len(texts), sum(lengths), depth, allowed)
        found = dict(zip(zip(ranked.documents, ranked.positions, strict=True), ranked.scores, strict=True))
        assert found == {key: pytest.approx(expected[key]) for key in found}
        assert len(found) >= min(depth, len(expected))
        for key in expected.keys() - found.keys():
            assert expected[key] <= min(found.values()) * (1 + 1e-9)

    async def test_the_scores_are_those_of_sqlite(
        self, loop: Any, postgres_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from unwait.documents.sqlite_store import SqliteStore

        random = np.random.default_rng(3)
        languages = [
            [f"w{n}x" for n in range(30)]
            + ["indexes", "index", "indexing", "the", "don't", "C++", "a_b", "1e5", "x-1"],
            [
                "Größe",
                "größe",
                "STRASSE",
                "Straße",
                "Häuser",
                "Haus",
                "über",
                "die",
                "der",
                "schön",
                "Maß-Einheit",
                "„Wörter“",
                "daß",
                "Äpfel",
                "É",
            ],
            [
                *"東京都は私のタワー。検索がか株",
                "東京",
                "京都",
                "検索",
                "哈哈哈",
                "全文検索「フルテキスト」",
                "SQL",
                "ｶﾞ",
            ],
        ]
        documents = [
            make_document(
                f"uri {n:02}",
                [
                    ("" if n % 3 == 2 and at else " ").join(
                        random.choice(vocabulary, random.integers(1, 400 >> at))
                    )
                    for at in range(4)
                ],
                title=" ".join(random.choice(vocabulary, 2)),
                sections=[tuple(random.choice(vocabulary, 2)) for _ in range(4)],
                metadata={"odd": bool(n % 2)},
            )
            for n, vocabulary in ((n, languages[n % 3]) for n in range(45))
        ]
        queries = [
            *("w1x", "w2x w7x", "w9x w30x w29x zzz", "how is indexing of the w3x done", "don't a_b c++ X-1"),
            *("straße", "GROSSE Häuser", "über die Äpfel", "masseinheit maß einheit"),
            *("東京", "京", "検索タワー SQL", "哈哈", "株式がｶﾞ", "私の w1x größe 東京都"),
        ]
        async with PostgresStore(postgres_database) as ours, SqliteStore(tmp_path / "kb.db") as theirs:
            for document in documents:
                await ours.save(document, 1)
                await theirs.save(document, 1)
            for most in (5000, 40):
                monkeypatch.setattr("unwait.documents.words._MOST_MATCHES", most)
                for where in (EVERYWHERE, Filter("uri 1"), Filter("*5", {"odd": "true"})):
                    for query in queries:
                        mine = await ours.find(query, vector(query), SPACE, 20, where)
                        other = await theirs.find(query, vector(query), SPACE, 20, where)
                        assert mine[0] or where != EVERYWHERE, query
                        for one, two in zip(mine, other, strict=True):
                            assert positions(one) == positions(two), query
                            assert [c.score for c in one] == pytest.approx(
                                [c.score for c in two], rel=1e-12 if one is mine[0] else 1e-6, abs=1e-6
                            )

    async def test_the_most_common_words_are_left_out_where_they_cost_much(
        self, loop: Any, postgres_database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with PostgresStore(postgres_database) as store:
            await store.save(
                make_document("a", ["the common text"] * 9_000 + ["the rare text"], dimensions=2), 1
            )
            found, _ = await store.find("the rare", None, SPACE, 5, EVERYWHERE)
            assert [candidate.text for candidate in found] == ["the rare text"]
            # One that is alone is looked for.
            found, _ = await store.find("the", None, SPACE, 5, EVERYWHERE)
            assert len(found) == 5


def test_nothing_is_left_running_after_a_failed_test_session(tmp_path: Path) -> None:
    """The server of a test session ends with it, even where that is killed."""
    folder = Path(__file__).parent
    test = "\n".join(
        (
            "import os, signal",
            "def test_it(postgres_address):",
            "    print('at', postgres_address, flush=True)",
            "    os.kill(os.getpid(), signal.SIGKILL)",
        )
    )
    copy = tmp_path / "tests" / "documents"
    copy.mkdir(parents=True)
    (copy / "test_it.py").write_text(test)
    for path in ("documents/conftest.py", "servers.py"):
        (copy.parent / path).write_text((folder.parent / path).read_text())
    with tempfile.TemporaryDirectory(prefix="unwait-") as home:
        os.chmod(home, 0o755)  # for the user that the server runs as
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-qs",
                "-p",
                "no:cacheprovider",
                "--import-mode=importlib",
                "--rootdir",
                tmp_path,
                tmp_path,
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "TMPDIR": home},
            timeout=100,
        )
        assert ran.returncode == -signal.SIGKILL, ran.stdout + ran.stderr
        port = int(ran.stdout.partition("at postgresql://")[2].split("/")[0].rpartition(":")[2])
        for _ in range(1_000):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    return
            time.sleep(0.01)
    pytest.fail("the server is still there")

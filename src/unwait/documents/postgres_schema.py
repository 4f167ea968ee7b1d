"""The tables and functions of a store in PostgreSQL, in a schema of their own.

A document is saved and removed by functions: one call, one transaction, one round trip. There are no foreign keys,
whose checks would cost more than the rows; only these functions write what belongs to a document.

`postings` has a row for each word of each document, and for each two neighbours of a language without spaces: the
chunks it is in, 12 bytes each: position, how often the word is in it (weighted), and the length of the chunk in words.
From these, and the totals in `counts`, follows BM25; PostgreSQL's own ranking knows neither how rare a word is nor how
long the others' texts are, and stems, which SQLite does not. The totals are spread over rows by connection, so that
those who save do not wait for each other.

`vectors` is a table of its own, whose rows stay whole: it is read from end to end, without the texts.
"""

from __future__ import annotations

import asyncpg

from unwait.documents.store import StoreError

VERSION = 2
# Two numbers that say "unwait" and what is locked.
LOCKS = 0x756E7774
SCHEMA_LOCK = 1
WRITER_LOCK = 2
SAVING_LOCK = 3
# How often a word counts there: as much as SQLite's weights.
TITLE_WEIGHT = 4
SECTION_WEIGHT = 2

_TABLES = """
CREATE TABLE unwait.store (
    version int NOT NULL,
    run bigint NOT NULL,
    settings text NOT NULL
);
INSERT INTO unwait.store VALUES ({version}, 0, '{{}}');

CREATE TABLE unwait.documents (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,  -- the digest of the URI, which may be too long for an index
    uri text COLLATE "C" NOT NULL,
    origin text COLLATE "C" NOT NULL,
    run bigint NOT NULL,
    digest text NOT NULL,
    versions text NOT NULL,
    etag text,
    last_modified text,
    title text NOT NULL,
    format text NOT NULL,
    summary text NOT NULL,
    metadata text NOT NULL,
    facets text[] NOT NULL,
    dimensions int NOT NULL,
    records int NOT NULL,
    chunks int NOT NULL DEFAULT 0,
    words bigint NOT NULL DEFAULT 0,
    characters bigint NOT NULL DEFAULT 0,
    saved double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp())
);
CREATE INDEX ON unwait.documents (left(uri, 500));

CREATE TABLE unwait.chunks (
    document bigint NOT NULL,
    position int NOT NULL,
    id text NOT NULL,
    begins int NOT NULL,
    ends int NOT NULL,
    page int,
    section text NOT NULL,
    text text NOT NULL,
    PRIMARY KEY (document, position)
);

CREATE TABLE unwait.vectors (
    document bigint NOT NULL,
    position int NOT NULL,
    space text COLLATE "C" NOT NULL,
    digest text COLLATE "C" NOT NULL,
    vector {extension}.vector NOT NULL,
    PRIMARY KEY (document, position)
) WITH (toast_tuple_target = 8160);
CREATE INDEX ON unwait.vectors (digest);

CREATE TABLE unwait.postings (
    document bigint NOT NULL,
    term text COLLATE "C" NOT NULL,
    posting bytea NOT NULL
);
CREATE INDEX ON unwait.postings (term);
CREATE INDEX ON unwait.postings (document);

CREATE TABLE unwait.counts (
    shard int PRIMARY KEY,
    chunks bigint NOT NULL,
    words bigint NOT NULL
);

CREATE TABLE unwait.records (
    document bigint NOT NULL,
    position int NOT NULL,
    schema text COLLATE "C" NOT NULL,
    data text NOT NULL,
    begins int NOT NULL,
    ends int NOT NULL,
    PRIMARY KEY (document, position)
);

CREATE TABLE unwait.failures (
    name text COLLATE "C" PRIMARY KEY,
    uri text COLLATE "C" NOT NULL,
    origin text COLLATE "C" NOT NULL,
    stage text NOT NULL,
    kind text NOT NULL,
    error text NOT NULL,
    run bigint NOT NULL
);

CREATE TABLE unwait.calls (
    name text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    answer bytea NOT NULL
);
CREATE INDEX ON unwait.calls (name);
CREATE INDEX ON unwait.calls USING hash (key);
"""

_FUNCTIONS = """
CREATE FUNCTION unwait.count(more_chunks bigint, more_words bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO unwait.counts VALUES (pg_backend_pid() % 64, more_chunks, more_words)
    ON CONFLICT (shard) DO UPDATE SET chunks = counts.chunks + excluded.chunks, words = counts.words + excluded.words
$$;

CREATE FUNCTION unwait.remove(its_name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    old record;
BEGIN
    -- Who saves the same document at the same time comes after.
    PERFORM pg_advisory_xact_lock(hashtextextended(its_name, {locks}));
    DELETE FROM unwait.failures WHERE name = its_name;
    DELETE FROM unwait.calls WHERE name = its_name;
    DELETE FROM unwait.documents WHERE name = its_name RETURNING id, chunks, words INTO old;
    IF FOUND THEN
        DELETE FROM unwait.chunks WHERE document = old.id;
        DELETE FROM unwait.vectors WHERE document = old.id;
        DELETE FROM unwait.postings WHERE document = old.id;
        DELETE FROM unwait.records WHERE document = old.id;
        PERFORM unwait.count(-old.chunks, -old.words);
    END IF;
END
$$;

CREATE FUNCTION unwait.replace(
    its_name text, its_uri text, its_origin text, its_run bigint, its_digest text, its_versions text, its_etag text,
    its_last_modified text, its_title text, its_format text, its_summary text, its_metadata text, its_facets text[],
    its_dimensions int, schemas text[], datas text[], records_begin int[], records_end int[]
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    new_id bigint;
BEGIN
    -- The server goes on for a process that was killed: the next run begins after that, and not while it lasts.
    PERFORM pg_advisory_xact_lock_shared({locks}, {saving});
    IF (SELECT run FROM unwait.store) > its_run THEN
        RAISE EXCEPTION 'another run has begun since';
    END IF;
    PERFORM unwait.remove(its_name);
    INSERT INTO unwait.documents (
        name, uri, origin, run, digest, versions, etag, last_modified, title, format, summary, metadata, facets,
        dimensions, records
    ) VALUES (
        its_name, its_uri, its_origin, its_run, its_digest, its_versions, its_etag, its_last_modified, its_title,
        its_format, its_summary, its_metadata, its_facets, its_dimensions, cardinality(schemas)
    ) RETURNING id INTO new_id;
    IF cardinality(schemas) > 0 THEN
        INSERT INTO unwait.records
        SELECT new_id, n, schema, data, begins, ends
        FROM unnest(schemas, datas, records_begin, records_end) WITH ORDINALITY
            AS given (schema, data, begins, ends, n);
    END IF;
    RETURN new_id;
END
$$;

CREATE FUNCTION unwait.add(
    its_document bigint, positions int[], ids text[], begin_at int[], end_at int[], pages int[], sections text[],
    texts text[], space text, digests text[], vectors {extension}.vector[],
    title text, headings text[], terms text[], lengths int[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    more_words bigint := (SELECT coalesce(sum(length), 0) FROM unnest(lengths) AS length);
BEGIN
    INSERT INTO unwait.chunks
    SELECT its_document, * FROM unnest(positions, ids, begin_at, end_at, pages, sections, texts);
    IF cardinality(vectors) > 0 THEN
        INSERT INTO unwait.vectors
        SELECT its_document, position, space, digest, vector
        FROM unnest(positions, digests, vectors) AS given (position, digest, vector);
    END IF;
    INSERT INTO unwait.postings
    SELECT its_document, term, string_agg(int4send(position) || int4send(times) || int4send(length), '')
    FROM (
        SELECT given.position, given.length, term, sum(weight)::int AS times
        FROM unnest(positions, headings, terms, lengths) AS given (position, heading, terms, length),
            LATERAL (
                SELECT term, {title} FROM string_to_table(title, ' ') AS term
                UNION ALL SELECT term, {section} FROM string_to_table(given.heading, ' ') AS term
                UNION ALL SELECT term, 1 FROM string_to_table(given.terms, ' ') AS term
            ) AS found (term, weight)
        GROUP BY given.position, given.length, term
    ) AS counted
    GROUP BY term;
    UPDATE unwait.documents
    SET chunks = chunks + cardinality(positions), words = documents.words + more_words,
        characters = greatest(characters, end_at[cardinality(end_at)])
    WHERE id = its_document;
    PERFORM unwait.count(cardinality(positions), more_words);
END
$$;
"""

_STATE = """
SELECT (SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
        WHERE extname = 'vector') AS extension,
    (SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
        WHERE extname = 'vector') AS extension_schema,
    to_regclass('unwait.store') IS NOT NULL AS made,
    current_setting('server_encoding') AS encoding,
    current_setting('server_version_num')::int AS server
"""


async def prepare(connection: asyncpg.Connection, name: str) -> tuple[str, str]:
    """Make what is missing; return the schema that pgvector is in, as it is quoted in a statement, and as it is.

    Raises StoreError for a database of another unwait, and where pgvector or the right to make the tables is missing.
    """
    state = await connection.fetchrow(_STATE)
    if state["encoding"] != "UTF8":
        raise StoreError(f"the encoding of {name} is {state['encoding']}: create a database with UTF8")
    if state["server"] < 140000:
        raise StoreError(f"{name} is PostgreSQL {state['server'] // 10000}: unwait needs 14 or newer")
    if state["extension"] is None or not state["made"]:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", LOCKS, SCHEMA_LOCK)
            state = await connection.fetchrow(_STATE)
            if state["extension"] is None:
                await _create_extension(connection, name)
                state = await connection.fetchrow(_STATE)
            if not state["made"]:
                await _create(connection, name, state["extension"])
    version = await connection.fetchval("SELECT version FROM unwait.store")
    if version != VERSION:
        made, instead = (
            ("a newer", "update unwait, or name another database")
            if version > VERSION
            else (
                "an older",
                "ingest its sources again, into another database or after DROP SCHEMA unwait CASCADE",
            )
        )
        raise StoreError(
            f"{name} was made by {made} unwait (its version is {version}, this one's {VERSION}): {instead}"
        )
    return state["extension"], state["extension_schema"]


async def _create_extension(connection: asyncpg.Connection, name: str) -> None:
    try:
        schema = "public"
        if await connection.fetchval("SELECT to_regnamespace('public') IS NULL"):
            schema = "unwait"
            await connection.execute("CREATE SCHEMA IF NOT EXISTS unwait")
        await connection.execute(f"CREATE EXTENSION vector SCHEMA {schema}")
    except (asyncpg.UndefinedFileError, asyncpg.FeatureNotSupportedError):
        raise StoreError(
            f"pgvector is not installed on the server of {name}: install it there (Debian: the package "
            "postgresql-VERSION-pgvector), or use a SQLite file"
        ) from None
    except asyncpg.InsufficientPrivilegeError:
        raise StoreError(
            f"this user may not add pgvector to {name}: have an administrator of the server run "
            "CREATE EXTENSION vector in that database"
        ) from None


async def _create(connection: asyncpg.Connection, name: str, extension: str) -> None:
    values = {
        "version": VERSION,
        "extension": extension,
        "locks": LOCKS,
        "saving": SAVING_LOCK,
        "title": TITLE_WEIGHT,
        "section": SECTION_WEIGHT,
    }
    try:
        if await connection.fetchval("SELECT to_regnamespace('unwait') IS NULL"):
            await connection.execute("CREATE SCHEMA unwait")
        await connection.execute((_TABLES + _FUNCTIONS).format(**values))
    except asyncpg.InsufficientPrivilegeError:
        raise StoreError(
            f"this user may not create the schema unwait in {name}: have its owner run GRANT CREATE ON DATABASE, or "
            "CREATE SCHEMA unwait AUTHORIZATION, for this user"
        ) from None
    except (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError, asyncpg.DuplicateFunctionError):
        raise StoreError(f"the schema unwait in {name} has tables that unwait has not made") from None

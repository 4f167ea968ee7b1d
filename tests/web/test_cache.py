"""The cache's rules: what may be kept, for how long it is fresh, what a 304 changes."""

from __future__ import annotations

import email.utils
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from multidict import CIMultiDict

from unwait.web.cache import Cache, Entry

URL = "https://example.com/data?q=1"
START = 1_700_000_000.0
BODY = b"the body"


def date(seconds: float) -> str:
    return email.utils.formatdate(seconds, usegmt=True)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(tmp_path: Path, clock: Clock) -> Cache:
    return Cache(tmp_path / "cache", clock=clock)


Store = Callable[..., bool]


@pytest.fixture
def store(cache: Cache) -> Store:
    """Stores an answer of `headers` (keywords, `_` for `-`) to a plain GET."""

    def storing(
        url: str = URL, request: dict[str, str] | None = None, content: bytes = BODY, **headers: str
    ) -> bool:
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return cache.store(url, request or {}, 200, "OK", pairs, content)

    return storing


def found(cache: Cache, url: str = URL, **headers: str) -> Entry | None:
    return cache.lookup("GET", url, {name.replace("_", "-"): value for name, value in headers.items()})


def files(tmp_path: Path) -> list[Path]:
    """The entries' files, and whatever else there is but the counter."""
    return sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "bytes")


# What is kept


def test_what_was_stored_is_found_as_it_was(cache: Cache) -> None:
    headers = CIMultiDict(
        [("Content-Type", "text/plain"), ("Link", "<a>"), ("Link", "<b>"), ("Cache-Control", "max-age=9")]
    )
    assert cache.store(URL, {"Accept": "*/*"}, 200, "Fine", headers, BODY)
    entry = found(cache)
    assert entry is not None
    assert (entry.status, entry.reason, entry.content, entry.size) == (200, "Fine", BODY, len(BODY))
    assert entry.headers == list(headers.items())
    assert entry.fresh


def test_nothing_is_found_where_nothing_was_stored(cache: Cache) -> None:
    assert found(cache) is None
    assert cache.size(URL) == 0


def test_another_url_is_another_entry_and_a_fragment_is_no_part_of_it(cache: Cache, store: Store) -> None:
    store(cache_control="max-age=9")
    assert found(cache, "https://example.com/data?q=2") is None
    assert found(cache, "https://example.com/data?q=1#part") is not None


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_only_get_is_answered(cache: Cache, store: Store, method: str) -> None:
    store(cache_control="max-age=9")
    assert cache.lookup(method, URL, {}) is None


@pytest.mark.parametrize("status", [201, 203, 204, 206, 301, 302, 304, 307, 404, 500])
def test_only_status_200_is_kept(cache: Cache, status: int) -> None:
    assert not cache.store(URL, {}, status, "", [("Cache-Control", "max-age=9")], BODY)
    assert found(cache) is None


@pytest.mark.parametrize(
    ("request_headers", "headers"),
    [
        ({}, {"cache_control": "no-store"}),
        ({}, {"cache_control": "max-age=60, No-Store", "etag": '"1"'}),
        ({"Cache-Control": "no-store"}, {"cache_control": "max-age=60"}),
        ({}, {"cache_control": "max-age=60", "set_cookie": "a=b"}),
        ({}, {"cache_control": "max-age=60", "vary": "*"}),
        ({}, {"cache_control": "max-age=60", "vary": "accept, *"}),
        ({"Authorization": "Bearer x"}, {"cache_control": "max-age=60"}),
        ({"cookie": "session=x"}, {"cache_control": "max-age=60"}),
        ({"X-Api-Key": "x"}, {"cache_control": "private, max-age=60"}),
        ({}, {}),
        ({}, {"cache_control": "max-age=0"}),
        ({}, {"cache_control": "s-maxage=60"}),
        ({}, {"cache_control": "max-age=sixty"}),
        ({}, {"expires": "0"}),
        ({}, {"expires": date(START - 1)}),
        ({}, {"cache_control": "max-age=60", "age": "60"}),
        ({}, {"cache_control": "max-age=60", "date": date(START - 60)}),
        ({}, {"last_modified": "yesterday"}),
        ({}, {"etag": ""}),
    ],
)
def test_what_may_not_be_kept_or_is_of_no_use_is_not(
    cache: Cache, store: Store, tmp_path: Path, request_headers: dict[str, str], headers: dict[str, str]
) -> None:
    assert not store(request=request_headers, **headers)
    assert found(cache) is None
    assert files(tmp_path) == []


def test_credentials_in_the_url_keep_the_answer_out(cache: Cache, store: Store, tmp_path: Path) -> None:
    assert not store("https://example.com/data?api_key=secret", cache_control="max-age=60")
    url = "https://user:secret@example.com/data"
    assert not store(url, cache_control="max-age=60")
    assert store("https://example.com/a@b", cache_control="max-age=60")
    assert store(url, cache_control="max-age=60, public")
    assert found(cache, url) is not None
    assert not any(
        b"secret" in path.read_bytes() or b"example" in path.read_bytes() for path in files(tmp_path)
    )


def test_what_was_asked_for_with_credentials_is_kept_if_it_is_public(
    cache: Cache, store: Store, tmp_path: Path
) -> None:
    secret = "Bearer topsecret"
    assert store(request={"Authorization": secret}, cache_control="public, max-age=60", vary="authorization")
    assert found(cache, Authorization=secret) is not None
    assert found(cache, Authorization="Bearer other") is None
    assert found(cache) is None
    assert all(b"topsecret" not in path.read_bytes() for path in files(tmp_path))


def test_a_request_with_credentials_is_not_answered_with_what_is_not_public(
    cache: Cache, store: Store
) -> None:
    store(cache_control="max-age=60")
    assert found(cache) is not None
    assert found(cache, Authorization="Bearer x") is None
    assert found(cache, Cookie="a=b") is None


def test_headers_of_one_connection_or_person_are_not_kept(cache: Cache, store: Store) -> None:
    store(
        cache_control="max-age=60",
        connection="close, X-Hop",
        keep_alive="timeout=5",
        x_hop="1",
        transfer_encoding="chunked",
        www_authenticate="Negotiate abc",
        x_auth_token="abc",
        x_kept="1",
    )
    entry = found(cache)
    assert entry is not None
    assert [name for name, _ in entry.headers] == ["cache-control", "x-kept"]


def test_an_answer_that_may_not_be_kept_ends_the_one_that_was(
    cache: Cache, store: Store, tmp_path: Path
) -> None:
    store(etag='"1"')
    assert not store(cache_control="no-store", etag='"2"')
    assert found(cache) is None
    assert files(tmp_path) == []


def test_an_answer_replaces_the_one_before(cache: Cache, store: Store, tmp_path: Path) -> None:
    store(etag='"1"')
    store(etag='"2"', content=b"new")
    entry = found(cache)
    assert entry is not None
    assert (entry.content, entry.validators) == (b"new", {"If-None-Match": '"2"'})
    assert len(files(tmp_path)) == 1


def test_an_invalidated_url_is_forgotten(cache: Cache, store: Store, tmp_path: Path) -> None:
    store(cache_control="max-age=60")
    cache.invalidate(URL)
    cache.invalidate("https://example.com/never-seen")
    assert found(cache) is None
    assert files(tmp_path) == []


# Freshness


@pytest.mark.parametrize(
    ("headers", "lifetime"),
    [
        ({"cache_control": "max-age=60"}, 60),
        ({"cache_control": 'private, MAX-AGE="60"'}, 60),
        ({"cache_control": "max-age=60, max-age=9"}, 60),
        ({"cache_control": "max-age = 60,must-revalidate"}, 60),
        ({"cache_control": "max-age=60", "expires": date(START + 9)}, 60),
        ({"cache_control": "max-age=60", "age": "20"}, 40),
        ({"cache_control": "max-age=60", "age": "x"}, 60),
        ({"cache_control": "max-age=60", "date": date(START - 20)}, 40),
        ({"cache_control": "max-age=60", "date": date(START + 500)}, 60),
        ({"cache_control": "max-age=60", "date": date(START - 20), "age": "30"}, 30),
        ({"expires": date(START + 60)}, 60),
        ({"expires": date(START + 60), "date": date(START)}, 60),
        ({"expires": date(START + 1060), "date": date(START + 1000)}, 60),
        ({"cache_control": "max-age=99999999999999999999999"}, 1 << 31),
    ],
)
def test_an_entry_is_fresh_for_as_long_as_it_says(
    cache: Cache, store: Store, clock: Clock, headers: dict[str, str], lifetime: int
) -> None:
    assert store(**headers, etag='"1"')
    clock.now = START + lifetime - 0.001
    entry = found(cache)
    assert entry is not None
    assert entry.fresh
    clock.now = START + lifetime
    entry = found(cache)
    assert entry is not None
    assert not entry.fresh


def test_what_is_stale_and_cannot_be_revalidated_is_a_miss(cache: Cache, store: Store, clock: Clock) -> None:
    store(cache_control="max-age=60")
    clock.now += 60
    assert found(cache) is None


@pytest.mark.parametrize("said", ["no-cache, max-age=60", 'no-cache="x-field", max-age=60', "max-age=0"])
def test_no_cache_is_revalidated_each_time(cache: Cache, store: Store, said: str) -> None:
    store(cache_control=said, etag='"1"')
    entry = found(cache)
    assert entry is not None
    assert not entry.fresh


@pytest.mark.parametrize(
    "request_headers",
    [
        {"Cache-Control": "no-cache"},
        {"Cache-Control": "max-age=0"},
        {"Cache-Control": "max-age=5"},
        {"Pragma": "no-cache"},
    ],
)
def test_a_request_may_ask_for_revalidation(
    cache: Cache, store: Store, clock: Clock, request_headers: dict[str, str]
) -> None:
    store(cache_control="max-age=60", etag='"1"')
    clock.now += 5
    entry = cache.lookup("GET", URL, request_headers)
    assert entry is not None
    assert not entry.fresh


@pytest.mark.parametrize(
    "header", ["Range", "If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "If-Range"]
)
def test_a_caller_that_asks_on_its_own_terms_is_left_alone(cache: Cache, store: Store, header: str) -> None:
    store(cache_control="max-age=60")
    assert cache.lookup("GET", URL, {header: "x"}) is None


def test_no_store_in_a_request_leaves_the_cache_out(cache: Cache, store: Store) -> None:
    store(cache_control="max-age=60")
    assert found(cache, cache_control="no-store") is None


def test_a_clock_put_back_makes_nothing_fresh(cache: Cache, store: Store, clock: Clock) -> None:
    store(cache_control="max-age=60", etag='"1"')
    clock.now -= 1000
    entry = found(cache)
    assert entry is not None
    assert not entry.fresh


def test_a_name_in_quotes_is_no_directive(cache: Cache, store: Store) -> None:
    store(cache_control='x="no-store, no-cache", max-age=60')
    entry = found(cache)
    assert entry is not None
    assert entry.fresh


# Vary


def test_the_request_headers_that_vary_names_must_be_the_same(cache: Cache, store: Store) -> None:
    store(
        request={"Accept": "text/html", "User-Agent": "a"},
        cache_control="max-age=60",
        vary="ACCEPT, Accept-Language",
    )
    assert found(cache, accept="text/html", user_agent="b") is not None
    assert found(cache, accept="text/plain") is None
    assert found(cache, accept="text/html", accept_language="de") is None
    assert found(cache) is None


def test_repeated_request_headers_are_one_value(cache: Cache) -> None:
    request = CIMultiDict([("Accept", "a"), ("Accept", "b")])
    cache.store(URL, request, 200, "OK", {"Cache-Control": "max-age=60", "Vary": "Accept"}, BODY)
    assert cache.lookup("GET", URL, {"accept": "a,  b".replace(",  ", ", ")}) is not None
    assert cache.lookup("GET", URL, {"accept": "b, a"}) is None


# Revalidation


def test_validators_are_those_that_the_server_gave(cache: Cache, store: Store) -> None:
    store(etag='W/"1"', last_modified=date(START))
    entry = found(cache)
    assert entry is not None
    assert entry.validators == {"If-None-Match": 'W/"1"', "If-Modified-Since": date(START)}


@pytest.mark.parametrize("etag", ['"\udce9"', '"é"', '"\x07"'])
def test_an_etag_that_could_not_be_sent_back_is_none(store: Store, etag: str) -> None:
    assert not store(etag=etag)


def test_a_304_makes_an_entry_fresh_again(cache: Cache, store: Store, clock: Clock) -> None:
    store(
        cache_control="max-age=60",
        etag='"1"',
        content_type="text/plain",
        date=date(START),
        age="5",
        x_old="1",
    )
    clock.now += 1000
    entry = found(cache)
    assert entry is not None
    headers = {
        "Cache-Control": "max-age=90",
        "ETag": '"2"',
        "Content-Length": "0",
        "Content-Type": "x/y",
        "X-New": "1",
    }
    updated = cache.revalidated(entry, headers)
    assert updated.fresh
    clock.now += 89
    for known in (updated, found(cache)):
        assert known is not None
        assert known.fresh
        assert known.content == BODY
        assert sorted(known.headers) == [
            ("Cache-Control", "max-age=90"),
            ("ETag", '"2"'),
            ("X-New", "1"),
            ("content-type", "text/plain"),
            ("x-old", "1"),
        ]
        assert known.validators == {"If-None-Match": '"2"'}
    clock.now += 1
    entry = found(cache)
    assert entry is not None
    assert not entry.fresh


def test_a_304_that_only_confirms_begins_the_lifetime_anew(cache: Cache, store: Store, clock: Clock) -> None:
    store(cache_control="max-age=60", etag='"1"', date=date(START))
    clock.now += 100
    entry = found(cache)
    assert entry is not None
    cache.revalidated(entry, {"Date": date(clock.now)})
    clock.now += 59
    entry = found(cache)
    assert entry is not None
    assert entry.fresh


def test_a_304_for_what_is_always_revalidated_writes_nothing(
    cache: Cache, store: Store, tmp_path: Path
) -> None:
    store(etag='"1"')
    (file,) = files(tmp_path)
    os.utime(file, (0, 0))
    before = file.stat()
    entry = found(cache)
    assert entry is not None
    cache.revalidated(entry, {"ETag": '"1"', "Date": date(START + 60), "X-Request-Id": "7"})
    assert file.stat().st_ino == before.st_ino
    assert file.stat().st_mtime > 0


@pytest.mark.parametrize("headers", [{"Cache-Control": "no-store"}, {"Vary": "*"}, {"Vary": "Accept"}])
def test_a_304_that_forbids_keeping_ends_the_entry_after_this_use(
    cache: Cache, store: Store, tmp_path: Path, headers: dict[str, str]
) -> None:
    store(etag='"1"')
    entry = found(cache)
    assert entry is not None
    updated = cache.revalidated(entry, headers)
    assert (updated.content, updated.fresh) == (BODY, True)
    assert files(tmp_path) == []


def test_a_cookie_in_a_304_is_not_kept(cache: Cache, store: Store) -> None:
    store(etag='"1"')
    entry = found(cache)
    assert entry is not None
    cache.revalidated(entry, {"ETag": '"2"', "Set-Cookie": "a=b"})
    entry = found(cache)
    assert entry is not None
    assert entry.headers == [("ETag", '"2"')]

"""The cache's files: damage is never believed, links are not followed, the size is bounded, writers may be killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.web.cache import Cache, Entry

URL = "https://example.com/data?q=1"

property_test = settings(max_examples=200, derandomize=True, deadline=None, database=None)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


Store = Callable[..., bool]


@pytest.fixture
def store(cache: Cache) -> Store:
    """Stores an answer to a plain GET that is fresh for a minute."""

    def storing(url: str = URL, content: bytes = b"the body") -> bool:
        return cache.store(url, {}, 200, "OK", {"Cache-Control": "max-age=60"}, content)

    return storing


def found(cache: Cache, url: str = URL, **headers: str) -> Entry | None:
    return cache.lookup("GET", url, headers)


def files(tmp_path: Path) -> list[Path]:
    """The entries' files, and whatever else there is but the counter."""
    return sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "bytes")


def test_files_are_for_their_owner_only_and_named_by_a_hash(
    tmp_path: Path, cache: Cache, store: Store
) -> None:
    previous = os.umask(0)
    try:
        store()
        fresh = Cache(tmp_path / "second")
        fresh.store(URL, {}, 200, "OK", {"ETag": '"1"'}, b"the body")
    finally:
        os.umask(previous)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    for file in files(tmp_path):
        assert len(file.parent.name) == 2
        assert len(file.name) == 62
        assert set(file.parent.name + file.name) <= set("0123456789abcdef")
        assert b"example.com" not in file.read_bytes()


def test_the_size_of_an_entry_is_known_without_reading_it(cache: Cache, store: Store, tmp_path: Path) -> None:
    store(content=b"x" * 1000)
    (file,) = files(tmp_path)
    assert cache.size(URL) == file.stat().st_size > 1000


def small(cache: Cache, tmp_path: Path) -> tuple[Path, bytes]:
    cache.store(URL, {"Accept": "a"}, 200, "OK", {"ETag": '"1"', "Vary": "Accept"}, b"body\n\n")
    (file,) = files(tmp_path)
    return file, file.read_bytes()


def test_an_entry_cut_at_any_byte_is_a_miss_and_removed(cache: Cache, tmp_path: Path) -> None:
    file, whole = small(cache, tmp_path)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert found(cache, accept="a") is None, length
        assert not file.exists()
    file.write_bytes(whole)
    assert found(cache, accept="a") is not None


def test_an_entry_with_any_byte_changed_is_a_miss_and_removed(cache: Cache, tmp_path: Path) -> None:
    file, whole = small(cache, tmp_path)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        assert found(cache, accept="a") is None, place
        assert not file.exists()


@property_test
@given(data=st.binary(max_size=200) | st.tuples(st.binary(max_size=50), st.binary(max_size=50)))
def test_no_content_of_a_file_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes | tuple[bytes, bytes]
) -> None:
    directory = tmp_path_factory.mktemp("cache")
    cache = Cache(directory)
    file, whole = small(cache, directory)
    file.write_bytes(data if isinstance(data, bytes) else data[0] + whole + data[1])
    entry = found(cache, accept="a")
    assert (entry is not None) == (file.exists() and file.read_bytes() == whole)


def test_a_file_in_the_place_of_another_is_a_miss(cache: Cache, store: Store, tmp_path: Path) -> None:
    store()
    (mine,) = files(tmp_path)
    store("https://example.com/other", content=b"other")
    (other,) = set(files(tmp_path)) - {mine}
    mine.write_bytes(other.read_bytes())
    assert found(cache) is None


def test_an_entry_of_a_later_version_with_other_fields_is_a_miss(
    cache: Cache, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "dumps", lambda *_, **__: '{"status":200}')
    store()
    assert found(cache) is None
    assert files(tmp_path) == []


def test_links_are_not_followed(cache: Cache, store: Store, tmp_path: Path) -> None:
    store()
    (file,) = files(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    whole = elsewhere.read_bytes()
    file.symlink_to(elsewhere)
    assert found(cache) is None
    assert store(content=b"new")
    assert not file.is_symlink()
    assert elsewhere.read_bytes() == whole
    folder = file.parent
    folder.rename(tmp_path / "folder")
    folder.symlink_to(tmp_path / "folder")
    assert found(cache) is None
    assert not store(content=b"newer")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_and_folders_of_another_user_are_not_trusted(
    cache: Cache, store: Store, tmp_path: Path
) -> None:
    store()
    (file,) = files(tmp_path)
    os.chown(file, 12345, 12345)
    assert found(cache) is None
    store()
    assert found(cache) is not None
    os.chown(file.parent, 12345, 12345)
    assert found(cache) is None
    assert not store()


def test_a_fifo_or_a_folder_in_the_place_of_an_entry_is_a_miss(
    cache: Cache, store: Store, tmp_path: Path
) -> None:
    store()
    (file,) = files(tmp_path)
    file.unlink()
    os.mkfifo(file)
    assert found(cache) is None
    assert not file.exists()
    file.mkdir()
    assert found(cache) is None
    assert not store()


def test_a_disk_that_fails_is_no_error_and_leaves_nothing(
    cache: Cache, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        assert not store()
    assert files(tmp_path) == []
    assert store()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        assert found(cache) is None
        assert not store()
    assert found(cache) is not None


def test_a_directory_that_cannot_be_made_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Cache(tmp_path / "file" / "cache")


def test_a_bound_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_bytes"):
        Cache(tmp_path, max_bytes=0)


# The bound


def on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in files(directory))


def test_the_bound_holds_after_every_store_and_evictions_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = 0
    measure = Cache._measure

    def counted(cache: Cache) -> tuple[int, list[tuple[int, int, str]]]:
        nonlocal scans
        scans += 1
        return measure(cache)

    monkeypatch.setattr(Cache, "_measure", counted)
    cache = Cache(tmp_path, max_bytes=200_000)
    for number in range(600):
        assert cache.store(f"{URL}&{number}", {}, 200, "OK", {"ETag": '"1"'}, bytes(1000))
        if number % 10 == 0:
            assert on_disk(tmp_path) <= 200_000
    assert on_disk(tmp_path) > 150_000
    # 600 entries of about 1,200 bytes, and a tenth of the bound freed each time.
    assert scans <= 40


def test_the_entries_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=85_000)
    urls = [f"{URL}&{number}" for number in range(8)]
    known: set[Path] = set()
    for age, url in enumerate(urls):
        cache.store(url, {}, 200, "OK", {"ETag": '"1"'}, bytes(10_000))
        (file,) = set(files(tmp_path)) - known
        known.add(file)
        os.utime(file, (1000 + age, 1000 + age))
    assert found(cache, urls[0]) is not None  # which makes it the one used last
    cache.store(f"{URL}&new", {}, 200, "OK", {"ETag": '"1"'}, bytes(10_000))
    assert [number for number, url in enumerate(urls) if cache.size(url)] == [0, 3, 4, 5, 6, 7]
    assert cache.size(f"{URL}&new")


def test_what_does_not_fit_is_not_kept_and_ends_what_was(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=1000)
    assert cache.store(URL, {}, 200, "OK", {"ETag": '"1"'}, b"small")
    assert not cache.store(URL, {}, 200, "OK", {"ETag": '"1"'}, bytes(1000))
    assert files(tmp_path) == []


@pytest.mark.parametrize("damage", [b"", b"garbage", b"-5", None])
def test_a_counter_that_is_lost_is_counted_anew(tmp_path: Path, damage: bytes | None) -> None:
    cache = Cache(tmp_path, max_bytes=10_000)
    for number in range(6):
        cache.store(f"{URL}&{number}", {}, 200, "OK", {"ETag": '"1"'}, bytes(1200))
    (counter,) = tmp_path.rglob("bytes")
    counter.unlink() if damage is None else counter.write_bytes(damage)
    for number in range(6, 20):
        cache.store(f"{URL}&{number}", {}, 200, "OK", {"ETag": '"1"'}, bytes(1200))
        assert on_disk(tmp_path) <= 10_000


def test_what_killed_writers_left_is_removed_in_time(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=10_000)
    cache.store(URL, {}, 200, "OK", {"ETag": '"1"'}, bytes(1200))
    (file,) = files(tmp_path)
    old, young = file.with_name(".new-0000000000000000"), file.with_name(".new-0000000000000001")
    for temporary in (old, young):
        temporary.write_bytes(bytes(10))
    os.utime(old, (1000, 1000))
    for number in range(20):
        cache.store(f"{URL}&{number}", {}, 200, "OK", {"ETag": '"1"'}, bytes(1200))
    assert not old.exists()
    assert young.exists()


# Several at once


WRITER = """
import sys
from unwait.web.cache import Cache

cache = Cache(sys.argv[1], max_bytes=400_000)
print("ready", flush=True)
number = 0
while True:
    number += 1
    body = (b"%d," % number) * 3000
    cache.store("https://example.com/%d" % (number % 7), {}, 200, "OK", {"ETag": '"1"'}, body)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_entries_only(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    cache = Cache(tmp_path, max_bytes=400_000)
    seen = 0
    for delay in range(8):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            # Reads go on while it writes; how many differ from run to run is when it dies.
            for _ in range(50 * delay):
                seen += whole_or_nothing(cache, tmp_path)
            writer.send_signal(signal.SIGKILL)
        seen += whole_or_nothing(cache, tmp_path)
    assert seen
    assert cache.store(URL, {}, 200, "OK", {"ETag": '"1"'}, b"the body")


def whole_or_nothing(cache: Cache, directory: Path) -> int:
    """How many of the writer's entries are there; each must be one that it wrote, whole and not yet removed as bad."""
    there = 0
    for number in range(7):
        url = f"https://example.com/{number}"
        present = cache.size(url) > 0
        entry = found(cache, url)
        assert (entry is not None) or not present
        if entry is not None:
            first = entry.content.partition(b",")[0]
            assert int(first) % 7 == number
            assert entry.content == (first + b",") * 3000
            there += 1
    return there


def test_threads_share_a_cache_without_losing_the_bound(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        cache = Cache(tmp_path, max_bytes=60_000)
        start.wait()
        try:
            for number in range(150):
                url = f"{URL}&{(number * (seed + 1)) % 80}"
                cache.store(url, {}, 200, "OK", {"ETag": '"1"'}, b"%d" % (number % 10) * 1000)
                entry = found(cache, url)
                assert entry is None or entry.content == entry.content[:1] * 1000
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert on_disk(tmp_path) <= 60_000

"""A private HTTP cache on disk: answers to GET, kept as RFC 9111 allows, revalidated with ETag and Last-Modified.

One file an entry: a line of JSON, then the body. Its name is the hash of the URL, its first field a checksum
of all that follows, mixed with that name. A file is written beside its place and renamed into it, so that a
reader (in any process) sees the old entry, the new one or none, whenever the writer is killed; and what is
cut short, changed or moved is not believed: it is a miss, and removed.

Nothing secret is written in clear but the bodies: no URL, no request header (of those that `Vary` names, a
hash), no response header that is named like a secret. What was asked for with secrets, in a header or in the URL, is
kept only where the answer says `public`.

No guesses: without `max-age` or `Expires` an answer is revalidated each time, and not kept if it cannot be.
`s-maxage` is for shared caches and not looked at. One variant is kept for a URL, the last one.

The calls block, for about a tenth of a millisecond and the time it takes to read or write the body. They may
be made from several threads and processes at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from unwait.web.headers import http_date
from unwait.web.urls import is_secret, redact

_FORMAT = "v1"  # the folder of entries in this file's format
_TEMPORARY = ".new-"
_LONGEST_HEAD = 1 << 20  # bytes
_ABANDONED = 3600.0  # seconds after which what a killed writer left is removed
_KEPT = 0.9  # of `max_bytes` is left by an eviction, so that the next one is not due at once

# A caller that sets one of these revalidates, or asks for a part, on its own.
_PARTIAL = frozenset(
    ("range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
)
# Headers that are about one connection, not about the answer.
_OF_CONNECTION = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)
# What a 304 says of these is not about the body that is kept.
_NOT_UPDATED = frozenset(("content-encoding", "content-length", "content-range", "content-type"))

_DIRECTIVE = re.compile(
    r'"(?:[^"\\]|\\.)*"|([!#$%&\'*+.^_`|~0-9a-z-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?'
)

Pairs = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A kept answer. `fresh`: it may be used as it is; otherwise ask again with `validators` among the headers."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    content: bytes
    fresh: bool
    name: str  # the hash of its URL
    stored: float  # when it came, in seconds of the Unix epoch
    vary: dict[str, str]  # hashes of the request headers that it depends on

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return len(self.content)

    @property
    def validators(self) -> dict[str, str]:
        """The request headers that make the server answer 304 if this is still what it would send."""
        etag = "".join(_all(self.headers, "etag")[:1])
        modified = "".join(_all(self.headers, "last-modified")[:1])
        found = {}
        # What is not plain text could not be sent back.
        if etag and etag.isascii() and etag.isprintable():
            found["If-None-Match"] = etag
        if http_date(modified) is not None:
            found["If-Modified-Since"] = modified.strip()
        return found


class Cache:
    """The cache in `directory`, which is made (for its owner only) where it is missing.

    `max_bytes` bounds the files in it; those used longest ago go first. `clock` gives seconds of the Unix epoch.
    Raises OSError if the directory cannot be made or written, ValueError for a bound that is not positive. After that
    no failure of the disk is an error: what cannot be read is a miss, what cannot be written is not kept.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes < 1:
            raise ValueError("max_bytes must be positive")
        self._max_bytes = max_bytes
        self._clock = clock
        self._root = os.path.join(os.path.abspath(os.fspath(directory)), _FORMAT)
        os.makedirs(os.path.dirname(self._root), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._root, 0o700)
        with self._counter():
            pass  # a directory that cannot be written is told here

    def size(self, url: str) -> int:
        """Bytes on disk of what is kept for `url`, fresh or not; 0 for nothing. Does not read it."""
        name = _name(url)
        try:
            with self._folder(name) as folder:
                return os.stat(name[2:], dir_fd=folder, follow_symlinks=False).st_size
        except OSError:
            return 0

    def lookup(self, method: str, url: str, headers: Mapping[str, str]) -> Entry | None:
        """What is kept for the request: fresh, or else with validators; None if nothing that could be used."""
        asked = _directives(headers.items())
        if method.upper() != "GET" or "no-store" in asked or _names(headers) & _PARTIAL:
            return None
        entry = self._read(_name(url))
        if entry is None or any(_vary_hash(headers, name) != digest for name, digest in entry.vary.items()):
            return None
        if _has_secrets(url, headers) and "public" not in _directives(entry.headers):
            return None
        now = self._clock()
        age, lifetime = _age(entry.headers, entry.stored, now), _lifetime(entry.headers, entry.stored)
        if "max-age" in asked:
            lifetime = min(lifetime, _seconds(asked["max-age"]))
        no_cache = "no-cache" in asked or (
            not asked and "no-cache" in ",".join(_all(headers.items(), "pragma")).lower()
        )
        # Where the clock was put back, the age is not known.
        fresh = age < lifetime and now >= entry.stored and not no_cache
        entry = replace(entry, fresh=fresh)
        return entry if fresh or entry.validators else None

    def store(
        self,
        url: str,
        request_headers: Mapping[str, str],
        status: int,
        reason: str,
        headers: Mapping[str, str] | Pairs,
        content: bytes,
    ) -> bool:
        """Keeps the answer to a GET if it may be kept and can be of use; whether it was.

        `content` is the whole body, decoded. What was kept for the URL before goes, also where the new answer with
        status 200 may not be kept.
        """
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        if status != 200:
            return False
        said = _directives(pairs)
        if _has_secrets(url, request_headers) and "public" not in said:
            return False
        now = self._clock()
        vary = _vary(pairs)
        entry = Entry(
            status=status,
            reason=reason,
            headers=_kept(pairs),
            content=content,
            fresh=True,
            name=_name(url),
            stored=now,
            vary={name: _vary_hash(request_headers, name) for name in vary},
        )
        forbidden = "no-store" in said or "no-store" in _directives(request_headers.items())
        useful = entry.validators or _age(pairs, now, now) < _lifetime(pairs, now)
        if forbidden or not useful or "*" in vary or any(_all(pairs, "set-cookie")):
            self._remove(entry.name)
            return False
        return self._write(entry)

    def revalidated(self, entry: Entry, headers: Mapping[str, str] | Pairs) -> Entry:
        """The entry after a 304 with these headers: updated on disk too, and fresh for the request that was made."""
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        update = [(name, value) for name, value in _kept(pairs) if name.lower() not in _NOT_UPDATED]
        # The old date and age would make the entry older than it now is.
        gone = {name.lower() for name, _ in update} | {"date", "age"}
        kept = [(name, value) for name, value in entry.headers if name.lower() not in gone]
        updated = replace(entry, headers=kept + update, fresh=True, stored=self._clock())
        said = _directives(updated.headers)
        if "no-store" in said or _vary(updated.headers) != entry.vary.keys():
            self._remove(entry.name)
        elif _lifetime(updated.headers, updated.stored) <= 0 and _governing(updated) == _governing(entry):
            self._touch(entry.name)  # it is revalidated next time anyway: no need to write the body again
        else:
            self._write(updated)
        return updated

    def invalidate(self, url: str) -> None:
        """Forgets `url`: to be called when a POST, PUT, PATCH or DELETE to it was answered with 2xx or 3xx."""
        self._remove(_name(url))

    # Files

    @contextlib.contextmanager
    def _folder(self, name: str, *, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder of an entry. OSError unless it is a real folder and our own."""
        path = os.path.join(self._root, name[:2])
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            folder = os.open(path, flags)
        except FileNotFoundError:
            if not create:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            folder = os.open(path, flags)
        try:
            if os.fstat(folder).st_uid != os.geteuid():
                raise PermissionError(errno.EACCES, "belongs to another user", path)
            yield folder
        finally:
            os.close(folder)

    def _read(self, name: str) -> Entry | None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with self._folder(name) as folder, open(os.open(name[2:], flags, dir_fd=folder), "rb") as file:
                about = os.fstat(file.fileno())
                entry = None
                if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid():
                    line = file.readline(_LONGEST_HEAD)
                    entry = _decode(name, line, file.read())
                if entry is None:
                    os.unlink(name[2:], dir_fd=folder)
                else:
                    os.utime(file.fileno())  # when it was used last
                return entry
        except OSError:
            return None

    def _write(self, entry: Entry) -> bool:
        line = _encode(entry)
        size = len(line) + entry.size
        if size > self._target or len(line) > _LONGEST_HEAD:
            self._remove(entry.name)
            return False
        temporary = _TEMPORARY + secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with self._folder(entry.name, create=True) as folder:
                descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
                try:
                    with open(descriptor, "wb") as file:
                        file.write(line)
                        file.write(entry.content)
                    crowded = self._count(size)
                    os.replace(temporary, entry.name[2:], src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary, dir_fd=folder)
                    raise
            if crowded:
                self._evict()
        except OSError:
            return False
        return True

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError), self._folder(name) as folder:
            os.unlink(name[2:], dir_fd=folder)

    def _touch(self, name: str) -> None:
        with contextlib.suppress(OSError), self._folder(name) as folder:
            os.utime(name[2:], dir_fd=folder, follow_symlinks=False)

    # The bound: a counter file holds the bytes on disk, or more: what is overwritten or removed is not taken off.
    # An eviction measures anew. It is due again only after a tenth of the bound was written, so that for each entry
    # its scan costs little.

    @property
    def _target(self) -> int:
        return int(self._max_bytes * _KEPT)

    @contextlib.contextmanager
    def _counter(self) -> Iterator[int]:
        """The counter file, locked."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(os.path.join(self._root, "bytes"), flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _count(self, change: int) -> bool:
        """Adds to the counter; whether it is over the bound now."""
        with self._counter() as descriptor:
            text = os.pread(descriptor, 40, 0)
            # One that is new or damaged says nothing: over the bound, so that it is measured.
            total = max(int(text) + change, 0) if text.isdigit() else self._max_bytes + 1
            os.pwrite(descriptor, b"%020d" % total, 0)
            return total > self._max_bytes

    def _evict(self) -> None:
        """Removes the entries used longest ago, down to a part of the bound, and what killed writers left."""
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody is at it
            with self._counter() as descriptor:
                counted = int(os.pread(descriptor, 40, 0))
            total, entries = self._measure()
            for _, size, name in sorted(entries):
                if total <= self._target:
                    break
                self._remove(name)
                total -= size
            # What others wrote meanwhile stays counted.
            self._count(total - counted)
        finally:
            os.close(root)

    def _measure(self) -> tuple[int, list[tuple[int, int, str]]]:
        """The bytes on disk, and of each entry when it was used, its size and its name."""
        total = 0
        entries = []
        for prefix in os.listdir(self._root):
            with contextlib.suppress(OSError), self._folder(prefix) as folder, os.scandir(folder) as listing:
                for file in listing:
                    with contextlib.suppress(FileNotFoundError):
                        about = file.stat(follow_symlinks=False)
                        if not file.name.startswith(_TEMPORARY):
                            entries.append((about.st_mtime_ns, about.st_size, prefix + file.name))
                        elif about.st_mtime < time.time() - _ABANDONED:
                            os.unlink(file.name, dir_fd=folder)
                            continue
                        total += about.st_size
        return total, entries


def _name(url: str) -> str:
    return hashlib.sha256(url.partition("#")[0].encode("utf-8", "surrogatepass")).hexdigest()


def _encode(entry: Entry) -> bytes:
    """The first line of an entry's file."""
    about = {
        "status": entry.status,
        "reason": entry.reason,
        "headers": entry.headers,
        "stored": entry.stored,
        "vary": entry.vary,
    }
    head = json.dumps(about, separators=(",", ":")).encode() + b"\n"
    return b"%s %s" % (_checksum(entry.name, head, entry.content), head)


def _decode(name: str, line: bytes, content: bytes) -> Entry | None:
    checksum, _, head = line.partition(b" ")
    if checksum != _checksum(name, head, content):
        return None
    try:
        about = json.loads(head)
        return Entry(
            status=about["status"],
            reason=about["reason"],
            headers=[(header, value) for header, value in about["headers"]],
            content=content,
            fresh=False,
            name=name,
            stored=about["stored"],
            vary=about["vary"],
        )
    except (ValueError, KeyError, TypeError):
        return None


def _checksum(name: str, head: bytes, content: bytes) -> bytes:
    digest = hashlib.blake2b(head, digest_size=16, key=bytes.fromhex(name))
    digest.update(content)
    return digest.hexdigest().encode()


# Headers


def _all(pairs: Pairs, name: str) -> list[str]:
    return [value for key, value in pairs if key.lower() == name]


def _names(headers: Mapping[str, str]) -> set[str]:
    return {name.lower() for name in headers}


def _kept(pairs: Pairs) -> list[tuple[str, str]]:
    pairs = list(pairs)
    gone = {name.strip().lower() for name in ",".join(_all(pairs, "connection")).split(",")} | _OF_CONNECTION
    return [(name, value) for name, value in pairs if name.lower() not in gone and not is_secret(name)]


def _governing(entry: Entry) -> list[list[str]]:
    """What decides how an entry is used, but for the time."""
    return [_all(entry.headers, name) for name in ("cache-control", "expires", "etag", "last-modified")]


def _vary(pairs: Pairs) -> set[str]:
    return {name.strip().lower() for name in ",".join(_all(pairs, "vary")).split(",")} - {""}


def _vary_hash(headers: Mapping[str, str], name: str) -> str:
    value = ", ".join(" ".join(value.split()) for value in _all(headers.items(), name))
    return hashlib.sha256(f"{name}: {value}".encode("utf-8", "surrogatepass")).hexdigest()


def _has_secrets(url: str, headers: Mapping[str, str]) -> bool:
    # Authorization is RFC 9111's own case, not one of a name that looks like a secret.
    return "authorization" in _names(headers) or any(map(is_secret, headers)) or redact(url) != url


def _directives(pairs: Pairs) -> dict[str, str]:
    """The directives of `Cache-Control`, by lower-case name; of those that are repeated the first."""
    found: dict[str, str] = {}
    for match in _DIRECTIVE.finditer(",".join(_all(pairs, "cache-control")).lower()):
        if match[1]:
            found.setdefault(match[1], match[2] or match[3] or "")
    return found


def _seconds(text: str) -> int:
    """A number of seconds; 0 for what is none."""
    return min(int(text[:20]), 1 << 31) if re.fullmatch(r"[0-9]+", text) else 0


def _age(pairs: Pairs, stored: float, now: float) -> float:
    """Seconds since the origin made or last confirmed an answer that came at `stored`."""
    pairs = list(pairs)
    date = http_date(",".join(_all(pairs, "date")))
    apparent = 0.0 if date is None else max(0.0, stored - date)
    return max(apparent, _seconds("".join(_all(pairs, "age")[:1]))) + now - stored


def _lifetime(pairs: Pairs, stored: float) -> float:
    """Seconds for which an answer is fresh; 0 if it never is, or does not say."""
    pairs = list(pairs)
    said = _directives(pairs)
    if "no-cache" in said:
        return 0.0
    if "max-age" in said:
        return _seconds(said["max-age"])
    expires = http_date(",".join(_all(pairs, "expires")))
    if expires is None:
        return 0.0
    date = http_date(",".join(_all(pairs, "date")))
    return expires - (stored if date is None else date)

"""The two corpora of bench/documents.py: the documentation of PostgreSQL and of Python, from Debian's packages."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from loops import Unsupported

CACHE = Path.home() / ".cache" / "unwait-bench"
FETCH_TIMEOUT = 120


@dataclass(frozen=True)
class Corpus:
    """A package of HTML pages; `title` names it in tables.

    Pages that list others, by the patterns of `lists`, answer no question: retrieval leaves them out.
    """

    title: str
    package: str
    root: str
    lists: tuple[str, ...]

    def pages(self) -> list[Path]:
        """All its pages, sorted. Raises Unsupported where the package cannot be fetched."""
        return sorted(self.root_of().rglob("*.html"))

    def root_of(self) -> Path:
        """The directory of its pages. Raises Unsupported as well."""
        return fetch(self.package) / self.root

    def judged(self) -> list[Path]:
        """The pages that retrieval searches."""
        return [page for page in self.pages() if not any(page.match(pattern) for pattern in self.lists)]


POSTGRESQL = Corpus(
    "PostgreSQL 15",
    "postgresql-doc-15",
    "usr/share/doc/postgresql-doc-15/html",
    ("bookindex.html", "html/index.html"),
)
PYTHON = Corpus(
    "Python 3.11",
    "python3.11-doc",
    "usr/share/doc/python3.11/html",
    ("genindex*.html", "contents.html", "py-modindex.html", "search.html", "html/index.html"),
)


def fetch(package: str) -> Path:
    """The unpacked Debian package, downloaded once. Raises Unsupported where that is not possible."""
    unpacked = CACHE / package
    if unpacked.is_dir():
        return unpacked
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Unsupported(f"{package} was not fetched: there is no {program} here")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        try:
            # Without privileges to drop, apt says so on stderr and goes on.
            run = {"cwd": scratch, "capture_output": True, "text": True, "check": True}
            subprocess.run(["apt-get", "download", package], timeout=FETCH_TIMEOUT, **run)  # type: ignore[call-overload]
            (archive,) = Path(scratch).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive.name, "tree"], timeout=FETCH_TIMEOUT, **run)  # type: ignore[call-overload]
        except subprocess.TimeoutExpired:
            raise Unsupported(f"{package} was not fetched in {FETCH_TIMEOUT} s") from None
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unsupported(f"{package} was not fetched: {said}") from None
        (Path(scratch) / "tree").rename(unpacked)
    return unpacked


def copies(pages: list[Path], times: int, into: Path) -> None:
    """Write each page `times` times, each copy with a word of its own before the end of its body."""
    into.mkdir()
    for page in pages:
        body = page.read_bytes()
        for number in range(times):
            word = hashlib.blake2b(f"{page.name} {number}".encode(), digest_size=6).hexdigest()
            changed = body.replace(b"</body>", f"<p>Copy {word}.</p></body>".encode(), 1)
            (into / f"{number}-{page.name}").write_bytes(changed)

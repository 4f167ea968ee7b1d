"""Ignore rules, against git's own verdict."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unwait.documents.files import Walk
from unwait.documents.ignore import Patterns, Selection, lines_of

# Few letters, so that patterns and names meet often.
NAMES = st.text("ab[-]!é \\", min_size=1, max_size=3).filter(lambda name: name.strip())
_PIECES = "a b ab * ** / ? [ab] [!a] [a-b] []-] [^b] [[:alpha:]] [[:upper:] [b-a] [\\]] ! \\ # é - ] [ /**/ **/ /** a/"
PIECES = st.sampled_from([*_PIECES.split(), "\\*", " ", "\\ ", "\t"])
LINES = st.lists(PIECES, min_size=1, max_size=6).map("".join)
RULES = st.lists(LINES, max_size=5).map("\n".join)
TREES = st.lists(st.lists(NAMES, min_size=1, max_size=4), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = str(tmp_path_factory.mktemp("home"))
    return {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "XDG_CONFIG_HOME": home,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }


def git_lists(directory: Path, environment: dict[str, str]) -> set[str]:
    if not (directory / ".git").exists():
        subprocess.run(["git", "init", "-q"], cwd=directory, env=environment, check=True)
    shown = subprocess.run(
        ["git", "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"],
        cwd=directory,
        env=environment,
        check=True,
        capture_output=True,
    ).stdout
    return {os.fsdecode(name) for name in shown.split(b"\0") if name} - ignore_files(directory)


def ignore_files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob(".gitignore")}


def we_list(directory: Path, **options: object) -> list[str]:
    selection = Selection(options.pop("include", ()), options.pop("exclude", ()))  # type: ignore[arg-type]
    found = [found for found in Walk(str(directory), selection, **options) if found is not None]  # type: ignore[arg-type]
    return [os.path.relpath(file.path, directory) for file in found]


def make(directory: Path, *files: str, **contents: str) -> None:
    for name in files:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES, RULES, st.lists(st.tuples(st.integers(0, 20), RULES), max_size=2))
@example([["a", "b"], ["a", "a", "b"], ["b"]], "a/**\n!a/a", [])
@example([["foo", "x", "bar"], ["foobar"]], "/foo**/bar", [])
@example([["a b "], ["a b"]], "a b\\ ", [])
@example([["a"], ["b", "a"]], "*\n!*/\n!/b/a", [])
@example([["a", "b"]], "\ufeffa/b\r", [])
def test_what_is_ignored_is_what_git_ignores(
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
    tree: list[list[str]],
    rules: str,
    more: list[tuple[int, str]],
) -> None:
    directory = tmp_path_factory.mktemp("tree")
    for parts in tree:
        path = directory.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            continue  # a file where a directory would be, or the other way round
    places = [directory, *sorted(path for path in directory.rglob("*") if path.is_dir())]
    (directory / ".gitignore").write_text(rules, newline="")
    for number, text in more:
        (places[number % len(places)] / ".gitignore").write_text(text, newline="")
    assert set(we_list(directory)) == git_lists(directory, environment)


@pytest.mark.parametrize(
    ("rules", "path", "directory", "ignored"),
    [
        ("*.log", "deep/down/a.log", False, True),
        ("/*.log", "deep/a.log", False, None),
        ("build/", "build", False, None),
        ("build/", "src/build", True, True),
        ("docs/build", "src/docs/build", True, None),
        ("*.log\n!keep.log", "keep.log", False, False),
        ("!keep.log\n*.log", "keep.log", False, True),
        ("a/**/b", "a/b", False, True),
        ("a/**/b", "a/x/y/b", False, True),
        ("a/*/b", "a/x/y/b", False, None),
        ("**/temp", "x/y/temp", False, True),
        ("\\#note", "#note", False, True),
        ("# note", "# note", False, None),
        ("\\!note", "!note", False, True),
        ("note ", "note", False, True),
        ("note\r", "note", False, True),
        ("[", "[", False, None),
        ("a\\", "a\\", False, None),
        ("/", "a", True, None),
    ],
)
def test_lines_mean_what_they_mean_to_git(
    rules: str, path: str, directory: bool, ignored: bool | None
) -> None:
    assert Patterns(lines_of(rules.encode())).ignored(path.encode(), directory) is ignored


@pytest.mark.parametrize(
    "pattern", ["*a" * 60 + "b", "/" + "*a" * 60 + "b", "**/a/" * 40 + "b", "[a-z]*" * 60 + "0"]
)
def test_a_pattern_made_to_take_for_ever_does_not(pattern: str) -> None:
    patterns = Patterns([pattern.encode()])
    started = time.process_time()
    assert patterns.ignored(b"a" * 250, False) is None
    assert patterns.ignored(b"a/" * 120 + b"a", False) is None
    assert time.process_time() - started < 1


def test_unwaitignore_comes_after_gitignore(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "b.md", "sub/a.md", "sub/c.md")
    (tmp_path / ".gitignore").write_text("a.md\n")
    (tmp_path / ".unwaitignore").write_text("!/a.md\nb.md\n")
    (tmp_path / "sub" / ".unwaitignore").write_text("c.md\n!a.md")
    assert we_list(tmp_path) == ["a.md", "sub/a.md"]


def test_hidden_files_and_what_tools_made_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.md", ".hidden", ".git/config", "node_modules/x/readme.md", "src/__pycache__/a.txt")
    make(tmp_path, "env/pyvenv.cfg", "env/lib/a.txt", "cache/CACHEDIR.TAG", "cache/b.txt", "src/ok.md")
    assert we_list(tmp_path) == ["a.md", "src/ok.md"]


def test_include_and_exclude_choose_files(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "a.txt", "docs/b.md", "docs/old/c.md", "docs/api/d.html", "x/docs/e.md")
    assert we_list(tmp_path, include=["*.md"]) == ["a.md", "docs/b.md", "docs/old/c.md", "x/docs/e.md"]
    assert we_list(tmp_path, include=["*.md"], exclude=["old"]) == ["a.md", "docs/b.md", "x/docs/e.md"]
    assert we_list(tmp_path, include=["/docs/"]) == ["docs/api/d.html", "docs/b.md", "docs/old/c.md"]
    assert we_list(tmp_path, include=["docs/*.md", "*.txt"]) == ["a.txt", "docs/b.md"]
    assert we_list(tmp_path, exclude=["**/*.md"]) == ["a.txt", "docs/api/d.html"]


@pytest.mark.parametrize("pattern", ["", "/", "a\0b"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="a pattern is like"):
        Selection([pattern])


def test_a_pattern_lists_what_a_shell_would(tmp_path: Path) -> None:
    make(
        tmp_path,
        "a.md",
        "docs/b.md",
        "docs/deep/c.md",
        "docs/deep/d.txt",
        "docs/.x/e.md",
        "notes-1/f",
        "notes-2/g/h",
    )
    assert we_list(tmp_path, pattern="*.md") == ["a.md"]
    assert we_list(tmp_path, pattern="docs/*.md") == ["docs/b.md"]
    assert we_list(tmp_path, pattern="docs/**/*.md") == ["docs/b.md", "docs/deep/c.md"]
    assert we_list(tmp_path, pattern="**/[c-d].*") == ["docs/deep/c.md", "docs/deep/d.txt"]
    assert we_list(tmp_path, pattern="notes-?") == ["notes-1/f", "notes-2/g/h"]
    assert we_list(tmp_path, pattern="docs/.x/*") == ["docs/.x/e.md"]
    assert we_list(tmp_path, pattern="docs/**/*.md", exclude=["deep"]) == ["docs/b.md"]


def test_an_ignore_file_that_is_too_large_is_said(tmp_path: Path) -> None:
    make(tmp_path, "a.md")
    (tmp_path / ".gitignore").write_text("a" * (1 << 20) + "\n*")
    walk = Walk(str(tmp_path), Selection())
    found = [file for file in walk if file is not None]
    assert [(os.path.basename(file.path), file.problem and file.problem.kind) for file in found] == [
        (".gitignore", "too large"),
        ("a.md", None),
    ]
    assert not walk.complete

"""The import rules of the house, what `import unwait` pulls in, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unwait

SOURCE = Path(unwait.__file__).parent
LINES_AT_MOST = 700

# Which rooms a room may import. Imports point down only: cli → documents, web, migrate, watch → flow → loop.
MAY_IMPORT = {
    "loop": set(),
    "flow": {"loop"},
    "testing": {"loop"},
    "web": {"flow", "loop"},
    "documents": {"web", "flow", "loop"},
    "watch": {"flow", "loop"},
    "migrate": set(),
    "cli": {"documents", "web", "migrate", "watch", "flow", "loop", "testing"},
}

# What an extra brings, and in which rooms it may be used at all.
HEAVY = {"aiohttp", "rich", "typer"}
OF_DOCUMENTS = {
    "asyncpg",
    "numpy",
    "pydantic",
    "pypdfium2",
    "ray",
    "selectolax",
    "semantic_text_splitter",
    "wordllama",
}
MAY_USE_HEAVY = {"cli", "web", "documents", "watch", "migrate"}
# The bar on a terminal; where rich is missing, progress comes in lines.
MAY_DO_WITHOUT = {"unwait/flow/progress.py": {"rich"}}

PYTHON_FILES = sorted(SOURCE.rglob("*.py"))
WRITTEN_FILES = sorted(path for suffix in ("py", "pyx", "pxd", "pyi") for path in SOURCE.rglob(f"*.{suffix}"))


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE.parent))


def room_of(path: Path) -> str | None:
    """The room a file stands in; None for the public face."""
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else None


def imported(path: Path) -> list[tuple[str, int]]:
    """Every module a file imports, at its top or inside its functions, by absolute name, with the line."""
    package = ["unwait", *path.relative_to(SOURCE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "unwait":
                rooms = set(MAY_IMPORT) & {alias.name for alias in node.names}
                found += [(f"unwait.{room}", node.lineno) for room in sorted(rooms)]
                if len(rooms) == len(node.names):
                    continue
            found.append((module, node.lineno))
    return found


def rooms_imported(path: Path) -> list[tuple[str, int]]:
    rooms = {entry.name for entry in SOURCE.iterdir() if entry.is_dir()} | set(MAY_IMPORT)
    return [
        (parts[1], line)
        for module, line in imported(path)
        if (parts := module.split("."))[0] == "unwait" and len(parts) > 1 and parts[1] in rooms
    ]


def test_every_room_has_its_rule():
    rooms = {room_of(path) for path in PYTHON_FILES} - {None}
    assert rooms <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_imports_point_down(path):
    room = room_of(path)
    if room is None:
        return
    allowed = MAY_IMPORT[room] | {room}
    assert [(other, line) for other, line in rooms_imported(path) if other not in allowed] == []


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_only_the_commands_use_the_public_face(path):
    """A room that imported the face would import everything the face imports: up, and in a circle."""
    if room_of(path) in (None, "cli"):
        return
    names = [module for module, _ in imported(path) if module == "unwait" or module.startswith("unwait.")]
    assert [module for module in names if module == "unwait"] == []


def test_the_public_face_is_one_file():
    """Besides it, only `version.py` and, for `python -m unwait`, `__main__.py` stand outside the rooms."""
    outside = [path for path in PYTHON_FILES if room_of(path) is None]
    assert {path.name for path in outside} <= {"__init__.py", "__main__.py", "version.py"}
    for path in outside:
        allowed = {"loop", "flow", "web", "documents"} if path.name == "__init__.py" else {"cli"}
        assert {room for room, _ in rooms_imported(path)} <= allowed


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_the_extras_are_used_upstairs_only(path):
    if room_of(path) in MAY_USE_HEAVY:
        return
    refused = HEAVY - MAY_DO_WITHOUT.get(name_of(path), set())
    assert [module for module, _ in imported(path) if module.split(".")[0] in refused] == []


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_what_documents_needs_is_used_there_only(path):
    if room_of(path) != "documents":
        assert [module for module, _ in imported(path) if module.split(".")[0] in OF_DOCUMENTS] == []


def test_import_unwait_pulls_in_nothing_heavy():
    code = "import sys, unwait; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(result.stdout.split())
    assert "unwait" in modules
    assert modules & (HEAVY | OF_DOCUMENTS | {"Cython", "httpx", "click", "uvloop", "hypothesis"}) == set()


def test_import_unwait_loads_no_room_but_the_loop_and_flow():
    code = "import sys, unwait; print(' '.join(name for name in sys.modules if name.startswith('unwait.')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[1] for name in result.stdout.split()} <= {"loop", "flow", "version"}


@pytest.mark.parametrize("path", WRITTEN_FILES, ids=name_of)
def test_no_file_is_too_long(path):
    assert len(path.read_text().splitlines()) <= LINES_AT_MOST

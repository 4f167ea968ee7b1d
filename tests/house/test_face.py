"""The public face: every name it promises is there, and what is missing says what to install."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unwait


@pytest.mark.parametrize("name", unwait.__all__)
def test_every_name_is_there(name):
    assert getattr(unwait, name) is not None
    assert name in dir(unwait)


def test_type_checkers_see_the_names_that_load_later():
    tree = ast.parse(Path(unwait.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module.removeprefix("unwait.")
        for node in guarded.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    assert seen == unwait._LATER
    assert set(seen) <= set(unwait.__all__)


def test_an_unknown_name_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="no attribute 'maap'"):
        _ = unwait.maap


@pytest.mark.parametrize("missing", ["aiohttp", "multidict", "yarl"])
def test_the_client_says_which_extra_is_missing(missing):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import unwait
unwait.map
try:
    unwait.Client
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'unwait.Client needs aiohttp: pip install "unwait[web]"\n'

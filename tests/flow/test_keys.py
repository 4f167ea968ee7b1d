"""Keys name an item the same in every process, and no two items the same."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import os
import subprocess
import sys
import uuid
from collections import OrderedDict, namedtuple
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unwait.flow.keys import LONGEST, check_key, derive_key

Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = 1


class Access(enum.IntFlag, boundary=enum.KEEP):
    READ = 1


class Shade(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass
class Query:
    text: str
    page: int = 1


class Model:
    """What of a pydantic model matters here."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def model_dump(self) -> dict[str, Any]:
        return self.fields


HERE = __name__


@pytest.mark.parametrize(
    ("item", "key"),
    [
        ("", ""),
        ("https://example.org/größe?page=2", "https://example.org/größe?page=2"),
        ("x" * LONGEST, "x" * LONGEST),
        ("item:1", "str:item:1"),
        ("str:x", "str:str:x"),
        (7, "item:7"),
        (-(10**30), f"item:-1{'0' * 30}"),
        (True, "item:True"),
        (None, "item:None"),
        (0.1, "item:0.1"),
        (b"\x00a", 'item:bytes"0061"'),
        (Path("/data/a.txt"), 'item:path"/data/a.txt"'),
        (("a", 1), 'item:("a",1)'),
        ([1, [2.0, None]], "item:[1,[2.0,None]]"),
        ({"b": 1, "a": 'say "hi"\n'}, 'item:{"a":"say \\u0022hi\\u0022\\u000a","b":1}'),
        ({3, 1}, "item:set{1,3}"),
        (datetime.date(2026, 11, 23), 'item:datetime.date"2026-11-23"'),
        (decimal.Decimal("1.10"), 'item:decimal.Decimal"1.10"'),
        (uuid.UUID(int=5), 'item:uuid.UUID"00000000-0000-0000-0000-000000000005"'),
        (Colour.RED, f"item:{HERE}.Colour.RED"),
        (Shade.RED, f"item:{HERE}.Shade.RED"),
        (Query("a", 2), f'item:{HERE}.Query(text="a",page=2)'),
        (Model(id=4), f'item:{HERE}.Model{{"id":4}}'),
        (Point(1, 2), f"item:{HERE}.Point(1,2)"),
    ],
)
def test_short_items_have_readable_keys(item: Any, key: str) -> None:
    assert derive_key(item) == key


@pytest.mark.parametrize(
    "item",
    ["x" * (LONGEST + 1), "line\nline", "\x1b[2J", "\ud800", "\u202etxt", list(range(500)), b"\x00" * 200],
)
def test_what_is_long_or_not_printable_has_a_digest_for_a_key(item: Any) -> None:
    key = derive_key(item)
    assert key.startswith("sha256:")
    assert len(key) <= LONGEST
    assert key.isprintable()


def test_items_that_differ_in_type_only_have_different_keys() -> None:
    items = [
        *("1", 1, 1.0, True, "True", None, "None", b"1", "item:1", "str:item:1", ("1",), ["1"], {"1"}),
        *({"1": 1}, {1: "1"}, frozenset({"1"}), [], (), {}, set(), "", b"", [[]], [()], ([],), Path("1")),
        *("a", Path("a"), PureWindowsPath("a"), Point(1, 2), (1, 2), [1, 2], 0.0, -0.0, math.nan, math.inf),
        *('item:("a",1)', ("a", 1), ('a",1',), Shade.RED, "red", Colour.RED, OrderedDict(a=1), {"a": 1}),
        *(
            decimal.Decimal(1),
            decimal.Decimal("1.0"),
            datetime.datetime(2026, 1, 1),
            datetime.date(2026, 1, 1),
        ),
        *("x" * 500, b"x" * 500, ["x" * 500], f'item:["{"x" * 500}"]', derive_key("x" * 500), 2**70, 2.0**70),
    ]
    keys = [derive_key(item) for item in items]
    assert len(set(keys)) == len(items)


def test_flags_without_a_name_have_keys_that_differ() -> None:
    keys = {derive_key(Access(value)) for value in (0, 1, 16, 17, 32, 48)}
    assert len(keys) == 6
    assert derive_key(Access(16)) == f"item:{HERE}.Access(16)"


def test_a_dict_has_the_same_key_in_whatever_order_it_was_filled() -> None:
    assert derive_key({"a": 1, "b": {"c": 2, "d": 3}}) == derive_key({"b": {"d": 3, "c": 2}, "a": 1})
    assert derive_key(OrderedDict(a=1, b=2)) != derive_key({"a": 1, "b": 2})


@pytest.mark.parametrize(
    "item",
    [
        "https://user:hunter2@example.org/",
        "https://example.org/?api_key=hunter2",
        {"url": "https://example.org", "password": "hunter2"},
        ("sk-hunter2hunter2hunter2",),
        f"https://user:hunter2@example.org/{'x' * 500}",
    ],
)
def test_a_credential_never_shows_in_a_key(item: Any) -> None:
    key = derive_key(item)
    assert "hunter2" not in key
    assert "***" in key
    assert derive_key(json.loads(json.dumps(item).replace("hunter2", "hunter3"))) != key


@pytest.mark.parametrize("item", [object(), [1, object()], lambda: 1, Exception("x"), int, iter([])])
def test_an_item_that_may_look_different_in_the_next_process_is_refused_and_told_of_key(item: Any) -> None:
    with pytest.raises(TypeError, match=r"no key can be derived from .*: give key="):
        derive_key(item)


def test_an_item_that_contains_itself_is_refused() -> None:
    item: list[Any] = []
    item.append(item)
    with pytest.raises(TypeError, match=r"type list that is nested too deep or contains itself: give key="):
        derive_key(item)


@pytest.mark.parametrize(
    ("value", "key"), [("a", "a"), (5, "item:5"), ("5", "5"), ("a\n", derive_key("a\n"))]
)
def test_a_key_function_may_return_strings_and_ints(value: Any, key: str) -> None:
    assert check_key(value) == key


@pytest.mark.parametrize("value", [["a"], {"id": 1}, None, 1.5, True, b"a"])
def test_a_key_function_that_returns_anything_else_is_told_so(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"key= returned {type(value).__name__}: a key is a str or an int"):
        check_key(value)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
)
hashables = st.recursive(scalars, lambda inner: st.tuples(inner) | st.tuples(inner, inner), max_leaves=4)
items = st.recursive(
    scalars | st.frozensets(hashables, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashables, inner, max_size=4)
    ),
    max_leaves=10,
)


def structure(value: Any) -> Any:
    """Something that is equal exactly for items equal in type and value."""
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(structure, value))
    if isinstance(value, frozenset):
        return "frozenset", frozenset(map(structure, value))
    if isinstance(value, dict):
        return "dict", frozenset((structure(key), structure(inner)) for key, inner in value.items())
    return type(value).__name__, repr(value)


@settings(deadline=None, max_examples=300)
@given(items, items)
@example([(1, 2)], [1, 2])
@example('a","b', ["a", "b"])
@example({"a": 1}, [("a", 1)])
@example("item:1", 1)
def test_two_items_have_one_key_exactly_if_they_are_equal_in_type_and_value(one: Any, other: Any) -> None:
    assert (derive_key(one) == derive_key(other)) == (structure(one) == structure(other))
    for key in (derive_key(one), derive_key(other)):
        assert len(key) <= LONGEST
        key.encode()


@settings(deadline=None, max_examples=200)
@given(st.text(), st.text())
def test_two_strings_have_one_key_exactly_if_they_are_equal(one: str, other: str) -> None:
    assert (derive_key(one) == derive_key(other)) == (one == other)


def test_keys_are_the_same_in_a_process_with_other_hashes() -> None:
    program = """
from unwait.flow.keys import derive_key
items = [
    "a", 1, {"b": {"x", "y", "z"}, "a": 1.5}, frozenset("hash"), ("t", b"1", None), "x" * 1000,
    {"k%d" % n for n in range(200)}, "https://user:secret@example.org/",
]
print(*map(derive_key, items), sep="\\n")
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONWARNINGS": "ignore::RuntimeWarning"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1
    assert printed.pop().count("\n") == 8

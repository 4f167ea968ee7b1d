"""Values in the journal: what comes back, and what becomes of a result that cannot be stored."""

from __future__ import annotations

import asyncio
import math
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unwait.flow.codec import CodecError, JsonCodec
from unwait.flow.journal import Journal, JournalError
from unwait.flow.journal_session import Session

FIGURES = {"attempts": 1, "waited": 0.25, "elapsed": 0.5}


@pytest.fixture
def tags() -> list[Any]:
    """The tags of what was committed, in order."""
    return []


@pytest.fixture
def opened(tmp_path: Path, tags: list[Any]) -> Callable[..., Session]:
    def open_session(**options: Any) -> Session:
        return Journal(tmp_path / "run.db", **options).session("app.get", tags.extend, pytest.fail)

    return open_session


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ((1, (2,)), [1, [2]]),
        ({1: "a", None: "b", False: "c", 2.5: "d"}, {"1": "a", "null": "b", "false": "c", "2.5": "d"}),
        (math.inf, math.inf),
        (
            "\ud800 and \ud83d\ude00 and \N{GRINNING FACE}\x00",
            "\ud800 and \ud83d\ude00 and \N{GRINNING FACE}\x00",
        ),
        (10**1000, 10**1000),
        ({"a": {}, "b": ()}, {"a": {}, "b": []}),
        (None, None),
    ],
)
async def test_a_run_hands_out_what_a_later_run_will_find(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session], value: Any, back: Any
) -> None:
    first = opened()
    now = first.done("a", value, None, **FIGURES)
    queued = first.find("a")
    await first.close()
    second = opened()
    later = second.find("a")
    await second.close()
    assert queued is not None
    assert later is not None
    for found in (now, queued.value, later.value):
        assert found == back
        assert type(found) is type(back)


recursive: list[Any] = []
recursive.append(recursive)
deep: list[Any] = []
for _ in range(100_000):
    deep = [deep]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            b"bytes",
            r"'key 1', bytes, cannot be stored with the codec 'json': .*bytes is not JSON serializable",
        ),
        (
            {"a": {1, 2}},
            r"dict, cannot .*: Object of type set is not JSON serializable\. Return dicts, lists",
        ),
        ({(1, 2): 3}, r"keys must be str, int, float, bool or None"),
        ({1: "a", "1": "b"}, r"two keys of a dict would become the same string"),
        ([{"x": ({"null": 1, None: 2},)}], r"two keys of a dict would become the same string"),
        (Journal("x"), r"'key 1', unwait\.flow\.journal\.Journal, cannot be stored"),
        (recursive, r"Circular reference detected"),
        (deep, r"maximum recursion depth exceeded"),
        ([10**5000], r"Exceeds the limit"),
    ],
)
async def test_a_result_that_cannot_be_stored_is_an_error_of_its_item_and_not_lost(
    loop: asyncio.AbstractEventLoop,
    opened: Callable[..., Session],
    tags: list[Any],
    value: Any,
    message: str,
) -> None:
    session = opened()
    with pytest.raises(CodecError, match=message) as caught:
        session.done("key 1", value, None, **FIGURES)
    assert caught.value.value is value
    assert caught.value.key == "key 1"
    assert 'codec="pickle"' in str(caught.value)
    session.failed("key 1", caught.value, "failed", **FIGURES)
    session.done("key 2", 1, "done", **FIGURES)
    await session.close()
    assert tags == ["failed", "done"]
    traceback.clear_frames(caught.tb)


def test_an_error_of_the_codec_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(CodecError("what", key="k", value=[1])))
    assert (str(error), error.key, error.value) == ("what", "k", [1])


async def test_pickle_stores_what_json_cannot(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session]
) -> None:
    value = {"set": {1, 2}, (1, 2): b"x", "complex": 1j}
    session = opened(codec="pickle")
    assert session.done("a", value, None, **FIGURES) == value
    with pytest.raises(CodecError, match=r"cannot be stored with the codec 'pickle': .* Return something"):
        session.done("b", lambda: 1, None, **FIGURES)
    await session.close()
    session = opened(codec="pickle")
    found = session.find("a")
    await session.close()
    assert found is not None
    assert found.value == value


class Upper:
    """A codec of one's own."""

    name = "upper"

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def encode(self, value: Any) -> Any:
        return value if value == "no bytes" else value.encode()

    def decode(self, data: bytes) -> Any:
        if self.broken:
            raise ValueError("cannot do that any more")
        return data.decode().upper()


async def test_a_codec_of_ones_own_decides_what_comes_back(
    loop: asyncio.AbstractEventLoop, opened: Callable[..., Session]
) -> None:
    session = opened(codec=Upper())
    assert session.done("a", "text", None, **FIGURES) == "TEXT"
    with pytest.raises(CodecError, match="the codec's encode gave str, not bytes"):
        session.done("b", "no bytes", None, **FIGURES)
    await session.close()
    session = opened(codec=Upper(broken=True))
    with pytest.raises(
        JournalError, match=r"a result for item 'a' that the codec 'upper' cannot read: ValueError: cannot do"
    ):
        session.find("a")
    await session.close()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=())), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=200)
@given(json_values)
def test_json_gives_back_exactly_what_it_was_given(value: Any) -> None:
    codec = JsonCodec()
    back = codec.decode(codec.encode(value))
    assert repr(back) == repr(value)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(max_size=3) | st.integers(-3, 3) | st.none() | st.booleans(), st.integers()))
def test_json_never_loses_an_entry_of_a_dict(value: dict[Any, int]) -> None:
    codec = JsonCodec()
    written = {
        str(key).lower() if isinstance(key, bool) else "null" if key is None else str(key) for key in value
    }
    try:
        back = codec.decode(codec.encode([value]))[0]
    except ValueError:
        assert len(written) < len(value)
    else:
        assert list(back.values()) == list(value.values())

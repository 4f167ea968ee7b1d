"""The loop under test is the compiled one; else the tests on both loops would test asyncio's twice."""

import sys

import pytest

import unwait
import unwait.loop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the compiled loop is for Linux")


def test_the_loop_is_compiled():
    assert unwait.loop.COMPILED is True


def test_new_event_loop_is_ours():
    loop = unwait.new_event_loop()
    try:
        assert type(loop) is unwait.Loop
        assert type(loop).__module__.startswith("unwait.")
    finally:
        loop.close()


def test_the_counters_of_live_objects_are_there():
    before = unwait.loop.live_objects()
    assert "handles" in before
    assert "channels" in before
    loop = unwait.new_event_loop()
    handles = [loop.call_later(1000, print) for _ in range(10)]
    assert unwait.loop.live_objects()["handles"] >= before["handles"] + 10
    for handle in handles:
        handle.cancel()
    loop.close()

"""Random sequences of operations on a connected pair: what each side sees must be the same on both loops.

Hypothesis writes the script, a list of operations on either end of a connection. It is played on asyncio's
loop and on ours, and after each operation the script waits until the connection is quiet, so that the order
of what happens next does not depend on timing. The two records must be equal: bytes, ends of stream, order of
calls, why a connection was lost.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unwait

from .support import SINCE_312, BufferedPeer, Peer

CLIENT, SERVER = 0, 1
SIZES = [0, 1, 100, 5_000, 70_000, 1_500_000]
# Since Python 3.12 asyncio keeps an empty buffer of writelines queued for ever: the connection never ends.
LINE_SIZES = SIZES[1:-1] if SINCE_312 else SIZES[:-1]

operations = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(SIZES)),
    st.tuples(st.just("writelines"), st.lists(st.sampled_from(LINE_SIZES), max_size=5)),
    st.tuples(st.sampled_from(["pause_reading", "resume_reading", "write_eof", "close", "abort"]), st.none()),
)
scripts = st.lists(st.tuples(st.sampled_from([CLIENT, SERVER]), operations), max_size=14)


@dataclass
class Record:
    """What one end saw; two of them compare equal if the ends saw the same."""

    calls: list[str]
    data: bytes
    reason: type | None
    raised: list[str] = field(default_factory=list)


class Side:
    def __init__(self, peer: Peer, seed: int) -> None:
        self.peer = peer
        self.seed = seed
        self.ended_writing = False
        self.raised: list[str] = []

    def bytes(self, size: int) -> bytes:
        """The next bytes of an endless stream of this side's own, so that a mix-up of order shows."""
        self.seed = (self.seed * 1103515245 + 12345) % 2**31
        return self.seed.to_bytes(4, "big") * (size // 4) + b"." * (size % 4)

    def play(self, name: str, argument) -> None:
        transport = self.peer.transport
        self.ended_writing |= name in ("write_eof", "close", "abort")
        if name == "writelines" and SINCE_312 and (self.ended_writing or transport.is_closing()):
            return  # asyncio queues it all the same since Python 3.12, and never finishes closing
        if name in ("pause_reading", "resume_reading") and "eof" in self.peer.calls:
            return  # asyncio tells the end of the stream again after each pause
        try:
            if name == "write":
                transport.write(self.bytes(argument))
            elif name == "writelines":
                transport.writelines([self.bytes(size) for size in argument])
            else:
                getattr(transport, name)()
        except (RuntimeError, TypeError) as exc:
            self.raised.append(f"{name}: {type(exc).__name__}")

    def record(self) -> Record:
        reason = self.peer.reason
        return Record(self.peer.calls, bytes(self.peer.data), type(reason) if reason else None, self.raised)


def quiet(sides: list[Side]) -> bool:
    """Whether nothing more can happen until the next operation."""
    for side, other in (sides, reversed(sides)):
        transport, peer = side.peer.transport, other.peer
        if "lost" in side.peer.calls:
            continue
        if transport.is_closing() and not transport.get_write_buffer_size():
            return False
        if transport.get_write_buffer_size() and "lost" not in peer.calls and peer.transport.is_reading():
            return False
    return True


async def settle(sides: list[Side]) -> None:
    """Let the loop run until the connection is quiet and has been so for some polls of the kernel."""
    calm = 0
    before = None
    while calm < 3:
        await asyncio.sleep(0.0005)
        now = [(len(side.peer.calls), len(side.peer.data)) for side in sides]
        calm = calm + 1 if now == before and quiet(sides) else 0
        before = now


async def play(script, kind: type[Peer], keep_open: bool) -> tuple[Record, Record]:
    loop = asyncio.get_running_loop()
    one, two = socket.socketpair()
    _, client = await loop.create_connection(lambda: kind(keep_open_at_eof=keep_open), sock=one)
    _, server = await loop.create_connection(lambda: kind(keep_open_at_eof=keep_open), sock=two)
    sides = [Side(client, 1), Side(server, 2)]
    for side, (name, argument) in script:
        sides[side].play(name, argument)
        await settle(sides)
    records = (sides[CLIENT].record(), sides[SERVER].record())
    records = tuple(Record(list(r.calls), r.data, r.reason, list(r.raised)) for r in records)
    for peer in (client, server):
        if "lost" not in peer.calls:
            peer.transport.abort()
            await peer.until_called("lost")
    return records


def on(make, script, kind: type[Peer], keep_open: bool) -> tuple[Record, Record]:
    loop = make()
    try:
        return loop.run_until_complete(asyncio.wait_for(play(script, kind, keep_open), 20))
    finally:
        loop.close()


@pytest.mark.parametrize("keep_open", [False, True], ids=["close at eof", "keep open at eof"])
@pytest.mark.parametrize("kind", [Peer, BufferedPeer])
@settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
@given(script=scripts)
def test_both_loops_show_each_side_the_same(kind, keep_open, script):
    assert on(unwait.Loop, script, kind, keep_open) == on(asyncio.SelectorEventLoop, script, kind, keep_open)

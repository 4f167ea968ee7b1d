# cython: nonecheck=True
"""OpenSSL between two memory buffers: cipher text goes in and out as bytes; no sockets, no loop.

What the reading and writing of a message rely on:

- One read gives the plain text of one record at most (16 KiB), and all of it if more than that is asked
  for. OpenSSL takes from `incoming` what one record needs and no more. So when a read gave less than was
  asked for and `incoming` is empty, nothing is left to read; the next read would only raise
  SSLWantReadError, which costs more than all the rest of a small message, and it is spared.
- A memory buffer never refuses what is written, so a write takes all or nothing, and nothing only when the
  peer must speak first (a renegotiation, up to TLS 1.2). OpenSSL then insists on getting the same bytes
  again. A memory buffer cannot hold 2 GiB, so large writes are cut.
- A read may write: an answer to a key update or a renegotiation, an alert. `outgoing` is to be looked at
  after each.
"""

from __future__ import annotations

import ssl
from typing import Any

# Bytes asked for in one read: more than the plain text of any record.
RECORD_SIZE = 16 * 1024 + 1
# Bytes encrypted in one call, so that a large write is not held in memory twice.
BATCH_SIZE = 256 * 1024

PEER_MUST_SPEAK = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError)


class TLSEngine:
    """One side of one TLS connection.

    Raises what `SSLContext.wrap_bio` raises; the methods raise `ssl.SSLError` where OpenSSL gives up, often
    with an alert for the peer left in `outgoing`.
    """

    def __init__(self, context: ssl.SSLContext, server_side: bool, server_hostname: str | None) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.sslobj: Any = context.wrap_bio(self.incoming, self.outgoing, server_side, server_hostname)
        self.incoming_write = self.incoming.write
        self.outgoing_read = self.outgoing.read
        # SSLObject.read and write are Python functions that only call the same of the object inside.
        kind = type(self.sslobj)
        inner: Any = getattr(self.sslobj, "_sslobj", None)
        if inner is None or kind.read is not ssl.SSLObject.read or kind.write is not ssl.SSLObject.write:
            inner = self.sslobj
        self.ssl_read = inner.read
        self.ssl_write = inner.write
        self.peer_closed = False
        self.waits_for_peer = False
        self.partial_record = False
        self.batched = 0

    def feed(self, data: Any) -> None:
        """Take cipher text from the peer."""
        self.incoming_write(data)

    def received(self) -> int:
        """Bytes of cipher text fed and not yet decrypted."""
        return self.incoming.pending

    def readable(self) -> bool:
        """Whether there may be plain text to decrypt."""
        return self.incoming.pending > 0 or self.sslobj.pending() > 0

    def unsent(self) -> int:
        """Bytes of cipher text that `take` would return."""
        return self.outgoing.pending

    def full(self) -> bool:
        """Whether enough was encrypted since the last `take` for another one."""
        return self.batched >= BATCH_SIZE

    def take(self) -> Any:
        """The cipher text to send to the peer, which is forgotten here."""
        self.batched = 0
        return self.outgoing_read()

    def handshake(self) -> bool:
        """Go on with the handshake; False until it is done."""
        try:
            self.sslobj.do_handshake()
        except PEER_MUST_SPEAK:
            return False
        return True

    def decrypt(self, expected: int) -> Any:
        """All the plain text there is, or None. Sets `peer_closed` at the peer's close_notify.

        expected: a guess at its size in bytes, from above; a good one saves memory, a bad one does no harm.
        """
        first = None
        pieces = None
        size = RECORD_SIZE if self.partial_record or expected > RECORD_SIZE else expected
        self.partial_record = False
        try:
            while True:
                piece = self.ssl_read(size)
                count = len(piece)
                if count == 0:
                    self.peer_closed = True
                    break
                if first is None:
                    first = piece
                elif pieces is None:
                    pieces = [first, piece]
                else:
                    pieces.append(piece)
                if count < size and not self.incoming.pending:
                    break
                size = RECORD_SIZE
        except PEER_MUST_SPEAK:
            self.partial_record = True
        return first if pieces is None else b"".join(pieces)

    def decrypt_into(self, buffer: Any, size: int) -> int:
        """Decrypt into a buffer of `size` bytes; returns how many came. If it is full, there may be more."""
        target = buffer
        filled = 0
        try:
            while True:
                count = self.ssl_read(size - filled, target)
                if count == 0:
                    self.peer_closed = True
                    break
                filled += count
                if filled == size or not self.incoming.pending:
                    break
                target = memoryview(buffer)[filled:]
        except PEER_MUST_SPEAK:
            pass
        return filled

    def discard(self) -> None:
        """Forget the plain text there is, so that a close_notify behind it is found."""
        try:
            while self.ssl_read(RECORD_SIZE):
                pass
        except PEER_MUST_SPEAK:
            pass
        except ssl.SSLZeroReturnError:
            pass

    def encrypt(self, data: Any, start: int, size: int) -> int:
        """Encrypt some of `data`, which is `size` bytes, from `start` on; returns where it stopped.

        That is the end, or `BATCH_SIZE` bytes on, or `start` itself if `waits_for_peer`: then the same is to
        be tried again once the peer has been heard.
        """
        self.waits_for_peer = False
        if start or size > BATCH_SIZE:
            data = memoryview(data)[start : start + BATCH_SIZE]
        try:
            count: int = self.ssl_write(data)
        except PEER_MUST_SPEAK:
            self.waits_for_peer = True
            return start
        self.batched += count
        return start + count

    def shutdown(self) -> bool:
        """Say goodbye (close_notify); False until the peer has said it as well."""
        try:
            self.sslobj.unwrap()
        except PEER_MUST_SPEAK:
            return False
        return True

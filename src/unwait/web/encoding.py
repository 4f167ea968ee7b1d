"""Content encodings, undone in small pieces: a decompression bomb never takes more memory than one piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from unwait.web.errors import InvalidAnswer

ACCEPTED = "gzip, deflate"
PIECE = 1 << 18  # bytes


class Decoder:
    """Undoes one `Content-Encoding`; `InvalidAnswer` for an encoding that was not asked for or a broken body."""

    def __init__(self, encoding: str) -> None:
        encoding = encoding.strip().lower()
        self._gzip = encoding in ("gzip", "x-gzip")
        self._plain = encoding in ("", "identity")
        if not (self._plain or self._gzip or encoding == "deflate"):
            raise InvalidAnswer(f"unsupported content encoding {encoding[:40]!r}")
        self._inflate: zlib._Decompress | None = None
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The decoded pieces of the next bytes of the body."""
        if self._plain:
            yield data
            return
        while self._inflate is not None or not self._begun or (self._gzip and data.startswith(b"\x1f")):
            if self._inflate is None:
                if not data:
                    return
                self._inflate = zlib.decompressobj(self._window_bits(data[0]))
                self._begun = True
            try:
                piece = self._inflate.decompress(data, PIECE)
            except zlib.error:
                raise InvalidAnswer("body is not what its content encoding says") from None
            if piece:
                yield piece
            data = self._inflate.unconsumed_tail
            if self._inflate.eof:
                # A gzip body may hold several members, one after the other; what else follows is padding.
                data = self._inflate.unused_data
                self._inflate = None
            elif not data and len(piece) < PIECE:
                return

    def finish(self) -> None:
        """To be called at the end of the body; `InvalidAnswer` if its compressed data ended early."""
        if self._inflate is not None:
            raise InvalidAnswer("body cut short: its compressed data is not complete")

    def _window_bits(self, first: int) -> int:
        if self._gzip:
            return zlib.MAX_WBITS | 16
        # Some servers send "deflate" without the zlib header that the name stands for.
        return zlib.MAX_WBITS if first & 0x0F == 8 else -zlib.MAX_WBITS

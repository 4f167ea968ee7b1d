"""Vectors without a server: the static token vectors that wordllama brings along, summed up for each text.

The model is a vocabulary and a table with a vector for each token; a text's vector is the mean of its tokens',
brought to unit length. Two things make this several times cheaper than the library's own `embed`:

- Its tokenizer has no words: it merges over the whole text. But no token of its vocabulary goes across the beginning
  of a space, the end of a line, or from letters to punctuation, so that a text may be cut there and each word looked
  up in a cache. The tokens are exactly the same.
- Nothing is padded to the longest text. Tokens are summed up in blocks of `BLOCK`, then the blocks of each text, in
  the order of the text: its vector has the same bits whatever else is in the call.

One thread does it, because more gain next to nothing: half of the work holds the interpreter's lock. It is given up
between groups of texts only. Whoever gives it up after each text waits for it 5 ms each time if another thread is busy
with Python, which here made 8,500 chunks take 60 s instead of 3; whoever never does makes the loop wait.

The package's files are read without importing it: an import would configure the root logger of the user's program.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from unwait.documents.model import Vectors

NAME = "wordllama-256"
MISSING = 'the embedded vectors need {}: pip install "unwait[documents]", or name an embeddings endpoint'

BLOCK = 32
"""Tokens that are summed up in one go."""

GROUP = 16_384
"""Characters that are looked up between two chances for other threads: about 0.5 ms, if most words are known."""

_QUESTION = 500  # characters that are embedded in the loop's thread, once the model is there

SLICE = 256
"""Blocks whose vectors are laid out in memory at a time: 8 MB."""

REMEMBERED = 32_768
"""Words in each of the cache's two generations; one takes about 200 bytes."""

# What no token goes across: from a letter to a sign of ASCII, and back. Other signs do join those.
LETTERS = "A-Za-zÀ-ɏЀ-ӿ"
SIGNS = r"!-@\[-`{-~"
# Lengths are bounded, so that a megabyte without a space costs no more than one with them.
WORD = re.compile(
    rf" {{0,99}}+(?:[{LETTERS}]{{1,99}}+(?=[{SIGNS}\s]|\Z)|[{SIGNS}]{{1,99}}+(?=[{LETTERS}\s]|\Z)|[^ \n]{{1,999}})"
    r"| {1,999}|\n{1,999}"
)
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class Words(dict[str, bytes]):
    """The tokens of words, as the bytes of C ints. Those not asked for in a long time are forgotten.

    Threads may share it: at worst, they look up the same word twice.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self._older: dict[str, bytes] = {}

    def __missing__(self, word: str) -> bytes:
        ids = self._older.get(word)
        if ids is None:
            text = HALF_CHARACTER.sub("\ufffd", word)
            ids = array("i", self._encode(text, add_special_tokens=False).ids).tobytes()
        if len(self) >= REMEMBERED:
            self._older = self.copy()
            self.clear()
        self[word] = ids
        return ids


class Model:
    """The vocabulary and the table, in memory: about 50 MB."""

    def __init__(self) -> None:
        try:
            import numpy as np
            from safetensors import safe_open
            from tokenizers import Tokenizer, normalizers
        except ImportError as error:
            raise ImportError(MISSING.format(error.name)) from error
        place = _place()
        tokenizer = Tokenizer.from_file(str(place / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # The space in front, which the tokenizer would put before each word, is put before the text.
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        # A "</s>" in a document is text.
        tokenizer.encode_special_tokens = True
        with safe_open(str(place / "weights" / "l2_supercat_256.safetensors"), framework="np") as weights:
            table = weights.get_tensor("embedding.weight")
        self.words = Words(tokenizer)
        self.dimensions = int(table.shape[1])
        # One row more, of zeros, stands for no token and fills up the blocks.
        self.table: Vectors = np.zeros((len(table) + 1, self.dimensions), dtype=np.float32)
        self.table[:-1] = table
        self._fill = len(table).to_bytes(4, sys.byteorder) * BLOCK

    def embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        sums = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        first, characters = 0, 0
        for index, text in enumerate(texts):
            if characters + len(text) > GROUP and index > first:
                sums[first:index] = self._sums(texts[first:index])
                first, characters = index, 0
            if len(text) > GROUP:
                # Always alone and cut at the same places, so that its sum does not depend on its neighbours.
                for part in _parts(text):
                    sums[index] += self._sums([part])[0]
                first = index + 1
            else:
                characters += len(text) + 4 * BLOCK  # an empty text takes a block too
        if first < len(texts):
            sums[first:] = self._sums(texts[first:])
        lengths: NDArray[np.float32] = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        np.divide(sums, lengths, out=sums, where=lengths > 0)
        return sums

    def _sums(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        pieces: list[bytes] = []
        starts: list[int] = []
        blocks = 0
        for text in texts:
            words = WORD.findall(" " + text) if text else ()
            found = b"".join(map(self.words.__getitem__, words))
            count = -(-len(found) // len(self._fill)) or 1
            pieces += found, self._fill[: count * len(self._fill) - len(found)]
            starts.append(blocks)
            blocks += count
        tokens = np.frombuffer(b"".join(pieces), dtype=np.intc)
        partial = np.empty((blocks, self.dimensions), dtype=np.float32)
        for first in range(0, blocks, SLICE):
            ids = tokens[first * BLOCK : (first + SLICE) * BLOCK]
            # `take` lets other threads run, which indexing would not; clipping keeps it from a copy.
            rows = np.take(self.table, ids, axis=0, mode="clip")
            rows.reshape(-1, BLOCK, self.dimensions).sum(axis=1, out=partial[first : first + SLICE])
        sums: Vectors = np.add.reduceat(partial, starts, axis=0)
        return sums


def _place() -> Path:
    """Where the package is, without importing it."""
    found = importlib.util.find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        raise ImportError(MISSING.format("wordllama"))
    return Path(found.submodule_search_locations[0])


def _parts(text: str) -> Iterator[str]:
    """The text in parts of at most `GROUP` characters, cut at a space where there is one."""
    start = 0
    while len(text) - start > GROUP:
        end = text.rfind(" ", start + 1, start + GROUP)
        if end < 0:
            yield text[start : start + GROUP]
            start += GROUP
        else:
            yield text[start:end]
            start = end + 1  # each part gets its space back in front
    yield text[start:]


_loading = threading.Lock()
_loaded: list[Model] = []


def model() -> Model:
    """The model of this process, loaded at the first call (about 0.2 s). Raises ImportError."""
    if not _loaded:
        with _loading:
            if not _loaded:
                _loaded.append(Model())
    return _loaded[0]


class StaticEmbedder:
    """The `Embedder` that needs no server and no key: 256 dimensions, English first of all.

    Nothing is loaded before the first call; all embedders of a process share the model. Raises ImportError if the
    libraries are missing.
    """

    name = NAME
    paid = False
    at_once = 2  # one that waits while the thread is busy with the other
    batch = 256
    batch_tokens = 65_536.0

    def __init__(self) -> None:
        for library in ("numpy", "safetensors", "tokenizers", "wordllama"):
            if importlib.util.find_spec(library) is None:
                raise ImportError(MISSING.format(library))
        self._threads: ThreadPoolExecutor | None = None

    def tokens(self, text: str) -> float:
        """About how many tokens the text has: one for four characters."""
        return len(text) / 4

    def embed_now(self, texts: Sequence[str]) -> Vectors:
        """What `embed` gives, in this thread: for a question, which takes 0.1 ms once the model is there."""
        return model().embed(texts)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """An array of shape (texts, 256), float32, each row of unit length, or zero for an empty text."""
        if _loaded and len(texts) == 1 and len(texts[0]) <= _QUESTION:
            return self.embed_now(texts)  # the way to a thread would take longer
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="unwait-vectors")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.embed_now, texts)

    async def aclose(self) -> None:
        """Let what runs finish, and end the thread. Another call of `embed` begins a new one."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)

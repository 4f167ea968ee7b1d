from __future__ import annotations

import asyncio
import logging
import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unwait.documents import static_vectors
from unwait.documents.models import Embedder
from unwait.documents.static_vectors import GROUP, StaticEmbedder, model

TEXTS = [
    "how do I rotate a key",
    "The planner's cost constants; see Section 20.7.2 (page 12).\n\n  SELECT count(*) FROM t WHERE a >= 1;\n",
    "Größe, naïve café, Привет мир, 日本語の文, 😀👍🏽, ²), «so», “quoted”,”",
    "tabs\there\r\nand\rthere\x00 NUL \x7f \u2028 \u200e»,",
    "a",
    " ",
    "   \n\n\n   x",
    "▁▁ underlined▁word",
    "x" * 3000,
    "https://example.org/a/b?c=d&e=f#g snake_case CamelCase 3.14159e-10 0xDEADBEEF",
]

words = st.sampled_from([*TEXTS[:-2], "\ud800", "\udfff", "</s>", "<s>"]) | st.text(max_size=20)
bodies = st.lists(words, max_size=12).map("".join)


@pytest.fixture(scope="module")
def library() -> Any:
    """The library's own model. Its import configures the root logger, which the other tests would notice."""
    kept = logging.basicConfig
    logging.basicConfig = lambda **_: None
    try:
        import wordllama
    finally:
        logging.basicConfig = kept
    place = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=place, disable_download=True)


def embed(*texts: str) -> Any:
    return StaticEmbedder().embed_now(texts)


def check_type(embedder: StaticEmbedder) -> Embedder:
    return embedder


def test_vectors_agree_with_the_library(library: Any) -> None:
    expected = library.embed(TEXTS, norm=True)
    # A word of more than 999 characters is cut, which changes a token or two.
    exact = [index for index, text in enumerate(TEXTS) if len(text) < 999]
    assert np.abs(embed(*TEXTS) - expected)[exact].max() < 1e-5
    assert (embed(*TEXTS) * expected).sum(axis=1).min() > 0.99


@settings(max_examples=200, deadline=None)
@given(text=bodies.filter(lambda text: text.isprintable() or "\n" in text))
@example(text="a(b)c".join(["word "] * 5))
def test_any_text_gets_the_vector_of_the_library(library: Any, text: str) -> None:
    text = re.sub("[\ud800-\udfff]|</?s>|<unk>", "", text)
    if text:
        assert np.abs(embed(text)[0] - library.embed([text], norm=True)[0]).max() < 1e-5


def test_no_token_goes_across_what_words_are_cut_at() -> None:
    letter, sign = re.compile(f"[{static_vectors.LETTERS}]"), re.compile(f"[{static_vectors.SIGNS}]")
    tokenizer = model().words._encode.__self__
    assert tokenizer.get_vocab_size() + 1 == len(model().table)
    for token in tokenizer.get_vocab():
        if re.fullmatch(r"<0x..>|<unk>|</?s>", token):
            continue
        assert "\n" not in token
        for one, two in pairwise(token):
            assert not (two == "▁" and one != "▁"), token
            assert not (letter.match(one) and sign.match(two)), token
            assert not (sign.match(one) and letter.match(two)), token


@settings(max_examples=100, deadline=None)
@given(st.lists(bodies, min_size=1, max_size=12), st.integers(0, 2**32))
def test_a_vector_has_the_same_bits_whatever_else_is_in_the_call(texts: list[str], seed: int) -> None:
    alone = [embed(text)[0].tobytes() for text in texts]
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    together = embed(*(texts[index] for index in order))
    assert [together[order.index(index)].tobytes() for index in range(len(texts))] == alone


def test_long_texts_have_the_same_bits_among_others_and_agree_with_the_library(library: Any) -> None:
    text = "".join(f"word {n} of (many) sentences.\n" for n in range(4_000))
    assert len(text) > 5 * GROUP
    others = ["short", "x" * (GROUP - 1), "y z" * 9_000, ""]
    alone = embed(text)[0]
    for place in range(len(others) + 1):
        together = embed(*others[:place], text, *others[place:])
        assert together[place].tobytes() == alone.tobytes()
        assert [row.tobytes() for row in np.delete(together, place, axis=0)] == [
            embed(other)[0].tobytes() for other in others
        ]
    assert np.abs(alone - library.embed([text], norm=True)[0]).max() < 1e-4


def test_what_the_cache_forgot_is_found_again_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before = embed(*TEXTS).tobytes()
    monkeypatch.setattr(static_vectors, "REMEMBERED", 4)
    model().words.clear()
    for _ in range(3):
        assert embed(*TEXTS).tobytes() == before
        assert len(model().words) <= 4


def test_a_text_without_words_gets_zeros_and_others_unit_length() -> None:
    vectors = embed("", *TEXTS, "")
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS) + 2, 256)
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths[0] == lengths[-1] == 0
    assert np.allclose(lengths[1:-1], 1)
    assert embed().shape == (0, 256)


def test_half_characters_count_as_the_character_for_what_is_broken() -> None:
    assert embed("a\ud800b \udc00").tobytes() == embed("a\ufffdb \ufffd").tobytes()


def test_the_tokenizer_s_commands_in_a_document_are_text() -> None:
    similarity = float(embed("The end.</s>")[0] @ embed("The end.")[0])
    assert 0.1 < similarity < 0.999


def test_meaning_is_near_to_meaning() -> None:
    question, answer, other = embed(
        "a cat sits on the sofa", "the kitten lies on a couch", "quarterly tax report"
    )
    assert question @ answer > question @ other + 0.2


@pytest.mark.parametrize(
    "text", ["x" * 2_000_000, " " * 2_000_000, "\n" * 2_000_000, "😀" * 200_000, "ab " * 500_000]
)
def test_a_huge_text_takes_bounded_time(text: str) -> None:
    begun = time.process_time()
    embed(text)
    assert time.process_time() - begun < 5


def test_threads_share_one_model_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = embed(*TEXTS).tobytes()
    made = []

    class Counted(static_vectors.Model):
        def __init__(self) -> None:
            made.append(self)
            super().__init__()

    monkeypatch.setattr(static_vectors, "Model", Counted)
    monkeypatch.setattr(static_vectors, "_loaded", [])
    start = threading.Barrier(4)

    def work() -> bytes:
        start.wait()
        return bytes(embed(*TEXTS).tobytes())

    with ThreadPoolExecutor(4) as threads:
        results = [threads.submit(work) for _ in range(4)]
        assert {result.result() for result in results} == {expected}
    assert len(made) == 1


async def test_embedding_runs_in_a_thread_of_its_own_until_closed(loop: asyncio.AbstractEventLoop) -> None:
    embedder = StaticEmbedder()
    assert check_type(embedder).name == "wordllama-256"
    assert not embedder.paid
    many = await asyncio.gather(*(embedder.embed([text]) for text in TEXTS))
    assert np.concatenate(many).tobytes() == embed(*TEXTS).tobytes()
    assert [thread.name for thread in threading.enumerate() if "unwait-vectors" in thread.name] == [
        "unwait-vectors_0"
    ]
    await embedder.aclose()
    await embedder.aclose()
    assert not [thread for thread in threading.enumerate() if "unwait-vectors" in thread.name]
    assert (await embedder.embed(["again"])).shape == (1, 256)
    await embedder.aclose()


async def test_nothing_of_it_runs_in_the_loop_s_thread(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    embed_in_thread = static_vectors.Model.embed

    def noted(self: static_vectors.Model, texts: Any) -> Any:
        threads.add(threading.current_thread())
        return embed_in_thread(self, texts)

    monkeypatch.setattr(static_vectors.Model, "embed", noted)
    embedder = StaticEmbedder()
    await embedder.embed(["some words", "and others"])
    await embedder.aclose()
    assert threads
    assert threading.current_thread() not in threads


def fresh(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60
    )


def test_the_user_s_process_is_left_as_it_is() -> None:
    done = fresh(
        "import logging, os, threading\n"
        "before = dict(os.environ)\n"
        "from unwait.documents.static_vectors import StaticEmbedder\n"
        "embedder = StaticEmbedder()\n"
        "import sys; assert 'numpy' not in sys.modules and 'tokenizers' not in sys.modules\n"
        "embedder.embed_now(['some words'] * 300)\n"
        "assert dict(os.environ) == before and not logging.root.handlers\n"
        "assert 'wordllama' not in sys.modules and len(os.listdir('/proc/self/task')) <= 1 + os.cpu_count()\n"
        "pid = os.fork()\n"
        "if pid == 0: embedder.embed_now(['other words']); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("library", ["wordllama", "tokenizers", "numpy"])
def test_a_missing_library_is_named_with_the_way_to_install_it(library: str) -> None:
    done = fresh(
        "import importlib.util as util\n"
        f"find = util.find_spec; util.find_spec = lambda name: None if name == {library!r} else find(name)\n"
        "from unwait.documents.static_vectors import StaticEmbedder; StaticEmbedder()"
    )
    assert "ImportError" in done.stderr
    assert library in done.stderr
    assert 'pip install "unwait[documents]"' in done.stderr

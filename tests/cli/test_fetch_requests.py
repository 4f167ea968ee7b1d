"""`unwait fetch --requests` as a process: results, malformed lines, journal and resume, interrupts, secrets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from aiohttp import web

Start = Callable[..., subprocess.Popen[str]]


class Job:
    """A file with requests, and the command that makes them."""

    def __init__(self, folder: Path, base: str, unwait: Any) -> None:
        self.folder = folder
        self.base = base
        self.source = folder / "calls.jsonl"
        self.output = folder / "results.jsonl"
        self.journal = folder / "results.jsonl.journal"
        self.command = ("fetch", "--requests", str(self.source), "-o", str(self.output))
        self._unwait = unwait

    def write(self, *lines: dict[str, Any] | str | bytes) -> None:
        encoded = (
            line
            if isinstance(line, bytes)
            else line.encode()
            if isinstance(line, str)
            else json.dumps(line).encode()
            for line in lines
        )
        self.source.write_bytes(b"\n".join(encoded) + b"\n")

    def run(self, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = self._unwait(*self.command, *options, **more)
        assert "Traceback" not in done.stderr
        return done

    def results(self) -> list[dict[str, Any]]:
        """The result lines in the order of the requests."""
        lines = [json.loads(line) for line in self.output.read_bytes().splitlines()]
        return sorted(lines, key=lambda line: line["line"])

    def by_id(self) -> dict[Any, dict[str, Any]]:
        return {line["id"]: line for line in self.results()}


@pytest.fixture
def job(tmp_path: Path, api: Any, unwait: Any) -> Job:
    return Job(tmp_path, api.base, unwait)


def told(process: subprocess.CompletedProcess[str]) -> str:
    """What it wrote to stderr, on one line: typer breaks lines."""
    return " ".join(process.stderr.split())


# What is sent, and what comes back.


def test_each_request_is_sent_as_its_line_says(job: Job, api: Any) -> None:
    job.write(
        {"id": "get", "url": f"{job.base}/call/get"},
        {"id": "post", "url": f"{job.base}/call/post", "json": {"größe": [1, None]}},
        {"id": "null", "url": f"{job.base}/call/null", "json": None},
        {"id": "text", "url": f"{job.base}/call/text", "body": "größe"},
        {
            "id": "put",
            "method": "put",
            "url": f"{job.base}/call/put",
            "body": "<a/>",
            "headers": {"content-type": "x/y"},
        },
        {"id": "head", "url": f"{job.base}/call/head", "headers": {"X-One": "1", "X-Both": "mine"}},
        {"id": "half", "url": f"{job.base}/call/half", "json": "\ud800"},
    )
    done = job.run("--header", "X-Both: all", "--header", "X-Two: 2", "--limit", "1")
    assert (done.returncode, done.stdout) == (0, "")
    seen = {call.id: call for call in api.received}
    assert [(call.id, call.method, call.body.decode()) for call in api.received] == [
        ("get", "GET", ""),
        ("post", "POST", '{"größe":[1,null]}'),
        ("null", "POST", "null"),
        ("text", "POST", "größe"),
        ("put", "PUT", "<a/>"),
        ("head", "GET", ""),
        ("half", "POST", '"\\ud800"'),
    ]
    assert seen["post"].headers["Content-Type"] == "application/json"
    assert seen["text"].headers["Content-Type"] == "text/plain; charset=utf-8"
    assert seen["put"].headers["Content-Type"] == "x/y"
    assert "Content-Type" not in seen["get"].headers
    assert [seen["head"].headers[f"X-{name}"] for name in ("One", "Both", "Two")] == ["1", "mine", "2"]
    assert seen["get"].headers["X-Both"] == "all"


def test_a_result_line_tells_all_of_a_call(job: Job) -> None:
    job.write({"id": 7, "url": f"{job.base}/call/a?statuses=429,200", "json": {}})
    done = job.run()
    assert done.returncode == 0
    (result,) = job.results()
    elapsed, waited = result.pop("elapsed"), result.pop("waited")
    assert 0 < waited < elapsed < 30
    assert result == {
        "id": 7,
        "line": 1,
        "ok": True,
        "status": 200,
        "attempts": 2,
        "method": "POST",
        "url": f"{job.base}/call/a?statuses=429,200",
        "headers": {"content-type": "application/json; charset=utf-8"},
        "body": {"id": "a", "status": 200},
    }
    assert re.fullmatch(
        r"1 done, 0 failed in [\d.]+ s; 1 retry, 1 answered 429, [\d.]+ s in limits and back-off\n",
        done.stderr,
    )


BODIES: list[tuple[bytes, str | None, Any]] = [
    (b'{"a":\r\n [1, 2]}', "application/json", {"a": [1, 2]}),
    (b'{"n": 1.00000000000000000001}', "application/problem+json", {"n": 1.0}),
    (b"\xef\xbb\xbf[]", "application/json", []),
    (b'{"a": NaN}', "application/json", '{"a": NaN}'),
    (b"{", "application/json", "{"),
    (b"[" * 100_000, "application/json", "[" * 100_000),
    ("größe\n\x00".encode(), "text/plain", "größe\n\x00"),
    ("größe".encode("latin-1"), "text/plain; charset=latin-1", "größe"),
    ("größe".encode("latin-1"), "text/plain", {"base64": "Z3L232U="}),
    (b"x", "text/plain; charset=nonsense", {"base64": "eA=="}),
    (b"\x89PNG\r\n", "image/png", {"base64": "iVBORw0K"}),
    (b"", None, ""),
]


def test_bodies_of_all_kinds_stay_what_they_are(job: Job, api: Any) -> None:
    for number, (body, kind, _) in enumerate(BODIES):
        api.answers[str(number)] = web.Response(body=body, headers={"Content-Type": kind} if kind else {})
    job.write(*({"id": n, "url": f"{job.base}/answer/{n}"} for n in range(len(BODIES))))
    assert job.run().returncode == 0
    assert [result["body"] for result in job.results()] == [expected for *_, expected in BODIES]
    assert b"1.00000000000000000001" in job.output.read_bytes()


def test_what_fails_has_its_cause_and_what_there_is_of_an_answer(job: Job) -> None:
    job.write(
        {"id": "no", "url": f"{job.base}/call/no?statuses=404"},
        {"id": "down", "url": f"{job.base}/call/down?statuses=503"},
        {"id": "busy", "url": f"{job.base}/call/busy?statuses=429"},
        {"id": "refused", "url": "http://127.0.0.1:1/?token=s3cret"},
        {"id": "late", "url": f"{job.base}/hold/late", "timeout": 0.2},
    )
    done = job.run("--retries", "1")
    assert done.returncode == 1
    results = job.by_id()
    told = {id: (line["ok"], line["status"], line["attempts"], line["error"]) for id, line in results.items()}
    assert told == {
        "no": (False, 404, 1, "HTTP 404 Not Found"),
        "down": (False, 503, 2, "HTTP 503 Service Unavailable"),
        "busy": (False, 429, 2, "HTTP 429 Too Many Requests"),
        "refused": (False, None, 2, "cannot connect: Connection refused"),
        "late": (False, None, 2, "timed out after 0.2 s without an answer"),
    }
    assert results["down"]["body"] == {"id": "down", "status": 503}
    assert results["refused"]["url"] == "http://127.0.0.1:1/?token=***"
    lines = done.stderr.splitlines()
    assert lines[0].startswith("0 done, 5 failed in ")
    assert "4 retries, 2 answered 429" in lines[0]
    assert lines.pop() == "the same command with --resume makes 4 of them again"
    assert sorted(line.strip() for line in lines[1:]) == sorted(
        f"1 times {error}" for *_, error in told.values()
    )


def test_a_post_is_repeated_only_where_that_does_no_harm(job: Job, api: Any) -> None:
    url = f"{job.base}/call/{{}}?statuses=503,200"
    job.write(
        {"id": "post", "url": url.format("post"), "json": {}},
        {"id": "idempotent", "url": url.format("idempotent"), "json": {}, "idempotent": True},
        {"id": "once", "url": url.format("once"), "idempotent": False},
    )
    assert job.run().returncode == 1
    assert {id: result["status"] for id, result in job.by_id().items()} == {
        "post": 503,
        "idempotent": 200,
        "once": 503,
    }
    assert api.counts == {"post": 1, "idempotent": 2, "once": 1}


def test_requests_from_stdin_and_results_to_stdout_go_through_as_they_come(job: Job, start: Start) -> None:
    process = start("fetch", "--requests", "-", "--limit", "2", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(3):
        # The next line is written when the result of this one has been read.
        process.stdin.write(json.dumps({"id": number, "url": f"{job.base}/call/{number}"}) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == number
    process.stdin.write(json.dumps({"url": f"{job.base}/call/last"}))  # no line break, no id
    output, errors = process.communicate(timeout=30)
    assert json.loads(output)["id"] == json.loads(output)["line"] == 4
    assert errors.startswith("4 done, 0 failed")
    assert process.returncode == 0
    assert not list(job.folder.iterdir())


def test_a_slow_reader_costs_no_request(job: Job, start: Start, api: Any) -> None:
    api.answers["big"] = web.Response(body=b"x" * 300_000, headers={"Content-Type": "text/plain"})
    asked = threading.Semaphore(0)
    api.on_call = lambda _: asked.release()
    job.write(*({"id": n, "url": f"{job.base}/answer/big?{n}"} for n in range(20)))
    process = start("fetch", "--requests", str(job.source), "--timeout", "3", "--retries", "0")
    for _ in range(20):
        assert asked.acquire(timeout=30)
    # The pipe is full long before the first answer is written; the others are not to wait for that.
    time.sleep(3.5)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(json.loads(line)["id"] for line in output.splitlines()) == list(range(20))


# Lines that are no requests.

MALFORMED: list[tuple[bytes, Any, str]] = [
    (b"nonsense", None, "not JSON: Expecting value at character 1"),
    (b'{"id": 1, "url": "%s/call/x"', None, "not JSON: Expecting ',' delimiter at character"),
    (b'["id"]', None, "a request is an object, not a list"),
    (b"17", None, "a request is an object, not 17"),
    (b'{"id": "no url"}', "no url", "url is missing"),
    (b'{"id": "null", "url": null}', "null", "url must be text, not null"),
    (b'{"id": "ftp", "url": "ftp://x/"}', "ftp", "url: unsupported URL scheme 'ftp'"),
    (b'{"id": "typo", "url": "%s", "header": {}}', "typo", 'unknown field "header"; a request has id, method, url'),
    (b'{"id": ["a"], "url": "%s"}', None, "id must be text or a whole number, not a list"),
    (b'{"id": {}, "url": "%s"}', None, "id must be text or a whole number, not an object"),
    (b'{"id": 1.5, "url": "%s"}', None, "id must be text or a whole number, not 1.5"),
    (b'{"id": true, "url": "%s"}', None, "id must be text or a whole number, not true"),
    (b'{"id": null, "url": "%s"}', None, "id must be text or a whole number, not null"),
    (b'{"id": "", "url": "%s"}', None, "id must be text or a whole number, not empty text"),
    (b'{"id": "good", "url": "%s/call/again"}', None, "the id is that of an earlier line"),
    (b'{"id": "typo", "url": "%s/call/again"}', None, "the id is that of an earlier line"),
    (b'{"id": "m1", "url": "%s", "method": 5}', "m1", "method must be text, not 5"),
    (b'{"id": "m2", "url": "%s", "method": "G T"}', "m2", "not a method for a request: 'G T'"),
    (b'{"id": "h1", "url": "%s", "headers": ["a"]}', "h1", "headers must be an object, not a list"),
    (b'{"id": "h2", "url": "%s", "headers": {"a": 1}}', "h2", "the names and values of headers are text"),
    (b'{"id": "h3", "url": "%s", "headers": {"a": "x\\r\\nb: c"}}', "h3", "the value of the header a has a line break"),
    (b'{"id": "h4", "url": "%s", "headers": {"a b": "c"}}', "h4", "not a name for a header: 'a b'"),
    (b'{"id": "b1", "url": "%s", "body": {"a": 1}}', "b1", "body must be text, not an object; what is"),
    (b'{"id": "b2", "url": "%s", "body": "a", "json": 1}', "b2", "a request has one body: json or body, not both"),
    (b'{"id": "b3", "url": "%s", "body": "\\ud800"}', "b3", "body has half a character in it"),
    (b'{"id": "j1", "url": "%s", "json": NaN}', None, "not JSON that can be read: NaN is not JSON"),
    (b'{"id": "c1", "url": "%s", "cost": -1}', "c1", "cost must be a number of tokens, not -1"),
    (b'{"id": "c2", "url": "%s", "cost": 1e999}', "c2", "cost must be a number of tokens, not a number out of range"),
    (b'{"id": "t1", "url": "%s", "timeout": 0}', "t1", "timeout must be a number of seconds above 0, not 0"),
    (b'{"id": "t2", "url": "%s", "timeout": "5"}', "t2", "timeout must be a number of seconds above 0, not text"),
    (b'{"id": "i1", "url": "%s", "idempotent": 1}', "i1", "idempotent must be true or false, not 1"),
    (b'{"id": "\xff", "url": "%s"}', None, "not UTF-8: byte 9 of the line cannot be decoded"),
    (b'{"id": "nul\x00", "url": "%s"}', None, "not JSON: Invalid control character at at character 12"),
    (b'{"id": "deep", "json": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "not JSON that can be read: it is"),
    (b'{"id": 1' + b"0" * 5000 + b', "url": "%s"}', None, "not JSON that can be read: Exceeds the limit (4300 digits)"),
]  # fmt: skip


def test_malformed_lines_are_told_by_number_and_cost_the_others_nothing(job: Job, api: Any) -> None:
    good = [
        {"id": id, "url": f"{job.base}/call/{n}"} for n, id in enumerate(("good", "größe \x00\ud800", 5, "5"))
    ]
    bad = [line.replace(b"%s", job.base.encode()) for line, *_ in MALFORMED]
    job.write(b"\xef\xbb\xbf", *good, b"  \t\r", *bad, {"id": "last", "url": f"{job.base}/call/last"})
    done = job.run()
    assert done.returncode == 1
    results = job.results()
    assert [line["id"] for line in results if line["ok"]] == [*(line["id"] for line in good), "last"]
    told = [(line["line"], line["id"], line["error"]) for line in results if not line["ok"]]
    first = len(good) + 3  # after the empty line with the byte-order mark and the one of blanks
    for number, (_, id, error) in enumerate(MALFORMED, first):
        line, told_id, told_error = told[number - first]
        assert (line, told_id, told_error[: len(error)]) == (number, id, error)
    assert sorted(api.counts) == ["0", "1", "2", "3", "last"]
    lines = done.stderr.splitlines()
    assert lines[0] == f"unwait fetch: line {first}: {told[0][2]}"
    assert (
        lines[20] == f"unwait fetch: {len(MALFORMED) - 20} more lines are no requests; the output names them"
    )
    assert lines[21].startswith(f"5 done, 0 failed, {len(MALFORMED)} lines are no requests in ")


def test_a_line_that_is_too_long_is_not_held_in_memory(job: Job, start: Start) -> None:
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20)); "
        "sys.argv[0] = 'unwait'; import unwait.cli; unwait.cli.main()"
    )
    with job.source.open("wb") as file:
        file.write(b'{"id": "')
        file.seek(300 << 20)  # sparse
        file.write(b'"}\n' + json.dumps({"id": "good", "url": f"{job.base}/call/good"}).encode())
    process = subprocess.run(
        [sys.executable, "-c", program, *job.command],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
    )
    assert process.stderr.startswith(
        "unwait fetch: line 1: the line is longer than 64 MiB\n1 done, 0 failed, 1 line"
    )
    assert [line["ok"] for line in job.results()] == [False, True]


# The journal.


def test_a_run_is_never_written_over(job: Job) -> None:
    job.write({"id": 1, "url": f"{job.base}/call/1"})
    assert job.run().returncode == 0
    before = job.output.read_bytes(), job.journal.read_bytes()
    refused = job.run()
    assert refused.returncode == 2
    assert f"{job.output} has results already: go on with --resume, or name another file" in told(refused)
    job.output.unlink()
    refused = job.run()
    assert refused.returncode == 2
    assert "holds the results of an earlier run: go on with --resume" in told(refused)
    assert (not job.output.exists(), job.journal.read_bytes()) == (True, before[1])
    job.output.write_bytes(before[0])
    job.journal.unlink()
    refused = job.run("--resume")
    assert refused.returncode == 2
    assert "there is no journal" in refused.stderr
    assert job.output.read_bytes() == before[0]


def test_resume_calls_what_failed_what_is_new_and_what_was_edited(job: Job, api: Any) -> None:
    def call(id: str, text: str = "", statuses: str = "200", user: str = "u:pw") -> dict[str, Any]:
        base = job.base.replace("//", f"//{user}@")
        return {"id": id, "url": f"{base}/call/{id}?statuses={statuses}&key={user}", "json": {"text": text}}

    first = [
        call("done"),
        call("gone"),
        call("edited"),
        call("404", statuses="404"),
        call("503", statuses="503,200"),
    ]
    job.write(*first)
    assert job.run("--resume").returncode == 1  # there is nothing to resume, and that is fine
    assert api.counts == {"done": 1, "gone": 1, "edited": 1, "404": 1, "503": 1}
    job.write(
        call("new"),
        call("503", statuses="503,200"),
        call("404", statuses="404", user="other:password"),
        call("edited", "other"),
        call("done"),
        "nonsense",
    )
    done = job.run("--resume")
    assert done.returncode == 1
    assert api.counts == {"done": 1, "gone": 1, "edited": 2, "404": 1, "503": 2, "new": 1}
    assert [(line["id"], line["line"], line["status"]) for line in job.results()] == [
        ("new", 1, 200),
        ("503", 2, 200),
        ("404", 3, 404),
        ("edited", 4, 200),
        ("done", 5, 200),
        (None, 6, None),
    ]
    assert "4 done, 1 failed, 1 line is no request" in done.stderr
    assert "; 2 from the journal" in done.stderr
    # And once more: the same results without a call, except for what was never one.
    before = job.results()
    assert job.run("--resume").returncode == 1
    assert job.results() == before
    assert sum(api.counts.values()) == 8


def test_another_journal_and_one_that_does_not_fit(job: Job, unwait: Any, tmp_path: Path) -> None:
    job.write({"id": 1, "url": f"{job.base}/call/1"})
    journal = tmp_path / "elsewhere.db"
    assert job.run("--journal", str(journal)).returncode == 0
    assert not job.journal.exists()
    shown = unwait("journal", "export", str(journal))
    assert json.loads(shown.stdout)["value"]["body"] == {"id": "1", "status": 200}
    refused = unwait("fetch", f"{job.base}/call/1", "--journal", str(journal), "--resume")
    assert refused.returncode == 2
    assert f"the journal {journal} holds results of the function 'unwait.web.bulk" in refused.stderr
    job.journal.write_text("mine")
    other = job.run("--journal", str(job.journal), "--resume")
    assert other.returncode == 2
    assert "is no journal" in other.stderr
    assert job.journal.read_text() == "mine"
    assert job.results()[0]["status"] == 200, "what was written before is still there"


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--requests", "no/such"], "cannot read no/such: No such file or directory"),
        (["--requests", "."], "cannot read .: Is a directory"),
        (["--requests", "{calls}", "http://x/"], "takes neither URLs nor --from"),
        (["--requests", "{calls}", "--json"], "takes neither URLs nor --from"),
        (["--requests", "{calls}", "-o", "{calls}"], "that is the file with the requests"),
        (["--requests", "{calls}", "-o", "{calls}", "--resume"], "that is the file with the requests"),
        (["--requests", "{calls}", "--resume"], "there is nothing to resume without --journal FILE"),
        (
            ["--requests", "{calls}", "-o", "{out}", "--journal", "{out}"],
            "the output and the journal are the same file",
        ),
        (["--requests", "{calls}", "-o", "no/such/out"], "no/such/out.journal"),
        (
            ["--requests", "{calls}", "-o", "/proc/no/such", "--journal", "{out}.db"],
            "cannot write /proc/no/such: No such file",
        ),
        (["--requests", "{calls}", "--rate", "many"], "--rate"),
        (["--requests", "{calls}", "--tokens", "-1/s"], "--tokens"),
        (["--tokens", "5/s", "http://x/"], "needs --requests"),
        (["--requests", "{calls}", "--limit", "automatic"], "neither a number above 0 nor auto"),
        (["--requests", "{calls}", "--per-host", "0"], "--per-host"),
        (["--requests", "{calls}", "--retries", "-1"], "--retries"),
        (["--requests", "{calls}", "--header", "nonsense"], "a header is given as 'Name: value'"),
        (["--requests", "{calls}", "--header", "A b: c"], "not a name for a header"),
        (["--requests", "{calls}", "--header", "A: $NO_SUCH_VARIABLE"], "no variable NO_SUCH_VARIABLE"),
        (["--requests", "{calls}", "--cache", "/dev/null"], "cannot use /dev/null"),
    ],
)
def test_bad_usage_is_exit_code_2(unwait: Any, tmp_path: Path, arguments: list[str], cause: str) -> None:
    calls, out = tmp_path / "calls.jsonl", tmp_path / "out.jsonl"
    calls.write_text('{"id": 1, "url": "http://127.0.0.1:1/"}\n')
    done = unwait("fetch", *(argument.format(calls=calls, out=out) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert cause in told(done)
    assert "Traceback" not in done.stderr
    assert calls.read_text() == '{"id": 1, "url": "http://127.0.0.1:1/"}\n'
    assert not out.exists()


# Its end.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_finishes_and_saves_what_is_under_way(
    job: Job, start: Start, api: Any, number: signal.Signals
) -> None:
    job.write(*({"id": n, "url": f"{job.base}/hold/{n}"} for n in range(10)))
    process = start(*job.command, "--limit", "3")
    assert process.stderr is not None
    for _ in range(3):
        assert api.held.acquire(timeout=30)
    process.send_signal(number)
    assert (
        process.stderr.readline()
        == "interrupted: finishing 3 running items, at most 10 s; again to stop at once\n"
    )
    api.release()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines() == [
        f"3 done and saved in {job.journal}; run again to resume",
        "unwait fetch: interrupted; the same command with --resume does the rest",
    ]
    assert [line["id"] for line in job.results()] == [0, 1, 2]
    assert job.run("--resume").returncode == 0
    assert api.counts == {str(n): 1 for n in range(10)}
    assert [line["id"] for line in job.results()] == list(range(10))


def test_the_second_interrupt_stops_at_once(job: Job, start: Start, api: Any) -> None:
    job.write(*({"id": n, "url": f"{job.base}/{'hold' if n else 'call'}/{n}"} for n in range(10)))
    process = start(*job.command, "--limit", "3")
    assert process.stderr is not None
    for _ in range(3):
        assert api.held.acquire(timeout=30)
    while not job.output.read_bytes():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("interrupted: finishing 3 running items")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [line["id"] for line in job.results()] == [0]
    api.release()
    assert job.run("--resume").returncode == 0
    assert (api.counts["0"], api.counts["9"]) == (1, 1)
    assert [line["id"] for line in job.results()] == list(range(10))


def test_an_interrupt_ends_the_wait_for_more_lines(start: Start, api: Any) -> None:
    process = start("fetch", "--requests", "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"url": f"{api.base}/call/1"}) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["ok"]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_a_reader_that_leaves_is_no_traceback(job: Job, start: Start) -> None:
    job.write(*({"id": n, "url": f"{job.base}/call/{n}"} for n in range(300)))
    process = start("fetch", "--requests", str(job.source), "--limit", "1")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(30) == 1


def test_an_output_that_cannot_be_written_says_so_and_loses_nothing(job: Job, api: Any, unwait: Any) -> None:
    job.write(*({"id": n, "url": f"{job.base}/call/{n}"} for n in range(3)))
    done = unwait("fetch", "--requests", str(job.source), "-o", "/dev/full", "--journal", str(job.journal))
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert f"what is done is in {job.journal}: run again with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    calls = api.counts.copy()
    assert job.run("--resume").returncode == 0
    assert [line["id"] for line in job.results()] == [0, 1, 2]
    assert calls["0"] == api.counts["0"] == 1


# Secrets, limits.


def test_secrets_are_in_nothing_that_is_left_behind(job: Job, api: Any) -> None:
    secrets = ["pa55word", "t0ken-in-query", "sk-0123456789abcdef", "c00kie"]
    api.answers["set"] = web.Response(body=b"ok", headers={"Set-Cookie": f"session={secrets[3]}"})
    base = job.base.replace("//", f"//user:{secrets[0]}@")
    job.write(
        {"id": 1, "url": f"{base}/call/1?api_key={secrets[1]}", "headers": {"X-Api-Key": secrets[2]}},
        {
            "id": 2,
            "url": f"{base}/call/2?api_key={secrets[1]}&statuses=503",
            "headers": {"X-Api-Key": secrets[2]},
        },
        {"id": 3, "url": f"{job.base}/answer/set"},
        {"id": 4, "url": f"http://user:{secrets[0]}@127.0.0.1:1/?token={secrets[1]}"},
        {"id": 5, "url": f"htp://user:{secrets[0]}@127.0.0.1:1/?token={secrets[1]}"},
        {"id": 6, "url": f"{base}/call/3", "headers": {"Authorization": f"Bearer {secrets[2]}\n"}},
        f'{{"id": 7, "url": "{base}/call/3?token={secrets[1]}"',
    )
    done = job.run(
        "--retries", "0", "--header", "Authorization: Bearer ${TOKEN} $$", env={"TOKEN": secrets[2]}
    )
    assert done.returncode == 1
    seen = {call.id: call for call in api.received}
    assert seen["1"].headers["X-Api-Key"] == secrets[2]
    assert seen["set"].headers["Authorization"] == f"Bearer {secrets[2]} $"
    left = {path.name: path.read_bytes() for path in job.folder.iterdir() if path != job.source}
    assert {"results.jsonl", "results.jsonl.journal"} <= set(left)
    left["stderr"] = done.stderr.encode()
    found = [(name, secret) for name, text in left.items() for secret in secrets if secret.encode() in text]
    assert found == []
    assert job.by_id()[1]["url"] == f"{base.replace(f'user:{secrets[0]}', '***')}/call/1?api_key=***"


@pytest.fixture
def limited(environment: dict[str, str]) -> Iterator[Callable[..., str]]:
    """Starts the flaky API in a process of its own; gives its address."""
    program = Path(__file__).parents[2] / "examples" / "flaky_api.py"
    running = []

    def serve(*options: str) -> str:
        command = [sys.executable, str(program), "--port", "0", *options]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        assert running[-1].stdout is not None
        return running[-1].stdout.readline().strip()

    yield serve
    for process in running:
        with process:
            process.kill()


def test_a_rate_is_kept_and_the_tokens_too(limited: Callable[..., str], tmp_path: Path, unwait: Any) -> None:
    base = limited("--rpm", "50", "--tpm", "1000", "--window", "1")
    job = Job(tmp_path, base, unwait)
    job.write(
        *(
            {
                "id": n,
                "url": f"{base}/v1/complete",
                "json": {"id": str(n), "prompt": "a b", "max_tokens": 10 + n % 30},
            }
            for n in range(100)
        )
    )
    done = job.run("--rate", "50/s", "--tokens", "1000/s", "--limit", "40")
    assert done.returncode == 0, done.stderr
    assert all(result["attempts"] == 1 for result in job.results()), "a window was exceeded"
    with urlopen(f"{base}/stats?window=1") as answer:
        stats = json.load(answer)
    assert stats["window"]["requests_arrived"] <= 50
    assert stats["window"]["tokens_arrived"] <= 1000
    assert "answered 429" not in done.stderr


def test_too_fast_for_the_other_side_is_slowed_down_by_it(
    limited: Callable[..., str], tmp_path: Path, unwait: Any
) -> None:
    base = limited("--rpm", "20", "--window", "1", "--retry-after", "seconds")
    job = Job(tmp_path, base, unwait)
    job.write(*({"id": n, "url": f"{base}/items/{n}"} for n in range(50)))
    done = job.run("--limit", "auto")
    assert done.returncode == 0, done.stderr
    assert {result["status"] for result in job.results()} == {200}
    assert re.search(r"; (\d+ retries, \d+ answered 429, )?[\d.]+ s in limits and back-off\n", done.stderr)

"""`unwait fetch` as a process: rows, totals, files, exit codes."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

TOTALS = re.compile(
    r"(\d+) fetched, (\d+) failed, \S+ \w+ in [\d.]+ s"
    r"(?:; one by one [\d.]+ s \(the sum of the waits\), [\d.]+ times as long)?(?:; .*)?"
)


def rows(output: str) -> list[str]:
    return [line.strip() for line in output.splitlines() if "http://" in line or "://" in line]


def test_table_totals_and_files(unwait: Any, site: Any, tmp_path: Path) -> None:
    done = unwait("fetch", f"{site.base}/a", f"{site.base}/b.html", "-o", str(tmp_path / "new" / "dir"))
    assert (done.returncode, done.stderr) == (0, "")
    first, second = rows(done.stdout)
    assert re.fullmatch(rf"200 +\d+ B +0\.\d+ s +{site.base}/a +page \[bold\]/a\[/\] �\[2J größer", first)
    assert f"{site.base}/b.html" in second
    summary = TOTALS.fullmatch(done.stdout.splitlines()[-1])
    assert summary
    assert summary.groups() == ("2", "0")
    host = site.base.removeprefix("http://").replace(":", "_")
    assert sorted(path.name for path in (tmp_path / "new" / "dir").iterdir()) == [
        f"{host}_a.txt",
        f"{host}_b.html",
    ]
    assert "\x1b" not in done.stdout


def test_failures_are_rows_and_exit_code_1(unwait: Any, site: Any) -> None:
    done = unwait(
        "fetch",
        "--retries=1",
        f"{site.base}/missing",
        "gopher://[x]",
        f"{site.base}/fine",
        "http://u:pw@127.0.0.1:1/",
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "Traceback" not in done.stdout
    missing, gopher, fine, refused = rows(done.stdout)
    assert missing.startswith("404")
    assert "HTTP 404 Not Found" in missing
    assert gopher.endswith("unsupported URL scheme 'gopher'")
    assert fine.startswith("200")
    assert refused.startswith("-")
    assert refused.endswith("cannot connect: Connection refused")
    assert "pw" not in done.stdout
    last = done.stdout.splitlines()[-1]
    assert TOTALS.fullmatch(last).groups() == ("1", "3")  # type: ignore[union-attr]
    assert "; 1 retry, " in last


def test_json_lines(unwait: Any, site: Any, tmp_path: Path) -> None:
    done = unwait("fetch", "--json", "-o", str(tmp_path), f"{site.base}/a", f"{site.base}/missing")
    assert done.returncode == 1
    facts = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda fact: fact["url"])
    good, bad = facts
    keys = ["url", "ok", "status", "error", "size", "elapsed", "waited", "attempts", "path", "begins"]
    assert list(good) == keys
    assert good["attempts"] == bad["attempts"] == 1
    assert (good["url"], good["ok"], good["status"], good["error"]) == (f"{site.base}/a", True, 200, None)
    assert Path(good["path"]).stat().st_size == good["size"]
    assert 0 < good["elapsed"] < 60
    assert good["begins"] == "page [bold]/a[/] �[2J größer"
    assert (bad["ok"], bad["status"], bad["error"], bad["path"]) == (False, 404, "HTTP 404 Not Found", None)
    assert TOTALS.fullmatch(done.stderr.strip())


@pytest.mark.parametrize("source", ["-", "file"])
def test_urls_from_a_file_or_stdin(unwait: Any, site: Any, tmp_path: Path, source: str) -> None:
    lines = f"\ufeff# a comment\n\n  {site.base}/one  \r\n{site.base}/two\n{site.base}/one\n{site.base}/#x\n"
    file = tmp_path / "urls.txt"
    file.write_bytes(lines.encode() + b"\xff\xfe\n")
    with open(file if source == "-" else os.devnull) as stdin:
        argument = "-" if source == "-" else str(file)
        done = unwait("fetch", f"{site.base}/two", "--from", argument, "--json", stdin=stdin)
    assert done.returncode == 1
    results = {fact["url"]: fact["error"] for fact in map(json.loads, done.stdout.splitlines())}
    assert results == {
        f"{site.base}/one": None,
        f"{site.base}/two": None,
        f"{site.base}/#x": None,
        "��": "not a URL: http:// or https:// is missing",
    }
    assert sorted(site.requests) == ["/", "/one", "/two"]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([], "no URLs given"),
        (["--from", os.devnull], "no URLs given"),
        (["--from", "no/such/file"], "cannot read no/such/file: No such file or directory"),
        (["http://x/", "--from", "."], "cannot read .: Is a directory"),
        (["http://x/", "--limit", "0"], "--limit"),
        (["http://x/", "--limit", "many"], "--limit"),
        (["http://x/", "--timeout", "0"], "--timeout"),
        (["http://x/", "--timeout", "nan"], "--timeout"),
        (["http://x/", "--timeout", "-1"], "--timeout"),
        (["http://x/", "--max-bytes", "0"], "'0' is not a size"),
        (["http://x/", "--max-bytes", "5X"], "'5X' is not a size"),
        (["http://x/", "--max-bytes", "-5M"], "'-5M' is not a size"),
        (["http://x/", "-o", os.devnull], "cannot make /dev/null: File exists"),
        (["http://x/", "-o", "/proc/no/such"], "cannot make /proc/no/such: No such file or directory"),
        (["http://x/", "--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_usage_is_exit_code_2(unwait: Any, arguments: list[str], cause: str) -> None:
    done = unwait("fetch", *arguments, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (2, "")
    assert cause in done.stderr
    assert "Traceback" not in done.stderr


def test_size_limit_option(unwait: Any, site: Any) -> None:
    done = unwait("fetch", "--max-bytes", "20", f"{site.base}/x")
    assert done.returncode == 1
    assert "body is larger than 20 bytes" in done.stdout


def test_timeout_option(unwait: Any, site: Any) -> None:
    done = unwait("fetch", "--retries=0", "--timeout", "0.3", f"{site.base}/hold", f"{site.base}/x")
    assert done.returncode == 1
    assert "timed out after 0.3 s with 10000 bytes of the body read" in done.stdout
    assert TOTALS.search(done.stdout).groups() == ("1", "1")  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_two_interrupts_show_and_keep_what_was_done(
    start: Any, site: Any, tmp_path: Path, options: list[str]
) -> None:
    process = start(
        *("fetch", "-o", str(tmp_path), *options, "--limit", "1"),
        *(f"{site.base}/done", f"{site.base}/hold", f"{site.base}/later"),
    )
    assert site.asked_to_hold.wait(30)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("interrupted: finishing 1 running item")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"{site.base}/done" in output
    assert "/hold" not in output
    assert "interrupted, 2 of 3 not done; 1 fetched, 0 failed" in (errors if options else output)
    assert [path.name.rpartition("_")[2] for path in tmp_path.iterdir()] == ["done.txt"]
    assert "/later" not in site.requests


def test_a_reader_that_leaves_is_no_traceback(site: Any, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "unwait", "fetch", "--json", "--limit", "1"]
    with subprocess.Popen(
        [*command, *(f"{site.base}/{number}" for number in range(50))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


def test_output_that_cannot_show_the_text(unwait: Any, site: Any) -> None:
    done = unwait("fetch", f"{site.base}/x", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"gr\xf6\xdfer" in done.stdout


def test_resume_fetches_only_what_is_missing(unwait: Any, api: Any, tmp_path: Path) -> None:
    journal, rows, pages = tmp_path / "run.db", tmp_path / "rows.jsonl", tmp_path / "pages"
    base = api.base.replace("//", "//user:pa55word@")
    urls = [f"{base}/call/{name}" for name in ("a", "b?statuses=503,200", "c?statuses=404", "d")]
    command = [
        "fetch",
        *urls,
        "-o",
        str(pages),
        "--journal",
        str(journal),
        "--jsonl",
        str(rows),
        "--retries=0",
    ]

    def facts() -> list[tuple[Any, ...]]:
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        return sorted((line["url"], line["status"], line["path"]) for line in lines)

    first = unwait(*command)
    assert first.returncode == 1
    assert TOTALS.search(first.stdout).groups() == ("2", "2")  # type: ignore[union-attr]
    refused = unwait(*command)
    assert refused.returncode == 2
    assert "go on with --resume" in refused.stderr
    again = unwait(*command, "--resume")
    assert again.returncode == 1
    assert api.counts == {"a": 1, "b": 2, "c": 1, "d": 1}
    assert TOTALS.search(again.stdout).groups() == ("3", "1")  # type: ignore[union-attr]
    assert again.stdout.splitlines()[-1].endswith("; 3 from the journal")
    assert [status for _, status, _ in facts()] == [200, 200, 404, 200]
    (page,) = pages.glob("*_d.json")
    page.unlink()
    assert unwait(*command, "--resume").returncode == 1
    assert api.counts == {"a": 1, "b": 2, "c": 1, "d": 2}
    assert page.exists()
    for path in (journal, rows):
        assert b"pa55word" not in path.read_bytes()
    before = rows.read_bytes()
    other = unwait("fetch", urls[0], "--journal", str(rows), "--jsonl", str(tmp_path / "x.jsonl"), "--resume")
    assert other.returncode == 2
    assert "is no journal" in other.stderr
    assert rows.read_bytes() == before
    wrong = unwait("fetch", urls[0], "--journal", str(pages), "--jsonl", str(rows), "--resume")
    assert wrong.returncode == 2
    assert rows.read_bytes() == before, "nothing is taken away for a run that cannot begin"
    no_journal = unwait("fetch", *urls, "--resume")
    assert no_journal.returncode == 2
    assert "--resume" in no_journal.stderr


def test_a_killed_run_is_resumed(start: Any, unwait: Any, api: Any, tmp_path: Path) -> None:
    journal, pages = tmp_path / "run.db", tmp_path / "pages"
    urls = [f"{api.base}/{'hold' if number == 5 else 'call'}/{number}" for number in range(8)]
    command = ["fetch", *urls, "-o", str(pages), "--journal", str(journal), "--limit=1", "--json"]
    process = start(*command)
    assert api.held.acquire(timeout=30)
    for _ in range(5):
        assert json.loads(process.stdout.readline())["ok"]
    process.kill()
    process.communicate()
    api.release()
    done = unwait(*command, "--resume")
    assert done.returncode == 0
    assert sorted(json.loads(line)["url"] for line in done.stdout.splitlines()) == sorted(urls)
    assert api.counts == {str(number): 2 if number == 5 else 1 for number in range(8)}
    assert len(list(pages.iterdir())) == 8


def test_rates_headers_and_a_cache(unwait: Any, api: Any, tmp_path: Path) -> None:
    kept = web.Response(body=b"kept", headers={"Cache-Control": "max-age=1000, public"})
    api.answers.update({str(number): kept for number in range(5)})
    urls = [f"{api.base}/answer/{number}" for number in range(5)]
    options = ["--rate=20/s", "--per-host=1", "--limit=auto", f"--cache={tmp_path / 'cache'}"]
    done = unwait("fetch", *urls, *options, "--header", "X-Token: $TOKEN", env={"TOKEN": "abc"})
    assert done.returncode == 0
    assert [call.headers["X-Token"] for call in api.received] == ["abc"] * 5
    times = [call.at for call in api.received]
    assert times[-1] - times[0] > 0.1
    assert unwait("fetch", *urls, *options).returncode == 0
    assert len(api.received) == 5, "the second time they came from the cache"


def test_progress_on_a_terminal_only(site: Any, environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "unwait", "fetch", "--progress", f"{site.base}/x", f"{site.base}/missing"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**environment, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            seen += chunk
        output = process.stdout.read() if process.stdout else b""
    os.close(ours)
    assert b"1/2 done" in seen
    assert b"1 failed" in seen
    assert b"http://" not in seen
    assert b"404" in output


def test_missing_extra_is_one_line(python: Any) -> None:
    for package in ("aiohttp", "rich", "typer"):
        code = f"import sys; sys.modules[{package!r}] = None; import unwait.cli; unwait.cli.main()"
        done = python("-c", code, "fetch", "http://127.0.0.1:1/")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f'unwait: {package} is not installed: pip install "unwait[cli]"\n'


def test_documentation_site(unwait: Any, environment: dict[str, str], tmp_path: Path) -> None:
    server = Path(__file__).parents[2] / "examples" / "docs_server.py"
    with subprocess.Popen(
        [sys.executable, str(server), "--port", "0", "--latency", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            base = process.stdout.readline().strip()
            listed = unwait("fetch", f"{base}urls.txt", base, "-o", str(tmp_path / "lists"))
            assert listed.returncode == 0
            (urls,) = (tmp_path / "lists").glob("*_urls.txt")
            done = unwait("fetch", "--from", str(urls), "-o", str(tmp_path / "pages"))
        finally:
            process.terminate()
    assert done.returncode == 0
    pages = list((tmp_path / "pages").iterdir())
    assert len(pages) == len(urls.read_text().splitlines()) >= 150
    (page,) = (page for page in pages if page.name.endswith("_asyncio.html"))
    assert "asyncio" in page.read_text()

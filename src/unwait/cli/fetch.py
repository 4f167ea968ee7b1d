"""`unwait fetch`: many URLs at once, a row for each, totals; or requests from JSON Lines, a result line for each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
URLs. Each distinct URL is fetched once, however often it is named. A file given with --from has one URL a line;
empty lines and lines that begin with # are skipped. With --journal, a later run with --resume fetches only what
is missing: what had no answer, or one that another try may change (408, 425, 429, 5xx), or is gone from DIR.

Requests. A line of the file given with --requests is {"id":…, "method":…, "url":…, "headers":{…}, "json":…}. Only
the url must be there; instead of json, "body" may be text; with either, the method is POST if none is named.
"timeout" (seconds) and "idempotent" (true: a POST that may be made twice is retried like a GET) are for the one
request, "cost" is what it takes of --tokens; without it, that is a token for 4 bytes of the body, and "max_tokens"
of the json. Without an id, the number of the line is the id.

A result line is {"id":…, "line":…, "ok":…, "status":…, "attempts":…, "waited":…, "elapsed":…, "method":…, "url":…,
"headers":{…}, "body":…}, in the order in which the answers came, times in seconds. The body is JSON if the answer says
so, else text, else {"base64":…}. Where something went wrong there is an "error". A line that is no request has a
result line with its number and the error, and costs the others nothing.

What is done is saved in a journal beside the output (FILE.journal) before its result line is written. Killed at any
moment and run again with --resume, no finished request is made again, and the output has each id once. What failed
(no answer, or 408, 425, 429, 5xx after all retries) and lines that were changed are requested again.

Headers. --header 'Authorization: Bearer $TOKEN', in single quotes, takes TOKEN from the environment: so it is seen
neither in the list of processes nor in the shell's history. $$ is a $.

Exit code: 0 all well, 1 some failed, 2 bad usage, 130 interrupted. The first Ctrl-C finishes what is under way (10 s
at most) and saves it, the second stops at once.

Examples:

\b
  unwait fetch https://a.example https://b.example
  unwait fetch --from urls.txt -o pages --per-host 8 --journal pages.db
  grep -o 'https://[^"]*' page.html | unwait fetch --from - --json
  unwait fetch --requests calls.jsonl -o results.jsonl --rate 500/min --tokens 90000/min \\
      --header 'Authorization: Bearer $API_KEY'
  unwait fetch --requests calls.jsonl -o results.jsonl --resume --limit auto
"""


def fetch(
    urls: Annotated[list[str] | None, typer.Argument(metavar="URL", help="What to fetch.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="Read more URLs from FILE; - is stdin."),
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option(
            "--requests", metavar="FILE", help="Make the requests in FILE (JSON Lines); - is stdin."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR|FILE",
            help="URLs: save each body to a file in DIR; without it none is kept. "
            "Requests: write the result lines to FILE; - or nothing is stdout.",
        ),
    ] = None,
    limit: Annotated[
        str,
        typer.Option(metavar="N|auto", help="How many at the same time; auto: as many as the servers bear."),
    ] = "100",
    per_host: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many at the same time for one host.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="How many attempts: 50/s, 600/min, 10000/day.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="RATE", help="How many tokens, with --requests: 90000/min.")
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many more attempts for what may be tried again.")
    ] = 5,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one attempt, body included.")] = 60.0,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save in FILE what is done, for --resume.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Do only what the journal does not have.")] = False,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep answers in DIR as HTTP allows, and use them.")
    ] = None,
    max_bytes: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest body: bytes, or with K, M or G (powers of 1024).")
    ] = "50M",
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME: VALUE'", help="Send it with every request; may be given again."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line as each URL is done, in place of the table."),
    ] = False,
    jsonl: Annotated[
        str | None, typer.Option("--jsonl", metavar="FILE", help="The same lines to FILE, beside the table.")
    ] = None,
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="How far it is, on stderr; by default on a terminal."),
    ] = None,
) -> None:
    """Fetch many URLs, or make many requests, at once; one that fails costs the others nothing."""
    # Here, so that the other commands do not wait for them.
    from unwait.cli import fetch_options as given
    from unwait.cli.fetch_requests import fetch_requests
    from unwait.cli.fetch_urls import fetch_urls
    from unwait.flow.journal import JournalError
    from unwait.web.many import ClientOptions

    policy = given.Retries(retries)
    options = ClientOptions(
        per_host=per_host,
        rate=given.rate(rate, "--rate"),
        tokens=given.rate(tokens, "--tokens"),
        retry=policy,
        timeout=given.seconds(timeout),
        max_bytes=given.size(max_bytes),
        headers=given.headers(header or ()),
        cache=given.cache(cache),
    )
    job = given.Job(given.at_once(limit), journal, resume, progress, policy, options)
    try:
        if requests is not None:
            if urls or source or as_json or jsonl:
                raise given.bad("takes neither URLs nor --from, --json or --jsonl", "--requests")
            code = fetch_requests(job, requests, output)
        else:
            if tokens is not None:
                raise given.bad("needs --requests: a URL has no tokens", "--tokens")
            code = fetch_urls(job, urls or [], source, output, as_json, jsonl)
    except JournalError as error:
        print(f"unwait fetch: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        raise
    except OSError as error:
        # The output cannot be written: a full disk.
        hint = f"; what is done is in {journal}: run again with --resume" if journal is not None else ""
        where = f" {error.filename}" if error.filename else ""
        print(f"unwait fetch: {error.strerror}{where}{hint}", file=sys.stderr)
        code = 1
    raise typer.Exit(code)

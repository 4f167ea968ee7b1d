"""Measures unwait beside its peers and renders the figures in docs/: what `make bench` runs."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import select
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flow_report
import report
from cells import BASELINE, CELLS, OURS, YARDSTICK, Cell
from documents_cells import DOCUMENTS
from flow_cells import FLOW, FlowCell, Part
from loops import FACTORIES, Unsupported, version

BENCH = Path(__file__).resolve().parent
BIN = BENCH / "bin"
RESULTS = BENCH / "results.json"
START_TIMEOUT = 30
CLIENT_TIMEOUT = 60
STACKS = ("aiohttp", "uvicorn", "httptools", "starlette")
PARTS = (FLOW, DOCUMENTS)
PART_ROUNDS = 3
DISTURBED = 0.10
IDLE, IOWAIT = 3, 4
PROFILE_TIMES = 10

EPILOG = """examples:
  python bench/run.py                               everything, 5 rounds (parts: 3); saved and rendered
  python bench/run.py --quick                       2 short rounds of everything, printed and not saved
  python bench/run.py --only echo-100 echo-tls      these cells, printed and not saved
  python bench/run.py --only task --save            this cell, merged into the saved results and rendered
  python bench/run.py --only flow --save            all cells of unwait.flow (those without: loop cells)
  python bench/run.py --only documents --save       all cells of unwait ingest and unwait search
  python bench/run.py --only call_soon --loops uvloop,unwait --rounds 3
  python bench/run.py --profile echo-100            where unwait's CPU goes there (needs perf)
  python bench/run.py --render-only                 the documents from the saved results
"""


class Failed(Exception):
    """A measurement that should have worked did not; the text is one line that says why."""


class Bench:
    """The cores, programs and lengths of one run."""

    def __init__(self, scratch: Path, seconds: float, warmup: float) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.server_core, self.client_core = cores[0], cores[1 % len(cores)]
        self.scratch = scratch
        self.seconds, self.warmup = seconds, warmup
        self.loadgen, self.echo_server = compile_c("loadgen", "-ldl"), compile_c("echo_server")
        self.libssl = find_libssl()
        self.certificate: tuple[str, ...] = ()

    def start(self, arguments: list[str], core: int | None, **options: Any) -> subprocess.Popen[str]:
        """A process on this core (or any), its stdout piped and its stderr kept for an error's text."""
        errors = self.scratch / f"errors-of-core-{core}"
        with errors.open("w") as stderr:
            return subprocess.Popen(
                arguments,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | {"PYTHONWARNINGS": "ignore", "TMPDIR": str(self.scratch)},
                preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
                **options,
            )

    def read_json(self, process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
        """The one line that a process prints; one without it is killed, and its last words are the error."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        line = process.stdout.readline() if ready else ""
        if not line:
            process.kill()
            said = [
                path.read_text().strip().splitlines()[-1]
                for path in sorted(self.scratch.glob("errors-of-core-*"))
                if path.read_text().strip()
            ]
            raise Failed("; ".join(said) or f"no word from process {process.pid} in {timeout} s")
        answer: dict[str, Any] = json.loads(line)
        if "unsupported" in answer:
            raise Unsupported(answer["unsupported"])
        return answer

    @contextlib.contextmanager
    def server(self, mode: str, loop: str) -> Iterator[tuple[int, int]]:
        """A server process on its core, as (process id, port)."""
        if mode == "tls" and self.libssl is None:
            raise Unsupported("no libssl for the load generator")
        if loop == YARDSTICK:
            arguments = [str(self.echo_server)]
        else:
            arguments = [sys.executable, str(BENCH / "servers.py"), mode, loop]
            arguments += self.make_certificate() if mode == "tls" else ()
        with self.start(arguments, self.server_core) as process:
            try:
                yield process.pid, self.read_json(process, START_TIMEOUT)["port"]
            finally:
                process.kill()

    def make_certificate(self) -> tuple[str, ...]:
        if not self.certificate:
            try:
                import trustme
            except ImportError:
                raise Unsupported("trustme is not installed") from None
            issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
            chain, key = self.scratch / "chain.pem", self.scratch / "key.pem"
            chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
            issued.private_key_pem.write_to_path(str(key))
            self.certificate = str(chain), str(key)
        return self.certificate

    def client(self, cell: Cell, port: int, *extra: str, **options: Any) -> subprocess.Popen[str]:
        arguments = [str(self.loadgen), "--port", str(port), *cell.load, *extra]
        if cell.mode == "tls" and self.libssl is not None:
            arguments += ["--tls", self.libssl]
        return self.start(arguments, self.client_core, **options)

    def load(self, cell: Cell, pid: int, port: int, *extra: str) -> dict[str, Any]:
        lengths = ("--warmup", str(self.warmup), "--seconds", str(self.seconds))
        connections = ("--connections", str(cell.connections), "--server-pid", str(pid))
        with self.client(cell, port, *connections, *lengths, *extra) as process:
            return self.read_json(process, CLIENT_TIMEOUT)

    def measure(self, cell: Cell, loop: str) -> dict[str, float]:
        """One round of one cell on one loop, in fresh processes: metric → value."""
        for path in self.scratch.glob("errors-of-core-*"):
            path.unlink()
        if cell.kind == "micro":
            arguments = [sys.executable, str(BENCH / "micro.py"), cell.mode, loop]
            with self.start(arguments, self.server_core) as process:
                return self.read_json(process, CLIENT_TIMEOUT)
        with self.server(cell.mode, loop) as (pid, port):
            if cell.kind == "memory":
                return {"memory_kib": self.measure_memory(cell, pid, port)}
            counts = self.load(cell, pid, port)
        return {
            "cpu_us": counts["server_cpu_s"] / counts["messages"] * 1e6,
            "p50_us": counts["p50_us"],
            "p99_us": counts["p99_us"],
            "per_second": counts["per_second"],
            "server_share": counts["server_cpu_s"] / counts["wall_s"],
            "client_share": counts["client_cpu_s"] / counts["wall_s"],
        }

    def measure_part(
        self, part: Part, cell: FlowCell, contenders: list[str], *, short: bool
    ) -> dict[str, Any]:
        """One round of a cell of a part: contender → metrics, or why there are none."""
        for path in self.scratch.glob("errors-of-core-*"):
            path.unlink()
        server_core = self.server_core if part.pinned else None
        client_core = self.client_core if part.pinned else None
        arguments = [sys.executable, str(BENCH / f"{part.name}.py"), cell.name, *contenders]
        arguments += ["--short"] if short else []
        with contextlib.ExitStack() as stack:
            if cell.server:
                script, *rest = part.server
                server = self.start([sys.executable, str(BENCH / script), *rest], server_core)
                stack.enter_context(server)
                stack.callback(server.kill)
                arguments += ["--port", str(self.read_json(server, START_TIMEOUT)["port"])]
            process = stack.enter_context(self.start(arguments, client_core))
            return self.read_json(process, cell.seconds)

    def measure_memory(self, cell: Cell, pid: int, port: int) -> float:
        with self.client(cell, port, "--messages", "100", "--warmup", "0") as process:
            self.read_json(process, CLIENT_TIMEOUT)
        before = resident_kib(pid)
        holding = ("--hold", "--connections", str(cell.connections))
        with self.client(cell, port, *holding, stdin=subprocess.PIPE) as process:
            self.read_json(process, CLIENT_TIMEOUT)
            grown = resident_kib(pid) - before
        return grown / cell.connections

    def profile(self, cell: Cell, loop: str) -> str:
        """Where the CPU of a server under load, or of a micro-benchmark, goes, as perf sees it."""
        if shutil.which("perf") is None:
            raise Failed("perf is not installed")
        data = self.scratch / "perf.data"
        record = ["perf", "record", "--quiet", "--freq", "1999", "--output", str(data)]
        if cell.kind == "micro":
            micro = [sys.executable, str(BENCH / "micro.py"), cell.mode, loop, str(PROFILE_TIMES)]
            with self.start([*record, "--", *micro], self.server_core) as process:
                self.read_json(process, CLIENT_TIMEOUT)
        else:
            with (
                self.server(cell.mode, loop) as (pid, port),
                subprocess.Popen([*record, "--pid", str(pid)]) as recorder,
            ):
                self.load(cell, pid, port)
                recorder.send_signal(signal.SIGINT)
        said = [f"{cell.name} on {loop}: by object, then by function"]
        show = ["perf", "report", "--stdio", "--input", str(data), "--percent-limit", "0.5", "--fields"]
        for fields in ("overhead,dso", "overhead,dso,symbol"):
            lines = subprocess.run(
                [*show, fields], capture_output=True, text=True, check=True
            ).stdout.splitlines()
            said += [line.rstrip() for line in lines if line.strip() and not line.startswith("#")]
        return "\n".join(said)


class Others:
    """The share of the cores that other processes took while a block ran: how far to trust its figures."""

    def __init__(self, cores: set[int]) -> None:
        self.cores = cores

    def __enter__(self) -> Others:
        self.began, self.before = time.monotonic(), self.busy_s() - self.ours_s()
        return self

    def __exit__(self, *_: object) -> None:
        taken = self.busy_s() - self.ours_s() - self.before
        self.share = max(0.0, taken / (time.monotonic() - self.began) / len(self.cores))

    def busy_s(self) -> float:
        """Seconds for which the cores were not idle, the time a hypervisor stole from them included."""
        wanted = {f"cpu{core}" for core in self.cores}
        lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
        columns = [list(map(int, line[1:9])) for line in lines if line[0] in wanted]
        ticks = sum(sum(column) - column[IDLE] - column[IOWAIT] for column in columns)
        return ticks / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def ours_s() -> float:
        """CPU seconds of this process and of its children that have ended."""
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise Failed(f"process {pid} has no VmRSS")


def compile_c(name: str, *libraries: str) -> Path:
    source, program = BENCH / f"{name}.c", BIN / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BIN.mkdir(exist_ok=True)
        compiler = os.environ.get("CC", "gcc")
        if shutil.which(compiler) is None:
            raise Failed(f"{compiler} is not installed; the load generator is compiled with it")
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]
        subprocess.run([compiler, *flags, "-o", str(program), str(source), *libraries], check=True)
    return program


def find_libssl() -> str | None:
    """The libssl that this Python's ssl module has loaded."""
    assert ssl.OPENSSL_VERSION
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split()[-1]
        if Path(path).name.startswith("libssl"):
            return path
    return None


def package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str]:
    """When and where the figures come from, as the pages print it."""
    text = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION,
        "stacks": ", ".join(f"{name} {package_version(name)}" for name in STACKS),
    }


def run_round(bench: Bench, cells: list[Cell], loops: list[str], number: int, found: dict[str, Any]) -> None:
    """One round: every cell once on every loop, one after another, in an order that each round turns by one.

    Figures taken while other processes had more than a tenth of the cores get an exclamation mark.
    """
    for cell in cells:
        row = found.setdefault(cell.name, {})
        names = [*loops, YARDSTICK] if cell.yardstick else list(loops)
        turn = number % len(names)
        said = []
        for name in names[turn:] + names[:turn]:
            entry = row.setdefault(name, {"rounds": []})
            if "unsupported" in entry:
                continue
            try:
                with Others({bench.server_core, bench.client_core}) as others:
                    measured = bench.measure(cell, name)
            except Unsupported as error:
                entry["unsupported"] = str(error)
                said.append(f"{name} n/a ({error})")
            except Failed as error:
                entry["failed"] = str(error)
                said.append(f"{name} FAILED: {error}")
            else:
                entry["rounds"].append(measured | {"others_share": others.share})
                disturbed = "!" if others.share > DISTURBED else ""
                said.append(f"{name} {measured.get('cpu_us', measured.get('memory_kib', 0)):.2f}{disturbed}")
        print(f"round {number + 1}: {cell.name:18} {', '.join(sorted(said))}", file=sys.stderr, flush=True)


def run_part_round(
    bench: Bench, part: Part, cells: list[FlowCell], number: int, short: bool, found: dict[str, Any]
) -> None:
    """One round of a part of unwait: every cell once, its contenders one after another in a turned order."""
    for cell in cells:
        if cell.rounds is not None and number >= cell.rounds:
            continue
        row = found.setdefault(cell.name, {name: {"rounds": []} for name in cell.contenders})
        turn = number % len(cell.contenders)
        names = [*cell.contenders[turn:], *cell.contenders[:turn]]
        with Others({bench.server_core, bench.client_core}) as others:
            try:
                measured = bench.measure_part(part, cell, names, short=short)
            except Failed as error:
                measured = {name: {"failed": str(error)} for name in names}
        said = []
        for name in cell.contenders:
            metrics = measured[name]
            if "unsupported" in metrics or "failed" in metrics:
                row[name] |= metrics
                said.append(f"{name}: {metrics}")
            else:
                row[name]["rounds"].append(metrics | {"others_share": others.share})
                said.append(f"{name} " + " ".join(f"{value:,.2f}" for value in metrics.values()))
        disturbed = "!" if others.share > DISTURBED else ""
        print(f"round {number + 1}: {cell.name:14}{disturbed} {'; '.join(said)}", file=sys.stderr, flush=True)


def measure_loops(
    bench: Bench, cells: list[Cell], loops: list[str], rounds: int, *, save: bool
) -> dict[str, Any]:
    """All rounds of the cells of the loop, printed, and rendered if they are saved."""
    versions = {name: version(name) for name in loops}
    print("; ".join(f"{name} {said}" for name, said in versions.items()), file=sys.stderr)
    found: dict[str, Any] = {}
    began = time.monotonic()
    for number in range(rounds):
        run_round(bench, cells, loops, number, found)
    took = round(time.monotonic() - began)
    print(report.terminal_table(found))
    if save:
        run = {"versions": versions, "rounds": rounds, "seconds": bench.seconds, "took_s": took}
        report.save(RESULTS, machine() | run, found)
        report.render(RESULTS)
    return found


def measure_part(
    bench: Bench, part: Part, cells: list[FlowCell], rounds: int, *, short: bool, save: bool
) -> dict[str, Any]:
    """All rounds of the cells of a part, printed, and rendered if they are saved."""
    found: dict[str, Any] = {}
    began = time.monotonic()
    for number in range(rounds):
        run_part_round(bench, part, cells, number, short, found)
    took = round(time.monotonic() - began)
    print(flow_report.terminal_tables(part, found))
    if save:
        versions = {OURS: version(OURS)} | {name: package_version(name) for name in part.peers}
        run = {"versions": versions, "rounds": rounds, "took_s": took}
        report.save(RESULTS, machine() | run, found, part=part.name)
        flow_report.render(RESULTS, part)
    return found


def choose(patterns: list[str] | None, loops_only: bool) -> list[str]:
    """The cells of the loop and of the parts whose names are among the patterns, or else contain one."""
    names = [*CELLS] if loops_only else [*CELLS, *(name for part in PARTS for name in part.cells)]
    if not patterns:
        return names
    if set(patterns) <= set(names):
        return patterns
    names = [name for name in names if any(pattern in name for pattern in patterns)]
    if not names:
        raise SystemExit(f"run.py: no cell is named like {', '.join(patterns)}; --list shows them")
    return names


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these cells, by name or part of it")
    parser.add_argument("--loops", metavar="A,B", help=f"of {','.join(FACTORIES)}; {BASELINE} joins always")
    parser.add_argument("--rounds", type=int, help="rounds (default 5; with --quick 2)")
    parser.add_argument(
        "--seconds", type=float, help="measured window of a server (default 0.8; --quick 0.4)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, for development")
    parser.add_argument("--save", action="store_true", help="merge a partial or quick run into what is saved")
    parser.add_argument("--list", action="store_true", help="list cells and loops, then stop")
    parser.add_argument("--render-only", action="store_true", help="render the documents from what is saved")
    parser.add_argument("--profile", metavar="NAME", help="print a CPU profile of one cell")
    options = parser.parse_args()
    if options.loops:
        unknown = set(options.loops.split(",")) - set(FACTORIES)
        if unknown:
            parser.error(f"no such loop: {', '.join(sorted(unknown))}")
    if options.profile and options.profile not in CELLS:
        parser.error(f"no cell {options.profile}; --list shows them")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def main() -> int:
    options = parse()
    if options.list:
        for cell in CELLS.values():
            words = (f"{cell.name:20} {cell.kind:7} {cell.mode}", str(cell.connections or ""), *cell.load)
            print(" ".join(words).rstrip())
        for part in PARTS:
            for name, part_cell in part.cells.items():
                print(f"{name:20} {part.name:7} {'; '.join(part_cell.contenders)}")
        for name in FACTORIES:
            print(f"loop {name:15} {version(name)}")
        return 0
    if options.render_only:
        report.render(RESULTS)
        for part in PARTS:
            flow_report.render(RESULTS, part)
        return 0
    names = choose(options.only, loops_only=bool(options.loops))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loops = options.loops.split(",") if options.loops else list(FACTORIES)
    if BASELINE not in loops:
        loops.insert(0, BASELINE)
    rounds = options.rounds or (2 if options.quick else 5)
    seconds = options.seconds or (0.4 if options.quick else 0.8)
    with tempfile.TemporaryDirectory(prefix="unwait-bench-") as scratch:
        bench = Bench(Path(scratch), seconds, warmup=0.15 if options.quick else 0.25)
        if options.profile:
            profiled = options.loops.split(",") if options.loops else [OURS]
            print("\n\n".join(bench.profile(CELLS[options.profile], name) for name in profiled))
            return 0
        save = options.save or not (options.only or options.quick or options.loops)
        found: dict[str, Any] = {}
        if cells := [CELLS[name] for name in names if name in CELLS]:
            found |= measure_loops(bench, cells, loops, rounds, save=save)
        for part in PARTS:
            if chosen := [part.cells[name] for name in names if name in part.cells]:
                found |= measure_part(
                    bench, part, chosen, min(rounds, PART_ROUNDS), short=options.quick, save=save
                )
    failures = [
        f"{name} on {loop}: {entry['failed']}"
        for name, row in found.items()
        for loop, entry in row.items()
        if "failed" in entry
    ]
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"run.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

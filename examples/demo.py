"""`make demo`: the same pages fetched one by one, then concurrently, with the real `unwait fetch`."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

SERVER = Path(__file__).with_name("docs_server.py")


def fetch(source: Path, directory: Path, limit: int) -> float:
    """Run the command, show the ends of its output, return the seconds from start to end of the process."""
    command = ["unwait", "fetch", "--from", str(source), "-o", str(directory), "--limit", str(limit)]
    print(f"\n$ {' '.join(command)}", flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    took = time.perf_counter() - started
    rows = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
    print("\n".join([*rows[:7], f"  … {len(rows) - 9} more rows …", *rows[-2:]]))
    if done.returncode:
        sys.exit(f"unwait fetch ended with exit code {done.returncode}")
    return took


def main() -> None:
    print("Rendering the documentation of the standard library …", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="unwait-demo-") as name,
        subprocess.Popen(
            [sys.executable, str(SERVER), "--port", "0"], stdout=subprocess.PIPE, text=True
        ) as server,
    ):
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            if not address:
                sys.exit("the documentation server did not start")
            scratch = Path(name)
            source = scratch / "urls.txt"
            source.write_bytes(urlopen(f"{address}urls.txt").read())
            pages = len(source.read_text().splitlines())
            print(f"{pages} pages at {address}, each sent after about 80 ms.")
            one_by_one = fetch(source, scratch / "one-by-one", 1)
            concurrent = fetch(source, scratch / "concurrent", 100)
            saved = [
                {file.name: file.read_bytes() for file in (scratch / directory).iterdir()}
                for directory in ("one-by-one", "concurrent")
            ]
        finally:
            server.terminate()
    if saved[0] != saved[1] or len(saved[0]) != pages:
        sys.exit("the two runs did not save the same pages")
    print(f"\n{pages} pages, {sum(map(len, saved[0].values())) / 2**20:.1f} MiB, the same files both times:")
    print(f"  one by one    {one_by_one:6.2f} s")
    print(f"  concurrently  {concurrent:6.2f} s   {one_by_one / concurrent:.1f} times as fast")


if __name__ == "__main__":
    main()

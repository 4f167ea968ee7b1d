"""The command line: `unwait run`, `unwait fetch`. One small module a command."""

from __future__ import annotations

import sys

# What the extra `unwait[cli]` installs, and what comes with that; anything else that cannot be imported is a fault
# worth a traceback.
EXTRA = ("aiohttp", "multidict", "rich", "typer", "yarl")


def main() -> None:
    """The `unwait` command: reads `sys.argv` and ends the process with the command's exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"]:
        # Before typer: a program started by `unwait run` needs no extra and must not wait for its import.
        from unwait.cli.run import run

        run(arguments[1:])
        return
    try:
        from unwait.cli.app import app

        app(prog_name="unwait")
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        print(f'unwait: {package} is not installed: pip install "unwait[cli]"', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)

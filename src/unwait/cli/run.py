"""`unwait run`: a program as plain python runs it, with unwait's loop as asyncio's default.

Everything that a program can see of how it was started is python's own: `sys.argv`, `sys.path[0]`, the
`__main__` module, `__file__`. The display of an uncaught exception and the exit code are left to the
interpreter, so that `sys.exit("text")`, an interrupt or a closed pipe end the process as they always do;
only our frames are taken out of the traceback first. Nothing beyond asyncio is imported.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import linecache
import os
import pkgutil
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

import unwait

SUMMARY = "Run a Python program with unwait's event loop as asyncio's default."

USAGE = f"""\
Usage: unwait run [--debug] SCRIPT [ARGS]...
       unwait run [--debug] -m MODULE [ARGS]...
       unwait run [--debug] -c CODE [ARGS]...

{SUMMARY}
asyncio.run, asyncio.Runner and asyncio.new_event_loop use it; the rest is as
plain python has it: sys.argv, __main__, tracebacks, exit codes. What stands
after SCRIPT, MODULE or CODE belongs to the program.

Arguments:
  SCRIPT      A file, a directory or zip file with a __main__.py, or - (stdin).

Options:
  -m MODULE   Run a module or a package, as python -m does.
  -c CODE     Run the text CODE.
  --debug     asyncio's debug mode, as PYTHONASYNCIODEBUG=1 sets it.
  -h, --help  Show this message and exit.

Examples:
  unwait run app.py --port 8000
  unwait run --debug -m package.app
  unwait run -c 'import asyncio; asyncio.run(asyncio.sleep(1))'
"""

# The interpreter starts directories, zip files and `-m` through this function: its frames show there too.
_RUN_MODULE = runpy._run_module_as_main  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: `kind` is "script", "-m" or "-c", `target` the path, the module's name or the code."""

    kind: str
    target: str
    arguments: Sequence[str]
    debug: bool


def run(arguments: Sequence[str]) -> None:
    """Run the program that the arguments after `unwait run` name; exit code 2 if they name none."""
    program = parse(arguments)
    if program.debug:
        os.environ["PYTHONASYNCIODEBUG"] = "1"
    unwait.install()
    if program.kind == "-m":
        _run_module(program)
    elif program.kind == "-c":
        _run_code(program)
    else:
        _run_script(program)


def parse(arguments: Sequence[str]) -> Program:
    """The program that the arguments name; `--help` ends the process with 0 here, a bad usage with 2."""
    rest = list(arguments)
    debug = False
    while rest:
        argument = rest.pop(0)
        if argument == "--debug":
            debug = True
        elif argument in ("-h", "--help"):
            print(USAGE, end="")
            sys.exit(0)
        elif argument in ("-m", "-c"):
            if not rest:
                raise _bad_usage(f"option {argument} needs a value")
            return Program(argument, rest.pop(0), rest, debug)
        elif argument == "--":
            continue
        elif argument.startswith(("-m", "-c")):
            return Program(argument[:2], argument[2:], rest, debug)
        elif argument.startswith("-") and argument != "-":
            raise _bad_usage(f"no such option: {argument}")
        else:
            return Program("script", argument, rest, debug)
    raise _bad_usage("a SCRIPT, -m MODULE or -c CODE is missing")


def _bad_usage(cause: str) -> SystemExit:
    print(f"unwait run: {cause}\nTry 'unwait run --help' for help.", file=sys.stderr)
    return SystemExit(2)


def _run_script(program: Program) -> None:
    path = program.target
    if path == "-":
        main = _main_module(program, "-", "")
        main.__file__ = "<stdin>"
        main.__cached__ = None
        code = _guard(compile, sys.stdin.buffer.read(), "<stdin>", "exec", 0, True)
        _guard(exec, code, main.__dict__)
        return
    # As the interpreter does it: made absolute, not made pretty.
    absolute = os.path.join(os.getcwd(), path)
    if pkgutil.get_importer(absolute) is not None:
        _main_module(program, path, absolute, always=True)
        _guard(_RUN_MODULE, "__main__", False)
        return
    try:
        with open(absolute, "rb") as file:
            content = file.read()
    except OSError as error:
        cause = f"[Errno {error.errno}] {error.strerror}"
        print(f"unwait run: can't open file {absolute!r}: {cause}", file=sys.stderr)
        sys.exit(2)
    main = _main_module(program, path, os.path.dirname(os.path.realpath(path)))
    main.__file__ = absolute
    main.__cached__ = None
    if path.endswith(".pyc"):
        main.__loader__ = importlib.machinery.SourcelessFileLoader("__main__", absolute)
        code = _guard(main.__loader__.get_code, "__main__")
    else:
        main.__loader__ = importlib.machinery.SourceFileLoader("__main__", absolute)
        code = _guard(compile, content, absolute, "exec", 0, True)
    _guard(exec, code, main.__dict__)


def _run_module(program: Program) -> None:
    _main_module(program, "-m", os.getcwd())
    _guard(_RUN_MODULE, program.target)


def _run_code(program: Program) -> None:
    main = _main_module(program, "-c", "")
    code = _guard(compile, program.target, "<string>", "exec", 0, True)
    if sys.version_info >= (3, 13):
        # Since then tracebacks show the lines of `-c` too.
        lines = [line + "\n" for line in program.target.splitlines()]
        linecache.cache["<string>"] = (len(program.target), None, lines, "<string>")
    _guard(exec, code, main.__dict__)


def _main_module(program: Program, argv0: str, path0: str, *, always: bool = False) -> Any:
    """Put a fresh `__main__`, `sys.argv` and `sys.path[0]` in place of ours, and return the module.

    `always` adds `path0` even where the interpreter was told not to (`-P`, `-I`), as it does for directories.
    """
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    main.__loader__ = importlib.machinery.BuiltinImporter
    sys.modules["__main__"] = main
    sys.argv[:] = [argv0, *program.arguments]
    if not sys.flags.safe_path:
        sys.path[0] = path0
    elif always:
        sys.path.insert(0, path0)
    return main


def _guard(step: Callable[..., Any], *arguments: Any) -> Any:
    """Call one step of the program; if it fails, the interpreter reports that without the frames above it."""
    try:
        return step(*arguments)
    except BaseException as error:
        traceback = error.__traceback__ and error.__traceback__.tb_next
        shown = sys.excepthook

        def hook(kind: type[BaseException], value: BaseException, _: TracebackType | None) -> None:
            sys.excepthook = shown
            sys.last_traceback = traceback
            shown(kind, value.with_traceback(traceback), traceback)

        sys.excepthook = hook
        raise

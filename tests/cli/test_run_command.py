"""`unwait run` against plain python: the same output, byte for byte, and the same end."""

import os
import py_compile
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

SHOW = """\
import sys
print(sys.argv, sys.path[0], __name__, sys.modules["__main__"].__dict__ is globals())
print(sorted((k, type(v).__name__) for k, v in globals().items()))
print([globals().get(k) for k in ("__file__", "__cached__", "__package__", "__doc__")])
"""

PROGRAMS = {
    "shows.py": SHOW,
    "raises.py": "try:\n    1 / 0\nexcept Exception as e:\n    raise OSError(2, 'x') from e\n",
    "syntax.py": "def f(:\n    pass\n",
    "latin.py": "# -*- coding: latin-1 -*-\nprint(ascii('gr\xfc\xdfe'))\n",
    "exits.py": "import sys\nsys.exit(7)\n",
    "exits_text.py": "import sys\nsys.exit('why\\nnot')\n",
    "exits_none.py": "raise SystemExit\n",
    "interrupt.py": "raise KeyboardInterrupt\n",
    "kills.py": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n",
    "hook.py": "import sys\nsys.excepthook = lambda *a: print(a[0], a[2].tb_frame.f_code.co_name)\n1 / 0\n",
    "last.py": "import atexit, sys\natexit.register(lambda: print(sys.last_traceback.tb_lineno))\n\n1 / 0\n",
    "group.py": "raise ExceptionGroup('two', [ValueError(1), KeyError(2)])\n",
    "atexit.py": "import atexit\natexit.register(print, 'bye')\nprint('hi')\n",
    "thread.py": "import threading\nt = threading.Thread(target=lambda: print('late'))\nt.start()\n",
    "package/__init__.py": "print(__name__)\n",
    "package/__main__.py": SHOW + "from . import other\n1 / 0\n",
    "package/other.py": "print(__name__)\n",
    "reads.py": "import sys\nprint(sys.stdin.read())\n",
    "coroutine.py": "import asyncio\nasync def main():\n    raise LookupError(1)\nasyncio.run(main())\n",
    "warns.py": "import warnings\nwarnings.warn('careful', UserWarning)\n",
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("programs")
    for name, text in PROGRAMS.items():
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text.encode("latin-1"))
    with zipfile.ZipFile(directory / "app.zip", "w") as archive:
        archive.writestr("__main__.py", SHOW + "1 / 0\n")
    py_compile.compile(str(directory / "shows.py"), str(directory / "compiled.pyc"))
    (directory / "link.py").symlink_to(directory / "package" / "other.py")
    (directory / "empty").mkdir()
    return directory


@pytest.mark.parametrize(
    "arguments",
    [
        *([name, "--flag", "-m", "x"] for name in PROGRAMS if "/" not in name),
        ["./shows.py"],
        ["package/../shows.py"],
        ["link.py"],
        ["compiled.pyc", "a"],
        ["package", "a"],
        ["app.zip", "a"],
        ["empty"],
        ["-m", "package", "--debug"],
        ["-m", "package.other"],
        ["-m", "raises"],
        ["-m", "no_such_module"],
        ["-mshows", "-h"],
        ["-c", SHOW, "--help", "-c"],
        ["-c", "x = 1\n1 / 0"],
        ["-c", "def"],
        ["-c", "import sys; sys.exit(3)"],
        ["-cprint(1)"],
        ["-"],
    ],
    ids=lambda arguments: " ".join(arguments).partition("\n")[0],
)
def test_as_plain_python(python: Any, unwait: Any, programs: Path, arguments: list[str]) -> None:
    options = {"cwd": programs, "input": f"{SHOW}1 / 0\n".encode(), "text": False}
    plain = python(*arguments, **options)
    ours = unwait("run", *arguments, **options)
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_under_safe_path(python: Any, programs: Path) -> None:
    for arguments in (["shows.py"], ["app.zip"], ["-c", SHOW]):
        plain = python("-P", *arguments, cwd=programs)
        ours = python("-P", "-m", "unwait", "run", *arguments, cwd=programs)
        assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


USES = """\
import asyncio
import unwait
async def main():
    return type(asyncio.get_running_loop())
assert asyncio.run(main()) is unwait.Loop
with asyncio.Runner() as runner:
    assert runner.run(main()) is unwait.Loop
loop = asyncio.new_event_loop()
assert type(loop) is unwait.Loop
loop.close()
print("ours")
"""


@pytest.mark.parametrize("form", ["-c", "script", "-m"])
def test_the_loop_is_ours(unwait: Any, tmp_path: Path, form: str) -> None:
    (tmp_path / "uses.py").write_text(USES)
    arguments = {"-c": ["-c", USES], "script": ["uses.py"], "-m": ["-m", "uses"]}[form]
    done = unwait("run", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ours\n", "")


@pytest.mark.parametrize("debug", [True, False])
def test_debug(unwait: Any, debug: bool) -> None:
    code = (
        "import asyncio\nasync def main(): print(asyncio.get_running_loop().get_debug())\nasyncio.run(main())"
    )
    done = unwait("run", *(["--debug"] if debug else []), "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{debug}\n", "")


def test_traceback_out_of_a_coroutine_has_no_frames_of_the_command(unwait: Any, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "import asyncio\nasync def main():\n    raise LookupError('gone')\nasyncio.run(main())\n"
    )
    done = unwait("run", str(script))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[:2] == ["Traceback (most recent call last):", f'  File "{script}", line 4, in <module>']
    assert lines[-1] == "LookupError: gone"
    assert f'  File "{script}", line 3, in main' in lines
    assert os.path.join("unwait", "cli") not in done.stderr


def test_interrupt_of_a_running_loop(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(
        "import asyncio\n"
        "async def main():\n"
        "    try:\n"
        "        print('waiting', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "    finally:\n"
        "        print('cleaned up', flush=True)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "unwait", "run", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert output == "cleaned up\n"
    assert errors.endswith("KeyboardInterrupt\n")
    assert os.path.join("unwait", "cli") not in errors


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([], "a SCRIPT, -m MODULE or -c CODE is missing"),
        (["--debug"], "a SCRIPT, -m MODULE or -c CODE is missing"),
        (["-m"], "option -m needs a value"),
        (["-c"], "option -c needs a value"),
        (["--nonsense", "x.py"], "no such option: --nonsense"),
        (["no_such.py"], "can't open file '{cwd}/no_such.py': [Errno 2] No such file or directory"),
    ],
)
def test_bad_usage(unwait: Any, tmp_path: Path, arguments: list[str], cause: str) -> None:
    done = unwait("run", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == f"unwait run: {cause.format(cwd=tmp_path)}"
    assert "Traceback" not in done.stderr


def test_help_and_version(unwait: Any) -> None:
    import unwait as package

    for arguments in (["run", "--help"], ["run", "-h"]):
        done = unwait(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: unwait run" in done.stdout
    done = unwait("--version")
    assert (done.returncode, done.stdout) == (0, f"unwait {package.__version__}\n")
    done = unwait("--help")
    assert done.returncode == 0
    assert "unwait fetch" in done.stdout
    assert "unwait run" in done.stdout
    done = unwait("fetch", "--help")
    assert done.returncode == 0
    assert "--max-bytes" in done.stdout


def test_run_needs_no_extra_and_imports_none(unwait: Any) -> None:
    code = "import sys; print(sorted({'aiohttp', 'rich', 'typer', 'click', 'yarl'} & set(sys.modules)))"
    done = unwait("run", "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")

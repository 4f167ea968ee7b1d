"""Lists the extension modules; everything else about the package stands in pyproject.toml."""

import os
import sys

from setuptools import Extension, setup

# `optional`: where no compiler is found the package still installs, on asyncio's own loop. The project's own builds set
# UNWAIT_REQUIRE_LOOP, for which a module that does not compile is an error.
MODULES = [
    "kernel.pyx",
    "handles.py",
    "core.py",
    "transport.py",
    "pipes.py",
    "datagram.py",
    "sockets.py",
    "tls_engine.py",
    "tls_transport.py",
    "tls.py",
    "stream_reader.py",
    "streams.py",
]


def extensions() -> list[Extension]:
    if sys.platform != "linux":
        return []
    from Cython.Build import cythonize

    return cythonize(
        [
            Extension(
                f"unwait.loop.{module.split('.')[0]}",
                [f"src/unwait/loop/{module}"],
                optional="UNWAIT_REQUIRE_LOOP" not in os.environ,
                extra_compile_args=["-O3"],
            )
            for module in MODULES
        ],
        compiler_directives={
            "language_level": 3,
            "annotation_typing": False,  # annotations are for people and mypy; C types stand in the .pxd
        },
    )


setup(ext_modules=extensions())

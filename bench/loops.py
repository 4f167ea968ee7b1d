"""The event loops that are compared, by name."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import sys

FACTORIES = {
    "asyncio": "asyncio:SelectorEventLoop",
    "uvloop": "uvloop:new_event_loop",
    "rloop": "rloop:new_event_loop",
    "blazio": "blazio:new_event_loop",
    "unwait": "unwait:new_event_loop",
}


class Unsupported(Exception):
    """A loop is not installed, or lacks what a cell needs; the text says which."""


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """A new loop of the library `name`.

    Raises `Unsupported` where the library does not import, and where unwait would fall back to asyncio's
    loop: that must never be measured under unwait's name.
    """
    module_name, _, factory = FACTORIES[name].partition(":")
    try:
        module = importlib.import_module(module_name)
        if name == "unwait" and not importlib.import_module("unwait.loop").COMPILED:
            raise Unsupported("compiled loop not built")
    except ImportError:
        raise Unsupported("not installed") from None
    loop: asyncio.AbstractEventLoop = getattr(module, factory)()
    return loop


def version(name: str) -> str:
    """The version of the library behind a loop, or a reason why there is none."""
    if name == "asyncio":
        return "Python " + sys.version.split()[0]
    try:
        new_loop(name).close()
        return importlib.metadata.version(name)
    except Unsupported as error:
        return str(error)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(name), "__version__", "version unknown"))

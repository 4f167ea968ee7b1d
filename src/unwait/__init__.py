"""unwait: I/O-bound Python that stops waiting."""

from unwait.loop import (
    Loop,
    Runner,
    install,
    new_event_loop,
    open_connection,
    open_unix_connection,
    run,
    start_server,
    start_unix_server,
)
from unwait.version import __version__

__all__ = [
    "Loop",
    "Runner",
    "__version__",
    "install",
    "new_event_loop",
    "open_connection",
    "open_unix_connection",
    "run",
    "start_server",
    "start_unix_server",
]

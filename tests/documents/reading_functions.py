"""What test_reading.py has processes do in place of `read`; they import it from here."""

from __future__ import annotations

import os
import signal

from unwait.documents.model import SourceFailed
from unwait.documents.reading import Job, Reading, read


def read_or_die(job: Job) -> Reading:
    """Read the document, unless it is named for something else that is to happen: "dies", "waits", "goes", "errs"."""
    if job.uri.endswith("dies.txt"):
        os.kill(os.getpid(), signal.SIGKILL)
    if job.uri.endswith("waits.txt"):
        pipe = job.metadata["pipe"]
        with open(f"{pipe}.begun", "w") as file:
            file.write(str(os.getpid()))
        with open(pipe, "rb", buffering=0) as file:
            file.read(1)
    if job.uri.endswith("goes.txt"):
        raise SourceFailed("it is not there any more", kind="not found", gone=True)
    if job.uri.endswith("errs.txt"):
        raise LookupError(job.uri)
    return read(job)

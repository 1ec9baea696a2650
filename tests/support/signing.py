"""A signer as a real process, for a site of a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from invirtibuilder.run import started_group
from tests.support.cannedworker import PATIENCE
from tests.support.place import ROOT, Place, until

PYTHON = (sys.executable, "-m", "invirtibuilder")
SOCKET = "run/sign.sock"


def apart(place: Place) -> None:
    """Have the site ask a signer, which is not there yet."""
    place.edit("site:\n", f"site:\n  signer: {SOCKET}\n")


def log(place: Place) -> Path:
    """What the signer has to say."""
    return place.log.with_name("signer.log")


@contextmanager
def signer(place: Place, *, python: Sequence[str] = PYTHON) -> Iterator[subprocess.Popen[bytes]]:
    """The real signer; ended with SIGTERM unless it was killed before."""
    told = log(place)
    before = told.read_text().count(" ready: ") if told.exists() else 0
    socket = str(place.directory / SOCKET)
    argv = [*python, "--config", str(place.config), "signer", "--listen", socket]
    with told.open("ab") as out, started_group(argv, cwd=ROOT, stderr=out) as it:
        until(lambda: told.read_text().count(" ready: ") > before or it.poll() is not None)
        assert it.poll() is None, told.read_text()
        yield it
        if it.poll() is None:
            os.kill(it.pid, signal.SIGTERM)
            assert it.wait(PATIENCE) == 0

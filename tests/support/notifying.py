"""A notifier as a real process, with a configuration that a test changes as it goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from invirtibuilder.hookcall import Hook
from invirtibuilder.run import started_group
from tests.support.cannedworker import PATIENCE
from tests.support.place import ROOT, until

PYTHON = (sys.executable, "-m", "invirtibuilder")


@contextmanager
def notifier(
    config: Path,
    socket: Path,
    *,
    python: Sequence[str] = PYTHON,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The real notifier; ended with SIGTERM unless it was killed before."""
    log = config.with_name("notifier.log")
    before = log.read_text().count(" ready: ") if log.exists() else 0
    argv = [*python, "--config", str(config), "notifier", "--listen", str(socket)]
    with log.open("ab") as out, started_group(argv, cwd=ROOT, env=env, stderr=out) as it:
        until(lambda: log.read_text().count(" ready: ") > before or it.poll() is not None)
        assert it.poll() is None, log.read_text()
        yield it
        if it.poll() is None:
            os.kill(it.pid, signal.SIGTERM)
            it.wait(PATIENCE)


def configure(
    config: Path,
    hooks: Sequence[Hook] = (),
    *,
    directory: Path | None = None,
    acl: Mapping[str, Sequence[Mapping[str, str] | str]] | None = None,
) -> None:
    """Write a configuration with these hooks and this ACL of the pocket `dev`, unless it is so."""
    value = {
        "site": {
            "name": "test",
            "directory": str(directory or config.parent),
            "tagger": {"name": "Test", "mail": "test@example.org"},
            "signing": {"key": "A" * 40},
        },
        "pockets": {"dev": {"suite": "bookworm", "acl": dict(acl or {})}},
        "hooks": [
            {
                "name": hook.name,
                "program": str(hook.program),
                "events": sorted(hook.events),
                "required": hook.required,
                "environment": dict(hook.environment),
                "timeout": hook.timeout,
            }
            for hook in hooks
        ],
    }
    text = yaml.safe_dump(value)
    if config.exists() and config.read_text() == text:
        return
    # Another file each time: two changes within a tick of the file system's clock are two.
    beside = config.with_suffix(".new")
    beside.write_text(text)
    beside.replace(config)

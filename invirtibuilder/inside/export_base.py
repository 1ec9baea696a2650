"""What the export's parts share: refusals, and commands with an environment built from nothing."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MAX_SHOWN = 20
"""Paths named in one reason."""

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "HOME": "/nonexistent",
}


PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36


def guard() -> None:
    """Keep the tools, which read hostile content as the same user, out of this process, and have
    what they leave behind become children of ours. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_DUMPABLE, 0), (PR_SET_CHILD_SUBREAPER, 1)):
        if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def alone() -> None:
    """End whatever a tool has left behind: nobody else writes here when this returns."""
    while True:
        for child in _children():
            os.kill(child, signal.SIGKILL)
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            time.sleep(0.001)


def _children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                # proc_pid_stat(5): the name in brackets may hold anything.
                fields = Path(f"/proc/{name}/stat").read_text("utf-8", "replace").rpartition(")")[2]
            except OSError:
                continue
            if int(fields.split()[1]) == os.getpid():
                found.append(int(name))
    return found


class Reason:
    """Why there is no source package: for a machine (`code`) and for a person."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        self.code = code
        self.message = message[:4000]
        self.hint = hint

    def as_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "hint": self.hint}


class Refusal(Exception):
    """The content cannot be exported faithfully, with all reasons found so far."""

    def __init__(self, reasons: Sequence[Reason]) -> None:
        super().__init__(reasons[0].message)
        self.reasons = list(reasons)


def refusal(code: str, message: str, hint: str = "") -> Refusal:
    """A refusal with one reason."""
    return Refusal([Reason(code, message, hint)])


def say(text: str) -> None:
    """A line of progress, on the log."""
    print(f"export: {text}", file=sys.stderr, flush=True)


def shown(data: bytes | str) -> str:
    """A path or a tool's words, without anything that acts on a terminal or breaks a line."""
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def listed(paths: Sequence[bytes]) -> str:
    """Some of these paths, and how many more there are."""
    more = len(paths) - MAX_SHOWN
    text = ", ".join(shown(path)[:200] for path in sorted(paths)[:MAX_SHOWN])
    return text + (f" and {more} more" if more > 0 else "")


class Ran:
    """A command's end: `code` and, where it was kept, its output."""

    def __init__(self, code: int, out: bytes) -> None:
        self.code = code
        self.out = out

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "backslashreplace").strip()


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: dict[str, str] | None = None,
    merged: bool = False,
    stdin: bytes | None = None,
) -> Ran:
    """Run a command to its end, keeping its output; with `merged` its errors too.

    The command goes to the log; so do its errors, and its output when that is merged. Never
    raises for its exit code.
    """
    print("+ " + shlex.join(argv), file=sys.stderr, flush=True)
    done = subprocess.run(
        list(argv),
        cwd=cwd,
        env={**ENVIRONMENT, **(env or {})},
        input=b"" if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else None,
        check=False,
    )
    if merged:
        log(done.stdout)
    return Ran(done.returncode, done.stdout)


def log(data: bytes) -> None:
    """A tool's words on the log, as they are."""
    sys.stderr.flush()
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """A directory of our own, which also serves as HOME and TMPDIR of every command."""
    path = Path(tempfile.mkdtemp(prefix="export.", dir=parent))
    (path / "tmp").mkdir()
    ENVIRONMENT.update(HOME=str(path / "tmp"), TMPDIR=str(path / "tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, onerror=_force)


def _force(function: object, name: str, _: object) -> None:
    # Unpacked content may have directories without write permission.
    path = Path(name)
    path.parent.chmod(0o700)
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lines(data: bytes) -> list[bytes]:
    """NUL-separated records, as git -z writes them."""
    return [record for record in data.split(b"\0") if record]

"""What a sandbox promises, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from invirtibuilder.run import CLEAN

BUILD_ID = 1000
"""The uid and gid of the unprivileged user inside."""

PROXY_PORT = 3128
"""Where the proxy listens inside, on 127.0.0.1, when a command has one."""


@dataclass(frozen=True, kw_only=True)
class Bind:
    """A file or directory of ours that is seen inside, read-only unless `writable`.

    Owners keep their ids: what is to be written from inside must be made with `make_tree`.
    The target and what is above it are made where they are missing, outside of the upper; no
    directory above it may be a symbolic link in the root.
    """

    source: Path
    target: str
    writable: bool = False

    def __post_init__(self) -> None:
        parts = self.target.split("/")
        if parts[0] or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]):
            raise ValueError(f"not a plain absolute path: {self.target!r}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run of a command with all its processes may use; None = not limited.

    Over one of them it is killed whole and `Outcome.limit` says which, or, for processes and
    file_size, the call inside fails and `Outcome.hits` says how often. What a sandbox cannot
    bind for all processes together it binds for each, and says so.
    """

    seconds: float = 3600
    """Wall clock, from the start of `run`."""
    idle_seconds: float | None = None
    """Seconds without any output."""
    output: int | None = None
    """Bytes of standard output and error together."""
    memory: int | None = None
    """Bytes of memory, file systems in memory included."""
    processes: int | None = None
    """Processes and threads."""
    file_size: int | None = None
    """Bytes of one file (RLIMIT_FSIZE)."""
    cpu_seconds: int | None = None
    """CPU seconds."""
    disk: int | None = None
    """Bytes on disk of all that it can write: the scratch directory and the writable binds."""
    reserve: int | None = None
    """Bytes that stay free on their file system; below that the machine is at fault."""


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """What a command may fetch by plain http (GET and HEAD) through 127.0.0.1:3128.

    Each entry is host, port and scheme: inside it is `http://HOST:PORT/` always, and the
    scheme (http or https) says how it is fetched outside; https with port 80 means port 443
    there, so that an https URI needs only its scheme changed for inside.
    """

    allowed: frozenset[tuple[str, int, str]]


def _no_environment() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command to run inside.

    `root` is the namespace's root with few capabilities; `build` is uid 1000 with none, and
    cannot gain any. `env` is added to a clean environment. Descriptors: standard input is
    empty unless given, and is handed over as it is; what is written to standard output and
    error is copied to the descriptors given (default: our standard error), which the command
    itself never holds, so it can append to a log but not rewrite it.
    """

    argv: tuple[str, ...]
    user: Literal["root", "build"]
    env: Mapping[str, str] = field(default_factory=_no_environment)
    cwd: str = "/"
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    proxy: Proxy | None = None

    def environment(self) -> dict[str, str]:
        """The whole environment inside."""
        own = {"HOME": "/root" if self.user == "root" else "/nonexistent"}
        if self.proxy:
            own["http_proxy"] = f"http://127.0.0.1:{PROXY_PORT}"
        return {**CLEAN, **own, **self.env}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended: its exit code, or minus the signal that killed it.

    `limit` names what it was killed for: time, idle, output, cpu_time, memory, disk, reserve or
    cancelled. `hits` says how often a limit was hit that only fails a call: processes, file_size.
    """

    code: int
    limit: str = ""
    hits: Mapping[str, int] = field(default_factory=dict)
    seconds: float


def never() -> bool:
    """Nobody cancels."""
    return False


class Sandbox(Protocol):
    """A place to run commands in; each run is a new one over the same files."""

    def run(self, command: Command, *, cancelled: Callable[[], bool] = never) -> Outcome:
        """Run to the end; no process of it is left. Raises MachineFault when it cannot start."""
        ...


__all__: Sequence[str] = (
    "BUILD_ID",
    "PROXY_PORT",
    "Bind",
    "Command",
    "Limits",
    "Outcome",
    "Proxy",
    "Sandbox",
    "never",
)

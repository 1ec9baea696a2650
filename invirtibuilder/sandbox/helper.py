"""Trusted programs of this machine, run as root of the sandbox's ids: they make its trees.

Unlike a sandbox this has the machine's files and network. Nothing submitted is in its reach.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from invirtibuilder.files import contained
from invirtibuilder.run import environment
from invirtibuilder.sandbox import kernel
from invirtibuilder.sandbox.ids import Entered, Ids, enter, fork_init, report
from invirtibuilder.sandbox.inner import plain_signals, reap_until

NAMESPACES = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
Standard = tuple[int | None, int, int]
PLACE = "/tmp"  # noqa: S108 (a tmpfs of its own)


def start(
    ids: Ids,
    argv: Sequence[str],
    *,
    directories: Mapping[str, Path],
    files: Mapping[str, str],
    output: int,
    errors: int,
    env: Mapping[str, str],
    stdin: int | None = None,
) -> Entered:
    """Start a program that finds `directories` and `files` at /tmp/NAME; see `ids.finish`.

    Its standard input is empty unless given. It and all that it starts die with us.
    """
    sources: dict[str, int] = {}

    def open_directories() -> None:
        for name, path in directories.items():
            sources[name] = os.open(path, os.O_PATH | os.O_DIRECTORY)

    def body(control: socket.socket) -> int:
        init = fork_init()
        if init == 0:
            _init(control, argv, sources, files, (stdin, output, errors), environment(env))
        return os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]) & 0xFF

    def session(_: socket.socket) -> None:
        os.setsid()

    return enter(ids, NAMESPACES, body, before=session, as_caller=open_directories)


def _init(
    control: socket.socket,
    argv: Sequence[str],
    sources: Mapping[str, int],
    files: Mapping[str, str],
    standard: Standard,
    env: Mapping[str, str],
) -> NoReturn:
    code = 70
    try:
        plain_signals()
        os.umask(0o022)
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("tmpfs", PLACE, "tmpfs", data="mode=1777")
        for name, fd in sources.items():
            Path(PLACE, name).mkdir()
            kernel.mount(f"/proc/self/fd/{fd}", f"{PLACE}/{name}", flags=kernel.MS_BIND)
        for name, text in files.items():
            file = contained(Path(PLACE), name)
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        kernel.mount("proc", "/proc", "proc")
        os.chdir("/")
        child = os.fork()
        if child == 0:
            _execute(control, argv, standard, env)
        code = reap_until(child) & 0xFF
    except BaseException as error:
        report(control, error)
    finally:
        os._exit(code)


def _execute(
    control: socket.socket, argv: Sequence[str], standard: Standard, env: Mapping[str, str]
) -> NoReturn:
    try:
        stdin, *others = standard
        if stdin is None:
            stdin = os.open("/dev/null", os.O_RDONLY)
        copies = [os.dup(fd) for fd in (stdin, *others)]
        for number, fd in enumerate(copies):
            os.dup2(fd, number, inheritable=True)
        os.execve(argv[0], list(argv), dict(env))  # noqa: S606
    except BaseException as error:
        report(control, error)
    finally:
        os._exit(127)

"""Run a command that may open no socket but unix ones: python -m tests.support.offline COMMAND...

As systemd's RestrictAddressFamilies=AF_UNIX does it, for the command and all that it starts, but
that whoever tries is killed (SIGSYS): nothing can try, fail and go on unnoticed.
"""

from __future__ import annotations

import os
import socket
import sys

import seccomp


def main(argv: list[str]) -> None:
    """Become the command."""
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    for call in ("socket", "socketpair"):
        rules.add_rule(seccomp.KILL_PROCESS, call, seccomp.Arg(0, seccomp.NE, int(socket.AF_UNIX)))
    for call in ("io_uring_setup", "io_uring_enter"):
        rules.add_rule(seccomp.KILL_PROCESS, call)
    rules.load()
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Who takes connections, without one being made: some would tell of one that says nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

LISTENS = "00010000"
"""The flags of a socket that listens (__SO_ACCEPTCON), as proc_net_unix(5) has them."""


def listens(path: Path, process: int | str = "self") -> bool:
    """Whether a unix socket of that path takes connections, in the process's network namespace.

    Its file is there earlier, and who connects then is refused.
    """
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process}/net/unix").read_text(errors="replace").splitlines()
        return any(
            words[3] == LISTENS and words[-1] == str(path)
            for line in lines
            if len(words := line.split(maxsplit=7)) == 8
        )
    return False

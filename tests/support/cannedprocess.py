"""The canned worker as a program, one process an order, that may be killed or frozen.

    python -m tests.support.cannedprocess SOCKET FOLDER SHARE SEED [FREEZE]

SHARE of the orders die by SIGKILL, before their result or in its midst. The first FREEZE builds
stop themselves by SIGSTOP before their result; FOLDER/frozen-NUMBER has their process id.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from invirtibuilder.engine import GO, receive_descriptors
from invirtibuilder.errors import Fault
from tests.support.cannedworker import Answer, Answerer, CannedWorker, Work


def dying(answer: Answerer, when: str) -> Answerer:
    """An answerer whose process is killed before, or with part of, its answer."""

    def answered(work: Work) -> Answer:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        made = answer(work)
        if when == "midst" and made.files:
            # What the result's writer cannot read is where it ends.
            made.files[-1].unlink()
            os.mkfifo(made.files[-1])
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        return made

    return answered


def freezing(answer: Answerer, folder: Path) -> Answerer:
    """An answerer whose process stops itself, and goes on when it is woken."""

    def answered(work: Work) -> Answer:
        number = len(list(folder.glob("frozen-*")))
        beside = folder / ".frozen"
        beside.write_text(str(os.getpid()))
        beside.rename(folder / f"frozen-{number}")
        os.kill(os.getpid(), signal.SIGSTOP)
        return answer(work)

    return answered


def serve(
    fds: list[int], socket_path: Path, share: float, chance: random.Random, freeze: int
) -> None:
    """One order, in the child."""
    worker = CannedWorker(socket_path)
    folder = Path(tempfile.gettempdir())
    if len(list(folder.glob("frozen-*"))) < freeze:
        worker.answers["build"] = freezing(worker.answers["build"], folder)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if chance.random() < share:
        when = chance.choice(("before", "midst"))
        worker.answers = {k: dying(a, when) for k, a in worker.answers.items()}
    worker._serve(fds)
    for error in worker.errors:
        print(f"canned worker: {error!r}", file=sys.stderr, flush=True)


def main() -> None:
    path, folder, share, seed = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4]
    freeze = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    tempfile.tempdir = folder
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    number = 0
    fork: Callable[[], int] = os.fork
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen(16)
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            # A daemon that was killed in between sends nothing.
            with connection, suppress(OSError, Fault):
                data, fds = receive_descriptors(connection, 4)
                if data != GO:
                    continue
                number += 1
                if fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    server.close()
                    with suppress(OSError):
                        connection.sendall(b"started\n")
                    connection.close()
                    serve(fds, path, share, random.Random(f"{seed}.{number}"), freeze)
                    os._exit(0)
                for fd in fds:
                    os.close(fd)


if __name__ == "__main__":
    main()

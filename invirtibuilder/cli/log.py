"""log: the stages with UTC times, then what the commands said."""

from __future__ import annotations

import argparse
import codecs
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from invirtibuilder.cli.command import Command, load_site
from invirtibuilder.jobs import Job, Jobs

POLL = 0.2
CHUNK = 1 << 16


class Log(Command):
    name = "log"
    description = "print a job's log: its stages, then the commands' output"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", help="an id, or a part of one")
        parser.add_argument(
            "--follow", "-f", action="store_true", help="go on until the job has ended"
        )

    def run(self, args: argparse.Namespace) -> int:
        job = Jobs(load_site(args).jobs).get(args.job)
        for text in pieces(job, follow=args.follow):
            sys.stdout.write(harmless(text))
            sys.stdout.flush()
        return 0


def harmless(text: str) -> str:
    """Log text for a terminal: no escape sequence of a build gets through."""
    return "".join(
        c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def pieces(job: Job, *, follow: bool) -> Iterator[str]:
    """The journal and each attempt's log, once; with `follow` as they grow, until the end."""
    readers: dict[Path, _Reader] = {}
    while True:
        final = job.status.final
        for path in log_files(job):
            if path not in readers:
                readers[path] = _Reader(path)
                if path.name == "log":
                    yield f"---- {path.parent.name} ----\n"
            yield from readers[path].more()
        if final or not follow:
            return
        time.sleep(POLL)


def log_files(job: Job) -> list[Path]:
    """The journal, then each attempt's log, oldest first."""
    logs = (job.directory / "attempts").glob("*/log")
    by_age = sorted(logs, key=lambda path: (path.parent / "order.tar").stat().st_mtime)
    return [p for p in (job.directory / "journal", *by_age) if p.exists()]


class _Reader:
    """Reads on where it ended, also within a character."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def more(self) -> Iterator[str]:
        """What has been written since."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while data := file.read(CHUNK):
                self._offset += len(data)
                yield self._decoder.decode(data)

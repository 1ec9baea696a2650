"""A job's log as it is read: the journal and each attempt's log, as they grow.

Without the imports of `jobs`, because door programs start at every call.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator

CHUNK = 1 << 16


def harmless(text: str) -> str:
    """Log text for a terminal: no escape sequence of a build gets through.

    >>> harmless("a\\x1b[2J\\n")
    'a\\\\x1b[2J\\n'
    """
    return "".join(
        c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def log_files(job: str | os.PathLike[str]) -> list[str]:
    """The journal of a job's directory, then each attempt's log, oldest first."""
    attempts = os.path.join(job, "attempts")
    try:
        folders = [os.path.join(attempts, name) for name in os.listdir(attempts)]
    except FileNotFoundError:
        folders = []
    started = [f for f in folders if os.path.exists(os.path.join(f, "log"))]
    started.sort(key=lambda folder: os.stat(os.path.join(folder, "order.tar")).st_mtime)
    files = [os.path.join(job, "journal"), *(os.path.join(f, "log") for f in started)]
    return [file for file in files if os.path.exists(file)]


class Tail:
    """What is new in all log files of a job."""

    def __init__(self, job: str | os.PathLike[str]) -> None:
        self._job = job
        self._readers: dict[str, _Reader] = {}

    def more(self) -> Iterator[str]:
        """What has been written since the last call, as it is; `harmless` is for terminals."""
        for path in log_files(self._job):
            if path not in self._readers:
                self._readers[path] = _Reader(path)
                if os.path.basename(path) == "log":
                    yield f"---- {os.path.basename(os.path.dirname(path))} ----\n"
            yield from self._readers[path].more()


class _Reader:
    """Reads on where it ended, also within a character."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def more(self) -> Iterator[str]:
        """What has been written since."""
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            while data := file.read(CHUNK):
                self._offset += len(data)
                yield self._decoder.decode(data)

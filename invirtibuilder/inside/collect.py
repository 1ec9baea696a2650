"""Collect results: a tar of plain files from a hostile tree, on standard output.

    python3 -I collect.py source DIRECTORY CAP    DIRECTORY/out/* and its report.json
    python3 -I collect.py binary DIRECTORY CAP    DIRECTORY/*.deb, *.udeb, *.buildinfo

Runs in a sandbox of its own after everything of the build has ended. Whatever is not a regular
file, has holes, or would make it all larger than CAP bytes is left out and named in the report.
The last member is `report.json`; for binaries it has the control fields of each `.deb`, as
`dpkg-deb` reads them.
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from typing import Any, BinaryIO

SUFFIXES = {"source": ("",), "binary": (".deb", ".udeb", ".buildinfo")}
FIELDS = ("Package", "Source", "Version", "Architecture", "Section", "Priority")


MAX_FILES = 2000


def main(mode: str, directory: str, cap: int) -> None:
    folder = os.path.join(directory, "out") if mode == "source" else directory
    report: dict[str, Any] = {}
    problems: list[str] = []
    debs: dict[str, dict[str, str]] = {}
    total = 0
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        for name in candidates(folder, SUFFIXES[mode], problems):
            try:
                with open_regular(os.path.join(folder, name)) as file:
                    if mode == "source" and name == "report.json":
                        report = json.load(file)
                        continue
                    size = os.fstat(file.fileno()).st_size
                    total += size
                    if total > cap:
                        raise ValueError(f"the results are larger than {cap} bytes")
                    if name.endswith("deb"):
                        debs[name] = control(name, os.path.join(folder, name))
                    add(tar, name, size, file)
            except (OSError, ValueError, RecursionError) as error:
                problems.append(f"{name}: {error}"[:500])
        if mode == "binary":
            report = {"debs": debs, "problems": problems[:50]}
        elif problems:
            reasons = [{"code": "bad-export", "message": text} for text in problems[:50]]
            report = {"ok": False, "reasons": reasons}
        data = json.dumps(report).encode()
        add(tar, "report.json", len(data), io.BytesIO(data))


def candidates(folder: str, suffixes: tuple[str, ...], problems: list[str]) -> list[str]:
    """The names that look like results, in order; none when there are too many."""
    names = [n for n in os.listdir(folder) if n.endswith(suffixes) and not n.startswith(".")]
    if len(names) > MAX_FILES:
        problems.append(f"more than {MAX_FILES} files")
        return []
    return sorted(names)


def open_regular(path: str) -> BinaryIO:
    """Open a regular file without holes, never through a link and never waiting on a FIFO."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError("not a regular file")
    # A hole costs a build nothing, and whoever copies it all of its size.
    size = os.fstat(fd).st_size
    if size and os.lseek(fd, 0, os.SEEK_HOLE) < size:
        os.close(fd)
        raise ValueError("a hole, where no tool of a build leaves one")
    os.lseek(fd, 0, os.SEEK_SET)
    return os.fdopen(fd, "rb")


def add(tar: tarfile.TarFile, name: str, size: int, content: BinaryIO | io.BytesIO) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    tar.addfile(info, content)


def control(name: str, path: str) -> dict[str, str]:
    """The fields that the daemon must know, each on one line."""
    done = subprocess.run(
        ["dpkg-deb", "--show", "--showformat", "".join(f"${{{f}}}\\n" for f in FIELDS), path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    values = done.stdout.decode("utf-8", "replace").split("\n")
    if done.returncode != 0 or len(values) != len(FIELDS) + 1:
        raise ValueError(f"{name} is not a Debian package: {done.stderr[-300:]!r}")
    return {f: v[:1000] for f, v in zip(FIELDS, values)}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

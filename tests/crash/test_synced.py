"""What counts after a power cut is on the disk before it counts: a trace of one publication."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from invirtibuilder.run import run
from invirtibuilder.spool import Spool
from tests.support import packages
from tests.support import place as places
from tests.support.place import ROOT, Place

CALLS = (
    *("openat", "open", "creat", "rename", "renameat", "renameat2", "link", "linkat", "mkdir"),
    *("mkdirat", "symlink", "symlinkat", "unlink", "unlinkat", "fsync", "fdatasync", "execve"),
)
FINAL = (
    *("jobs/*/*.json", "jobs/*/source", "jobs/*/artifacts", "events/*/*.json"),
    *("superproject.git/refs/heads/*", "superproject.git/objects/*/*"),
    *("packages/*.git/refs/tags/*/*", "packages/*.git/refs/invirtibuilder/*/*"),
    "packages/*.git/objects/*/*",
    *("archive/*/publications/*", "archive/*/by-hash/SHA256/*", "archive/*/private/db.txn"),
    *("archive/*/private/intent.json", "origs/*"),
)
"""What is not written to any more once it has its name."""

BEFORE = (
    *("superproject.git/objects", "packages/greet.git/objects", "archive/staging/publications"),
    *("archive/staging/by-hash", "archive/staging/pool", "archive/staging/private/db"),
    *("archive/staging/private/db.txn", "archive/staging/private/intent.json"),
)
"""What the commit point stands on."""

LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<(.*?)>)?")
TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
FD = re.compile(r"\d+<([^>]*)>")


@dataclass
class Disk:
    """What a disk may not have yet: content that was written, names that were given."""

    content: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    renamed: dict[str, set[str]] = field(default_factory=dict)

    def below(self, path: str) -> set[str]:
        """What of this path is not on disk."""
        return {p for p in self.content | self.names if p == path or p.startswith(f"{path}/")}

    def call(self, name: str, arguments: str, result: str) -> tuple[str, str] | None:
        """Take one system call in; source and target if it is a rename."""
        paths = TEXT.findall(arguments)
        if name in ("fsync", "fdatasync"):
            found = FD.match(arguments)
            assert found, arguments
            self.content.discard(found[1])
            self.names.discard(found[1])
        elif name in ("openat", "open", "creat"):
            writes = re.search(r"O_WRONLY|O_RDWR", arguments) and "O_TMPFILE" not in arguments
            if writes and re.search(r"O_CREAT|O_TRUNC", arguments):
                self.content.add(result)
                self.names.add(str(Path(result).parent))
        elif name in ("mkdir", "mkdirat", "symlink", "symlinkat", "unlink", "unlinkat"):
            self.names.add(str(Path(paths[-1]).parent))
            if name.startswith("unlink"):
                self.content.discard(paths[-1])
                self.names = {n for n in self.names if n != paths[-1]}
        elif name in ("link", "linkat"):
            self.names.add(str(Path(paths[1]).parent))
            if paths[0] in self.content:
                self.content.add(paths[1])
        else:
            source, target = paths
            self.renamed[target] = self.below(source)
            for kept in (self.content, self.names):
                for path in [p for p in kept if p == source or p.startswith(f"{source}/")]:
                    kept.discard(path)
                    kept.add(target + path.removeprefix(source))
            self.names.add(str(Path(target).parent))
            return source, target
        return None


def trace(place: Place, file: Path) -> list[tuple[str, str, str]]:
    """The successful calls of a daemon and its children, until it has nothing left to do."""
    argv = [sys.executable, "-m", "invirtibuilder", "--config", str(place.config), "daemon"]
    # An agent that the trace would see the start of, it would wait for the end of.
    place.context.signer(place.site.pockets["staging"]).sign(b"x\n")
    strace = ["strace", "-f", "-y", "-s", "4096", "-e", f"trace={','.join(CALLS)}", "-o", str(file)]
    run([*strace, *argv, "--drain"], cwd=ROOT, timeout=120)
    cut: dict[str, str] = {}
    spared: set[str] = set()
    calls = []
    for line in file.read_text(errors="replace").splitlines():
        pid, _, text = line.partition(" ")
        if text.endswith("<unfinished ...>"):
            cut[pid] = text.removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := re.match(r" *<\.\.\. \w+ resumed>(.*)", text):
            text = cut.pop(pid, "") + resumed[1]
        found = LINE.match(f"{pid} {text.strip()}")
        if not found or int(found[4]) < 0:
            continue
        if found[2] == "execve":
            # reprepro's own syncs are none: we sync what it wrote.
            spared |= {pid} if found[3].startswith('"/usr/bin/reprepro"') else set()
        elif pid not in spared or not found[2].endswith("sync"):
            calls.append((found[2], found[3], found[5] or ""))
    return calls


def test_a_publication_is_on_disk_before_its_commit(tmp_path: Path) -> None:
    with places.canned() as (place, _):
        repo = packages.native(tmp_path / "greet")
        place.package(repo)
        request = place.request("staging", repo)
        Spool(place.site.queue).put(request)
        top = place.directory
        calls = trace(place, tmp_path / "trace")
        disk, loose, seen, committed, forgotten = Disk(), {}, set(), False, False
        for name, arguments, result in calls:
            if name.startswith("unlink") and "/staging/private/intent.json" in arguments:
                # From now on nothing makes them. Those of the job, which go, may come back.
                refs = disk.below(f"{top}/packages/greet.git/refs")
                assert not {ref for ref in refs if "/refs/invirtibuilder/jobs/" not in ref}
                forgotten = committed
            moved = disk.call(name, arguments, result)
            if moved is None or not moved[1].startswith(f"{top}/"):
                continue
            target = Path(moved[1]).relative_to(top)
            for pattern in FINAL:
                if target.match(pattern):
                    seen.add(pattern)
                    if disk.renamed[moved[1]]:
                        loose[str(target)] = disk.renamed[moved[1]]
            if target.match("superproject.git/refs/heads/staging"):
                missing = {path: found for path in BEFORE if (found := disk.below(f"{top}/{path}"))}
                assert not missing
                committed = True
            if target.match("archive/staging/dists") and committed:
                # What clients see next is of a commit that stays.
                assert not disk.below(f"{top}/superproject.git/refs")
        assert not loose
        assert committed
        assert forgotten
        assert place.ended(request.id).status.state == "published"
    # Of all that is looked at, a native package lacks this only.
    assert set(FINAL) - seen == {"origs/*"}
    assert len(calls) > 500

"""A pusher's working tree, and commits with fixed authors and dates."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from invirtibuilder.run import Done, run

ROOT = Path(__file__).resolve().parents[2]

ENVIRONMENT = {
    "GIT_AUTHOR_NAME": "Ada Test",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "1750000000 +0000",
    "GIT_COMMITTER_NAME": "Ada Test",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_COMMITTER_DATE": "1750000000 +0000",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CEILING_DIRECTORIES": "/",
    # What the hook needs to find us; a site's hook script names the installed program.
    "PYTHONPATH": str(ROOT),
}


@dataclass(frozen=True)
class Work:
    """A working tree with a remote called origin."""

    path: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def init(
        cls, path: Path, origin: str | Path = "", env: Mapping[str, str] | None = None
    ) -> Work:
        path.mkdir(parents=True)
        work = cls(path, env or {})
        work.git("init", "--quiet", "--initial-branch=main")
        if origin:
            work.git("remote", "add", "origin", str(origin))
        return work

    def git(self, *args: str | Path, check: bool = True, stdin: bytes | None = None) -> Done:
        """Run git in the working tree."""
        argv: list[str | Path] = ["git", "-c", "protocol.file.allow=always", "-c", "gc.auto=0"]
        env = {**ENVIRONMENT, **self.env}
        return run([*argv, *args], cwd=self.path, env=env, check=check, stdin=stdin, timeout=60)

    def commit(self, message: str = "a commit", **contents: str) -> str:
        """Write files (a_b is the file `a_b`) and commit them; the commit's id."""
        for name, content in (contents or {"file": message + "\n"}).items():
            (self.path / name).write_text(content)
            self.git("add", "--", name)
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.head

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD").text

    def push(self, *args: str) -> Done:
        """Push to origin; look at the exit code."""
        return self.git("push", "--quiet", "origin", *args, check=False)

    def object(self, kind: str, data: bytes) -> str:
        """Write an object, however malformed."""
        args = ("hash-object", "-w", "--literally", "-t", kind, "--stdin")
        return self.git(*args, stdin=data).text


def write_pockets(path: Path, pockets: Mapping[str, Mapping[str, object]]) -> None:
    """The file that the hook reads."""
    path.write_text(json.dumps({"pockets": pockets}))


def hook(superproject: Path, pockets: Path, package: str) -> Sequence[str]:
    """The argv of a package's pre-receive hook, from this source tree."""
    program = [sys.executable, "-m", "invirtibuilder.door.receive"]
    options = ["--superproject", superproject, "--pockets", pockets, "--package", package]
    return [*program, *map(str, options)]


def many_commits(bare: Path, branch: str, count: int) -> list[str]:
    """A new branch with that many commits, the oldest first; the same ones each time."""
    lines = []
    for number in range(count):
        who = f"Ada <ada@example.org> {1750000000 + number} +0000"
        text = f"{branch} {number}\n"
        lines += [f"commit refs/heads/{branch}", f"committer {who}", f"data {len(text)}", text]
    run(["git", "fast-import", "--quiet"], cwd=bare, stdin="\n".join(lines).encode())
    return run(["git", "rev-list", "--reverse", branch], cwd=bare).text.split()

"""A system with invirtibuilder installed, as far as one test needs: accounts, paths, programs.

It is this machine's own, in a mount and a process namespace in which /etc, /usr, /run, /var/lib
and /var/log can be written without anybody noticing; whatever runs in it ends with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inotify_simple

from invirtibuilder.run import CLEAN, Done, run
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.ids import Ids

TOP = Path(__file__).parents[2]
ACCOUNTS = {
    "invirtibuilder": "/var/lib/invirtibuilder",
    "ib-submit": "/var/lib/ib-submit",
    "ib-git": "/var/lib/ib-git",
    "ib-sign": "/var/lib/ib-sign",
    "ib-notify": "/var/lib/ib-notify",
    "ib-build": "/var/lib/ib-build",
    "ib-build-untrusted": "/var/lib/ib-build-untrusted",
}
"""Each account's home directory."""
CODE = Path("/usr/lib/python3/dist-packages")
CONFIG = Path("/etc/invirtibuilder/invirtibuilder.yaml")
SITE = Path(ACCOUNTS["invirtibuilder"])
PROGRAM = """\
#!/usr/bin/python3
import sys
from invirtibuilder.cli.main import main
sys.exit(main())
"""
_FIRST = """\
import contextlib, os, time
print("made", flush=True)
while True:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    time.sleep(0.02)
"""
"""The first process: it takes in whom nobody else waits for."""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """The system, and what root does on it."""

    first: int
    disk: Path

    def argv(self, *words: str | Path) -> list[str]:
        """The words that run a command there."""
        return ["nsenter", "-t", str(self.first), "-m", "-p", "--", *(str(w) for w in words)]

    def run(self, *words: str | Path, **options: Any) -> Done:
        """Run a command there, as root."""
        return run(self.argv(*words), **options)

    def sh(self, script: str, *words: str | Path) -> str:
        """What a shell script that must succeed prints."""
        return self.run("sh", "-euc", script, "sh", *words).text

    def cli(self, account: str, *words: str, check: bool = True) -> Done:
        """Run `invirtibuilder WORDS` as an account."""
        home = f"HOME={ACCOUNTS.get(account, '/nonexistent')}"
        drop = (f"--reuid={account}", f"--regid={account}", "--init-groups")
        argv = ("env", home, "setpriv", *drop, "/usr/bin/invirtibuilder", *words)
        return self.run(*argv, check=check)

    def services(self, *words: str, **options: Any) -> Done:
        """Run `without-systemd WORDS`."""
        return self.run("/usr/share/invirtibuilder/without-systemd", *words, **options)

    def path(self, path: str | Path) -> Path:
        """The file there, as it can be reached from here."""
        return Path(f"/proc/{self.first}/root{path}")

    def process(self, service: str) -> int:
        """The id, here, of a service that without-systemd has started."""
        inside = self.path(f"/run/invirtibuilder/{service}.pid").read_text().strip()
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                spaces = status.read_text().split("NSpid:", 1)[1].split("\n", 1)[0].split()
                same = os.readlink(status.with_name("ns") / "pid")  # noqa: PTH115
                own = os.readlink(f"/proc/{self.first}/ns/pid")  # noqa: PTH115
                if spaces[-1] == inside and same == own:
                    return int(status.parent.name)
        raise AssertionError(f"{service} does not run")


_MAKE = """
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=0755 tmpfs /var/log
mount -t tmpfs -o mode=1777 tmpfs "$1/memory"
for path in etc usr var/lib; do
  mkdir -p "$1/memory/$path/upper" "$1/memory/$path/work"
  chmod 755 "$1/memory/$path/upper"
  over="lowerdir=/$path,upperdir=$1/memory/$path/upper,workdir=$1/memory/$path/work"
  mount -t overlay -o "$over" overlay "/$path"
done
"""


@contextlib.contextmanager
def installed(
    base: Base | None = None, ids: Ids | None = None, *, begun: bool = True
) -> Iterator[Installed]:
    """The system: accounts, code, directories and a site of `init`, nothing of which is running.

    With a base, the workers share it and have its subordinate ids. Without `begun` there is no
    site yet.
    """
    disk = Path(tempfile.mkdtemp(prefix="invirtibuilder-installed-", dir="/var/tmp"))
    disk.chmod(0o755)
    (disk / "memory").mkdir()
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    script = f'{_MAKE}\nexec python3 -Ic "$2"'
    ended: int | None = None
    with subprocess.Popen(
        [*argv, "sh", "-euc", script, "sh", str(disk), _FIRST],
        env=CLEAN,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as outer:
        try:
            assert outer.stdout
            assert outer.stdout.readline() == b"made\n"
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
            made = Installed(first=int(children.split()[0]), disk=disk)
            ended = os.pidfd_open(made.first)
            _furnish(made, base, ids)
            if begun:
                made.run("/usr/bin/invirtibuilder", "init", "--name", "test")
                # With the signer the pockets get their first publications.
                made.services("start", "signer")
                made.run("/usr/bin/invirtibuilder", "init")
                made.services("stop", "signer")
            yield made
        finally:
            outer.kill()
            outer.wait()
            if ended is not None:
                # The first process ends after all others, which write to the disk until then.
                select.select([ended], [], [], 60)
                os.close(ended)
            shutil.rmtree(disk)


def _furnish(made: Installed, base: Base | None, ids: Ids | None) -> None:
    """What the package and `init` make."""
    for name, home in ACCOUNTS.items():
        shell = "/bin/sh" if name in ("ib-submit", "ib-git") else "/usr/sbin/nologin"
        options = ["--system", "--user-group", "--no-create-home", "--home-dir", home]
        made.run("useradd", *options, "--shell", shell, name)
    made.run("usermod", "-aG", "ib-submit,ib-git", "invirtibuilder")
    for number, name in enumerate(("ib-build", "ib-build-untrusted")):
        own = [(16 + 2 * number) << 16, (17 + 2 * number) << 16]
        blocks = [ids.first_uid] if ids else own
        for first in blocks:
            block = f"{first}-{first + 65535}"
            made.run("usermod", "--add-subuids", block, "--add-subgids", block, name)
    for name in ("invirtibuilder", "ib-build", "ib-build-untrusted"):
        _directory(made, name, ACCOUNTS[name], 0o755 if name == "invirtibuilder" else 0o711)
    _directory(made, "ib-sign", ACCOUNTS["ib-sign"], 0o700)
    code = made.path(CODE)
    shutil.copytree(
        TOP / "invirtibuilder", code / "invirtibuilder", ignore=shutil.ignore_patterns("*.pyc")
    )
    shutil.copy(inotify_simple.__file__, code / "inotify_simple.py")
    program = made.path("/usr/bin/invirtibuilder")
    program.write_text(PROGRAM)
    program.chmod(0o755)
    shared = made.path("/usr/share/invirtibuilder")
    shared.mkdir()
    shutil.copy(TOP / "conf/without-systemd", shared)
    if base:
        for name in ("ib-build", "ib-build-untrusted"):
            made.sh(
                'install -d -o "$1" -g "$1" "$2" && ln -s "$3" "$2/bases"',
                *(name, f"{ACCOUNTS[name]}/slot-1", base.directory.parents[1]),
            )


def _directory(made: Installed, account: str, path: str, mode: int) -> None:
    """A home directory, which for builds has to be on a disk."""
    made.sh(
        'mkdir -p "$1" "$2" && mount --bind "$2" "$1" && chown "$3:$3" "$1" && chmod "$4" "$1"',
        *(path, made.disk / account, account, f"{mode:o}"),
    )

"""Clean Debian roots, as new as a machine after its installation, and programs that run in them.

A root is pivoted to in a mount namespace of its own: in a chroot there would be no sandboxes. It
has this machine's network, since nothing in it listens on more than the loopback interface.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.apt.mirror import machine_sources
from invirtibuilder.run import CLEAN, Done, run

ENTER = """
root=$1 binds=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mkdir -p old
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
for pair in $binds; do
  mkdir -p "$root${pair#*=}"
  mount --bind "${pair%%=*}" "$root${pair#*=}"
done
pivot_root . old
umount -l old
exec "$@"
"""
# A shell that waits for whatever it inherits, as PID 1 has to.
INIT = 'trap "exit 0" TERM; echo ready; while :; do sleep 1 & wait $!; done'
PATIENCE = 600


@contextmanager
def new_root(suite: str, packages: Sequence[str] = ()) -> Iterator[Path]:
    """A new Debian root from this machine's mirror, while the block runs."""
    include = [f"--include={','.join(packages)}"] if packages else []
    with tempfile.TemporaryDirectory(prefix="ib-root-", dir="/var/tmp") as folder:
        root = Path(folder, "root")
        sources = machine_sources(suite, ("main",)).encode()
        argv = ["mmdebstrap", "--variant=minbase", *include, suite, str(root), "-"]
        run(argv, stdin=sources, timeout=PATIENCE)
        for name in ("resolv.conf", "hosts"):
            shutil.copy(f"/etc/{name}", root / "etc" / name)
        yield root


@dataclass(frozen=True)
class Machine:
    """A root in which programs run, with a first process of its own."""

    root: Path
    pid: int

    @property
    def before(self) -> tuple[str, ...]:
        """The words that run a command there."""
        return ("nsenter", f"--target={self.pid}", "--mount", "--pid", "--root", "--wd")

    def run(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = PATIENCE,
    ) -> Done:
        """Run a command in it as root."""
        environment = {"HOME": "/root", "DEBIAN_FRONTEND": "noninteractive", **(env or {})}
        return run([*self.before, *argv], env=environment, check=check, timeout=timeout)

    def listening(self) -> dict[str, str]:
        """Each address, in hexadecimal, at which a process of it listens, and the process."""
        sockets = {}
        for name in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path("/proc/net", name).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == ("0A" if name.startswith("tcp") else "07"):
                    sockets[f"socket:[{words[9]}]"] = f"{name} {words[1]}"
        found: dict[str, str] = {}
        own = Path(f"/proc/{self.pid}/ns/pid").stat()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if not os.path.samestat((process / "ns/pid").stat(), own):
                    continue
                said = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                links = (str(fd.readlink()) for fd in (process / "fd").iterdir())
                found |= {sockets[link]: said for link in links if link in sockets}
        return found


@contextmanager
def machine(root: Path, binds: Mapping[Path, str] | None = None) -> Iterator[Machine]:
    """A root while the block runs, with directories of here at paths of there; all ends with it."""
    pairs = " ".join(f"{source}={target}" for source, target in (binds or {}).items())
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    argv += ["sh", "-ec", ENTER, "sh", str(root), pairs, "bash", "-c", INIT]
    with subprocess.Popen(
        argv, env=CLEAN, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield Machine(root, int(children))
        finally:
            process.kill()

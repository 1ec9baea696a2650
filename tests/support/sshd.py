"""A real sshd on loopback, with keys of its own, for one test."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.run import run, started_group
from tests.support.kdc import TRIES, free_port, says

SSHD = Path("/usr/sbin/sshd")


@dataclass(frozen=True, kw_only=True)
class Sshd:
    """How to get in."""

    port: int
    user: str
    folder: Path

    @property
    def ssh(self) -> str:
        """The command line of ssh, for GIT_SSH_COMMAND."""
        return shlex.join(self.argv("client"))

    def argv(self, key: str) -> list[str]:
        """The command line of ssh with this key, of those in the folder."""
        options = {
            "IdentityFile": self.folder / key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            # The default key exchange takes half a second of CPU.
            "KexAlgorithms": "curve25519-sha256",
        }
        return ["ssh", "-F", "none", *(f"-o{k}={v}" for k, v in options.items())]

    def url(self, path: Path) -> str:
        """The URL of a repository."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}{path}"


def make_key(folder: Path, name: str) -> str:
    """A new key, `name` and `name.pub` in the folder; what is in the latter."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name])
    return (folder / f"{name}.pub").read_text().strip()


@contextlib.contextmanager
def running(
    folder: Path,
    command: str = "exit 77",
    env: Mapping[str, str] | None = None,
    *,
    lines: str = "",
    server: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    user: str = "",
) -> Iterator[Sshd]:
    """An sshd whose one key is forced to `command` (a line for sh), with `env` set for it.

    `lines` are more of its configuration, and `server` is its own environment. `before` are words
    before its command, such as those that enter another system, and `user` is who logs in.
    """
    if not SSHD.exists():
        raise AssertionError("this test needs openssh-server (apt-get install openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in ("host", "client"):
        make_key(folder, name)
    (folder / "forced").write_text(f"#!/bin/sh\n{command}\n")
    (folder / "forced").chmod(0o755)
    key = (folder / "client.pub").read_text()
    (folder / "authorized_keys").write_text(f'restrict,command="{folder}/forced" {key}')
    env = env or {"LANG": "C.UTF-8"}
    set_env = " ".join(f'"{name}={value}"' for name, value in env.items())
    settings = (
        f"ListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        f"MaxStartups 50\nSetEnv {set_env}\n{lines}"
    )
    argv = [*before, str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    for _ in range(TRIES):
        port = free_port()
        names = f"[127.0.0.1]:{port},[localhost]:{port}"
        (folder / "known_hosts").write_text(f"{names} {host_key}\n")
        (folder / "sshd_config").write_text(f"Port {port}\n{settings}")
        with (
            (folder / "log").open("wb") as log,
            started_group(argv, env=server, stderr=log) as process,
        ):
            if says("Server listening on", folder / "log", process):
                name = user or pwd.getpwuid(os.geteuid()).pw_name
                yield Sshd(port=port, user=name, folder=folder)
                return
    raise AssertionError("sshd: " + (folder / "log").read_text())

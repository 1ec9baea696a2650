"""A Kerberos realm of the tests' own, and the real remctld: both on loopback, nothing in /etc."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from invirtibuilder.run import Done, run, started_group

REALM = "BUILD.TEST"
FOREIGN = "OTHER.TEST"
"""Another realm, whose tickets the first one trusts; it has an alice, too."""
ANONYMOUS = "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS"
USERS = ("alice", "bob", "carol")
SERVICE = "host/localhost"
PATIENCE = 60.0
TRIES = 5
"""Ports that are tried: between being found free and being used one may be taken."""


@dataclass(frozen=True, kw_only=True)
class Realm:
    """A running KDC; users have a keytab each, the service `host/localhost` one of its own."""

    directory: Path

    @property
    def env(self) -> dict[str, str]:
        """What makes a program use this realm, with no ticket."""
        return {
            "KRB5_CONFIG": str(self.directory / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(self.directory / "kdc.conf"),
            "KRB5CCNAME": "FILE:/nonexistent/cc",
        }

    @property
    def keytab(self) -> Path:
        """The keytab of `host/localhost`."""
        return self.directory / "host.keytab"

    def principal(self, name: str) -> str:
        """The whole principal of a user."""
        return f"{name}@{REALM}"

    def ticket(self, name: str, *options: str, env: Mapping[str, str] | None = None) -> Path:
        """A new credential cache of the user, with `options` for kinit and more environment."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory))
        argv = ["kinit", *options, "-c", f"FILE:{folder}/cc", "-k", "-t"]
        env = {**self.env, **(env or {})}
        run([*argv, self.directory / f"{name}.keytab", name], env=env, timeout=PATIENCE)
        return folder / "cc"

    def anonymous(self) -> dict[str, str]:
        """The environment of a client with an anonymous ticket (PKINIT without a certificate)."""
        cache = Path(tempfile.mkdtemp(prefix="anonymous-", dir=self.directory), "cc")
        run(["kinit", "-n", "-c", f"FILE:{cache}"], env=self.env, timeout=PATIENCE)
        return {**self.env, "KRB5CCNAME": f"FILE:{cache}"}

    def foreign(self) -> dict[str, str]:
        """The environment of a client with a ticket of the foreign alice."""
        cache = Path(tempfile.mkdtemp(prefix="foreign-", dir=self.directory), "cc")
        argv = ["kinit", "-c", f"FILE:{cache}", "-k", "-t", f"{self.directory}/foreign.keytab"]
        run([*argv, f"alice@{FOREIGN}"], env=self.env, timeout=PATIENCE)
        return {**self.env, "KRB5CCNAME": f"FILE:{cache}"}

    def of(self, name: str) -> dict[str, str]:
        """The environment of a client with a new ticket of the user."""
        return {**self.env, "KRB5CCNAME": f"FILE:{self.ticket(name)}"}


CLOCK = """
#define _GNU_SOURCE
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
int gettimeofday(struct timeval *restrict t, void *restrict z) {
    struct timespec s;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &s);
    t->tv_sec = s.tv_sec + (SECONDS);
    t->tv_usec = s.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *t) {
    struct timeval now;
    gettimeofday(&now, 0);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""


def shifted(folder: Path, seconds: int) -> dict[str, str]:
    """An environment in which Kerberos takes the clock to be that much ahead."""
    (folder / "clock.c").write_text(CLOCK)
    library = folder / f"clock{seconds}.so"
    macro = f"-DSECONDS={seconds}"
    run(["gcc", "-shared", "-fPIC", macro, "-o", library, folder / "clock.c"], timeout=60)
    return {"LD_PRELOAD": str(library)}


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _need(program: str, package: str) -> None:
    if not shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin"):
        raise AssertionError(f"this test needs {program} (apt-get install {package})")


def says(word: str, log: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a server says this, such as that it listens; whether it does before it ends."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        over = process.poll() is not None
        if log.exists() and word in log.read_text(errors="replace"):
            return True
        if over:
            return False
        time.sleep(0.02)
    raise AssertionError(f"no {word!r}: {log.read_text(errors='replace') if log.exists() else ''}")


def _configure(directory: Path, port: int) -> None:
    (directory / "krb5.conf").write_text(
        f"[libdefaults]\n default_realm = {REALM}\n dns_lookup_kdc = false\n"
        " dns_lookup_realm = false\n rdns = false\n dns_canonicalize_hostname = false\n"
        f" udp_preference_limit = 1\n"
        f"[realms]\n {REALM} = {{\n  kdc = 127.0.0.1:{port}\n"
        f"  pkinit_anchors = FILE:{directory}/kdc.pem\n }}\n"
        f" {FOREIGN} = {{\n  kdc = 127.0.0.1:{port}\n }}\n"
        f"[domain_realm]\n localhost = {REALM}\n"
        f"[logging]\n kdc = FILE:{directory}/kdc.log\n default = FILE:{directory}/krb5.log\n"
    )
    listen = f"127.0.0.1:{port}"
    (directory / "kdc.conf").write_text(
        f"[kdcdefaults]\n kdc_listen = {listen}\n kdc_tcp_listen = {listen}\n"
        "[realms]\n"
        + "".join(
            f" {name} = {{\n  database_name = {directory}/{name}\n"
            f"  key_stash_file = {directory}/{name}.stash\n  acl_file = {directory}/kadm5.acl\n"
            f"  pkinit_identity = FILE:{directory}/kdc.pem,{directory}/kdc.key\n"
            "  max_life = 10h\n }\n"
            for name in (REALM, FOREIGN)
        )
    )


def _certify(directory: Path) -> None:
    """The KDC's certificate for PKINIT: its key usage and name are those of RFC 4556, 3.2.4."""
    (directory / "openssl.cnf").write_text(
        f"[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = KDC of {REALM}\n"
        "[kdc]\nbasicConstraints = critical,CA:TRUE\n"
        "keyUsage = digitalSignature,keyEncipherment,keyCertSign\n"
        "extendedKeyUsage = 1.3.6.1.5.2.3.5\n"
        "subjectAltName = otherName:1.3.6.1.5.2.2;SEQUENCE:principal\n"
        f"[principal]\nrealm = EXP:0,GeneralString:{REALM}\nname = EXP:1,SEQUENCE:typed\n"
        "[typed]\ntype = EXP:0,INTEGER:1\nparts = EXP:1,SEQUENCE:parts\n"
        f"[parts]\nfirst = GeneralString:krbtgt\nsecond = GeneralString:{REALM}\n"
    )
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    argv += ["-config", str(directory / "openssl.cnf"), "-extensions", "kdc"]
    run([*argv, "-keyout", directory / "kdc.key", "-out", directory / "kdc.pem"], timeout=60)


def _populate(realm: Realm) -> None:
    """The principals of both realms, and the way from the foreign one into ours."""
    directory = realm.directory
    principals = {
        REALM: [(SERVICE, "host"), *((user, user) for user in USERS)],
        FOREIGN: [("alice", "foreign")],
    }
    for name, keytabs in principals.items():
        run(
            ["kdb5_util", "-r", name, "create", "-s", "-P", "master"],
            env=realm.env,
            timeout=60,
        )
        lines = [f"addprinc -pw trusted krbtgt/{REALM}@{FOREIGN}"]
        if name == REALM:
            lines.append("addprinc -randkey WELLKNOWN/ANONYMOUS")
        for principal, keytab in keytabs:
            lines.append(f"addprinc -randkey {principal}")
            lines.append(f"ktadd -k {directory}/{keytab}.keytab -norandkey {principal}")
        commands = "\n".join([*lines, ""]).encode()
        run(["kadmin.local", "-r", name], env=realm.env, stdin=commands, timeout=60)


@contextlib.contextmanager
def kdc() -> Iterator[Realm]:
    """A new realm with alice, bob and carol, and its KDC running, which is a foreign one's, too."""
    _need("krb5kdc", "krb5-kdc")
    _need("kadmin.local", "krb5-admin-server")
    _need("kinit", "krb5-user")
    directory = Path(tempfile.mkdtemp(prefix="ib-kdc-"))
    realm = Realm(directory=directory)
    _configure(directory, free_port())
    try:
        _certify(directory)
        _populate(realm)
        with _running(realm):
            yield realm
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def _running(realm: Realm) -> Iterator[None]:
    argv = ["krb5kdc", "-n", "-r", REALM, "-r", FOREIGN, "-P", str(realm.directory / "kdc.pid")]
    log, out = realm.directory / "kdc.log", realm.directory / "out"
    for _ in range(TRIES):
        _configure(realm.directory, free_port())
        with (
            out.open("wb") as file,
            started_group(argv, env=realm.env, stdout=file, stderr=file) as process,
        ):
            if says("commencing operation", log, process):
                yield
                return
    raise AssertionError(f"no KDC: {log.read_text()}\n{out.read_text(errors='replace')}")


@pytest.fixture(scope="session")
def realm() -> Iterator[Realm]:
    """The tests' realm, one for all of them."""
    with kdc() as it:
        yield it


@contextlib.contextmanager
def remctld(
    realm: Realm,
    conf: Path,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    *,
    backlog: int = 128,
) -> Iterator[int]:
    """The real remctld with this configuration file; yields its port. It logs to `log`.

    It gets its socket as from systemd (sd_listen_fds(3)), so that nobody takes the port meanwhile.
    """
    _need("remctld", "remctl-server")
    with tempfile.TemporaryDirectory(prefix="ib-remctld-") as folder, socket.socket() as listener:
        log = log or Path(folder, "log")
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
        # As the socket unit has it: connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.listen(backlog)
        argv = ["remctld", "-m", "-F", "-S", "-k", str(realm.keytab), "-f", str(conf)]
        argv += ["-P", f"{folder}/pid"]
        line = f'exec env LISTEN_FDS=1 LISTEN_PID=$$ "$@" 3<&{listener.fileno()}'
        argv = ["bash", "-c", line, "bash", *argv]  # sh takes no descriptor over 9
        before = log.stat().st_size if log.exists() else 0
        with (
            log.open("ab") as out,
            started_group(
                argv,
                env={**realm.env, **(env or {})},
                stdout=out,
                stderr=out,
                pass_fds=[listener.fileno()],
            ) as it,
        ):
            # Not when it takes connections: its socket does that without it.
            end = time.monotonic() + PATIENCE
            while not (said := log.read_bytes()[before:]) and time.monotonic() < end:
                time.sleep(0.01)
            assert said
            assert it.poll() is None, said
            yield port


def remctl(
    realm: Realm,
    who: str | Mapping[str, str],
    port: int,
    *command: str | bytes,
    check: bool = False,
) -> Done:
    """The real remctl, as a user (with a new ticket) or with this environment."""
    _need("remctl", "remctl-client")
    env = realm.of(who) if isinstance(who, str) else who
    argv: list[str] = ["remctl", "-p", str(port), "-s", SERVICE, "localhost"]
    # run() makes text of arguments; surrogates carry bytes that are no UTF-8 through it.
    argv += [c if isinstance(c, str) else c.decode("utf-8", "surrogateescape") for c in command]
    return run(argv, env=env, check=check, timeout=120)

"""The door over ssh: the three log-ins of conf/remctl/README.rst, with a real sshd."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from invirtibuilder.run import Done, run, started_group
from tests.support import sshd
from tests.support.doors import ALICE, BOB, CAROL, CONF, USER, Door, followers, installed
from tests.support.place import until
from tests.support.sshd import Sshd

HERE = "/etc/invirtibuilder"
README = (CONF / "README.rst").read_text()


def shown(title: str) -> str:
    """The `sshd_config` that README.rst has for a way to log in, for this account."""
    section = README.partition(f"**{title}.**")[2].partition("**")[0]
    found = re.search(r"(?m)^    Match User ib-submit\n(?:      .+\n)+", section)
    assert found
    return found[0].replace("ib-submit", USER)


@dataclass(frozen=True, kw_only=True)
class Login:
    """A way in: `who` is a key's name or, with a realm, whose ticket."""

    server: Sshd
    door: Door
    tickets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __call__(self, who: str, *words: str, options: tuple[str, ...] = ()) -> Done:
        """`ssh HOST WORDS`; what is wrong with ssh itself, too, is 255."""
        argv, env = self.argv(who, options)
        return run([*argv, *words], env=env, check=False, timeout=60)

    def argv(self, who: str, options: tuple[str, ...]) -> tuple[list[str], Mapping[str, str]]:
        """ssh to the server, and its environment."""
        env = self.tickets.get(who, {})
        argv = self.server.argv("client" if env else who)
        if env:
            argv += ["-oGSSAPIAuthentication=yes", "-oPreferredAuthentications=gssapi-with-mic"]
        argv += [*options, "-p", str(self.server.port), f"{self.server.user}@localhost"]
        return argv, env


def behaves(ssh: Login, tmp_path: Path, alice: str, bob: str, principal: str = ALICE) -> None:
    """What holds however one has logged in."""
    door = ssh.door
    before = door.known
    summary = ssh(alice, "build help")
    assert summary.code == 0, summary.err
    assert summary.text.endswith(f"You are {principal}. Your pockets: dev, staging")
    # Nothing is for a shell: these are arguments.
    marker = tmp_path / "marker"
    with shared(ssh, alice) as over:
        for line, code in (
            (f"build submit dev greet ;touch {marker}", 64),
            (f"build submit dev greet main;touch {marker}", 64),
            (f"build submit dev greet 'main;touch {marker}'", 3),
            (f"build submit dev greet $(touch {marker})", 64),
            (f"build submit dev greet '$(touch {marker})'", 3),
            (f"build submit dev greet '`touch {marker}`'", 3),
            (f"build queue > {marker}", 64),
            ("build status --help", 65),
            ("build submit dev greet --upload-pack=touch", 3),
            ("build submit dev greet ''", 3),
            ("build submit prod greet main", 77),
            ("build", 64),
            # remctl-shell's own refusals: no such command, none at all, half a quotation.
            (f"touch {marker}", 255),
            ("id", 255),
            ("", 1),
            ("build submit 'dev", 1),
        ):
            done = ssh(alice, *([line] if line else []), options=over)
            assert done.code == code, (line, done)
            assert not done.out, line
    assert not marker.exists()
    assert ssh(bob, "build submit staging greet main").code == 77
    # The log-in is for commands of the door and for nothing else.
    for options, words in (
        (("-W", f"127.0.0.1:{door.port}"), ()),
        (("-oExitOnForwardFailure=yes", "-R0:127.0.0.1:1"), ("build help",)),
        (("-s",), ("sftp",)),
    ):
        done = ssh(alice, *words, options=options)
        assert done.code not in (0, 77), (options, done)
        assert b"Your pockets" not in done.out
    assert b"PTY allocation request failed" in ssh(alice, "build help", options=("-tt",)).err
    assert door.known == before
    done = ssh(alice, "build submit dev greet main")
    assert done.code == 0, done.err
    job = door.place.ended(done.text)
    assert (job.request.principal, job.request.via) == (principal, "ssh")
    assert job.request.addr == "127.0.0.1"


@contextlib.contextmanager
def shared(ssh: Login, who: str) -> Iterator[tuple[str, ...]]:
    """Options with which calls share one log-in, which takes most of a call."""
    with tempfile.TemporaryDirectory(prefix="ib-ssh-") as folder:
        path = Path(folder, "it")
        argv, env = ssh.argv(who, ("-M", "-N", "-S", str(path)))
        with started_group(argv, env=env):
            until(path.exists)
            yield ("-S", str(path))


@contextlib.contextmanager
def rooted(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """A directory as /etc/invirtibuilder: root's, up to the top, which /tmp is not."""
    path = Path(tempfile.mkdtemp(prefix="invirtibuilder-test-", dir="/var/lib"))
    path.chmod(0o755)
    try:
        for name in names:
            text = (CONF / name).read_text().replace(HERE, str(path))
            (path / name).write_text(text)
            (path / name).chmod(0o755)
        shutil.copy(folder / "conf", path / "remctl-shell")
        yield path
    finally:
        shutil.rmtree(path)


def test_keys_in_a_file_of_sshds(door: Door, tmp_path: Path) -> None:
    folder = installed(door.place, shell=True)
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    found = re.search(r'(?m)^    (restrict,command=".* )alice@ssh" ssh-ed25519 …$', README)
    assert found
    options = found[1].replace(f"{HERE}/remctl-shell", f"{folder}/conf")
    lines = {who: f'{options}{who}" {sshd.make_key(keys, who)}\n' for who in (ALICE, BOB, CAROL)}
    sshd.make_key(keys, "stranger")
    (tmp_path / "authorized").write_text("".join(lines.values()))
    config = shown("Keys in a file of sshd's").replace(
        f"{HERE}/authorized_keys", str(tmp_path / "authorized")
    )
    with sshd.running(keys, lines=config) as server:
        ssh = Login(server=server, door=door)
        behaves(ssh, tmp_path, ALICE, BOB)
        for who in (CAROL, "stranger"):
            done = ssh(who, "build submit dev greet main")
            assert (done.code, done.out) == (255, b"")
        assert b"Permission denied (publickey)" in done.err
        # A log that is followed ends with the caller.
        with door.worker.held("build") as held:
            job = ssh(ALICE, "build submit dev greet main").text
            held.wait()
            argv, env = ssh.argv(ALICE, ())
            with started_group([*argv, f"build log {job} follow"], env=env) as client:
                until(lambda: followers(job), "nobody follows")
                client.kill()
                client.wait()
                until(lambda: not followers(job), "it follows for ever")


@pytest.mark.root
def test_keys_in_a_list_of_principals(door: Door, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    with rooted(installed(door.place, shell=True), ("build-keys",)) as path:
        lines = [f"{who} {sshd.make_key(keys, who)}" for who in (ALICE, BOB, CAROL)]
        (path / "keys").write_text("# by principal\n\n" + "\n".join(lines) + "\n")
        sshd.make_key(keys, "stranger")
        config = shown("Keys in a list of principals").replace(HERE, str(path))
        with sshd.running(keys, lines=config) as server:
            ssh = Login(server=server, door=door)
            behaves(ssh, tmp_path, ALICE, BOB)
            for who in (CAROL, "stranger"):
                assert ssh(who, "build submit dev greet main").code == 255
            # A key that is taken out of the list is gone at once.
            (path / "keys").write_text(lines[1])
            assert ssh(ALICE, "build help").code == 255
            assert ssh(BOB, "build help").code == 0
            # Nor does a file count that somebody else might have written.
            (path / "keys").chmod(0o664)
            assert ssh(BOB, "build help").code == 255


@pytest.mark.root
def test_hostile_lists_of_keys(door: Door, tmp_path: Path) -> None:
    alice, bob = (sshd.make_key(tmp_path, who).rsplit(" ", 1)[0] for who in ("a", "b"))
    evil = tmp_path / "evil"
    bad = [
        *(f"{who} {alice}" for who in ("a;id@R", "$(id)@R", "`id`@R", 'a"@R', "a'@R", "a\\@R")),
        *(f"{who} {alice}" for who in ("-f@R", "a@R,b", "alice", "*", "a@", "@R", "\u00e4@R")),
        *(f"{who} {alice}" for who in ("a@R\x1b", "a@\x00R", "a//b@R")),
        # The principal with a space, options before the key, no key, half of one.
        *(f"a b@R {alice}", f'a@R command="touch {evil}" {alice}', "a@R", "a@R ssh-ed25519"),
        *("a@R ssh-ed25519 AAAA", f"a@R SSH-ED25519 {alice.split()[1]}", f"a@R {alice}!"),
        *(alice, f"restrict {alice}", "\udcff".encode("utf-8", "surrogateescape").decode("latin1")),
    ]
    with rooted(installed(door.place, shell=True), ("build-keys",)) as path:
        program, file = path / "build-keys", path / "keys"

        def asked(key: str) -> str:
            return run([program, USER, *key.split()]).text

        file.write_text("\n".join(bad) + f"\nbob/x-1.y@R {bob} whatever 'it'; $(is)\n")
        assert asked(alice) == ""
        assert asked(bob) == (
            f'restrict,command="/usr/sbin/remctl-shell -f {path}/remctl-shell bob/x-1.y@R" {bob}'
        )
        done = run([program], check=False)
        assert done.code == 65
        assert done.err.decode().splitlines() == [
            f"{file}:{number}: not PRINCIPAL TYPE KEY" for number in range(1, len(bad) + 1)
        ]
        # One key, two names: nobody knows whose it is. Twice the same name is once.
        file.write_text(f"a@R {alice}\nb@R {bob}\nc@R {alice} other\nb@R {bob}\na@R {alice}\n")
        assert (asked(alice), asked(bob).endswith(bob)) == ("", True)
        done = run([program], check=False)
        assert (done.code, done.err.decode().splitlines()) == (
            65,
            [f"{file}:3: this key is a@R's, too; it is nobody's"],
        )
        file.write_text(f"a@R {alice}\n")
        assert (run([program]).code, asked(alice) != "") == (0, True)
        assert run([program, USER, "ssh-ed25519"], check=False).code == 64
        os.chown(file, 65534, 0)
        assert asked(alice) == ""
        os.chown(file, 0, 0)
        file.write_bytes(f"a@R {alice}\n".encode() + b"#" * (16 << 20))
        assert asked(alice) == ""
        file.unlink()
        os.mkfifo(file, 0o644)
        assert asked(alice) == ""
        file.unlink()
        assert (asked(alice), run([program], check=False).code) == ("", 65)


def test_a_kerberos_ticket(door: Door, tmp_path: Path) -> None:
    realm = door.realm
    folder = installed(door.place, shell=True)
    program = tmp_path / "build-by-ticket"
    text = (CONF / "build-by-ticket").read_text()
    program.write_text(text.replace(f"{HERE}/remctl-shell", f"{folder}/conf"))
    program.chmod(0o755)
    config = shown("A Kerberos ticket").replace(f"{HERE}/build-by-ticket", str(program))
    # Not ~/.k5login, which is somebody's own; nor the machine's name, which has no keytab here.
    logins = tmp_path / "logins"
    logins.mkdir()
    (logins / USER).write_text(f"{ALICE}\n{BOB}\nmallory@BUILD.TEST\n")
    (tmp_path / "krb5.conf").write_text(
        f"[libdefaults]\n k5login_directory = {logins}\n"
        + (realm.directory / "krb5.conf").read_text()
    )
    env = {"KRB5_CONFIG": str(tmp_path / "krb5.conf"), "KRB5_KTNAME": str(realm.keytab)}
    tickets = {who: realm.of(who) for who in ("alice", "bob", "carol")}
    tickets |= {"foreign": realm.foreign(), "anonymous": realm.anonymous(), "none": realm.env}
    lines = f"GSSAPIStrictAcceptorCheck no\n{config}"
    with sshd.running(tmp_path / "sshd", lines=lines, server=env) as server:
        ssh = Login(server=server, door=door, tickets=tickets)
        behaves(ssh, tmp_path, "alice", "bob")
        for who in ("carol", "foreign", "anonymous", "none", "client"):
            done = ssh(who, "build submit dev greet main")
            assert (done.code, done.out) == (255, b""), who
            assert b"Permission denied" in done.err, who
        # One who may log in, and whom no ACL names.
        (logins / USER).write_text(f"{CAROL}\n")
        done = ssh("carol", "build submit dev greet main")
        assert (done.code, done.out) == (255, b"")
        assert b"Permission denied" not in done.err
    # Without what sshd has written down nobody is anybody.
    (tmp_path / "auth").write_text("publickey ssh-ed25519 AAAA\n")
    for where in ({}, {"SSH_USER_AUTH": str(tmp_path / "auth")}):
        more = {"SSH_ORIGINAL_COMMAND": "build help", "SSH_CONNECTION": "::1 1 ::1 2"}
        done = run([program], env={**more, **where}, check=False)
        assert (done.code, done.out) == (77, b"")

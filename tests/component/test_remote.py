"""The remctl client with a real KDC: against the real remctld, and against servers that lie."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gssapi
import pytest

from invirtibuilder import remctl
from invirtibuilder.cli import remote as cli
from invirtibuilder.cli.remote import VERBS, resolved
from invirtibuilder.door import remctl as door
from invirtibuilder.errors import Denied, Fault, MachineFault, NotFound, Refused, Unavailable
from invirtibuilder.remctl import Connection
from invirtibuilder.run import Done, run, started_group
from tests.support import doors, packages
from tests.support import place as places
from tests.support.gitwork import Work
from tests.support.kdc import Realm, remctld, shifted
from tests.support.place import ROOT

SCRIPT = f"""#!{sys.executable} -IS
import hashlib, json, os, signal, sys, time
verb, args = sys.argv[1], [os.fsencode(a) for a in sys.argv[2:]]
if verb == "args":
    print(json.dumps([[len(a), hashlib.sha256(a).hexdigest()] for a in args]))
elif verb == "both":
    print("to standard output", flush=True)
    time.sleep(0.1)
    sys.exit("to standard error")
elif verb == "exit":
    sys.exit(int(args[0]))
elif verb == "big":
    for number in range(int(args[0])):
        sys.stdout.buffer.write(b"%07d\\n" % number * 8192)
elif verb == "stdin":
    data = sys.stdin.buffer.read()
    print(len(data), hashlib.sha256(data).hexdigest())
elif verb == "signal":
    os.kill(os.getpid(), signal.SIGKILL)
elif verb == "cut":
    print("so far", flush=True)
    for _ in range(1000):
        if not os.path.exists(args[0]):
            time.sleep(0.05)
    os.kill(os.getppid(), signal.SIGKILL)
elif verb == "sleep":
    time.sleep(float(args[0]))
"""


@dataclass
class Heard:
    """What a command said, stream by stream."""

    out: bytes = b""
    err: bytes = b""

    def __call__(self, stream: int, data: bytes) -> None:
        if stream == 1:
            self.out += data
        else:
            self.err += data


@dataclass(frozen=True, kw_only=True)
class Masked(Realm):
    """A realm in which `host/localhost` has the key of somebody else."""

    @property
    def keytab(self) -> Path:
        return self.directory / "bob.keytab"


@pytest.fixture(scope="module")
def server(realm: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The real remctld with the script above; its port."""
    folder = tmp_path_factory.mktemp("remctld")
    (folder / "script").write_text(SCRIPT)
    (folder / "script").chmod(0o755)
    (folder / "conf").write_text(
        f"test stdin {folder}/script stdin=2 ANYUSER\n"
        f"test ALL {folder}/script ANYUSER\n"
        f"bob ALL {folder}/script princ:{realm.principal('bob')}\n"
    )
    with remctld(realm, folder / "conf") as port:
        yield port


@pytest.fixture()
def alice(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has alice's ticket."""
    become(monkeypatch, realm.of("alice"))


def become(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture()
def connection(server: int, alice: None) -> Iterator[Connection]:
    with Connection("localhost", server) as it:
        yield it


def test_both_streams_and_the_exit_code(connection: Connection) -> None:
    heard = Heard()
    assert connection.command([b"test", b"both"], heard) == 1
    assert heard == Heard(b"to standard output\n", b"to standard error\n")


def test_several_commands_on_one_connection(connection: Connection) -> None:
    for code in (0, 3, 77, 254):
        assert connection.command([b"test", b"exit", b"%d" % code], Heard()) == code
        assert connection.noop()
    heard = Heard()
    with pytest.raises(Denied, match="Access denied"):
        connection.command([b"bob", b"exit", b"0"], heard)
    with pytest.raises(NotFound, match="Unknown command"):
        connection.command([b"nothing", b"here"], heard)
    with pytest.raises(NotFound):
        connection.command([b"help", b"test"], heard)
    assert heard == Heard()
    assert connection.command([b"test", b"exit", b"5"], heard) == 5


@pytest.mark.parametrize(
    "args",
    [
        [],
        [b""],
        [b"two words", b"$(id)", b"--help", b"a\nb\r\tc", b"", b"\xff\xfe", "ä".encode()],
        [b"x" * (64 << 10)],
        [b"%d" % n * 60 for n in range(4000)],
        [bytes([65 + n]) * (64 << 10) for n in range(16)],
    ],
    ids=["none", "empty", "odd", "64K", "many", "1M"],
)
def test_arguments(connection: Connection, args: list[bytes]) -> None:
    heard = Heard()
    assert connection.command([b"test", b"args", *args], heard) == 0
    assert json.loads(heard.out) == [[len(a), hashlib.sha256(a).hexdigest()] for a in args]


def test_one_argument_of_a_mebibyte(connection: Connection) -> None:
    # Linux takes 128 KiB an argument at most; remctld can pass one on standard input.
    heard, data = Heard(), os.urandom(1 << 20)
    assert connection.command([b"test", b"stdin", data], heard) == 0
    assert heard.out.split() == [b"%d" % len(data), hashlib.sha256(data).hexdigest().encode()]


def test_nul_in_an_argument_is_refused_by_the_server(connection: Connection) -> None:
    with pytest.raises(Unavailable, match="Invalid command"):
        connection.command([b"test", b"args", b"a\0b"], Heard())


def test_much_output(connection: Connection) -> None:
    heard = Heard()
    assert connection.command([b"test", b"big", b"80"], heard) == 0
    assert heard.out == b"".join(b"%07d\n" % n * 8192 for n in range(80))
    assert len(heard.out) == 5 << 20


def test_a_command_that_is_killed(connection: Connection) -> None:
    assert connection.command([b"test", b"signal"], Heard()) == 255


def test_a_silent_command(connection: Connection) -> None:
    assert connection.command([b"test", b"sleep", b"0.3"], Heard(), silence=None) == 0
    with pytest.raises(Unavailable) as caught:
        connection.command([b"test", b"sleep", b"1"], Heard(), silence=0.2)
    assert caught.value.code == "time-out"
    with pytest.raises(Unavailable) as caught:
        connection.command([b"test", b"exit", b"0"], Heard())
    assert caught.value.code == "closed"


def test_a_server_that_is_killed_in_mid_call(connection: Connection, tmp_path: Path) -> None:
    heard, mark = Heard(), tmp_path / "heard"

    def hear(stream: int, data: bytes) -> None:
        heard(stream, data)
        mark.touch()

    with pytest.raises(Unavailable) as caught:
        connection.command([b"test", b"cut", os.fsencode(mark)], hear)
    assert caught.value.code == "connection-lost"
    assert heard.out == b"so far\n"


def test_no_ticket(server: int, realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, realm.env)
    with pytest.raises(Denied) as caught:
        Connection("localhost", server)
    assert (caught.value.code, caught.value.hint) == ("no-ticket", "kinit")


def test_expired_ticket(server: int, realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = realm.ticket("alice", "-l", "1s")
    become(monkeypatch, {**realm.env, "KRB5CCNAME": f"FILE:{cache}"})
    time.sleep(3.5)  # whole seconds, on both sides
    with pytest.raises(Denied, match="expired") as caught:
        Connection("localhost", server)
    assert (caught.value.code, caught.value.hint) == ("expired", "kinit")


@pytest.mark.usefixtures("alice")
def test_service(server: int) -> None:
    for service in ("host", "host/localhost", "host/localhost@BUILD.TEST"):
        with Connection("localhost", server, service) as it:
            assert it.command([b"test", b"exit", b"4"], Heard()) == 4
    for host, service in (("localhost", "HTTP"), ("127.0.0.1", "host"), ("localhost", "host/x")):
        with pytest.raises(Unavailable, match="not found in Kerberos") as caught:
            Connection(host, server, service)
        assert caught.value.code == "no-service"


@pytest.mark.usefixtures("alice")
def test_nobody_there() -> None:
    with socket.socket() as bound:
        # So that it is nobody else's; nobody listens.
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="refused") as caught:
            Connection("localhost", bound.getsockname()[1])
    assert caught.value.code == "no-connection"
    with pytest.raises(Unavailable) as caught:
        Connection("localhost", 65536)
    assert caught.value.code == "no-connection"


@pytest.mark.usefixtures("alice")
def test_a_server_without_the_key(realm: Realm, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("test ALL /bin/true ANYUSER\n")
    with remctld(Masked(directory=realm.directory), tmp_path / "conf") as port:
        with pytest.raises(Unavailable) as caught:
            Connection("localhost", port)
        assert caught.value.code in ("gss", "connection-lost")


@pytest.mark.usefixtures("alice")
def test_clocks_that_differ(realm: Realm, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("test ALL /bin/true ANYUSER\n")
    with remctld(realm, tmp_path / "conf", env=shifted(tmp_path, 900)) as port:
        with pytest.raises(MachineFault, match="clock") as caught:
            Connection("localhost", port)
        assert caught.value.code == "clock-skew"


# --- servers that lie ---

Script = Callable[[socket.socket], None]


@contextlib.contextmanager
def liar(script: Script) -> Iterator[int]:
    """A server that does this with its first connection, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as it:
                it.settimeout(60)
                script(it)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def token(flags: int, data: bytes, length: int = -1) -> bytes:
    return struct.pack("!BL", flags, len(data) if length < 0 else length) + data


def read_token(it: socket.socket) -> bytes:
    header = it.recv(5, socket.MSG_WAITALL)
    if len(header) < 5:
        raise ConnectionResetError
    return it.recv(struct.unpack("!BL", header)[1], socket.MSG_WAITALL)


def say(data: bytes) -> Script:
    """Read the client's first token of the mechanism, and answer with these octets."""

    def script(it: socket.socket) -> None:
        read_token(it)
        read_token(it)
        it.sendall(data)

    return script


def reflect(it: socket.socket) -> None:
    read_token(it)
    it.sendall(token(0x42, read_token(it)))


def endless(it: socket.socket) -> None:
    for _ in range(20):
        read_token(it)
        it.sendall(token(0x42, b""))


def drip(it: socket.socket) -> None:
    say(token(0x42, b"", 1000))(it)
    for _ in range(600):
        it.sendall(b"x")
        time.sleep(0.1)


def silent(it: socket.socket) -> None:
    while it.recv(1 << 16):
        pass


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize(
    ("script", "code"),
    [
        (lambda it: None, "connection-lost"),
        (say(b""), "connection-lost"),
        (say(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "remctl"),
        (say(token(0x42, b"", 1 << 31)), "remctl"),
        (say(token(0x42, b"", (1 << 20) + 1)), "remctl"),
        (say(token(0x44, b"\2\4\0")), "remctl"),
        (say(token(0x51, b"")), "remctl"),
        (say(token(0x02, b"x")), "old-server"),
        (say(token(0x42, b"garbage" * 9)), "gss"),
        (say(token(0x42, b"")), "gss"),
        (say(token(0x42, b"abc", 1000)), "connection-lost"),
        (reflect, "gss"),
        (endless, "gss"),
    ],
)
def test_a_stranger(script: Script, code: str) -> None:
    with liar(script) as port, pytest.raises(Unavailable) as caught:
        Connection("localhost", port)
    assert caught.value.code == code


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize("script", [drip, silent])
def test_a_stranger_who_takes_its_time(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remctl, "CONNECT", 0.4)
    started = time.monotonic()
    with liar(script) as port:
        with pytest.raises(Unavailable) as caught:
            Connection("localhost", port)
        assert caught.value.code == "time-out"
        assert time.monotonic() - started < 30


Answer = Callable[[gssapi.SecurityContext], bytes]


def accomplice(realm: Realm, answer: Answer) -> Script:
    """A server that has the key, and answers the first command with these octets."""

    def script(it: socket.socket) -> None:
        read_token(it)
        store = {"keytab": str(realm.keytab)}
        context = gssapi.SecurityContext(
            creds=gssapi.Credentials(usage="accept", store=store), usage="accept"
        )
        it.sendall(token(0x42, context.step(read_token(it))))
        assert context.complete
        read_token(it)
        it.sendall(answer(context))

    return script


def sealed(*messages: bytes) -> Answer:
    return lambda context: b"".join(token(0x44, context.wrap(m, True).message) for m in messages)


def replayed(context: gssapi.SecurityContext) -> bytes:
    return token(0x44, context.wrap(b"\2\3\1\0\0\0\1a", True).message) * 2


def reordered(context: gssapi.SecurityContext) -> bytes:
    first, second = (context.wrap(b"\2\3\1\0\0\0\1" + c, True).message for c in (b"a", b"b"))
    return token(0x44, second) + token(0x44, first)


OUTPUT = b"\2\3\1\0\0\0\1a"


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (sealed(OUTPUT), "connection-lost"),
        (sealed(OUTPUT, b"\2\1\1\0\0\0\0\0"), "remctl"),
        (sealed(b"\2\2"), "remctl"),
        (sealed(b"\3\7"), "remctl"),
        (sealed(b"\2\6\2"), "version"),
        (sealed(b"\2\x63"), "remctl"),
        (sealed(b"\1\4\0"), "remctl"),
        (sealed(b"\2\3\5\0\0\0\1a"), "remctl"),
        (sealed(b"\2\3\1\0\0\0\2a"), "remctl"),
        (sealed(b"\2\4"), "remctl"),
        (sealed(b""), "remctl"),
        (sealed(b"\2\5\0\0\0\1\0\0\0\1x"), "remctld"),
        (lambda context: token(0x44, context.wrap(b"\2\4\0", False).message), "remctl"),
        (lambda context: token(0x44, b"\2\4\0"), "remctl"),
        (lambda context: token(0x42, context.wrap(b"\2\4\0", True).message), "remctl"),
        (lambda context: token(0x44, b"", 0xFFFFFFFF), "remctl"),
        (replayed, "remctl"),
        (reordered, "remctl"),
    ],
)
def test_a_server_that_lies(realm: Realm, answer: Answer, code: str) -> None:
    with (
        liar(accomplice(realm, answer)) as port,
        Connection("localhost", port) as connection,
    ):
        with pytest.raises(Fault) as caught:
            connection.command([b"test", b"exit", b"0"], Heard())
        assert isinstance(caught.value, Unavailable)
        assert caught.value.code == code


@pytest.mark.usefixtures("alice")
def test_the_accomplice_can_tell_the_truth(realm: Realm) -> None:
    """Else the test above would prove nothing."""
    heard = Heard()
    truth = accomplice(realm, sealed(OUTPUT, b"\2\4\7"))
    with liar(truth) as port, Connection("localhost", port) as connection:
        assert connection.command([b"test"], heard) == 7
    assert heard.out == b"a"


# --- the command ---

SITE = """#!/bin/sh
# What a site says about one job, with its state in files.
cd {folder} || exit 71
job=20260102T030405.000006-07ab
case $1 in
  submit) printf '%s\\n' "$@" >asked; echo $job; echo "accepted" >&2; : >status; exit $(cat code) ;;
  status)
    [ -e late ] && {{ rm late; echo "error: no such job" >&2; exit 66; }}
    echo "job        $2"; echo "asked      submit dev state published"
    echo "state      $(cat state) since now" ;;
  log) [ "$3" = follow ] || exit 64
    if [ -e cut ]; then rm cut; echo begins; sleep 2; kill -9 $PPID; exit; fi
    echo "a line of $2"; cat end >state ;;
  exit) exit "$2" ;;
  *) echo "$*" ;;
esac
"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A remctld whose `build` is the script above."""

    folder: Path
    port: int
    env: dict[str, str]

    def remote(self, *args: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Done:
        argv = [sys.executable, "-m", "invirtibuilder", "remote", "--port", str(self.port)]
        env = {**(self.env if env is None else env), "PYTHONPATH": str(ROOT)}
        return run([*argv, "localhost", *args], cwd=cwd, env=env, check=False, timeout=60)


@pytest.fixture()
def site(realm: Realm, tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    for name, text in (("code", "0"), ("state", "queued"), ("end", "published")):
        (folder / name).write_text(text)
    (folder / "build").write_text(SITE.format(folder=folder))
    (folder / "build").chmod(0o755)
    (folder / "conf").write_text(f"build ALL {folder}/build ANYUSER\n")
    with remctld(realm, folder / "conf") as port:
        yield Site(folder=folder, port=port, env=realm.of("alice"))


JOB = "20260102T030405.000006-07ab"


def test_the_verbs_are_the_doors() -> None:
    doors = {name: verb.arguments for name, verb in door.VERBS.items()}
    # Ours are options.
    assert doors["log"] == "JOB [follow]"
    assert doors["sources"] == "POCKET [WHICH] [COMMIT|DATE]"
    ours = {name: words for name, (words, _) in VERBS.items()}
    assert {**ours, "log": doors["log"], "sources": doors["sources"]} == {
        name: " ".join(word for word in words.split() if not word.startswith("[--"))
        for name, words in doors.items()
    }


def test_verbs_are_passed_on(site: Site) -> None:
    assert site.remote("queue").out == b"queue\n"
    assert site.remote("acl").out == b"acl\n"
    assert site.remote("acl", "two words").out == b"acl two words\n"
    assert site.remote("cancel", JOB).out == f"cancel {JOB}\n".encode()
    assert site.remote("log", JOB, "--follow").out == f"a line of {JOB}\n".encode()
    assert site.remote("log", JOB).code == 64
    assert site.remote("sources", "dev", "--downgrade").out == b"sources dev downgrade\n"
    assert site.remote("sources", "dev", "--at", "2026-01-31").out == b"sources dev at 2026-01-31\n"
    fsck = ("fsck", "dev", "--level", "c", "--full", "--repair")
    assert site.remote(*fsck).out == b"fsck dev --level=c --full --repair\n"
    assert site.remote("gc", "--dry-run").out == b"gc --dry-run\n"
    assert site.remote("gc").out == b"gc\n"
    assert site.remote("rebuild-state").out == b"rebuild-state\n"
    assert site.remote("frobnicate").code == 64
    done = site.remote("status", env={**site.env, "KRB5CCNAME": "FILE:/nonexistent/cc"})
    assert (done.code, done.err.splitlines()[1]) == (77, b"  hint: kinit")


@pytest.mark.parametrize(
    ("end", "code"), [("published", 0), ("refused", 3), ("failed", 4), ("cancelled", 5)]
)
def test_the_verdict_is_the_exit_code(site: Site, end: str, code: int) -> None:
    (site.folder / "end").write_text(end)
    (site.folder / "late").touch()
    done = site.remote("submit", "dev", "hello", "v1", "--no-check", "--wait")
    assert done.code == code
    assert done.out == f"{JOB}\n".encode()
    assert f"a line of {JOB}\n" in done.err.decode()
    assert f"state      {end}" in done.err.decode()
    assert (site.folder / "asked").read_text() == "submit\ndev\nhello\nv1\n"


def test_what_is_refused_is_not_followed(site: Site) -> None:
    (site.folder / "code").write_text("3")
    done = site.remote("submit", "dev", "hello", "v1", "--no-check", "--wait")
    assert done.code == 3
    assert b"a line" not in done.err


def test_a_lost_connection_is_made_again(site: Site) -> None:
    (site.folder / "cut").touch()
    done = site.remote("submit", "dev", "hello", "v1", "--no-check", "--wait")
    assert done.code == 0, done.err.decode()
    assert b"begins" in done.err
    assert b"closed the connection; trying again" in done.err
    assert f"a line of {JOB}".encode() in done.err


def test_commits_are_resolved_here_and_have_been_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["git", "init", "--quiet", "--bare", tmp_path / "origin.git"])
    work = Work.init(tmp_path / "work", tmp_path / "origin.git")
    first = work.commit("first")
    assert work.push("main").code == 0
    second = work.commit("second")
    monkeypatch.chdir(work.path)

    def refusal(name: str) -> str:
        with pytest.raises(Refused) as caught:
            resolved(name, check=True)
        assert caught.value.hint
        return caught.value.code

    for name in ("HEAD^", "HEAD~1", "origin/main", first, first[:7], "main@{1}"):
        assert resolved(name, check=True) == first
    for name in ("HEAD", "main", second[:9]):
        assert refusal(name) == "not-pushed"
        assert resolved(name, check=False) == second
    for name in ("nowhere", "a..b", "HEAD~1..HEAD", "HEAD:file", "-x", "--all", ""):
        assert refusal(name) == "unknown-commit"
        assert resolved(name, check=False) == name
    assert work.push("main").code == 0
    assert resolved("HEAD", check=True) == second


def test_what_is_sent_is_the_id(site: Site, tmp_path: Path) -> None:
    run(["git", "init", "--quiet", "--bare", tmp_path / "origin.git"])
    work = Work.init(tmp_path / "work", tmp_path / "origin.git")
    head = work.commit()
    done = site.remote("submit", "dev", "hello", "HEAD", cwd=work.path)
    assert (done.code, done.out) == (3, b"")
    assert b"was not pushed" in done.err
    assert not (site.folder / "asked").exists()
    assert work.push("main").code == 0
    assert site.remote("submit", "dev", "hello", "HEAD", cwd=work.path).code == 0
    assert (site.folder / "asked").read_text().splitlines() == ["submit", "dev", "hello", head]
    done = site.remote("check", "dev", "hello", "HEAD", cwd=work.path)
    assert done.out == f"check dev hello {head}\n".encode()


def test_outside_of_a_repository(site: Site, tmp_path: Path) -> None:
    done = site.remote("submit", "dev", "hello", "main", cwd=tmp_path)
    assert done.code == 3
    assert b"not a git repository" in done.err


def test_other_commands_do_without_gssapi(tmp_path: Path) -> None:
    (tmp_path / "gssapi.py").write_text("raise ModuleNotFoundError(name='gssapi')\n")
    argv = [sys.executable, "-m", "invirtibuilder", "remote"]
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    assert run([*argv, "--help"], env=env).code == 0
    done = run([*argv, "localhost", "status"], env=env, check=False)
    assert done.code == 71
    assert b"no Python module gssapi" in done.err
    code = "import sys, invirtibuilder.cli.main; sys.exit('gssapi' in sys.modules)"
    assert run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}).code == 0


@pytest.mark.usefixtures("alice")
def test_waiting_costs_the_server_little(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the daemon does not take a job up: looks that grow rarer, and NOOPs in between."""
    said: list[str] = []

    class Recording(Connection):
        def noop(self) -> bool:
            said.append("noop")
            if len(said) > 30:
                (site.folder / "state").write_text("published")
            return super().noop()

        def command(self, args: Sequence[bytes], *rest: Any, **options: Any) -> int:
            said.append(args[1].decode())
            return super().command(args, *rest, **options)

    monkeypatch.setattr(cli, "POLL", 0.01)
    monkeypatch.setattr(cli, "NOOP", 0.015)
    (site.folder / "state").write_text("not taken up yet\nx")
    (site.folder / "status").touch()
    with Recording("localhost", site.port) as connection:
        assert cli._followed(connection, JOB) == 0
    assert said[:2] == [said[-1], "status"] == ["status", "status"]
    assert said.count("status") < said.count("noop")
    assert "log" not in said


def test_a_submission_waits_for_the_daemon(realm: Realm, tmp_path: Path) -> None:
    """With the real door: submitted while the daemon is down, followed when it is there."""
    with places.canned() as (place, _):
        doors.prepare(place)
        place.package(packages.native(tmp_path / "greet"))
        place.cli("acl", "compile", check=True)
        err = tmp_path / "err"
        with (
            remctld(realm, doors.installed(place) / "conf") as port,
            err.open("wb") as file,
        ):
            argv = [sys.executable, "-m", "invirtibuilder", "remote", "--port", str(port)]
            argv += ["localhost", "submit", "dev", "greet", "main", "--no-check", "--wait"]
            env = {**realm.of("alice"), "PYTHONPATH": str(ROOT)}
            with started_group(argv, env=env, cwd=tmp_path, stderr=file) as client:
                places.until(lambda: b"accepted, but not checked yet" in err.read_bytes())
                with place.daemon():
                    assert client.wait(60) == 0, err.read_text()
        assert "\nstate      published since" in err.read_text()


def test_from_a_clone_to_the_publication_through_the_real_door(
    realm: Realm, tmp_path: Path
) -> None:
    repo = packages.native(tmp_path / "greet")
    with places.canned() as (place, _):
        place.edit("  name: test\n", f"  name: test\n  doors: [{doors.USER}]\n")
        place.edit(f"[{places.ME}]", f"[{realm.principal('alice')}]")
        place.package(repo)
        work = tmp_path / "clone"
        run(["git", "clone", "--quiet", place.site.package_repository("greet"), work])
        submitters = place.directory / "run/submitters"
        with place.daemon(), remctld(realm, doors.installed(place) / "conf") as port:
            places.until(lambda: submitters.exists() and submitters.read_text())
            site = Site(folder=tmp_path, port=port, env=realm.of("alice"))
            done = site.remote("submit", "dev", "greet", "HEAD", "--wait", cwd=work)
            assert done.code == 0, done.err.decode()
            job = place.ended(done.text)
            assert job.status.commit == repo.commit
            assert job.request.principal == realm.principal("alice")
            assert b"\nstate      published since" in done.err
            assert b" publish" in done.err
            assert b"published" in site.remote("status", done.text[-9:]).out
            again = site.remote("retry", done.text, "--wait")
            assert again.code == 0, again.err.decode()
            assert again.text != done.text
            bob = Site(folder=tmp_path, port=port, env=realm.of("bob"))
            refused = bob.remote("submit", "dev", "greet", "HEAD", "--wait", cwd=work)
            assert refused.code == 77, refused.err.decode()

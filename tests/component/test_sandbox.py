"""The user namespace sandbox, from inside: what works, what is refused, what stays."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import seccomp

from invirtibuilder.errors import MachineFault
from invirtibuilder.run import CLEAN, run
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.check import self_check
from invirtibuilder.sandbox.contract import Bind, Command, Limits
from invirtibuilder.sandbox.ids import COUNT, Ids, make_tree, remove_tree
from invirtibuilder.sandbox.userns import UserNamespace, upper_of
from tests.support.base import Room, proxied

User = Literal["root", "build"]
USERS = pytest.mark.parametrize("user", ["root", "build"])


def processes(marker: str) -> list[int]:
    """The processes of this machine that have this in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


class TestEnding:
    def test_exit_codes_and_signals(self, room: Room) -> None:
        assert room.run("true").code == 0
        assert room.run("sh", "-c", "exit 7").code == 7
        assert room.run("sh", "-c", "kill -TERM $$").code == -signal.SIGTERM
        assert room.run("sh", "-c", "kill -KILL $$").code == -signal.SIGKILL

    def test_what_cannot_be_started_ends_as_in_a_shell(self, room: Room) -> None:
        assert room.run("no-such-command").code == 127
        assert b"no-such-command: command not found" in room.output
        assert room.run("/etc/hosts").code == 127
        assert room.run("true", cwd="/no/such/directory").code == 127

    def test_time_limit_kills_what_ignores_termination_and_hides(self, room: Room) -> None:
        marker = f"98765{os.getpid()}"
        program = (
            'trap "" TERM HUP INT; '
            f"setsid setsid sh -c 'trap \"\" TERM HUP INT; sleep {marker} & sleep {marker}' & "
            f"echo started; exec sleep {marker}"
        )
        seen = []

        def look() -> bool:
            seen.append(len(processes(marker)))
            return False

        room.limits = Limits(seconds=5)
        outcome = room.run("sh", "-c", program, user="root", cancelled=look)
        assert (outcome.limit, outcome.code) == ("time", -signal.SIGKILL)
        assert 4.9 < outcome.seconds < 60
        assert max(seen) >= 3, "the processes were never seen: the test shows nothing"
        assert processes(marker) == []

    def test_what_the_main_process_leaves_behind_ends_with_it(self, room: Room) -> None:
        marker = f"98764{os.getpid()}"
        outcome = room.run("sh", "-c", f"setsid sleep {marker} & exit 3")
        assert (outcome.code, outcome.limit) == (3, "")
        assert outcome.seconds < 60
        assert processes(marker) == []

    def test_cancelled(self, room: Room) -> None:
        start = time.monotonic()
        outcome = room.run("sleep", "1000", cancelled=lambda: time.monotonic() > start + 0.5)
        assert outcome.limit == "cancelled"
        assert outcome.seconds < 60

    def test_cancelled_before_it_began(self, room: Room) -> None:
        outcome = room.run("sleep", "1000", cancelled=lambda: True)
        assert outcome.limit == "cancelled"
        assert outcome.seconds < 60

    def test_idle(self, room: Room) -> None:
        room.limits = Limits(seconds=60, idle_seconds=5)
        busy = room.run("sh", "-c", "for i in $(seq 15); do echo $i; sleep 0.4; done")
        assert (busy.limit, busy.code) == ("", 0)
        assert room.run("sleep", "1000").limit == "idle"

    def test_output_limit(self, room: Room) -> None:
        room.limits = Limits(seconds=60, output=10000)
        assert room.run("yes").limit == "output"
        assert len(room.output) == 10000

    def test_a_launcher_that_is_killed_takes_all_with_it(self, room: Room) -> None:
        marker = f"98763{os.getpid()}"
        launcher = os.fork()
        if launcher == 0:
            try:
                room.run("sh", "-c", f"setsid sleep {marker} & sleep {marker}")
            finally:
                os._exit(0)
        until(lambda: len(processes(marker)) >= 2)
        os.kill(launcher, signal.SIGKILL)
        os.waitpid(launcher, 0)
        until(lambda: not processes(marker))


def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


class TestStreams:
    def test_standard_input_is_empty_or_what_is_given(self, room: Room, tmp_path: Path) -> None:
        assert room.text("cat") == ""
        (tmp_path / "in").write_text("given")
        with (tmp_path / "in").open() as file:
            assert room.text("cat", stdin=file.fileno()) == "given"

    def test_output_and_error_go_where_they_are_sent(self, room: Room, tmp_path: Path) -> None:
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            room.run("sh", "-c", "echo o; echo e >&2", stdout=out.fileno(), stderr=err.fileno())
        assert (tmp_path / "out").read_text() == "o\n"
        assert (tmp_path / "err").read_text() == "e\n"

    @USERS
    def test_standard_streams_can_be_opened_by_name(self, room: Room, user: User) -> None:
        text = room.text("sh", "-c", "echo a >/dev/stderr; echo b >/dev/stdout", user=user)
        assert text == "a\nb\n"

    def test_a_log_cannot_be_rewritten(self, room: Room, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text("before\n")
        with log.open("ab") as file:
            program = "import os\nos.ftruncate(1, 0)"
            outcome = room.run("python3", "-c", program, stdout=file.fileno())
        assert outcome.code == 1
        assert log.read_text() == "before\n"

    def test_the_environment_is_built_up(self, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INVIRTIBUILDER_SECRET", "x")
        lines = room.text("/usr/bin/env", env={"EXTRA": "1"}).splitlines()
        expected = {**CLEAN, "HOME": "/nonexistent", "EXTRA": "1"}
        assert dict(line.split("=", 1) for line in lines) == expected


class TestIdentity:
    @USERS
    def test_nothing_maps_to_our_own_user(self, room: Room, user: User, ids: Ids) -> None:
        lines = room.text("cat", "/proc/self/uid_map", "/proc/self/gid_map", user=user)
        uids, gids = ([int(n) for n in line.split()] for line in lines.splitlines())
        assert uids == [0, ids.first_uid, COUNT]
        assert gids == [0, ids.first_gid, COUNT]
        assert os.getuid() not in range(ids.first_uid, ids.first_uid + COUNT)

    def test_a_process_has_a_subordinate_id_outside(self, room: Room, ids: Ids) -> None:
        marker = f"98762{os.getpid()}"
        owners: set[int] = set()

        def look() -> bool:
            for pid in processes(marker):
                with suppress(OSError):
                    owners.add(Path(f"/proc/{pid}").stat().st_uid)
            return bool(owners)

        room.run("sleep", marker, cancelled=look)
        assert owners == {ids.first_uid + 1000}

    def test_build_has_no_capability_and_gains_none(self, room: Room) -> None:
        status = fields(room.text("cat", "/proc/self/status"))
        sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        assert {int(status[name], 16) for name in sets} == {0}
        assert status["NoNewPrivs"] == "1"
        assert status["Uid"].split() == ["1000"] * 4
        assert status["Groups"].split() in ([], ["1000"])
        assert status["Seccomp"] == "2"

    def test_root_has_few_capabilities(self, room: Room) -> None:
        status = fields(room.text("cat", "/proc/self/status", user="root"))
        assert {int(status[n], 16) for n in ("CapPrm", "CapEff", "CapBnd")} == {0x800404FB}
        assert {int(status[n], 16) for n in ("CapInh", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "0"
        assert status["Seccomp"] == "2"

    def test_set_user_id_works_for_roots_helpers_and_never_for_build(self, room: Room) -> None:
        room.with_scratch()
        room.text("sh", "-c", "cp /usr/bin/id /usr/bin/suid; chmod 4755 /usr/bin/suid", user="root")
        change = (
            "import os; os.setgid(1000); os.setuid(1000); os.execv('/usr/bin/suid', ['x', '-u'])"
        )
        assert room.text("python3", "-c", change, user="root") == "0\n"
        assert room.text("/usr/bin/suid", "-u") == "1000\n"


def fields(text: str) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


class TestFiles:
    def test_writes_go_to_the_upper_only(self, room: Room, base: Base, ids: Ids) -> None:
        room.with_scratch()
        program = "echo mine >> /etc/hosts; rm -r /etc/apt; mkdir /etc/apt; touch /new"
        before = (base.root / "etc/hosts").read_bytes()
        room.text("sh", "-c", program, user="root")
        assert (base.root / "etc/hosts").read_bytes() == before
        assert (base.root / "etc/apt/sources.list.d").is_dir()
        assert not (base.root / "new").exists()
        assert room.scratch is not None
        upper = upper_of(room.scratch)
        assert {p.name for p in upper.iterdir()} == {"etc", "new"}
        assert (upper / "new").stat().st_uid == ids.first_uid
        assert room.text("ls", "/etc/apt") == ""
        assert "mine" in room.text("cat", "/etc/hosts")

    def test_an_upper_serves_as_a_layer(self, room: Room, base: Base, ids: Ids) -> None:
        room.with_scratch()
        room.text("sh", "-c", "rm /etc/hostname; mkdir /layer; echo in > /layer/file", user="root")
        assert room.scratch is not None
        second = UserNamespace(
            ids=ids,
            lowers=(upper_of(room.scratch), base.root),
            scratch=room.tree("second"),
            limits=Limits(seconds=60),
        )
        program = "test ! -e /etc/hostname && test $(cat /layer/file) = in"
        assert second.run(Command(argv=("sh", "-c", program), user="build")).code == 0

    def test_build_may_not_write_what_is_roots(self, room: Room) -> None:
        room.with_scratch()
        assert room.run("touch", "/etc/x").code == 1
        assert room.run("touch", "/tmp/x").code == 0

    @USERS
    def test_a_root_without_scratch_is_read_only(self, room: Room, user: User) -> None:
        assert room.run("touch", "/x", user=user).code == 1
        assert b"Read-only" in room.output
        assert room.run("touch", "/tmp/x", user=user).code == 0

    def test_temporary_files_on_disk_are_not_in_the_upper(self, room: Room) -> None:
        room.with_scratch()
        room.text("sh", "-c", "echo x > /tmp/x; echo x > /dev/shm/x")
        assert room.scratch is not None
        assert list(upper_of(room.scratch).iterdir()) == []

    @pytest.mark.parametrize("scratch", [False, True])
    def test_binds(self, room: Room, scratch: bool, tmp_path: Path) -> None:
        if scratch:
            room.with_scratch()
        ours, theirs = tmp_path / "ours", room.tree("theirs")
        (ours / "below").mkdir(parents=True)
        (ours / "below/file").write_text("content")
        room.binds = (
            Bind(source=ours, target="/in/put"),
            Bind(source=ours / "below/file", target="/run/deep/er/file"),
            Bind(source=theirs, target="/out", writable=True),
        )
        room.text(
            "sh", "-c", "cat /in/put/below/file /run/deep/er/file; echo x > /out/x", user="root"
        )
        assert room.output == b"contentcontent"
        assert (theirs / "x").read_text() == "x\n"
        for target in ("/in/put/new", "/in/put/below/file", "/run/deep/er/file"):
            assert room.run("sh", "-c", f"echo bad > {target}", user="root").code != 0
            assert b"Read-only" in room.output
        assert (ours / "below/file").read_text() == "content"
        if room.scratch:
            assert list(upper_of(room.scratch).iterdir()) == []

    def test_a_bind_target_stays_inside(self) -> None:
        for target in ("relative", "/", "/../x", "/a/../../b", "/a//b", "/a/"):
            with pytest.raises(ValueError, match="plain absolute"):
                Bind(source=Path("/"), target=target)

    @USERS
    def test_no_mount_but_its_own(self, room: Room, user: User) -> None:
        mounts = [line.split() for line in room.text("cat", "/proc/mounts", user=user).splitlines()]
        places = [m[1] for m in mounts if not m[1].startswith(("/proc/", "/dev/"))]
        assert sorted(places) == ["/", "/dev", "/proc", "/run", "/sys", "/tmp"]
        assert {m[2] for m in mounts} <= {"overlay", "tmpfs", "proc", "devpts", "devtmpfs"}

    def test_devices(self, room: Room) -> None:
        program = """
            import os
            print(sorted(os.listdir("/dev")), os.listdir("/sys"))
            open("/dev/null", "w").write("x")
            assert open("/dev/zero", "rb").read(2) == bytes(2)
            assert len(open("/dev/urandom", "rb").read(8)) == 8
            try:
                open("/dev/full", "w", buffering=1).write("x\\n")
            except OSError as error:
                assert error.errno == 28
            leader, follower = os.openpty()
            os.write(follower, b"x")
            assert os.read(leader, 1) == b"x"
        """
        names = ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin"]
        names += ["stdout", "tty", "urandom", "zero"]
        assert room.python(program) == f"{names} []\n"


class TestTrees:
    def test_what_is_hostile_goes_with_the_tree(self, ids: Ids, room: Room, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").touch()
        tree = room.tree("tree")
        room.binds = (Bind(source=tree, target="/tree", writable=True),)
        program = f"""
            import os
            os.chdir("/tree")
            os.symlink("{outside}", "link")
            os.mkfifo("fifo")
            os.mkdir("closed")
            open("closed/file", "w")
            open("-rf", "w")
            open("new\\nline", "w")
            os.chown("closed/file", 1234, 1234)
            os.chmod("closed", 0)
            for _ in range(3000):
                os.mkdir("a" * 20)
                os.chdir("a" * 20)
        """
        room.python(program, user="root")
        assert len(list(tree.iterdir())) == 6
        remove_tree(ids, tree)
        assert not tree.exists()
        assert (outside / "file").exists()
        remove_tree(ids, tree)

    def test_a_tree_is_never_taken_over(self, ids: Ids, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        with pytest.raises(FileExistsError):
            make_tree(ids, tmp_path / "there")
        (tmp_path / "link").symlink_to(tmp_path / "there")
        with pytest.raises(OSError, match="link"):
            remove_tree(ids, tmp_path / "link")

    def test_a_tree_in_a_closed_directory(self, ids: Ids, room: Room, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        closed.chmod(0o2700)
        make_tree(ids, closed / "tree")
        room.scratch = closed / "tree"
        try:
            room.text("touch", "/x", user="root")
            assert (closed / "tree/upper/x").stat().st_uid == ids.first_uid
        finally:
            remove_tree(ids, closed / "tree")


class TestNetwork:
    def test_no_interface_but_its_own_loopback(self, room: Room) -> None:
        assert room.python("import socket; print(socket.if_nameindex())") == "[(1, 'lo')]\n"

    def test_its_own_loopback_works(self, room: Room) -> None:
        program = """
            import socket
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname(), 5).close()
            with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
                socket.create_connection(server.getsockname()[:2], 5).close()
        """
        room.python(program)

    @USERS
    def test_the_machines_sockets_are_out_of_reach(self, room: Room, user: User) -> None:
        name = f"\0invirtibuilder-{os.getpid()}"
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.socket(socket.AF_UNIX) as abstract,
        ):
            port = server.getsockname()[1]
            abstract.bind(name)
            abstract.listen()
            program = f"""
                import socket
                for family, address in (
                    (socket.AF_INET, ("127.0.0.1", {port})),
                    (socket.AF_UNIX, {name!r}),
                    (socket.AF_INET, ("192.0.2.1", 80)),
                ):
                    try:
                        socket.socket(family).connect(address)
                        print("connected")
                    except OSError as error:
                        print(error.errno)
            """
            assert room.python(program, user=user).split() == ["111", "111", "101"]
            socket.create_connection(("127.0.0.1", port)).close()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)


class TestSecrets:
    @USERS
    @pytest.mark.parametrize("mode", [0o600, 0o644])
    def test_the_machines_files_are_out_of_sight(
        self, room: Room, user: User, mode: int, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_text("secret")
        secret.chmod(mode)
        program = """
            import os, sys
            name = sys.argv[1]
            for prefix in ("", "/proc/1/root", "/proc/self/root", "/..", "/../../../.."):
                try:
                    print(open(prefix + name).read())
                except OSError as error:
                    print(error.errno)
            try:
                os.mkdir("/tmp/jail")
                os.chroot("/tmp/jail")
                for _ in range(64):
                    os.chdir("..")
                os.chroot(".")
            except OSError:
                pass
            print(os.path.exists(name))
        """
        found = room.python(program, str(secret), user=user).split()
        assert found == ["2", "13", "2", "2", "2", "False"]

    def test_no_descriptor_is_inherited(self, room: Room, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        os.set_inheritable(fd, True)
        program = """
            import os
            for fd in range(3, 1024):
                try:
                    os.fstat(fd)
                    print("open", fd)
                except OSError:
                    pass
        """
        try:
            assert room.python(program) == ""
            control = subprocess.run(
                ["/usr/bin/cat", f"/proc/self/fd/{fd}/secret"],
                close_fds=False,
                capture_output=True,
                check=True,
            )
            assert control.stdout == b"secret"
        finally:
            os.close(fd)

    @USERS
    def test_the_machines_processes_are_out_of_reach(self, room: Room, user: User) -> None:
        with sleeping() as pid:
            program = """
                import os, sys
                print(max(int(n) for n in os.listdir("/proc") if n.isdigit()) < 100)
                for number in (0, 9):
                    try:
                        os.kill(int(sys.argv[1]), number)
                        print("sent")
                    except ProcessLookupError:
                        print("no such process")
            """
            lines = room.python(program, str(pid), user=user).splitlines()
            assert lines == ["True", "no such process", "no such process"]
            os.kill(pid, 0)

    @USERS
    def test_the_init_cannot_be_touched(self, room: Room, user: User) -> None:
        program = """
            import os, signal
            for name in ("mem", "environ", "fd", "root", "cwd", "maps"):
                try:
                    path = f"/proc/1/{name}"
                    print(os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1))
                except OSError as error:
                    pass
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
                try:
                    os.kill(1, number)
                except PermissionError:
                    pass
            print("alive")
        """
        assert room.python(program, user=user) == "alive\n"

    @USERS
    def test_the_session_keyring_is_another(self, room: Room, user: User) -> None:
        libc = ctypes.CDLL(None, use_errno=True)

        def call(name: str, *args: object) -> int:
            number = seccomp.resolve_syscall(seccomp.Arch(), name)
            return int(libc.syscall(ctypes.c_long(number), *args))

        assert call("keyctl", 1, None) > 0
        serial = call("add_key", b"user", b"invirtibuilder-test", b"secret", 6, -3)
        assert serial > 0
        buffer = ctypes.create_string_buffer(16)
        assert call("keyctl", 11, serial, buffer, 16) == 6
        assert buffer.value == b"secret"
        program = f"""
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            print(libc.syscall({seccomp.resolve_syscall(seccomp.Arch(), "keyctl")}, 11, {serial},
                ctypes.create_string_buffer(16), 16), ctypes.get_errno())
            print(repr(open("/proc/keys").read()))
        """
        assert room.python(program, user=user) == "-1 1\n''\n"


@contextmanager
def sleeping() -> Iterator[int]:
    """A process of this machine."""
    process = subprocess.Popen(["/usr/bin/sleep", "100"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


CALLS = """
import ctypes, errno, fcntl, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *args):
    ctypes.set_errno(0)
    result = getattr(libc, name)(*args)
    return errno.errorcode.get(ctypes.get_errno(), "done") if result == -1 else "done"

def attempt(action):
    try:
        action()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
    except ValueError:
        return "EPERM"

NEWUSER, NEWNS = 0x10000000, 0x20000
leader, follower = os.openpty()
probes = {
    "unshare": lambda: call("unshare", NEWUSER),
    "unshare mounts": lambda: call("unshare", NEWNS),
    "clone": lambda: call("syscall", SYS_clone, NEWUSER | 17, 0, 0, 0, 0),
    "mount": lambda: call("mount", b"x", b"/tmp", b"tmpfs", 0, None),
    "umount": lambda: call("umount2", b"/proc/sys", 2),
    "add_key": lambda: call("syscall", SYS_add_key, b"user", b"x", b"x", 1, -3),
    "bpf": lambda: call("syscall", SYS_bpf, 0, 0, 0),
    "io_uring": lambda: call("syscall", SYS_io_uring_setup, 1, ctypes.create_string_buffer(256)),
    "userfaultfd": lambda: call("syscall", SYS_userfaultfd, 0),
    "AF_PACKET": lambda: attempt(lambda: socket.socket(17, socket.SOCK_RAW)),
    "AF_VSOCK": lambda: attempt(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "AF_ALG": lambda: attempt(lambda: socket.socket(38, socket.SOCK_SEQPACKET)),
    "TIOCSTI": lambda: attempt(lambda: fcntl.ioctl(follower, 0x5412, b"x")),
    "block device": lambda: attempt(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0))),
    "memory device": lambda: attempt(lambda: os.mknod("/tmp/mem", 0o20600, os.makedev(1, 1))),
    "core_pattern": lambda: attempt(lambda: open("/proc/sys/kernel/core_pattern", "w")),
    "hostname": lambda: attempt(lambda: socket.sethostname("x")),
    "open files": lambda: attempt(lambda: __import__("resource").setrlimit(7, (1 << 19, 1 << 19))),
}
for name in sys.argv[1:] or probes:
    print(name, probes[name]())
"""
SYSTEM_CALLS = ("clone", "add_key", "bpf", "io_uring_setup", "userfaultfd")
REFUSALS = {"EPERM", "EROFS", "EACCES", "EAFNOSUPPORT"}


class TestCalls:
    @USERS
    def test_calls_that_a_build_has_no_business_with(self, room: Room, user: User) -> None:
        numbers = "".join(
            f"SYS_{n} = {seccomp.resolve_syscall(seccomp.Arch(), n)}\n" for n in SYSTEM_CALLS
        )
        lines = room.text("python3", "-c", numbers + CALLS, user=user).splitlines()
        allowed = [line for line in lines if line.split()[-1] not in REFUSALS]
        assert allowed == []
        assert len(lines) == 18
        control = run(["/usr/bin/python3", "-c", numbers + CALLS, "unshare", "add_key"])
        assert control.text == "unshare done\nadd_key done"

    def test_the_hostname_is_the_sandboxs(self, room: Room) -> None:
        assert room.python("import os; print(os.uname().nodename)") == "build\n"


class TestMachine:
    def test_this_machine_has_what_is_needed(self, tmp_path: Path) -> None:
        assert self_check(tmp_path) == []
        assert list(tmp_path.iterdir()) == []

    def test_a_directory_that_cannot_hold_trees_is_named(self) -> None:
        problems = self_check(Path("/proc"))
        assert len(problems) == 1
        assert "no overlay file system on /proc" in problems[0]

    def test_a_lower_that_is_missing_is_our_fault(self, ids: Ids, room: Room) -> None:
        room.base = replace(room.base, root=Path("/no/such/root"))
        with pytest.raises(MachineFault, match="/no/such/root"):
            room.run("true")

    def test_ids_that_do_not_belong_to_us(self, ids: Ids, room: Room) -> None:
        room.ids = replace(ids, first_uid=1 << 30)
        with pytest.raises(MachineFault, match="newuidmap"):
            room.run("true")

    def test_no_descriptor_is_left_open(self, room: Room) -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        assert room.run("true", proxy=proxied(("127.0.0.1", 1, "http"))).code == 0
        assert room.run("sleep", "1000", cancelled=lambda: True).limit == "cancelled"
        room.base = replace(room.base, root=Path("/no/such/root"))
        with pytest.raises(MachineFault):
            room.run("true")
        assert sorted(os.listdir("/proc/self/fd")) == before

    def test_it_starts_quickly(self, room: Room) -> None:
        # On a busy machine it takes a few tries to have a core for once.
        assert any(room.run("true").seconds < 0.5 for _ in range(50))

"""What probes look for on the machine, made for them: files, processes, sockets, a key."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import json
import os
import secrets
import socket
import subprocess
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import seccomp

from invirtibuilder.files import remove_tree
from invirtibuilder.run import CLEAN, run

SOURCE = Path(__file__).with_name("probes.c")
GROUP = 4711
"""A group that the launcher is in besides its own, when it is root."""

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
LIBC = ctypes.CDLL(None, use_errno=True)
Targets = Mapping[str, object]


@dataclass
class Machine:
    """A directory of targets, and how to start what tries them.

    `targets` are what is looked for; `here` says what else the control needs, `inside` what a
    sandbox does.
    """

    directory: Path
    program: Path
    terminal: int
    marker: str
    targets: dict[str, object] = field(default_factory=dict)
    here: dict[str, object] = field(default_factory=dict)
    inside: dict[str, object] = field(default_factory=dict)

    def place(self, directory: Path, more: Targets) -> Path:
        """Put the program and its targets into a directory that all may read."""
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        program = directory / "probes"
        program.write_bytes(self.program.read_bytes())
        program.chmod(0o755)
        lines = [f"{key}={value}\n" for key, value in {**self.targets, **more}.items()]
        (directory / "targets").write_text("".join(lines))
        return program

    @contextmanager
    def started(self, argv: Sequence[str], log: int) -> Iterator[subprocess.Popen[bytes]]:
        """A process with all that a careless service might hand down."""
        leaked = os.open(self.directory / "leaked", os.O_RDONLY | os.O_DIRECTORY)

        def careless() -> None:
            os.setsid()
            fcntl.ioctl(self.terminal, termios.TIOCSCTTY, 0)
            if os.geteuid() == 0:
                os.setgroups([GROUP])

        with (self.directory / "private").open("rb") as private:
            process = subprocess.Popen(
                argv,
                stdin=private,
                stdout=log,
                stderr=self.terminal,
                pass_fds=[leaked],
                cwd=self.directory / "leaked",
                env={**CLEAN, "PYTHONPATH": str(SOURCE.parents[2]), "ESCAPE_MARKER": self.marker},
                preexec_fn=careless,
            )
        os.close(leaked)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def results(log: bytes) -> dict[str, dict[str, str]]:
    """What the probes said, by label."""
    found = {}
    for line in log.decode("utf-8", "replace").splitlines():
        _, marker, rest = line.partition("PROBES ")
        if marker:
            label, _, text = rest.partition(" ")
            found[label] = dict(json.loads(text))
    return found


def system_call(call: str | int, *args: object) -> int:
    """Make a system call by name or number; -1 and ctypes.get_errno() when it fails."""
    number = call if isinstance(call, int) else seccomp.resolve_syscall(seccomp.Arch(), call)
    return int(LIBC.syscall(ctypes.c_long(number), *args))


def has_ipv6() -> bool:
    """Whether loopback has IPv6 on this machine."""
    interfaces = Path("/proc/net/if_inet6")
    return interfaces.exists() and "0" * 31 + "1 " in interfaces.read_text()


def nameserver() -> str:
    """The machine's first name server that has an IPv4 address, or ""."""
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    servers = [line.split()[1] for line in lines if line.startswith("nameserver ")]
    return next((server for server in servers if ":" not in server), "")


@contextmanager
def prepared(mirror: str) -> Iterator[Machine]:
    """The machine with its targets, while the block runs. `mirror` is the URL of one."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="invirtibuilder-escape-", dir="/var/tmp"))
        stack.callback(remove_tree, directory)
        directory.chmod(0o755)
        program = directory / "program"
        run(
            ["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror"]
            + ["-Wno-unused-result", "-static", "-o", program, SOURCE]
        )
        leader, terminal = os.openpty()
        stack.callback(os.close, leader)
        stack.callback(os.close, terminal)
        mark = secrets.token_hex(4)
        machine = Machine(
            directory=directory, program=program, terminal=terminal, marker=f"marker-{mark}"
        )
        machine.targets.update(_files(directory, terminal, mark))
        machine.targets.update(_own())
        machine.targets.update(_key(stack, mark))
        machine.targets.update(_sockets(stack, directory, mark))
        machine.targets.update(_network(mirror))
        machine.targets["marker"] = machine.marker
        machine.targets["process"] = 1
        for name in ("scratch", "leaked"):
            (directory / name).mkdir(exist_ok=True)
        machine.targets["process"] = _process(stack, machine)
        machine.here.update(
            scratch=directory / "scratch",
            mounted="/dev/shm",
            init=machine.targets["process"],
            proxy=stack.enter_context(_lenient_proxy()),
            **_gifts(stack, machine),
        )
        machine.inside.update(
            scratch="/tmp",
            mounted="/proc/sys",
            init=1,
            proxy=3128,
            setuid="/usr/lib/escape/setuid",
            capable="/usr/lib/escape/capable",
        )
        yield machine


def _files(directory: Path, terminal: int, mark: str) -> Targets:
    for name, mode in (("public", 0o644), ("private", 0o600)):
        (directory / name).write_text("a secret\n")
        (directory / name).chmod(mode)
    (directory / "leaked").mkdir()
    status = (directory / "leaked").stat()
    return {
        "public": directory / "public",
        "private": directory / "private",
        "leaked_inode": status.st_ino,
        "leaked_device": status.st_dev,
        "terminal": os.ttyname(terminal),
        "ipc": int(mark, 16) & 0x7FFFFFFF | 1,
        "queue": f"/escape-{mark}",
        "daemon": f"escape-daemon-{mark}",
    }


def _own() -> Targets:
    groups = [GROUP] if os.geteuid() == 0 else [g for g in os.getgroups() if g != os.getgid()]
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    hierarchy = [fields[1] for fields in mounts if fields[2] in ("cgroup", "cgroup2")]
    return {
        "worker": os.geteuid(),
        "group": groups[0] if groups else -1,
        "cgroup": f"{hierarchy[0]}/cgroup.procs" if hierarchy else "/nonexistent",
        **{f"ns_{kind}": Path(f"/proc/self/ns/{kind}").readlink() for kind in NAMESPACES},
    }


def _key(stack: ExitStack, mark: str) -> Targets:
    name = f"escape-{mark}"
    assert system_call("keyctl", 1, None) > 0
    serial = system_call("add_key", b"user", name.encode(), b"secret", 6, -3)
    assert serial > 0
    stack.callback(system_call, "keyctl", 3, serial)
    return {"key": serial, "key_name": name}


def _sockets(stack: ExitStack, directory: Path, mark: str) -> Targets:
    four = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
    port6 = 1
    if has_ipv6():
        server = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=200)
        port6 = stack.enter_context(server).getsockname()[1]
    for name in (f"\0escape-{mark}", str(directory / "socket")):
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(name)
        listener.listen(200)
    (directory / "socket").chmod(0o666)
    port = four.getsockname()[1]
    return {
        "port": port,
        "port6": port6,
        "abstract": f"escape-{mark}",
        "socket": directory / "socket",
        "url_loopback": f"http://127.0.0.1:{port}/",
        "url_localhost": f"http://localhost:{port}/",
    }


def _network(mirror: str) -> Targets:
    parts = urlsplit(mirror)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), port))
        own = probe.getsockname()[0]
    return {
        "mirror": address,
        "mirror_port": port,
        "address": own,
        "address_port": 80,
        "nameserver": nameserver() or "127.0.0.1",
        "url_mirror": f"http://{parts.netloc}{parts.path}/",
        "url_port": f"http://{host}:{port + 1}/",
        "url_host": "http://192.0.2.1/",
        "url_machine": f"http://{own}/",
        "url_file": "file:///etc/hosts",
        "connect": f"{host}:{port}",
    }


def _process(stack: ExitStack, machine: Machine) -> int:
    """A process of the machine that has System V and POSIX memory."""
    program = machine.place(machine.directory / "host", {})
    process = subprocess.Popen(
        [str(program), "host"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    stack.enter_context(process)
    assert process.stdin and process.stdout
    stack.callback(process.stdin.close)
    assert process.stdout.readline() == b"ready\n"
    return process.pid


def _gifts(stack: ExitStack, machine: Machine) -> Targets:
    """What an earlier phase may leave: a daemon, a set-user-ID program, one with capabilities."""
    program = machine.place(machine.directory / "gifts", {})
    for name in ("setuid", "capable"):
        (program.parent / name).write_bytes(program.read_bytes())
        (program.parent / name).chmod(0o4755 if name == "setuid" else 0o755)
    if os.geteuid() == 0:
        run([program, "give", program.parent / "capable"])
    started = subprocess.run([program, "daemon"], capture_output=True, check=True)
    word, pid = started.stdout.split()
    assert word == b"ready"
    stack.callback(os.kill, int(pid), 9)
    return {name: program.parent / name for name in ("setuid", "capable")}


@contextmanager
def _lenient_proxy() -> Iterator[int]:
    """A proxy that lets everything pass, as far as anybody can see."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        do_POST = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with _serving(Handler) as port:
        yield port


@contextmanager
def _serving(
    handler: type[BaseHTTPRequestHandler] | Callable[..., BaseHTTPRequestHandler],
) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """A web server on loopback for a directory's files; its URL."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with _serving(functools.partial(Handler, directory=str(directory))) as port:
        yield f"http://127.0.0.1:{port}"

"""The notifier: what it runs, what it refuses, and what becomes of events without it."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import notifierclient, sockets
from invirtibuilder.acl import ask
from invirtibuilder.errors import MachineFault, Unavailable
from invirtibuilder.hookcall import EVENTS, MAX_EVENT, Hook
from invirtibuilder.hooks import GIVE_UP, Delivery, Events
from invirtibuilder.notifier import HOOKS_AT_ONCE
from invirtibuilder.settings import AclEntry
from tests.support import hookscripts, notifying
from tests.support.hookscripts import JOB
from tests.support.place import ROOT, until

ALICE = "alice@EXAMPLE.ORG"
TELL = 'echo "$INVIRTIBUILDER_EVENT" >> "$OUT"'


class Desk:
    """A directory with scripts, a configuration that names them, and the notifier's socket."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.socket = root / "socket"
        self.out = root / "out"
        self.hooks: list[Hook] = []
        self.acl: dict[str, list[dict[str, str]]] = {}
        self.write()

    def write(self) -> None:
        notifying.configure(self.config, self.hooks, acl=self.acl)

    def script(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def hook(self, script: str, name: str = "hook", **fields: Any) -> Hook:
        """Add a hook; `$OUT` in its script is `out`."""
        environment = {"OUT": str(self.out)}
        values: dict[str, Any] = {"events": frozenset(EVENTS), "timeout": 20, **fields}
        program = self.script(f"{name}.sh", script)
        hook = Hook(name=name, program=program, environment=environment, **values)
        self.hooks = [h for h in self.hooks if h.name != name] + [hook]
        self.write()
        return hook

    def program(self, script: str, action: str = "submit") -> AclEntry:
        """A program of the ACL of `dev`."""
        path = self.script(f"who-{action}", script)
        self.acl[action] = [{"command": str(path)}]
        self.write()
        return AclEntry(command=path, notifier=self.socket)

    def deliver(self, hook: Hook | str, event: bytes = b"", *, timeout: float = 20) -> Any:
        asked = (
            hook
            if isinstance(hook, Hook)
            else Hook(
                name=hook, program=Path("/bin/true"), events=frozenset(EVENTS), timeout=timeout
            )
        )
        return notifierclient.deliver(self.socket, asked, event or told())

    def events(self, now: datetime | None = None) -> Events:
        there = functools.partial(notifierclient.deliver, self.socket)
        clock = (lambda: now) if now else (lambda: datetime.now(UTC))
        return Events(self.root / "events", self.hooks, clock=clock, call=there)

    def running(self, python: Sequence[str] = notifying.PYTHON) -> Any:
        return notifying.notifier(self.config, self.socket, python=python)

    def lines(self) -> list[str]:
        return self.out.read_text().split() if self.out.exists() else []


def told(name: str = "submitted", **fields: Any) -> bytes:
    return json.dumps(hookscripts.event(name, **fields)).encode()


@pytest.fixture
def desk() -> Iterator[Desk]:
    with tempfile.TemporaryDirectory(prefix="ib-") as name:
        yield Desk(Path(name))


@pytest.fixture(scope="module")
def shared() -> Iterator[Desk]:
    """A notifier that runs, with a hook and a program that accept everything."""
    with tempfile.TemporaryDirectory(prefix="ib-") as name:
        made = Desk(Path(name))
        made.hook(TELL, events=frozenset({"submitted", "failed"}))
        made.program(f"echo {ALICE}")
        with made.running():
            yield made


def still_there(desk: Desk) -> bool:
    """Whether it still does what it is for."""
    return bool(desk.deliver("hook") == (0, ""))


def raw(desk: Desk, data: bytes, *, all_of_it: bool = True) -> dict[str, Any]:
    """What is answered to these bytes, and the end if that is all of it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(desk.socket))
        connection.sendall(data)
        if all_of_it:
            connection.shutdown(socket.SHUT_WR)
        return sockets.receive(connection, limit=1 << 20, seconds=20)[0]


def test_a_hook_that_is_not_configured_is_refused(shared: Desk) -> None:
    for name in ("other", "", "../hook", "/bin/true", "hook.sh", "hook\0", "\u202ehook"):
        (fault,) = [refused(shared, {"hook": name})]
        assert "has no hook" in fault
        assert fault.isprintable()
    assert "is not told of such an event" in str(failed(shared, told("started")))
    assert still_there(shared)


def refused(desk: Desk, question: dict[str, Any], content: bytes = b"") -> str:
    """Why this question is not answered."""
    line = json.dumps({**question, "size": len(content or told())}).encode()
    answer = raw(desk, line + b"\n" + (content or told()))
    assert answer.keys() == {"failed", "size"}
    return str(answer["failed"])


def failed(desk: Desk, event: bytes) -> MachineFault:
    with pytest.raises(MachineFault) as caught:
        desk.deliver("hook", event)
    return caught.value


@pytest.mark.parametrize(
    "question",
    [
        {"acl": "/bin/echo"},
        {"acl": "who-submit"},
        {"pocket": "prod"},
        {"pocket": "dev; id"},
        {"action": "read"},
        {"action": "--help"},
        {"acl": None},
        {"acl": ["/bin/echo"]},
    ],
    ids=str,
)
def test_a_program_that_is_not_configured_so_is_refused(
    shared: Desk, question: dict[str, Any]
) -> None:
    known = {"acl": str(shared.root / "who-submit"), "pocket": "dev", "action": "submit"}
    assert "no such program" in refused(shared, {**known, **question})
    (answer,) = [
        ask(
            AclEntry(command=shared.root / "who-submit", notifier=shared.socket),
            pocket="dev",
            action="submit",
        )
    ]
    assert (set(answer.names), answer.troubles) == ({ALICE}, ())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"[]\n",
        b"\0" * 200_000,
        b'{"size": 0}\n',
        b'{"hook": "hook", "size": 3}\n{}',
        b'{"hook": "hook", "size": 99999999999999999999}\n',
        b'{"hook": "hook", "size": 0, "size": 1}\n',
        b'{"hook": "hook", "size": 2}\n[]',
        b'{"hook": "hook", "size": 1}\n{',
    ],
    ids=range(11),
)
def test_garbage_is_refused(shared: Desk, data: bytes) -> None:
    assert raw(shared, data).keys() == {"failed", "size"}
    assert still_there(shared)


def test_an_event_that_is_too_large_is_refused(shared: Desk) -> None:
    big = told(log_tail="x" * (MAX_EVENT - 1000))
    assert shared.deliver("hook", big) == (0, "")
    assert "at most" in str(failed(shared, told(log_tail="x" * MAX_EVENT)))
    assert still_there(shared)


def test_nothing_in_a_request_chooses_what_is_run(desk: Desk) -> None:
    evil = desk.script("evil", f"touch {desk.root}/evil-ran")
    desk.hook('env | sort > "$OUT"; echo "$0 $#" >> "$OUT"')
    chosen: dict[str, Any] = {
        "program": str(evil),
        "argv": [str(evil)],
        "environment": {"LD_PRELOAD": str(evil)},
        "timeout": 9999,
        "path": "/tmp",
        "cwd": str(desk.root),
    }
    content = told(hook=str(evil), principal="$(touch evil)", **chosen)
    with desk.running():
        line = json.dumps({"hook": "hook", **chosen, "size": len(content)}).encode()
        assert raw(desk, line + b"\n" + content, all_of_it=False)["code"] == 0
    *environment, called = desk.out.read_text().splitlines()
    assert called == f"{desk.root}/hook.sh 0"
    names = {line.partition("=")[0] for line in environment}
    assert "LD_PRELOAD" not in names
    assert "INVIRTIBUILDER_PRINCIPAL=$(touch evil)" in environment
    assert not (desk.root / "evil-ran").exists()


def test_a_change_of_the_configuration_counts_at_once_and_a_mistake_does_not(desk: Desk) -> None:
    desk.hook(TELL)
    with desk.running():
        assert still_there(desk)
        with pytest.raises(MachineFault, match="no hook"):
            desk.deliver("new")
        desk.hook(TELL, "new")
        assert desk.deliver("new") == (0, "")
        good = desk.config.read_text()
        desk.config.write_text(good.replace("hooks:", "hooked:"))
        assert desk.deliver("new") == (0, "")
        desk.hooks = [hook for hook in desk.hooks if hook.name != "new"]
        desk.write()
        with pytest.raises(MachineFault, match="no hook"):
            desk.deliver("new")
    log = desk.config.with_name("notifier.log").read_text()
    assert log.count("stays as it was") == 1


def test_deliveries_go_on_at_once_and_a_stuck_hook_holds_no_acl_up(desk: Desk) -> None:
    count = HOOKS_AT_ONCE
    desk.hook('echo here >> "$OUT"; until [ -e $OUT.go ]; do sleep 0.5; done', timeout=300)
    entry = desk.program(f"echo {ALICE}")
    codes: list[int] = []
    with desk.running():
        threads = [
            threading.Thread(target=lambda: codes.append(desk.deliver("hook", timeout=300)[0]))
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(desk.lines()) == count)
        assert set(ask(entry, pocket="dev", action="submit").names) == {ALICE}
        with pytest.raises(Unavailable, match="too many hooks run at once"):
            desk.deliver("hook")
        assert codes == []
        Path(f"{desk.out}.go").touch()
        for thread in threads:
            thread.join(60)
    assert codes == [0] * count


def test_who_asks_and_goes_takes_the_hook_along(desk: Desk) -> None:
    desk.hook('sleep 300 & echo $$ $! >> "$OUT"; wait', timeout=300)
    with desk.running(), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(desk.socket))
        sockets.send(connection, {"hook": "hook"}, told())
        pids = until(desk.lines)
        connection.close()
        until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


PATIENT = """
import sys
from invirtibuilder import notifier
from invirtibuilder.cli.main import main
notifier.LEAVE = 15.0
sys.exit(main())
"""
"""The notifier with more time for hooks when it ends: the machine may be busy."""


def test_on_sigterm_hooks_may_end_but_not_for_long(desk: Desk) -> None:
    desk.hook('echo $$ >> "$OUT"; until [ -e $OUT.end ]; do sleep 0.05; done', "short")
    desk.hook('echo $$ >> "$OUT"; exec sleep 300', "long", timeout=300)
    results: dict[str, object] = {}

    def deliver(name: str) -> None:
        try:
            results[name] = desk.deliver(name, timeout=300)
        except Unavailable as fault:
            results[name] = fault.code

    with desk.running((sys.executable, "-c", PATIENT)) as process:
        threads = [threading.Thread(target=deliver, args=(name,)) for name in ("short", "long")]
        for thread in threads:
            thread.start()
        pids = until(lambda: lines if len(lines := desk.lines()) == 2 else None)
        process.send_signal(signal.SIGTERM)
        Path(f"{desk.out}.end").touch()
        assert process.wait(60) == 0
        for thread in threads:
            thread.join(60)
    assert results == {"short": (0, ""), "long": "no-notifier"}
    assert not any(alive(pid) for pid in pids)


def test_a_notifier_killed_during_a_hook_means_telling_again(desk: Desk) -> None:
    desk.hook(f'if mkdir "$OUT.1"; then {TELL}; kill -9 $PPID; exit 0; fi; {TELL}')
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for event in ("submitted", "started"):
        desk.events(now).queue(JOB, event, {})
    with desk.running() as process:
        when = desk.events(now).deliver()
        process.wait(60)
    delivery, other = desk.events().deliveries(JOB)
    assert (delivery.accepted, delivery.attempts, other.attempts) == (None, 0, 0)
    assert "does not answer" in delivery.why
    assert when
    with desk.running():
        assert desk.events(when).deliver() is None
    assert desk.lines() == ["submitted", "submitted", "started"]


def test_without_a_notifier_events_wait_for_as_long_as_it_takes(desk: Desk) -> None:
    hooks = [desk.hook(TELL, "one"), desk.hook(TELL, "two", required=True)]
    start = now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    jobs = [JOB, f"{JOB[:-4]}0001"]
    for job in jobs:
        desk.events(now).queue(job, "submitted", {})
    while now < start + 2 * GIVE_UP:
        # One attempt a turn and hook: the second job's comes in the next turn.
        assert desk.events(now).deliver() == now
        when = desk.events(now).deliver()
        assert when == now + timedelta(seconds=5)
        now += timedelta(hours=1)
    (waiting,) = desk.events(now).deliver_job(JOB)
    assert waiting.hook == "two"
    deliveries = [d for job in jobs for d in desk.events(now).deliveries(job)]
    assert [(d.attempts, d.gave_up, d.accepted) for d in deliveries] == [(0, False, None)] * 4
    assert all("the notifier at" in d.why and "does not answer" in d.why for d in deliveries)
    with desk.running():
        last = now + timedelta(seconds=5)
        while desk.events(last).deliver() is not None:
            last += timedelta(seconds=5)
    deliveries = [d for job in jobs for d in desk.events().deliveries(job)]
    assert all(d.accepted and d.attempts == 1 for d in deliveries)
    assert desk.lines() == ["submitted"] * 2 * len(hooks)


def test_a_failure_before_does_not_count_while_there_is_no_notifier(desk: Desk) -> None:
    """The day after which a hook is given up is one of its own failures."""
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    desk.hook("exit 1")
    desk.events(now).queue(JOB, "submitted", {})
    with desk.running():
        desk.events(now).deliver()
    desk.events(now + 2 * GIVE_UP).deliver()
    delivery: Delivery = desk.events().deliveries(JOB)[0]
    assert (delivery.attempts, delivery.gave_up) == (1, False)


def test_an_acl_without_a_notifier_says_so(desk: Desk) -> None:
    entry = desk.program(f"echo {ALICE}")
    answer = ask(entry, pocket="dev", action="submit")
    assert answer.failed
    assert "does not answer" in answer.troubles[0].message
    with desk.running():
        assert set(ask(entry, pocket="dev", action="submit").names) == {ALICE}
        desk.program("echo no directory >&2; exit 3")
        answer = ask(entry, pocket="dev", action="submit")
        assert answer.failed
        assert "exit code 3" in answer.troubles[0].message
        assert "no directory" in answer.troubles[0].message


def test_a_listener_that_says_nothing_sensible_accepts_nothing(desk: Desk) -> None:
    answers = (b"", b"\n", b'{"size": 0}\n', b'{"code": "0", "size": 0}\n', b'{"code": 0}\n')
    desk.hook(TELL)
    entry = desk.program(f"echo {ALICE}")
    with sockets.listening(desk.socket) as server:
        server.settimeout(20)

        def serve() -> None:
            for answer in (*answers, *answers[:-1]):
                connection, _ = server.accept()
                with connection:
                    sockets.receive(connection, limit=MAX_EVENT, seconds=20)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        for _ in answers:
            with pytest.raises((Unavailable, MachineFault)):
                desk.deliver("hook")
        for _ in answers[:-1]:
            assert ask(entry, pocket="dev", action="submit").failed
        thread.join(20)


def test_it_listens_only_where_told(desk: Desk) -> None:
    argv = [*notifying.PYTHON, "--config", str(desk.config), "notifier"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=env, capture_output=True, timeout=30, check=False)
    assert done.returncode == 64
    done = subprocess.run(
        [*argv, "--listen", str(desk.root / "none" / "socket")],
        env=env,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 71
    assert b"cannot listen on" in done.stderr

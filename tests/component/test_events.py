"""Delivery of events to real programs, by ourselves and by the notifier; only the clock is not
real.
"""

from __future__ import annotations

import functools
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import notifierclient
from invirtibuilder.errors import Malformed
from invirtibuilder.hookcall import EVENTS, Hook
from invirtibuilder.hooks import BACK_OFF, GIVE_UP, Events
from tests.support import notifying
from tests.support.hookscripts import JOB

OTHER = "20260102T030406.000000-0001"
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Site:
    """A directory of events and hooks that are shell scripts, run here or by a notifier."""

    def __init__(self, root: Path, service: Path | None) -> None:
        self.root = root
        self.service = service
        self.directory = root / "events"
        self.clock = Clock()
        self.hooks: list[Hook] = []

    @property
    def events(self) -> Events:
        """As a process that has just started would see it."""
        if self.service is None:
            return Events(self.directory, self.hooks, clock=self.clock)
        notifying.configure(self.service / "config.yaml", self.hooks)
        there = functools.partial(notifierclient.deliver, self.service / "socket")
        return Events(self.directory, self.hooks, clock=self.clock, call=there)

    def hook(self, name: str, script: str, **fields: Any) -> Path:
        """Add a hook; `$OUT` in its script is the path that this returns."""
        program = self.root / f"{name}.sh"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        out = self.root / f"{name}.out"
        environment = {"OUT": str(out), **fields.pop("environment", {})}
        values: dict[str, Any] = {"events": frozenset(EVENTS), "timeout": 60, **fields}
        self.hooks = [hook for hook in self.hooks if hook.name != name]
        self.hooks.append(Hook(name=name, program=program, environment=environment, **values))
        return out

    def queue(self, *events: str, job: str = JOB) -> None:
        for event in events:
            self.events.queue(job, event, {"package": "hello", "principal": "alice@EXAMPLE.ORG"})

    def pending(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "pending").iterdir())


@pytest.fixture(scope="module", params=["here", "service"])
def service(request: pytest.FixtureRequest) -> Iterator[Path | None]:
    """The directory of a notifier with `config.yaml` and `socket`, or none."""
    if request.param == "here":
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="ib-") as name:
        folder = Path(name)
        notifying.configure(folder / "config.yaml")
        env = {"SECRET": "of the notifier"}
        with notifying.notifier(folder / "config.yaml", folder / "socket", env=env):
            yield folder


@pytest.fixture
def site(tmp_path: Path, service: Path | None) -> Site:
    return Site(tmp_path, service)


TELL = 'echo "$INVIRTIBUILDER_EVENT" >> "$OUT"'


def told(out: Path) -> list[str]:
    return out.read_text().split() if out.exists() else []


def test_events_come_once_and_in_order(site: Site) -> None:
    out = site.hook("tell", TELL)
    site.queue("submitted", "started", "published")
    assert site.events.deliver() is None
    assert site.events.deliver() is None
    assert told(out) == ["submitted", "started", "published"]


def test_the_payload_is_what_was_queued_first_with_its_id(site: Site) -> None:
    out = site.hook("keep", 'cat > "$OUT"')
    site.events.queue(JOB, "submitted", {"package": "hello", "log_tail": "x" * 99_999, "id": "no"})
    site.events.queue(JOB, "submitted", {"package": "other"})
    site.events.deliver()
    event = json.loads(out.read_bytes())
    assert (event["id"], event["event"], event["job"]) == (f"{JOB}:submitted", "submitted", JOB)
    assert event["package"] == "hello"
    assert len(event["log_tail"]) == 65536


def test_each_retry_gets_the_same_bytes(site: Site) -> None:
    out = site.hook("keep", 'cat >> "$OUT"; echo >> "$OUT"; exit 75')
    site.queue("submitted")
    for _ in range(2):
        site.events.deliver()
        site.clock.forward(60)
    first, second, rest = out.read_text().split("\n}\n\n")
    assert first == second
    assert not rest


@pytest.mark.parametrize(("job", "event"), [("../x", "submitted"), (JOB, "finished")])
def test_a_wrong_job_or_event_is_refused(site: Site, job: str, event: str) -> None:
    with pytest.raises(Malformed):
        site.events.queue(job, event, {})


def test_the_environment_is_built_up_and_not_inherited(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the daemon")
    out = site.hook("env", 'env > "$OUT"; pwd >> "$OUT"', environment={"MAIL_TO": "root"})
    site.events.queue(
        JOB, "failed", {"state": "refused", "principal": "al\nice\0\x1b[2J", "pocket": "dev"}
    )
    site.events.deliver()
    *lines, folder = out.read_text().splitlines()
    assert folder == "/"
    variables = dict(line.split("=", 1) for line in lines)
    for name in ("PWD", "_", "SHLVL"):  # the shell's own
        variables.pop(name, None)
    assert variables == {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "HOME": "/nonexistent",
        "OUT": str(out),
        "MAIL_TO": "root",
        "INVIRTIBUILDER_EVENT": "failed",
        "INVIRTIBUILDER_EVENT_ID": f"{JOB}:failed",
        "INVIRTIBUILDER_JOB": JOB,
        "INVIRTIBUILDER_POCKET": "dev",
        "INVIRTIBUILDER_PACKAGE": "",
        "INVIRTIBUILDER_VERSION": "",
        "INVIRTIBUILDER_COMMIT": "",
        "INVIRTIBUILDER_PRINCIPAL": r"al\nice\x00\x1b[2J",
        "INVIRTIBUILDER_STATE": "refused",
    }


def test_a_hook_has_a_session_of_its_own_and_no_descriptor_of_ours(site: Site) -> None:
    out = site.hook("look", 'cut -d" " -f6 /proc/$$/stat > "$OUT"; ls -l /proc/$$/fd >> "$OUT"')
    site.queue("submitted")
    with (site.root / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        site.events.deliver()
    session, descriptors = out.read_text().split("\n", 1)
    assert int(session) != os.getsid(0)
    assert "/memfd:event" in descriptors, "its standard input"
    assert f"{site.root}/open" not in descriptors
    assert ".lock" not in descriptors


def test_failures_are_written_down_and_tried_again_later_and_later(site: Site) -> None:
    out = site.hook("down", f'{TELL}; echo "no\033[31m route" >&2; exit 75')
    site.queue("submitted", "started")
    for attempt, wait in enumerate([*BACK_OFF, BACK_OFF[-1]], start=1):
        when = site.events.deliver()
        assert when == site.clock.now + timedelta(seconds=wait)
        assert told(out) == ["submitted"] * attempt
        assert site.events.deliver() == when  # not due: not run
        assert told(out) == ["submitted"] * attempt
        site.clock.forward(wait)
    delivery = site.events.deliveries(JOB)[0]
    assert delivery.attempts == len(BACK_OFF) + 1
    assert delivery.why == r"try again later: no\x1b[31m route"


def test_a_hook_that_works_again_gets_everything_in_order(site: Site) -> None:
    out = site.hook("flaky", f'[ -e "$OUT.up" ] || exit 3; {TELL}')
    site.queue("submitted", "started")
    site.events.deliver()
    assert site.events.deliveries(JOB)[0].why == "exit code 3"
    Path(f"{out}.up").touch()
    site.queue("failed")
    site.events.deliver()
    assert told(out) == []
    site.clock.forward(5)
    assert site.events.deliver() is None
    assert told(out) == ["submitted", "started", "failed"]


def run_for(site: Site, time: timedelta) -> datetime | None:
    end = site.clock.now + time
    when = site.events.deliver()
    while when and when <= end:
        site.clock.now = when
        when = site.events.deliver()
    return when


def test_only_a_required_hook_is_tried_for_ever(site: Site) -> None:
    site.hook("down", "exit 1")
    out = site.hook("audit", TELL + "; exit 1", required=True)
    site.queue("submitted")
    assert run_for(site, GIVE_UP + timedelta(hours=2))
    audit, down = site.events.deliveries(JOB)
    assert (audit.hook, audit.gave_up, down.hook, down.gave_up) == ("audit", False, "down", True)
    assert len(told(out)) == audit.attempts > down.attempts
    assert site.pending() == [JOB]


def test_later_events_come_after_one_that_was_given_up(site: Site) -> None:
    out = site.hook("picky", f'[ "$INVIRTIBUILDER_EVENT" = started ] || exit 1; {TELL}')
    site.queue("submitted", "started")
    assert run_for(site, GIVE_UP * 2) is None
    assert told(out) == ["started"]
    assert site.pending() == []


def test_a_required_hook_is_waited_for_until_it_accepts(site: Site) -> None:
    out = site.hook(
        "audit", f'[ -e "$OUT.up" ] || {{ echo down; exit 75; }}; {TELL}', required=True
    )
    slow = site.hook("mail", TELL)
    assert [each.hook for each in site.events.waiting_for(JOB)] == ["audit"], "not queued yet"
    site.queue("submitted")
    (waiting,) = site.events.deliver_job(JOB)
    assert (waiting.hook, waiting.why, waiting.attempts) == ("audit", "try again later: down", 1)
    assert waiting.next == START + timedelta(seconds=5)
    Path(f"{out}.up").touch()
    assert site.events.deliver_job(JOB), "not due"
    site.clock.forward(5)
    assert site.events.deliver_job(JOB) == []
    assert told(out) == ["submitted"]
    assert told(slow) == [], "only required hooks are run for a job"
    assert site.events.deliver() is None
    assert told(out) == told(slow) == ["submitted"]


def test_a_required_hook_without_submitted_holds_nothing_back(site: Site) -> None:
    site.hook("audit", "exit 1", required=True, events=frozenset({"published"}))
    site.queue("submitted")
    assert site.events.waiting_for(JOB) == []


def test_one_job_and_one_hook_do_not_hold_up_the_others(site: Site) -> None:
    site.hook("down", "exit 1")
    out = site.hook("tell", 'echo "$INVIRTIBUILDER_EVENT_ID" >> "$OUT"')
    site.queue("submitted")
    site.queue("submitted", job=OTHER)
    site.events.deliver()
    assert told(out) == [f"{JOB}:submitted", f"{OTHER}:submitted"]


def test_a_hook_that_hangs_is_ended_with_its_family_once_a_call(site: Site) -> None:
    out = site.hook("hang", f"{TELL}; sleep 300 & echo $! >> $OUT; wait", timeout=5)
    after = site.hook("after", TELL)
    site.queue("submitted")
    site.queue("submitted", job=OTHER)
    started = time.monotonic()
    assert site.events.deliver() == site.clock.now, "the other job's is due at once"
    assert time.monotonic() - started < 60
    event, child = told(out)
    assert event == "submitted"
    eventually(lambda: not running(int(child)))
    assert told(after) == ["submitted"] * 2
    assert site.events.deliveries(JOB)[0].why == "no end after 5 s: "
    assert site.events.deliveries(OTHER)[0].attempts == 0


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_hook_that_leaves_a_child_behind_is_not_waited_for(site: Site) -> None:
    site.hook("fork", "setsid sleep 120 & exit 0")
    site.queue("submitted")
    started = time.monotonic()
    assert site.events.deliver() is None
    assert time.monotonic() - started < 60


def test_output_without_end_is_cut(site: Site) -> None:
    site.hook("flood", "head -c 300000000 /dev/zero | tr '\\0' x; echo the end; exit 1")
    site.queue("submitted")
    site.events.deliver()
    why = site.events.deliveries(JOB)[0].why
    assert why.startswith("exit code 1: xxx")
    assert len(why) <= 1000
    site.hook("flood", "yes", timeout=1)
    site.clock.forward(5)
    site.events.deliver()
    assert site.events.deliveries(JOB)[0].why.startswith("no end after 1 s: ")


def test_a_hook_may_leave_its_input_unread(site: Site) -> None:
    site.hook("deaf", "exec <&-; sleep 0.2; exit 0")
    site.events.queue(JOB, "failed", {"why": ["x" * 500_000]})
    assert site.events.deliver() is None
    assert site.events.deliveries(JOB)[0].accepted


def test_a_program_that_cannot_be_started_is_a_failure_like_others(site: Site) -> None:
    site.hook("gone", "exit 0")
    site.hook("locked", "exit 0")
    site.hook("broken", "exit 0")
    out = site.hook("tell", TELL)
    site.queue("submitted", job=OTHER)
    site.events.deliver()
    site.queue("submitted")
    (site.root / "gone.sh").unlink()
    (site.root / "locked.sh").chmod(0o644)
    (site.root / "broken.sh").write_text("#!/nonexistent/interpreter\n")
    site.events.deliver()
    gone, locked, broken, _ = site.events.deliveries(JOB)
    assert "No such file" in gone.why
    assert "Permission denied" in locked.why
    assert "No such file" in broken.why
    assert told(out) == ["submitted"] * 2


def test_a_hook_killed_by_a_signal_has_failed(site: Site) -> None:
    site.hook("dies", "kill -9 $$")
    site.queue("submitted")
    site.events.deliver()
    assert site.events.deliveries(JOB)[0].why == "killed by signal 9"


def test_finished_jobs_cost_nothing_and_are_taken_up_again(site: Site) -> None:
    out = site.hook("tell", TELL)
    jobs = [f"20260102T030405.{n:06}-abcd" for n in range(30)]
    for job in jobs:
        site.queue("submitted", job=job)
    site.events.deliver()
    assert site.pending() == []
    (site.directory / jobs[0] / "00-submitted.tell.json").unlink()
    assert site.events.deliver() is None
    assert told(out) == ["submitted"] * 30, "looks into no finished job"
    site.queue("submitted", job=jobs[3])
    assert site.pending() == [], "an event that is queued already is not pending again"
    site.queue("published", job=jobs[3])
    assert site.pending() == [jobs[3]]
    site.events.deliver()
    assert told(out) == ["submitted"] * 30 + ["published"]


def test_hooks_may_change_while_events_are_pending(site: Site) -> None:
    site.hook("old", "exit 1")
    site.hook("kept", "exit 1")
    site.queue("submitted")
    site.events.deliver()
    site.hooks = [hook for hook in site.hooks if hook.name != "old"]
    new = site.hook("new", TELL)
    site.clock.forward(5)
    site.events.deliver()
    assert told(new) == ["submitted"]
    assert [each.hook for each in site.events.deliveries(JOB)] == ["kept", "new"]
    site.hooks = [hook for hook in site.hooks if hook.name == "new"]
    assert site.events.deliver() is None
    assert site.pending() == []
    site.hooks = []
    assert site.events.deliver() is None


def test_a_hook_that_became_required_is_tried_although_it_was_given_up(site: Site) -> None:
    site.hook("audit", "exit 1")
    site.queue("submitted")
    run_for(site, GIVE_UP * 2)
    assert site.events.deliveries(JOB)[0].gave_up
    site.hook("audit", "exit 0", required=True)
    assert site.events.waiting_for(JOB)
    assert site.events.deliver_job(JOB) == []


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"accepted": "yes"}'])
def test_a_damaged_state_means_telling_again(site: Site, damage: str) -> None:
    out = site.hook("tell", TELL)
    site.hook("down", "exit 1")  # keeps the job pending
    site.queue("submitted")
    site.events.deliver()
    (site.directory / JOB / "00-submitted.tell.json").write_text(damage)
    site.events.deliver()
    assert told(out) == ["submitted"] * 2


def test_a_damaged_event_is_a_failure_and_the_others_come(site: Site) -> None:
    out = site.hook("tell", TELL)
    site.queue("submitted")
    site.queue("submitted", job=OTHER)
    (site.directory / JOB / "00-submitted.json").write_text("{")
    assert site.events.deliver()
    assert told(out) == ["submitted"]
    assert "not JSON" in site.events.deliveries(JOB)[0].why


def test_nothing_is_run_when_its_answer_could_not_be_kept(site: Site) -> None:
    """A disk that is full: no mail a second."""
    out = site.hook("tell", TELL)
    site.queue("submitted")
    done = worker(
        site,
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n    events.deliver()\n"
        "except OSError: print('refused')\n",
    )
    assert done.communicate(timeout=60)[0] == "refused\n"
    assert told(out) == []
    assert site.events.deliver() is None
    assert told(out) == ["submitted"]


def worker(site: Site, code: str = "events.deliver()\n") -> subprocess.Popen[str]:
    """Another process that delivers, with the real clock."""
    there = "call"
    if site.service:
        notifying.configure(site.service / "config.yaml", site.hooks)
        there = f"partial(notifierclient.deliver, Path({str(site.service / 'socket')!r}))"
    (hook,) = site.hooks
    head = (
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from invirtibuilder import notifierclient\n"
        "from invirtibuilder.hookcall import Hook, call\n"
        "from invirtibuilder.hooks import Events\n"
        f"hook = Hook(name={hook.name!r}, program=Path({str(hook.program)!r}),"
        f" events=frozenset({sorted(hook.events)!r}), environment={dict(hook.environment)!r},"
        f" required={hook.required!r}, timeout={hook.timeout!r})\n"
        f"events = Events(Path({str(site.directory)!r}), [hook], call={there})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("when", ["before it acts", "after it acted"])
def test_a_deliverer_killed_during_a_hook_means_telling_again(site: Site, when: str) -> None:
    first = "" if when == "before it acts" else TELL
    act = f"{first or ':'}; mkdir $OUT.2; sleep 60; exit 0"
    out = site.hook("kill", f"if mkdir $OUT.1; then {act}; fi; {TELL}")
    site.queue("submitted", "started")
    killed = worker(site)
    eventually(Path(f"{out}.2").exists)
    killed.kill()
    killed.communicate(timeout=60)
    site.clock.now = datetime.now(UTC)
    (delivery, _) = site.events.deliveries(JOB)
    assert (delivery.accepted, delivery.attempts) == (None, 1)
    assert delivery.why == "the attempt was interrupted"
    site.clock.forward(5)
    assert site.events.deliver() is None
    expected = ["submitted", "started"]
    assert told(out) == (expected if when == "before it acts" else ["submitted", *expected])


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.13, 0.16, 0.2, 0.25])
def test_killed_at_any_instant_nothing_is_lost_or_out_of_order(site: Site, delay: float) -> None:
    out = site.hook("tell", TELL)
    process = worker(
        site,
        "for event in ('submitted', 'started', 'failed'):\n"
        f"    events.queue({JOB!r}, event, {{}})\n"
        "    print(event, flush=True)\n"
        "    events.deliver()\n",
    )
    time.sleep(delay)
    process.kill()
    queued = process.communicate(timeout=60)[0].split()
    site.queue("submitted", "started", "failed")
    time.sleep(0.1)  # a hook that was left behind ends
    site.clock.now = datetime.now(UTC) + timedelta(minutes=1)
    assert site.events.deliver() is None
    assert queued == ["submitted", "started", "failed"][: len(queued)]
    assert list(dict.fromkeys(told(out))) == ["submitted", "started", "failed"]
    assert len(told(out)) <= 4, "only what was under way comes again"
    assert all(each.accepted for each in site.events.deliveries(JOB))


def test_two_deliverers_do_not_run_a_hook_twice(site: Site) -> None:
    out = site.hook("slow", f"until [ -e $OUT.go ]; do sleep 0.05; done; {TELL}", required=True)
    site.queue("submitted")
    events = site.events
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(events.deliver_job(JOB))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: (site.directory / JOB / "00-submitted.slow.json").exists())
    assert events.deliver() == START + timedelta(seconds=1), "another has it: does not wait"
    Path(f"{out}.go").touch()
    for thread in threads:
        thread.join(60)
    assert told(out) == ["submitted"]
    assert results == [[], [], []]


def test_events_queued_while_hooks_run_are_not_lost(site: Site) -> None:
    out = site.hook("tell", TELL)
    events = site.events
    jobs = [f"20260102T030405.{n:06}-abcd" for n in range(20)]
    done = threading.Event()

    def keep_delivering() -> None:
        while not done.is_set():
            events.deliver()

    thread = threading.Thread(target=keep_delivering)
    thread.start()
    try:
        for event in ("submitted", "published"):
            for job in jobs:
                events.queue(job, event, {})
    finally:
        done.set()
        thread.join(60)
    events.deliver()
    assert sorted(told(out)) == ["published"] * 20 + ["submitted"] * 20


def test_what_is_written_is_no_secret_to_be_changed_by_others(site: Site) -> None:
    site.queue("submitted")
    for path in site.directory.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022, path

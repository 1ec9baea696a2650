"""Jobs, queue and daemon against broken things on disk, hostile results and an ill machine."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import files, runner
from invirtibuilder.daemon import Daemon
from invirtibuilder.errors import Blame, MachineFault, Reason
from invirtibuilder.jobs import Job
from invirtibuilder.spool import Request, Spool
from invirtibuilder.stages import finish, orders, transaction
from invirtibuilder.states import State
from tests.support.line import ME, Line, broken, states

# Jobs on disk.


def test_the_line_publishes(line: Line) -> None:
    line.package("hello")
    job = line.run(line.job("staging", "hello"))
    assert job.status.state == State.PUBLISHED, job.status
    assert line.context.repository("hello").ref("refs/tags/debian/1.0")


def test_a_cancel_between_two_writes_of_the_line_is_kept(line: Line) -> None:
    """The main thread cancels while the job's own thread is between reading and writing."""
    job = line.job("staging", "hello")
    job.move(State.RUNNING)
    stale = job.status
    job.ask_cancel("ada@EXAMPLE.ORG")
    job._write(dataclasses.replace(stale, stage="export"))
    assert job.cancel_asked == "ada@EXAMPLE.ORG"


def test_a_cancel_does_not_bring_a_job_back_to_life(line: Line) -> None:
    job = line.job("staging", "hello")
    job.move(State.RUNNING)
    other = Job(job.directory)
    before = other.status
    job.move(State.FAILED)
    assert before.state == State.RUNNING
    other.ask_cancel("ada@EXAMPLE.ORG")
    assert job.status.state == State.FAILED


@pytest.mark.parametrize("spoil", ["state.json", "request.json", "empty"])
def test_one_unreadable_job_does_not_stop_the_others(
    line: Line, daemon: Daemon, spoil: str
) -> None:
    broken = line.job("staging", "hello")
    if spoil == "empty":
        shutil.rmtree(broken.directory)
        broken.directory.mkdir()
    else:
        (broken.directory / spoil).write_text("{")
    line.package("hello")
    good = line.job("staging", "hello")
    daemon.run()
    assert good.status.state == State.PUBLISHED


def test_very_many_reasons_leave_a_job_readable(line: Line, daemon: Daemon) -> None:
    """4 MiB is the limit of what is read back."""
    line.package("hello")
    text = "\U000e0001" * 8000
    line.engine.reasons = tuple(Reason(code="x", message=text) for _ in range(50))
    job = line.job("staging", "hello")
    daemon.run()
    assert job.status.state == State.FAILED
    assert job.status.reasons
    event = next(line.site.events.glob(f"{job.id}/*-failed.json"))
    assert files.read_json(event)["state"] == "failed"


def test_many_unfit_packages_leave_a_job_readable(line: Line, daemon: Daemon) -> None:
    line.package("hello")

    def many(report: dict[str, Any]) -> None:
        if "debs" in report:
            (fields,) = report["debs"].values()
            fields["Source"] = "x" * 1000
            for number in range(1500):
                report["debs"][f"x{number}_1_all.deb"] = {**fields, "Package": f"x{number}"}

    line.engine.change = many
    line.engine.extra = 1500
    job = line.job("staging", "hello")
    daemon.run()
    assert job.status.state == State.FAILED
    assert job.status.blame == Blame.PACKAGE


@pytest.mark.parametrize(
    "value",
    [[], {"x.deb": "text"}, {"x.deb": {"Package": ["hello"], "Version": 1}}, {"x.deb": None}, 5],
)
def test_a_report_of_other_types_is_the_packages_fault(line: Line, value: object) -> None:
    line.package("hello")

    def spoil(report: dict[str, Any]) -> None:
        if "debs" in report:
            report["debs"] = value

    line.engine.change = spoil
    job = line.run(line.job("staging", "hello"))
    assert (job.status.state, job.status.blame) == (State.FAILED, Blame.PACKAGE)


def test_what_export_reports_is_bounded_in_the_record(line: Line) -> None:
    line.package("hello")

    def spoil(report: dict[str, Any]) -> None:
        if "differences" in report:
            report["differences"] = [*("d" * 500 for _ in range(5000)), {"a": [1.5]}]
            report["orig_from"] = {f"o{n}": "x" * 1000 for n in range(2000)}

    line.engine.change = spoil
    job = line.run(line.job("staging", "hello"))
    record = line.context.superproject.record("staging", "hello")
    assert job.status.state == State.PUBLISHED
    assert len(json.dumps(record)) < 400_000


# The queue.


def test_the_daemon_may_take_an_entry_before_its_writer_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the submitter hears `try again later` of what was accepted."""
    spool = Spool(tmp_path)
    spool.create()
    link = os.link

    def link_and_take(*args: Any, **kwargs: Any) -> None:
        link(*args, **kwargs)
        for entry in spool.entries(frozenset()):
            entry.path.unlink()

    monkeypatch.setattr(os, "link", link_and_take)
    spool.put(Request.new("submit", ["dev", "hello", "main"], principal=ME, via="test"))


@pytest.mark.parametrize("name", ["x" * 255, "bad\udcff.json", "line\nbreak", "directory/"])
def test_no_entry_stops_the_daemon(line: Line, daemon: Daemon, name: str) -> None:
    new = line.site.queue / "new"
    for _ in range(2):
        if name.endswith("/"):
            (new / name).mkdir()
            (new / name / "file").touch()
        else:
            (new / name).write_text("{}")
        daemon.take_up()
    assert not list(new.iterdir())


# A daemon on an ill machine.


def full(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_cancel_after_the_commit_point_comes_too_late(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.package("hello")
    with monkeypatch.context() as patch:
        patch.setattr(finish, "_finish", broken)
        job = line.run(line.job("staging", "hello"))
        job.ask_cancel(ME)
    assert line.run(job).status.state == State.PUBLISHED


def test_a_disk_too_full_for_states_does_not_stop_the_daemon(
    line: Line, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invirtibuilder.runner.ILL", 0.2)
    line.package("hello")
    job = line.job("staging", "hello")
    real = Job._write
    left = [3]

    def write(self: Job, status: Any) -> None:
        if left[0]:
            left[0] -= 1
            full()
        real(self, status)

    monkeypatch.setattr(Job, "_write", write)
    daemon.run()
    assert job.status.state == State.PUBLISHED


def test_what_workers_promise_less_of_is_in_the_log(line: Line, daemon: Daemon) -> None:
    daemon.run()
    assert "worker of trusted: promises less" in line.__dict__["log"]


def test_entries_wait_for_a_full_disk(
    line: Line, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.package("hello")
    daemon._spool.put(Request.new("submit", ["staging", "hello", "main"], principal=ME, via="t"))
    with monkeypatch.context() as patch:
        patch.setattr("invirtibuilder.jobs.Jobs.create", full)
        daemon.take_up()
    assert len(list(daemon._spool.new.iterdir())) == 1
    daemon.run()
    assert states(line) == ["published"]


def test_a_program_that_finds_the_disk_full_makes_the_job_wait(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_args: Any, **_kwargs: Any) -> None:
        raise MachineFault("reprepro failed: No space left on device")

    line.package("hello")
    with monkeypatch.context() as patch:
        patch.setattr(transaction, "_fill", told)
        job = line.run(line.job("staging", "hello"))
        assert job.status.state == State.WAITING
    assert line.run(job).status.state == State.PUBLISHED


@pytest.mark.parametrize("kind", ["told", "lost"])
def test_a_worker_without_room_makes_the_job_wait(
    line: Line, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whether it could say so, or had not even room for its result."""
    line.package("hello")
    with monkeypatch.context() as patch:
        if kind == "lost":
            patch.setattr(orders, "TIGHT", 1 << 60)
            patch.setattr(line.engine, "lost", True)
        else:
            reason = Reason(code="disk-full", message="less than 1 GiB is left")
            patch.setattr(line.engine, "reasons", (reason,))
            patch.setattr(line.engine, "blame", Blame.MACHINE)
        job = line.run(line.job("staging", "hello"))
        assert job.status.state == State.WAITING
        assert job.status.wake
        again = line.run(job)
        assert again.status.state == State.WAITING
    assert line.run(job).status.state == State.PUBLISHED


def test_only_the_machine_is_waited_for(line: Line) -> None:
    """A package cannot say that a disk is full and be built for ever."""
    line.package("hello")
    line.engine.reasons = (Reason(code="disk-full", message="No space left on device"),)
    job = line.run(line.job("staging", "hello"))
    assert (job.status.state, job.status.blame) == (State.FAILED, Blame.PACKAGE)


def test_a_clock_that_went_back_does_not_hold_a_job(line: Line, daemon: Daemon) -> None:
    line.package("hello")
    job = line.job("staging", "hello")
    job.move(State.RUNNING)
    job.move(State.WAITING, wake=datetime(2999, 1, 1, tzinfo=UTC))
    daemon.run()
    assert job.status.state == State.PUBLISHED


# The daemon's end.


@pytest.mark.parametrize("body", ["_run_jobs", "_deliver_events"])
def test_a_stop_between_two_looks_is_not_missed(line: Line, daemon: Daemon, body: str) -> None:
    """SIGTERM comes just after the daemon has seen that it has not come yet."""

    class Late(threading.Event):
        def is_set(self) -> bool:
            before = super().is_set()
            if not before:
                daemon.stop()
            return before

    daemon._stop = Late()
    daemon._context = dataclasses.replace(line.context, stopping=daemon._stop.is_set)
    daemon.drain = False
    thread = threading.Thread(target=getattr(daemon, body), daemon=True)
    thread.start()
    thread.join(30)  # it would wait for a minute
    assert not thread.is_alive()


def test_who_was_served_lately_is_known_after_a_restart(line: Line) -> None:
    line.package("alpha")
    job = line.run(line.job("staging", "alpha"))
    assert job.status.state == State.PUBLISHED
    made = runner.Runner(line.context, lambda *_, **__: None, lambda: None)
    assert made._served == {}
    made.load()
    order = job.directory / "attempts/build-1/order.tar"
    served = datetime.fromtimestamp(order.stat().st_mtime, UTC)
    assert made._served == {(ME, "staging"): served}

"""What the end of a command means."""

from __future__ import annotations

import errno

import pytest

from invirtibuilder import worker
from invirtibuilder.errors import Blame, Cancelled, Fault, RoomFault
from invirtibuilder.order import Limits
from invirtibuilder.phases.build import Broken
from invirtibuilder.phases.verdicts import judge
from invirtibuilder.sandbox.contract import Outcome

LIMITS = Limits(
    seconds=90,
    idle_seconds=1.5,
    cpu_seconds=7200,
    memory=512 << 20,
    processes=200,
    file_size=3 << 30,
    disk=1 << 40,
    log_size=1000,
    result_size=5 << 10,
)


def verdict(outcome: Outcome, *, result: bool = False, fault: type[Fault] = Broken) -> Fault:
    with pytest.raises(Fault) as caught:
        judge(
            outcome,
            what="dpkg-buildpackage",
            fault=fault,
            limits=LIMITS,
            package="hello",
            output="one\n== a stage\ntwo\n",
            result=result,
        )
    return caught.value


def test_a_good_end() -> None:
    judge(
        Outcome(code=0, seconds=1, hits={"processes": 3}),
        what="x",
        fault=Broken,
        limits=LIMITS,
        package="hello",
        output="",
        result=False,
    )


@pytest.mark.parametrize(
    ("limit", "key", "value"),
    [
        ("time", "time", "90 s"),
        ("idle", "idle", "1.5 s"),
        ("cpu_time", "cpu_time", "7200 s"),
        ("memory", "memory", "512 MiB"),
        ("disk", "disk", "1 TiB"),
        ("output", "log", "1000 B"),
    ],
)
def test_a_limit_is_named_with_its_value_and_key(limit: str, key: str, value: str) -> None:
    fault = verdict(Outcome(code=-9, limit=limit, seconds=3.7))
    assert str(fault) == f"dpkg-buildpackage exceeded the limit on {key} ({value}) after 4 s"
    assert (fault.code, fault.blame) == (f"limit-{key.replace('_', '-')}", Blame.PACKAGE)
    assert f"`limits: {key}` of the pocket" in fault.hint
    assert f"`packages: hello: limits: {key}`" in fault.hint


def test_a_limit_is_the_rooms_fault_where_a_failure_would_be() -> None:
    fault = verdict(Outcome(code=-9, limit="disk", seconds=1), fault=RoomFault)
    assert (fault.code, fault.blame) == ("limit-disk", Blame.ROOM)
    hits = {"processes": 2}
    fault = verdict(Outcome(code=-9, limit="idle", seconds=1, hits=hits))
    assert [reason.code for reason in fault.reasons] == ["limit-idle", "limit-processes"]


def test_a_result_too_large() -> None:
    fault = verdict(Outcome(code=-9, limit="output", seconds=1), result=True)
    assert fault.code == "limit-result"
    assert "result (5 KiB)" in str(fault)


def test_a_full_disk_is_the_machines() -> None:
    fault = verdict(Outcome(code=-9, limit="reserve", seconds=1), fault=RoomFault)
    assert (fault.code, fault.blame) == ("disk-full", Blame.MACHINE)
    assert "less than 1 GiB is left" in str(fault)


def test_an_error_of_the_worker_itself_is_the_machines_when_its_disk_is_full() -> None:
    fault = worker._of_the_machine(OSError(errno.ENOSPC, "No space left on device"))
    assert (fault.code, fault.blame) == ("disk-full", Blame.MACHINE)
    with pytest.raises(PermissionError):
        worker._of_the_machine(PermissionError(errno.EACCES, "no"))


def test_what_was_hit_is_noted_after_the_failure() -> None:
    fault = verdict(Outcome(code=2, seconds=1, hits={"processes": 12, "file_size": 1}))
    first, *notes = fault.reasons
    assert first.code == "build-failed"
    assert first.message == "dpkg-buildpackage failed with exit code 2\none\ntwo"
    assert [(note.code, note.message) for note in notes] == [
        ("limit-processes", "the limit on processes (200) was hit 12 times"),
        ("limit-file-size", "a file reached the limit on file_size (3 GiB)"),
    ]


def test_a_limit_seen_by_samples_is_not_counted() -> None:
    fault = verdict(Outcome(code=2, seconds=1, hits={"processes": 1}), fault=RoomFault)
    assert fault.blame == Blame.ROOM
    assert fault.reasons[1].message == "the limit on processes (200) was hit"


def test_cancelled() -> None:
    assert isinstance(verdict(Outcome(code=-9, limit="cancelled", seconds=1)), Cancelled)

"""reprepro, git and gpg are killed from outside: a job waits and goes on, and never ends by it."""

from __future__ import annotations

import itertools
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from invirtibuilder import acts, gitcmd, pipeline, run
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.errors import Blame, Reason
from invirtibuilder.run import Killed
from invirtibuilder.spool import Request
from invirtibuilder.stages import transaction
from invirtibuilder.states import State
from invirtibuilder.superproject import Superproject
from tests.support.line import ME, Line
from tests.support.lives import Free

WRAPPER = """#!/bin/sh
read -r left <{plan} 2>/dev/null || exec {real} "$@"
left=$((left - 1))
echo $left >{plan}
if [ $left = 0 ]; then
  [ {after} = 0 ] || {real} "$@"
  kill -{number} $$
fi
exec {real} "$@"
"""


class Killer:
    """Tools of which one call is killed: the LEFT-th one from when it is told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def kill(self, tool: str, call: int, *, after: bool, number: int = signal.SIGKILL) -> None:
        for old in self._folder.iterdir():
            old.unlink()
        words = {"after": int(after), "number": int(number), "plan": self._plan}
        program = self._folder / tool
        program.write_text(WRAPPER.format(real=f"/usr/bin/{tool}", **words))
        program.chmod(0o755)
        self._plan.write_text(f"{call}\n")

    @property
    def _plan(self) -> Path:
        return self._folder / "plan"

    def killed(self) -> bool:
        """Whether it came to that; from now on nothing is killed."""
        left = int(self._plan.read_text())
        for old in self._folder.iterdir():
            old.unlink()
        return left <= 0


@pytest.fixture
def killer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Killer:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setitem(run.CLEAN, "PATH", f"{folder}:{run.CLEAN['PATH']}")
    # A wrapper in reprepro's place could start neither a shell nor reprepro.
    monkeypatch.setattr(Reprepro, "_confinement", lambda *_: Free())
    # No APT is here for which dates would have to rise by a second.
    monkeypatch.setattr(transaction, "MAX_PAUSE", 0.0)
    return Killer(folder)


def commits(line: Line, pocket: str) -> list[str]:
    """The jobs that the branch has a commit of."""
    form = "--format=%(trailers:key=Job,valueonly)"
    return gitcmd.git(line.site.superproject, "log", form, f"refs/heads/{pocket}").text.split()


@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after its work"])
@pytest.mark.parametrize("tool", ["reprepro", "git", "gpg"])
def test_each_call_of_a_tool(line: Line, killer: Killer, tool: str, after: bool) -> None:
    """Whichever call is killed: the job waits, is done again, and is published once."""
    number = itertools.cycle((signal.SIGKILL, signal.SIGTERM))
    published = []
    for call in itertools.count(1):
        line.package("alpha", f"1.{call}")
        job = line.job("staging", "alpha")
        killer.kill(tool, call, after=after, number=next(number))
        line.run(job)
        if not killer.killed():
            assert job.status.state == State.PUBLISHED
            break
        if (
            job.status.state != State.PUBLISHED
        ):  # what can be done without, or is done again at once
            assert job.status.state == State.WAITING, (call, job.status)
            assert job.status.wake
            line.run(job)
        assert job.status.state == State.PUBLISHED, (call, job.status)
        published.append(job.id)
        assert commits(line, "staging") == [*reversed(published)]
    assert len(published) >= {"reprepro": 3, "git": 10, "gpg": 1}[tool]


def test_the_reason_is_told_and_soon_it_is_not_tried_so_often(
    line: Line, killer: Killer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invirtibuilder.pipeline.TRIES", 3)
    line.package("alpha")
    job = line.until(line.job("staging", "alpha"), "publish")
    pauses = []
    for _ in range(4):
        killer.kill("reprepro", 1, after=False)
        line.run(job)
        assert killer.killed()
        status = job.status
        assert status.state == State.WAITING
        assert status.reasons[0]["code"] == "killed"
        assert "killed from outside by SIGKILL: reprepro" in status.reasons[0]["message"]
        pauses.append(datetime.fromisoformat(status.wake) - datetime.fromisoformat(status.since))
    short, long = pipeline.RETRY, pipeline.LATER
    for pause, whole in zip(pauses, (short, short, long, long), strict=True):
        # What is synced between the two instants may take its time.
        assert whole - timedelta(seconds=20) < pause <= whole
    assert "publish: cut off from outside, 4 times" in (job.directory / "journal").read_text()
    line.run(job)
    assert job.status.state == State.PUBLISHED


def test_an_agent_that_was_killed(line: Line, killer: Killer) -> None:
    """gpg fails by itself then: it is no fault of the job."""
    line.package("alpha")
    job = line.until(line.job("staging", "alpha"), "publish")
    agent = killer._folder / "gpg"
    agent.write_text('#!/bin/sh\necho "gpg: signing failed: End of file" >&2\nexit 2\n')
    agent.chmod(0o755)
    line.run(job)
    assert job.status.state == State.WAITING, job.status
    agent.unlink()
    assert line.run(job).status.state == State.PUBLISHED


def test_a_kill_after_the_verdict(line: Line, killer: Killer) -> None:
    """What a job that has failed leaves is cleared away when git is there again."""
    line.package("alpha")
    line.engine.reasons = (Reason(code="ftbfs", message="it does not build"),)
    count = 0
    for call in itertools.count(1):
        job = line.job("staging", "alpha")
        killer.kill("git", call, after=False)
        line.run(job)
        if not killer.killed():
            break
        if job.status.state == State.WAITING:
            count += 1
            line.run(job)
        assert job.status.state == State.FAILED
        assert job.status.reasons[0]["code"] == "ftbfs"
    assert count


def test_nobody_publishes_over_what_may_be_published(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git dies when the commit point has been passed, and again when it is asked about that."""
    jobs = []
    for name in ("alpha", "beta"):
        line.package(name)
        jobs.append(line.until(line.job("staging", name), "publish"))
    move, contains = Superproject.move, Superproject.contains
    broken: list[str] = []

    def killed() -> Killed:
        return Killed(run.Done(argv=("git",), code=-9, out=b"", err=b"", seconds=0))

    def moved(self: Superproject, *args: str) -> None:
        move(self, *args)
        if not broken:
            broken.append("moved")
            raise killed()

    def asked(self: Superproject, *args: str) -> bool:
        if broken == ["moved"]:
            broken.append("asked")
            raise killed()
        return contains(self, *args)

    monkeypatch.setattr(Superproject, "move", moved)
    monkeypatch.setattr(Superproject, "contains", asked)
    line.together(*jobs)
    assert broken == ["moved", "asked"]
    assert {job.status.state for job in jobs} <= {State.WAITING, State.PUBLISHED}
    for job in jobs:
        if job.status.state == State.WAITING:
            line.run(job)
    assert [job.status.state for job in jobs] == [State.PUBLISHED] * 2
    assert sorted(commits(line, "staging")) == sorted(job.id for job in jobs)


def test_what_cannot_even_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", full)
    with pytest.raises(Killed, match="cannot be started"):
        run.run(["true"])


def test_acts_are_put_off_too(line: Line, killer: Killer) -> None:
    line.package("alpha")
    assert line.run(line.job("staging", "alpha")).status.state == State.PUBLISHED
    for tool in ("git", "reprepro"):
        request = Request.new("fsck", [], principal=ME, via="test")
        job = line.context.jobs.create(request)
        killer.kill(tool, 1, after=False)
        states = []
        for _ in range(2):
            acts.act(line.context, job)
            states.append(job.status.state)
            assert len(states) == 2 or killer.killed()
        assert states == [State.WAITING, State.DONE]


def test_a_worker_of_which_a_tool_was_killed_is_a_lost_attempt(line: Line) -> None:
    line.package("alpha")
    line.engine.reasons = (Reason(code="killed", message="killed from outside by SIGKILL"),)
    line.engine.blame = Blame.MACHINE
    job = line.run(line.job("staging", "alpha"))
    assert (job.status.state, job.status.reasons[0]["code"]) == (State.FAILED, "worker-lost")


def test_a_reprepro_that_is_away_for_a_while(
    line: Line, killer: Killer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is being upgraded, say: what was built is not lost."""
    line.package("alpha")
    job = line.until(line.job("staging", "alpha"), "publish")
    for tool in ("git", "gpg", "prlimit"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    with monkeypatch.context() as away:
        away.setitem(run.CLEAN, "PATH", str(tmp_path))
        line.run(job)
    assert job.status.state == State.WAITING, job.status
    assert line.run(job).status.state == State.PUBLISHED

"""Several jobs of a pocket in one publication, and several pockets at once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import files
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.errors import MachineFault
from invirtibuilder.jobs import Job
from invirtibuilder.run import run
from invirtibuilder.stages import finish, transaction
from invirtibuilder.stages.changes import Change
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.line import Line, broken
from tests.support.place import until, waiting

NAMES = ("alpha", "beta", "gamma")


def ready(line: Line, *names: str, pocket: str = "staging") -> list[Job]:
    """Jobs that have only to be published."""
    jobs = []
    for name in names:
        line.package(name)
        jobs.append(line.until(line.job(pocket, name), "publish"))
    return jobs


def commits(line: Line, pocket: str = "staging") -> list[str]:
    """The superproject's subjects, oldest first."""
    done = run(["git", "log", "--reverse", "--format=%s", pocket], cwd=line.site.superproject)
    return done.text.splitlines()


def index(line: Line, pocket: str = "staging") -> str:
    """What clients see now."""
    dists = line.site.archive / pocket / "dists" / pocket
    return (dists / "main/binary-amd64/Packages").read_text()


def test_jobs_that_are_ready_together_share_a_publication(line: Line) -> None:
    jobs = ready(line, *NAMES)
    line.together(*jobs)
    assert [job.status.state for job in jobs] == [State.PUBLISHED] * 3
    assert [job.need("publish")["publication"] for job in jobs] == [2, 2, 2]
    # In order of their arrival, each a commit, and the publication is of the last one.
    assert commits(line) == [f"{name} 1.0 for staging" for name in NAMES]
    superproject = line.context.superproject
    publications = line.context.archive(line.site.pockets["staging"]).publications
    assert publications.current() == 2
    assert publications.commit(2) == superproject.tip("staging")
    for job in jobs:
        fact = job.need("publish")
        assert superproject.trailers(fact["superproject_commit"])["Job"] == job.id
        assert f"Package: {job.package}\n" in index(line)
        assert line.context.repository(job.package).peeled("refs/tags/debian/1.0")
        assert len(list(line.site.events.glob(f"{job.id}/*-published.json"))) == 1
    last = jobs[-1].need("publish")["superproject_commit"]
    assert last == superproject.tip("staging")


@pytest.mark.parametrize("which", [0, 1])
def test_a_bad_one_does_not_take_the_others_down(line: Line, which: int) -> None:
    jobs = ready(line, *NAMES)
    (deb,) = (jobs[which].directory / "artifacts").glob("*.deb")
    deb.write_bytes(b"no package")
    line.together(*jobs)
    good = [job for job in jobs if job is not jobs[which]]
    assert jobs[which].status.state == State.FAILED
    assert [job.status.state for job in good] == [State.PUBLISHED] * 2
    assert {job.need("publish")["publication"] for job in good} == {2}
    assert len(commits(line)) == 2
    assert f"Package: {jobs[which].package}\n" not in index(line)


def test_a_refused_one_does_not_take_the_others_down(line: Line) -> None:
    jobs = ready(line, *NAMES)
    work = line.work["beta"]
    other = work.commit("another")
    assert work.push("HEAD:refs/heads/other").code == 0
    line.context.repository("beta").set_ref("refs/tags/debian/1.0", other, None)
    line.together(*jobs)
    assert [job.status.state for job in jobs] == [State.PUBLISHED, State.REFUSED, State.PUBLISHED]
    assert jobs[1].status.reasons[0]["code"] == "tag-elsewhere"


def test_when_nobody_knows_whose_fault_it_is_each_is_tried_alone(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = ready(line, *NAMES)
    export = Reprepro.export

    def without_beta(self: Reprepro, *, lock_fd: int) -> None:
        if any(entry.source == "beta" for entry in self.listing(lock_fd=lock_fd)):
            raise MachineFault("reprepro has gone mad")
        export(self, lock_fd=lock_fd)

    monkeypatch.setattr(Reprepro, "export", without_beta)
    line.together(*jobs)
    assert [job.status.state for job in jobs] == [State.PUBLISHED, State.FAILED, State.PUBLISHED]
    assert commits(line) == ["alpha 1.0 for staging", "gamma 1.0 for staging"]
    assert "Package: beta\n" not in index(line)


def test_of_two_jobs_of_one_package_the_second_is_overtaken(line: Line) -> None:
    first, other = ready(line, "alpha", "beta")
    line.package("alpha", "2.0")
    second = line.until(line.job("staging", "alpha"), "publish")
    line.together(first, second, other)
    assert [job.status.state for job in (first, other)] == [State.PUBLISHED] * 2
    assert second.status.state == State.REFUSED
    assert second.status.reasons[0]["code"] == "overtaken"
    assert len(commits(line)) == 2


def test_all_of_a_batch_wait_when_it_cannot_be_finished(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = ready(line, *NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(finish, "_finish", broken)
        line.together(*jobs)
    assert [job.status.state for job in jobs] == [State.WAITING] * 3
    # The branch moved over all of them at once.
    assert len(commits(line)) == 3
    for job in jobs:
        assert job.fact(finish.COMMITTED)
    assert transaction.recover(line.context, line.site.pockets["staging"]) == ""
    for job in jobs:
        assert line.run(job).status.state == State.PUBLISHED
    assert len(commits(line)) == 3
    assert not line.context.repository("beta").refs("refs/invirtibuilder/jobs/")


def test_a_batch_that_was_cut_off_before_its_commit_leaves_nothing(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = ready(line, *NAMES)
    before = index(line)

    def killed(*_args: Any, **_kwargs: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("invirtibuilder.superproject.Superproject.move", killed)
        patch.setattr(transaction, "_undo", lambda *_: None)  # as SIGKILL leaves it
        with pytest.raises(SystemExit):
            line.run(jobs[0])
    private = line.site.archive / "staging/private"
    assert (private / finish.INTENT).exists()
    assert transaction.recover(line.context, line.site.pockets["staging"]) == ""
    assert index(line) == before
    assert line.context.superproject.tip("staging") is None
    line.together(*jobs)
    assert [job.status.state for job in jobs] == [State.PUBLISHED] * 3


def test_publishing_in_one_pocket_does_not_wait_for_another(line: Line) -> None:
    (slow,), (quick,) = ready(line, "alpha"), ready(line, "beta", pocket="prod")
    archive = line.context.archive(line.site.pockets["staging"])
    thread = threading.Thread(target=line.run, args=(slow,))
    with files.locked(archive.reprepro.lock):
        thread.start()
        assert line.run(quick).status.state == State.PUBLISHED
        assert not slow.status.final
    thread.join()
    assert slow.status.state == State.PUBLISHED


@pytest.mark.parametrize("same", [True, False])
def test_two_pockets_that_tag_one_version_at_once(
    line: Line, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    (slow,) = ready(line, "alpha")
    if not same:
        # Another commit of the version, on top of nothing that prod has.
        line.work["alpha"].commit("another", extra="x")
        line.package("alpha")
    quick = line.until(line.job("prod", "alpha"), "publish")
    real = transaction._fill
    inside, go_on = threading.Event(), threading.Event()

    def fill(session: Any, *args: Any) -> Any:
        expected = real(session, *args)
        if session.pocket.name == "staging":
            inside.set()
            assert go_on.wait(30)
        return expected

    monkeypatch.setattr(transaction, "_fill", fill)
    thread = threading.Thread(target=line.run, args=(slow,))
    thread.start()
    assert inside.wait(30)
    assert line.run(quick).status.state == State.PUBLISHED
    go_on.set()
    thread.join()
    if same:
        assert slow.status.state == State.PUBLISHED
    else:
        assert slow.status.state == State.REFUSED
        assert line.context.superproject.tip("staging") is None
    tag = line.context.repository("alpha").peeled("refs/tags/debian/1.0")
    assert tag == quick.status.commit


def test_a_change_without_a_commit_takes_a_package_out(line: Line) -> None:
    jobs = ready(line, *NAMES)
    line.together(*jobs)
    context = line.context
    remover = line.job("staging", "beta")
    change = Change(
        package="beta",
        job=remover.id,
        commit=None,
        record={},
        upload=None,
        subject="beta goes",
        trailers={},
    )
    transaction.publish(context, remover, lambda: [change])
    assert set(context.superproject.pins("staging")) == {"alpha", "gamma"}
    assert set(context.superproject.records("staging")) == {"alpha", "gamma"}
    assert "Package: beta\n" not in index(line)
    # What clients may be downloading stays.
    assert list((Path(line.site.archive) / "staging/pool").rglob("beta_1.0_all.deb"))
    run(["git", "fsck", "--strict", "--no-dangling"], cwd=line.site.superproject)


def test_the_daemons_jobs_share_a_publication(tmp_path: Path) -> None:
    with places.canned() as (place, _):
        repos = [packages.native(tmp_path / name, name) for name in NAMES]
        for repo in repos:
            place.package(repo)
        archive = place.context.archive(place.site.pockets["staging"])
        with place.daemon():
            with files.locked(archive.reprepro.lock):
                jobs = [place.cli("submit", "staging", repo.name, "main").text for repo in repos]
                until(lambda: waiting(archive.reprepro.lock) == len(jobs))
            facts = [place.ended(job).need("publish") for job in jobs]
        assert [fact["publication"] for fact in facts] == [2, 2, 2]
        assert archive.publications.numbers() == [1, 2]
        log = run(
            ["git", "log", "--reverse", "--format=%s", "staging"], cwd=place.site.superproject
        )
        assert log.text.splitlines() == [f"{name} 1.0 for staging" for name in NAMES]

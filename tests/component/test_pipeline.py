"""The line from a submission to a publication, with a worker whose results are canned."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from invirtibuilder.errors import Blame
from invirtibuilder.jobs import Job, Jobs
from invirtibuilder.pipeline import advance
from invirtibuilder.run import run
from invirtibuilder.spool import Spool
from invirtibuilder.stages.context import Stopping
from invirtibuilder.states import State
from tests.support import cannedworker, packages
from tests.support import place as places
from tests.support.cannedworker import Answer, Answerer, CannedWorker, Work
from tests.support.debs import Binary, deb
from tests.support.packages import Repo
from tests.support.place import Place, until

Line = tuple[Place, CannedWorker]


@pytest.fixture
def line() -> Iterator[Line]:
    with places.canned() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Line]:
    """One site for tests that must leave nothing behind."""
    with places.canned() as made:
        yield made


def git(path: Path, *args: str) -> str:
    return run(["git", "-C", path, *args]).text


def refs(place: Place, package: str) -> dict[str, str]:
    bare = place.site.package_repository(package)
    lines = git(bare, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    return {line.partition(" ")[0]: line.partition(" ")[2] for line in lines}


def jobs_of(place: Place, pocket: str) -> list[str]:
    """The jobs whose commits the superproject's branch has, newest first."""
    form = "--format=%(trailers:key=Job,valueonly)"
    return git(place.site.superproject, "log", form, pocket, "--").split()


def snapshot(place: Place, package: str) -> dict[str, object]:
    """All that a job that is not published must leave as it was."""
    site_ = place.site
    published = {
        name: place.context.archive(pocket).publications.current()
        for name, pocket in site_.pockets.items()
    }
    pools = {
        str(path.relative_to(site_.archive)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(site_.archive.rglob("*"))
        if path.is_file() and ("/pool/" in str(path) or path.name in ("InRelease", "packages.db"))
    }
    heads = git(site_.superproject, "for-each-ref", "--format=%(refname) %(objectname)")
    return {"refs": refs(place, package), "super": heads, "current": published, "pools": pools}


def check_published(place: Place, job: Job, repo: Repo, *, only: bool = True) -> None:
    """Pin, tag (or kept ref), record, pool, events and the job's own word are all one."""
    context, pocket = place.context, place.site.pockets[job.pocket]
    status = job.status
    assert status.state == State.PUBLISHED, (status, (job.directory / "journal").read_text())
    record = context.superproject.record(pocket.branch, repo.name)
    assert record is not None
    assert record["job"] == job.id
    assert record["commit"] == repo.commit == status.commit
    assert context.superproject.pin(pocket.branch, repo.name) == repo.commit
    assert jobs_of(place, pocket.branch).count(job.id) == 1
    repository, version = context.repository(repo.name), record["version"]
    assert repository.ref(pocket.kept_ref(version)) == repo.commit
    tags = [name for name in refs(place, repo.name) if name.startswith("refs/tags/")]
    if pocket.allow_backtracking:
        assert not tags
    else:
        assert repository.peeled(f"refs/tags/{pocket.tag(version)}") == repo.commit
        assert git(repository.path, "cat-file", "-t", pocket.tag(version)) == "tag"
        assert not only or len(tags) == 1
    assert not repository.refs("refs/invirtibuilder/jobs/")
    archive = context.archive(pocket)
    assert archive.publications.current() == record["publication"]
    pool = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (archive.publications.root / "pool").rglob("*")
        if path.is_file()
    }
    named = {f["name"]: f["sha256"] for f in record["files"] if not f["name"].endswith("buildinfo")}
    assert named.items() <= pool.items()
    if only:
        assert pool == named
        assert archive.publications.numbers()[-1] == record["publication"] == 2
    assert not archive.reprepro.is_open()
    assert not (archive.reprepro.private / "intent.json").exists()
    index = archive.publications.path(record["publication"]) / "dists" / pocket.codename
    assert f"Package: {repo.name}\nVersion: {version}\n" in (
        (index / "main/binary-amd64/Packages").read_text()
    )
    assert events(place, job) == ["submitted", "started", "published"]


def events(place: Place, job: Job) -> list[str]:
    """What was queued for the hooks, in order."""
    names = sorted(path.name for path in (place.site.events / job.id).glob("*-*.json"))
    return [name[3:-5] for name in names if name.count(".") == 1]


def codes(job: Job) -> set[str]:
    return {reason["code"] for reason in job.status.reasons}


def journal(job: Job) -> str:
    return (job.directory / "journal").read_text()


@pytest.mark.parametrize("pocket", ["staging", "dev"])
def test_a_commit_is_published(line: Line, tmp_path: Path, pocket: str) -> None:
    place, worker = line
    repo = packages.native(tmp_path / "greet", binaries=("greet", "greet-doc"))
    place.package(repo)
    job = place.submitted(pocket, repo)
    check_published(place, job, repo)
    assert [order.kind for order in worker.orders] == ["export", "build"]
    assert {order.job for order in worker.orders} == {job.id}
    version = job.status.version
    if pocket == "dev":
        assert re.fullmatch(
            rf"1\.0~dev\+[0-9]{{8}}T[0-9]{{6}}Z\.g{repo.commit[:7]}[0-9a-f]*", version
        )
    else:
        assert version == "1.0"
    # The stages in order, each once.
    lines = [text.split(" ", 1)[1] for text in journal(job).splitlines()]
    stages = ["admit", "announce", "export", "build", "verify", "publish", "notify"]
    assert [text for text in lines if text in stages] == stages


def test_a_publication_keeps_nothing_of_the_one_before(line: Line, tmp_path: Path) -> None:
    place, _ = line
    first = packages.native(tmp_path / "greet", binaries=("greet", "greet-doc"))
    place.package(first)
    job = place.submitted("staging", first)
    assert job.status.state == State.PUBLISHED
    fewer = {"debian/control": packages.control("greet", ["greet"])}
    second = packages.upgraded(first, "1.1", files=fewer)
    place.push(second)
    job = place.submitted("staging", second)
    check_published(place, job, second, only=False)
    site_ = place.site
    assert len(jobs_of(place, "staging")) == 2
    archive = place.context.archive(site_.pockets["staging"])
    index = archive.publications.path(3) / "dists/staging/main/binary-amd64/Packages"
    # The second .dsc has one binary package only.
    assert index.read_text().count("Package: ") == 1
    assert set(refs(place, "greet")) >= {"refs/tags/debian/1.0", "refs/tags/debian/1.1"}


def test_the_same_commit_in_the_next_pocket_is_not_built_again(line: Line, tmp_path: Path) -> None:
    place, worker = line
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    first, second = place.submitted("staging", repo), place.submitted("prod", repo)
    check_published(place, first, repo)
    check_published(place, second, repo)
    assert [order.kind for order in worker.orders] == ["export", "build"]
    built = [job.need("build")["files"] for job in (first, second)]
    assert built[0] == built[1]
    records = [place.context.superproject.record(name, "greet") for name in ("staging", "prod")]
    assert [record and record["built"] for record in records] == [first.id, second.id]
    assert records[1] and records[1]["reused"] == first.id
    assert place.cli("fsck", "--full").code == 0


FAILURES: dict[str, tuple[str, Answerer, str, Blame, int]] = {
    "build": ("build", cannedworker.failing("ftbfs", "make: exit 2"), "ftbfs", Blame.PACKAGE, 2),
    "dependency": (
        "build",
        cannedworker.failing("unresolvable", "no libx", Blame.ROOM),
        "unresolvable",
        Blame.ROOM,
        2,
    ),
    "export": ("export", cannedworker.failing("unfaithful", "a/b"), "unfaithful", Blame.PACKAGE, 1),
    "lost": ("build", cannedworker.lost, "worker-lost", Blame.MACHINE, 4),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_leaves_everything_as_it_was(shared: Line, tmp_path: Path, name: str) -> None:
    place, worker = shared
    kind, answer, code, blame, orders = FAILURES[name]
    repo = packages.native(tmp_path / "greet", f"greet-{name}")
    place.package(repo)
    before = snapshot(place, repo.name)
    worker.orders.clear()
    good = worker.answers[kind]
    worker.answers[kind] = answer
    try:
        job = place.submitted("staging", repo)
    finally:
        worker.answers[kind] = good
    assert (job.status.state, job.status.blame) == (State.FAILED, blame)
    assert codes(job) == {code}
    assert len({order.attempt for order in worker.orders}) == len(worker.orders) == orders
    assert snapshot(place, repo.name) == before
    assert events(place, job) == ["submitted", "started", "failed"]


def test_a_lost_attempt_is_followed_by_another(line: Line, tmp_path: Path) -> None:
    place, worker = line
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    left = ["one", "two"]

    def build(work: Work) -> Answer:
        if left.pop():
            pass
        if left:
            raise cannedworker.Lost
        return cannedworker.build(work)

    worker.answers["build"] = build
    job = place.submitted("staging", repo)
    check_published(place, job, repo)
    assert job.need("build")["attempt"] == f"{job.id}.build-2"


@pytest.fixture(scope="module")
def published(shared: Line, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A package whose version 2.0 is published in staging."""
    place, _ = shared
    repo = packages.native(tmp_path_factory.mktemp("repo") / "greet", "told", "2.0")
    place.package(repo)
    assert place.submitted("staging", repo).status.state == State.PUBLISHED
    return repo


@pytest.mark.parametrize(
    ("what", "reasons"),
    [
        ("unreleased", {"unreleased"}),
        ("lower", {"version-not-higher"}),
        ("same", {"version-not-higher", "tag-elsewhere"}),
        ("orphan", {"not-descendant"}),
        ("all", {"not-descendant", "version-not-higher", "unreleased", "not-permitted"}),
        ("tag", {"tag-elsewhere"}),
        ("principal", {"not-permitted"}),
        ("commit", {"commit-unknown"}),
        ("source", {"wrong-source"}),
        ("changelog", {"no-changelog"}),
    ],
)
def test_a_refusal_says_all_and_leaves_everything(
    shared: Line, published: Repo, tmp_path: Path, what: str, reasons: set[str]
) -> None:
    place, worker = shared
    path = tmp_path / "work"
    run(["git", "clone", "--quiet", published.path, path], env=packages.identity())
    repo, who, branch = replace(published, path=path), places.ME, what
    if what in ("orphan", "all"):
        packages.git(path, "checkout", "--quiet", "--orphan", "other")
    if what == "unreleased":
        repo = packages.upgraded(repo, "2.1", distribution="UNRELEASED")
    elif what == "all":
        repo, who = packages.upgraded(repo, "1.9", distribution="UNRELEASED"), "mallory@EXAMPLE.ORG"
    elif what in ("lower", "same"):
        repo = packages.upgraded(repo, "1.9" if what == "lower" else "2.0")
    elif what == "source":
        log = (path / "debian/changelog").read_text()
        packages.write(path, {"debian/changelog": "other (3.0)" + log.partition(")")[2]})
        repo = replace(repo, commit=packages.commit(path))
    elif what == "changelog":
        (path / "debian/changelog").unlink()
        repo = replace(repo, commit=packages.commit(path))
    elif what == "principal":
        repo, who = packages.upgraded(repo, "2.2"), "mallory@EXAMPLE.ORG"
    elif what == "commit":
        repo = replace(repo, commit="f" * 40)
    else:
        repo = packages.upgraded(repo, "2.3")
    bare = place.site.package_repository(repo.name)
    run(["git", "-C", path, "push", "--quiet", bare, f"HEAD:refs/heads/{branch}"])
    if what == "tag":
        git(bare, "update-ref", "refs/tags/debian/2.3", published.commit)
    before = snapshot(place, repo.name)
    worker.orders.clear()
    job = place.submitted("staging", repo, who=who)
    assert job.status.state == State.REFUSED, job.status
    assert codes(job) == reasons
    assert all(reason["hint"] for reason in job.status.reasons), job.status.reasons
    assert not worker.orders
    assert snapshot(place, repo.name) == before
    assert events(place, job) == ["failed"]


def _made(work: Work) -> tuple[str, str, Path]:
    return work.order.content["package"], work.order.content["version"], work.folder


def _other_binaries(*binaries: Binary) -> Answerer:
    def answer(work: Work) -> Answer:
        package, version, folder = _made(work)
        return cannedworker.built(folder, package, version, binaries)

    return answer


def _renamed(work: Work) -> Answer:
    good = cannedworker.build(work)
    name = good.files[0].name
    other = good.files[0].rename(work.folder / name.replace("_all", "_amd64"))
    info = cannedworker.buildinfo(work.folder, *_made(work)[:2], [other])
    debs = {other.name: good.report["debs"][name]}
    return Answer(files=[other, info], report={"debs": debs})


def _of_other_source(work: Work) -> Answer:
    package, version, folder = _made(work)
    made = deb(folder, Binary(name=package), "elsewhere", version)
    info = cannedworker.buildinfo(folder, package, version, [made])
    return Answer(files=[made, info], report={"debs": dict([cannedworker.control(made)])})


def _old_version(work: Work) -> Answer:
    package, version, folder = _made(work)
    made = deb(folder, Binary(name=package, version="0.9"), package, "0.9")
    info = cannedworker.buildinfo(folder, package, version, [made])
    return Answer(files=[made, info], report={"debs": dict([cannedworker.control(made)])})


def _buildinfo(change: Callable[[str], str]) -> Answerer:
    def answer(work: Work) -> Answer:
        good = cannedworker.build(work)
        good.files[-1].write_text(change(good.files[-1].read_text()))
        return good

    return answer


def _second_buildinfo(work: Work) -> Answer:
    good = cannedworker.build(work)
    other = work.folder / "other_1_amd64.buildinfo"
    other.write_bytes(good.files[-1].read_bytes())
    return replace(good, files=[*good.files, other])


def _no_buildinfo(work: Work) -> Answer:
    good = cannedworker.build(work)
    return replace(good, files=good.files[:-1])


def _reported(debs: Callable[[str], object]) -> Answerer:
    def answer(work: Work) -> Answer:
        good = cannedworker.build(work)
        return replace(good, report={"debs": debs(good.files[0].name)})

    return answer


def _nothing(work: Work) -> Answer:
    package, version, folder = _made(work)
    return Answer(files=[cannedworker.buildinfo(folder, package, version, [])], report={"debs": {}})


UNFIT: dict[str, tuple[Answerer, set[str]]] = {
    "wrong name": (_renamed, {"bad-name"}),
    "wrong architecture": (
        _other_binaries(Binary(name="greet", architecture="s390x")),
        {"bad-architecture"},
    ),
    "unlisted": (_other_binaries(Binary(name="greet"), Binary(name="extra")), {"unlisted-binary"}),
    "other source": (_of_other_source, {"bad-binary-source"}),
    "old version": (_old_version, {"bad-source-version"}),
    "buildinfo of another source": (
        _buildinfo(lambda t: t.replace("Source: greet", "Source: other")),
        {"bad-buildinfo"},
    ),
    "buildinfo of another version": (
        _buildinfo(lambda t: re.sub("Version: .*", "Version: 7", t)),
        {"bad-buildinfo"},
    ),
    "buildinfo of other bytes": (
        _buildinfo(lambda t: re.sub("^ [0-9a-f]{64} ", f" {'0' * 64} ", t, flags=re.M)),
        {"bad-buildinfo"},
    ),
    "no buildinfo text": (_buildinfo(lambda _: "nothing"), {"bad-buildinfo"}),
    "second buildinfo": (_second_buildinfo, {"no-buildinfo"}),
    "no buildinfo": (_no_buildinfo, {"no-buildinfo"}),
    "no binaries": (_nothing, {"no-binaries"}),
    "report is a list": (_reported(lambda _: []), {"bad-deb"}),
    "report without it": (_reported(lambda _: {}), {"bad-deb"}),
    "report of text": (_reported(lambda name: {name: "text"}), {"bad-deb"}),
    "report of numbers": (_reported(lambda name: {name: {"Package": 3}}), {"bad-deb"}),
}


@pytest.fixture(scope="module")
def fit(shared: Line, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A package that could be published if its artifacts were fit."""
    place, _ = shared
    repo = packages.native(tmp_path_factory.mktemp("repo") / "greet")
    place.package(repo)
    return repo


@pytest.mark.parametrize("what", UNFIT)
def test_unfit_artifacts_are_refused(shared: Line, fit: Repo, what: str) -> None:
    place, worker = shared
    answer, reasons = UNFIT[what]
    before = snapshot(place, fit.name)
    worker.answers["build"] = answer
    try:
        job = place.submitted("staging", fit)
    finally:
        worker.answers["build"] = cannedworker.build
    assert (job.status.state, job.status.blame) == (State.FAILED, Blame.PACKAGE), job.status
    assert codes(job) == reasons
    assert snapshot(place, fit.name) == before


def test_an_artifact_that_has_changed_on_disk_is_refused(shared: Line, fit: Repo) -> None:
    place, _ = shared
    before = snapshot(place, fit.name)
    job = place.job("staging", fit)
    stopped_before(place, job, "verify")
    (made,) = (job.directory / "artifacts").glob("*.deb")
    made.write_bytes(made.read_bytes() + b"x")
    advance(place.context, job)
    assert job.status.state == State.FAILED
    assert codes(job) == {"bad-hash"}
    assert snapshot(place, fit.name) == before


def stopped_before(place: Place, job: Job, stage: str) -> None:
    """Take a job through the line until this stage is next, as a daemon that is told to stop."""
    order = ["admit", "announce", "export", "build", "verify", "publish", "notify"]
    before = order[order.index(stage) - 1]
    stopping = replace(place.context, stopping=lambda: job.fact(before) is not None)
    with pytest.raises(Stopping):
        advance(stopping, job)
    assert job.status.state == State.RUNNING


def test_a_tag_that_was_put_elsewhere_meanwhile_stops_the_publication(
    line: Line, tmp_path: Path
) -> None:
    place, _ = line
    old = packages.native(tmp_path / "greet")
    repo = packages.upgraded(old, "1.1")
    place.package(repo)
    job = place.job("staging", repo)
    stopped_before(place, job, "publish")
    bare = place.site.package_repository(repo.name)
    git(bare, "update-ref", "refs/tags/debian/1.1", old.commit)
    before = snapshot(place, repo.name)
    advance(place.context, job)
    assert (job.status.state, codes(job)) == (State.REFUSED, {"tag-elsewhere"})
    after = snapshot(place, repo.name)
    assert {**after, "refs": None} == {**before, "refs": None}


def test_a_job_that_was_overtaken_is_refused(line: Line, tmp_path: Path) -> None:
    place, _ = line
    first = packages.native(tmp_path / "greet")
    place.package(first)
    slow = place.job("staging", first)
    stopped_before(place, slow, "publish")
    second = packages.upgraded(first, "1.1")
    place.push(second)
    quick = place.submitted("staging", second)
    assert quick.status.state == State.PUBLISHED
    advance(place.context, slow)
    assert (slow.status.state, codes(slow)) == (State.REFUSED, {"overtaken"})
    check_published(place, quick, second)


def test_a_binary_package_of_another_source_is_refused(line: Line, tmp_path: Path) -> None:
    place, _ = line
    first = packages.native(tmp_path / "greet")
    other = packages.native(tmp_path / "thief", "thief", binaries=("thief", "greet"))
    place.package(first)
    place.package(other)
    assert place.submitted("staging", first).status.state == State.PUBLISHED
    before = snapshot(place, other.name)
    job = place.submitted("staging", other)
    assert (job.status.state, codes(job)) == (State.FAILED, {"binary-owned"})
    assert snapshot(place, other.name) == before


def test_a_required_hook_holds_the_job_until_it_accepts(line: Line, tmp_path: Path) -> None:
    place, worker = line
    place.hook(f"test -e {tmp_path}/open || {{ echo closed >&2; exit 1; }}", required=True)
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    job = place.submitted("staging", repo)
    assert job.status.state == State.WAITING
    (reason,) = job.status.reasons
    assert "hook" in reason["message"]
    assert not worker.orders
    assert "waiting" in place.cli("status", job.id).text
    # Some time later, but as closed as before.
    wake = datetime.fromisoformat(job.status.wake)
    later = replace(place.context, clock=lambda: wake)
    assert job.status.wake > job.status.since
    advance(later, job)
    assert job.status.state == State.WAITING
    (tmp_path / "open").touch()
    # Its turn for the next attempt comes with the clock.
    with contextlib.suppress(FileNotFoundError):
        for path in (place.site.events / job.id).glob("*.hook.json"):
            value = json.loads(path.read_text())
            path.write_text(json.dumps({**value, "next": "2020-01-01T00:00:00.000Z"}))
    advance(place.context, job)
    check_published(place, job, repo)


def test_a_cancel_stops_a_build(line: Line, tmp_path: Path) -> None:
    place, worker = line
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    newer = packages.upgraded(repo, "1.1")
    place.push(newer)
    before = snapshot(place, repo.name)
    with place.daemon(), worker.held("build") as held:
        job_id = place.cli("submit", "staging", repo.name, repo.commit).text
        held.wait()
        other = place.cli("submit", "staging", repo.name, newer.commit).text
        until(lambda: (place.site.jobs / other).exists())
        # The one that is queued behind is never begun.
        assert place.cli("cancel", other).code == 0
        assert place.cli("cancel", job_id).code == 0
        job, queued = place.ended(job_id), place.ended(other)
    assert [j.status.state for j in (job, queued)] == [State.CANCELLED, State.CANCELLED]
    assert job.status.reasons[0]["message"] == f"cancelled by {places.ME}"
    assert [order.job for order in worker.orders] == [job.id, job.id]
    assert events(place, job) == ["submitted", "started", "failed"]
    assert events(place, queued) == ["failed"]
    assert snapshot(place, repo.name) == before


def test_two_jobs_in_order_and_a_retry(line: Line, tmp_path: Path) -> None:
    place, worker = line
    first = packages.native(tmp_path / "greet")
    other = packages.native(tmp_path / "other", "other")
    place.package(first)
    place.package(other)
    worker.answers["build"] = cannedworker.failing("ftbfs", "no")
    # With the daemon down it is queued all the same.
    failing = place.cli("submit", "staging", first.name, "main").text
    with place.daemon():
        # A builder waits only for so long for a job that comes slowly.
        until(lambda: worker.orders)
        second = place.cli("submit", "staging", other.name, other.commit[:10]).text
        assert place.ended(failing).status.state == State.FAILED
        assert place.ended(second).status.state == State.FAILED
        assert [o.job for o in worker.orders] == [failing, failing, second, second]
        worker.answers["build"] = cannedworker.build
        again = place.cli("retry", failing).text
        job = place.ended(again)
    assert again not in (failing, second)
    check_published(place, job, first)
    assert place.ended(failing).status.state == State.FAILED


# What is there at the moment of the kill. Each is a function of the place and the job's id.
Point = Callable[[Place, str], bool]


def _fact(name: str) -> Point:
    return lambda place, job: (place.directory / "jobs" / job / f"{name}.json").exists()


def _file(pattern: str) -> Point:
    return lambda place, _job: any(place.directory.glob(pattern))


def _moved(place: Place, _job: str) -> bool:
    return (place.directory / "superproject.git/refs/heads/staging").exists()


KILLS: dict[str, Point] = {
    "queued": lambda place, job: (place.directory / "jobs" / job).exists(),
    "admit": _fact("admit"),
    "announce": _fact("announce"),
    "built": _fact("build"),
    "intent": _file("archive/staging/private/intent.json"),
    "staged": _file("archive/staging/publications/00000002"),
    "moved": _moved,
    "tagged": _file("packages/greet.git/refs/tags/debian/*"),
    "published": _fact("publish"),
}


@pytest.mark.parametrize("point", KILLS)
def test_a_killed_daemons_job_ends_once(line: Line, tmp_path: Path, point: str) -> None:
    place, worker = line
    told = tmp_path / "told"
    place.hook(f'echo "$INVIRTIBUILDER_EVENT_ID" >> {told}')
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    request = place.request("staging", repo)
    there = KILLS[point]
    with place.daemon() as daemon:
        Spool(place.site.queue).put(request)
        end = time.monotonic() + cannedworker.PATIENCE
        while not there(place, request.id):
            assert time.monotonic() < end
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
    finish(place, worker, request.id, repo, told)


@pytest.mark.parametrize("kind", ["export", "build"])
def test_a_build_outlives_a_killed_daemon_and_is_adopted(
    line: Line, tmp_path: Path, kind: str
) -> None:
    place, worker = line
    told = tmp_path / "told"
    place.hook(f'echo "$INVIRTIBUILDER_EVENT_ID" >> {told}')
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    with worker.held(kind) as held:
        with place.daemon() as daemon:
            job_id = place.cli("submit", "staging", repo.name, repo.commit).text
            held.wait()
            os.kill(daemon.pid, signal.SIGKILL)
            daemon.wait()
        with place.daemon():
            job = Jobs(place.site.jobs).get(job_id)
            assert job.status.state == State.RUNNING
            held.released.set()
            place.ended(job_id)
    finish(place, worker, job_id, repo, told)
    # Adopted, not begun anew.
    assert [order.kind for order in worker.orders] == ["export", "build"]


def test_a_daemon_killed_while_a_required_hook_runs_asks_it_again(
    line: Line, tmp_path: Path
) -> None:
    place, worker = line
    told, block = tmp_path / "told", tmp_path / "block"
    block.touch()
    place.hook(
        f'echo "$INVIRTIBUILDER_EVENT_ID" >> {told}; while test -e {block}; do sleep 0.05; done',
        required=True,
    )
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    with place.daemon() as daemon:
        job_id = place.cli("submit", "staging", repo.name, repo.commit).text
        until(told.exists)
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
    assert not worker.orders
    block.unlink()
    finish(place, worker, job_id, repo, told)


def finish(place: Place, worker: CannedWorker, job_id: str, repo: Repo, told: Path) -> None:
    """The next daemon ends the job, once, and every hook hears of each event."""
    wanted = {f"{job_id}:{event}" for event in ("submitted", "started", "published")}
    with place.daemon():
        job = place.ended(job_id)
        until(lambda: told.exists() and wanted <= set(told.read_text().split()))
    check_published(place, job, repo)
    assert set(told.read_text().split()) == wanted
    assert jobs_of(place, "staging") == [job_id]
    assert not any(Spool(place.site.queue).new.iterdir())
    assert len(worker.orders) <= 4

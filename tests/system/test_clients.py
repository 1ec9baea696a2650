"""APT clients in a loop while publications come one after another: not one fails, ever."""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from invirtibuilder import files, model, retention
from invirtibuilder.apt import stanza
from invirtibuilder.apt.publications import KEEP_SECONDS, Publications
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.apt.signer import GpgSigner
from invirtibuilder.run import run
from invirtibuilder.spool import Spool
from invirtibuilder.states import State
from tests.support import debs, packages
from tests.support import place as places
from tests.support.aptclient import AptClient, serving
from tests.support.crowd import Crowd
from tests.support.packages import Repo
from tests.support.place import Place, until

CLIENTS = 4
PUBLICATIONS, RUNS = 176, 800
"""At least, of what is published by itself; with the daemon's, 200 and 1,000."""
LIVES, LIFE, OF_THE_LINE = 3, 7, 200
"""Daemons, what each of them publishes besides what it signs again, and runs of their clients."""
KEPT = 8
"""States before the present one that their pocket keeps."""
STEP = timedelta(minutes=30)
"""Between two publications, by their dates: a day is over soon."""
A_DAY = round(KEEP_SECONDS / STEP.total_seconds())
"""In publications."""


@pytest.fixture(scope="module")
def key() -> Iterator[GpgSigner]:
    with debs.signing_key() as made:
        yield made


def clients(folder: Path, sources: str) -> list[AptClient]:
    made = [AptClient(folder=folder / f"client-{n}") for n in range(CLIENTS)]
    for apt in made:
        apt.configure(sources)
    return made


def upload(work: Path, number: int) -> Path:
    return debs.upload(work / str(number), "foo", str(number))


def test_no_client_fails_while_publications_come(key: GpgSigner, tmp_path: Path) -> None:
    """Nor while those go that were superseded a day ago, with their indices."""
    root = tmp_path / "archive" / "dev"
    publications = Publications(root=root, codename="dev")
    archive = Reprepro(
        root=root,
        codename="dev",
        components=["main"],
        architectures=[debs.machine_architecture()],
        origin="Example",
        label="Example dev",
        suite="dev",
        description="Test archive",
    )
    archive.create()
    # So long ago that none of the dates comes to be ahead of the clock.
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=365)
    removed: list[int] = []

    def publish(number: int) -> None:
        changes = upload(tmp_path / "in", number)
        now = start + number * STEP
        with files.locked(archive.lock, inheritable=True) as fd:
            archive.begin()
            debs.exchange(archive, changes, lock_fd=fd)
            archive.export(lock_fd=fd)
            date = publications.next_date(now)
            publications.stage(number, date=date, valid_for=None, sign=key.sign)
            publications.switch(number)
            archive.commit()
        removed.extend(publications.prune(now))

    publish(1)
    last = 1
    with serving(root.parent) as web:
        sources = stanza.sources(web.uri + "dev", "dev", ["main"], key.public_key())

        def enough(runs: int) -> bool:
            return runs >= RUNS and last > PUBLICATIONS

        # A client that is longer about it than a day is promised nothing.
        crowd = Crowd(clients=clients(tmp_path, sources), enough=enough, within=A_DAY - 1)

        def following(number: int) -> None:
            nonlocal last
            last = number + 1
            publish(last)

        crowd.while_running(following)
        assert crowd.failures == []
        assert crowd.runs >= RUNS
        assert last > PUBLICATIONS
        for apt in crowd.clients:
            apt.update()
            assert apt.candidate("foo") == str(last)
    # Those of the last day stay, the one that was current when it began, and the present one.
    assert removed == list(range(1, last - A_DAY - 1))
    assert publications.numbers() == list(range(last - A_DAY - 1, last + 1))
    assert len(removed) > PUBLICATIONS / 2


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A site with a worker of canned results."""
    with places.canned() as (made, _):
        made.edit(
            "    description: what is to be",
            f"    retention: {{publications: {KEPT}, time: 24h}}\n    valid_for: 1h\n"
            "    description: what is to be",
        )
        yield made


@dataclasses.dataclass
class Sweep:
    """gc without end, two days ahead of its time: to it, what was superseded was so long ago."""

    place: Place
    over: threading.Event = dataclasses.field(default_factory=threading.Event)
    gone: list[retention.Waste] = dataclasses.field(default_factory=list)

    def run(self) -> None:
        ahead = timedelta(days=2)
        context = dataclasses.replace(self.place.context, clock=lambda: model.utcnow() + ahead)
        last = False
        while not last:
            last = self.over.wait(0.5)
            self.gone += retention.collect(context)

    def names(self, kind: str) -> list[str]:
        found = [w.name for w in self.gone if (w.kind, w.pocket) == (kind, "staging")]
        return sorted(found, key=lambda name: (len(name), name))


def _shows(publications: Publications, number: int) -> bool:
    return publications.current() == number


def lives(place: Place, repos: list[Repo], done: threading.Event) -> Generator[None]:
    """Publications one by one, by daemons that come with another `valid_for` each.

    So each of them first signs again what it finds.
    """
    publications = place.context.archive(place.site.pockets["staging"]).publications
    for hours, begin in enumerate(range(0, len(repos), LIFE), start=1):
        place.edit(f"valid_for: {3 ** (hours - 1)}h", f"valid_for: {3**hours}h")
        before = publications.current() or 0
        with place.daemon():
            until(functools.partial(_shows, publications, before + 1))
            yield
            for repo in repos[begin : begin + LIFE]:
                request = place.request("staging", repo)
                Spool(place.site.queue).put(request)
                job = place.ended(request.id)
                assert job.status.state == State.PUBLISHED, job.status
                yield
    done.set()
    while True:
        time.sleep(0.05)
        yield


def test_no_client_fails_while_a_daemon_publishes_and_gc_runs(place: Place, tmp_path: Path) -> None:
    """Nor while what is published is signed again, and what is no longer kept goes."""
    repos = [packages.native(tmp_path / "foo", "foo", "1")]
    repos += [packages.upgraded(repos[0], str(n)) for n in range(2, LIVES * LIFE + 1)]
    place.package(repos[0])
    sweep, done = Sweep(place), threading.Event()
    with serving(place.site.archive) as web:
        place.edit("site:\n", f"site:\n  url: {web.uri}\n")
        # There is something to begin with.
        steps = lives(place, repos, done)
        for _ in range(2):
            next(steps)
        sources = place.cli("sources", "staging", check=True).text + "\n"
        assert f"URIs: {web.uri}staging\n" in sources
        crowd = Crowd(
            clients=clients(tmp_path, sources),
            enough=lambda runs: done.is_set() and runs >= OF_THE_LINE,
            within=KEPT - 2,
        )
        sweeper = threading.Thread(target=sweep.run)
        sweeper.start()
        try:
            crowd.while_running(lambda _: next(steps))
        finally:
            sweep.over.set()
            sweeper.join()
            steps.close()
        assert crowd.failures == []
        for apt in crowd.clients:
            apt.update()
            assert apt.candidate("foo") == str(len(repos))
    made = place.context.archive(place.site.pockets["staging"]).publications
    # Each state that stays is shown once, with the last signature that it has.
    states = place.context.superproject.history("staging")[: KEPT + 1]
    assert [made.commit(n) for n in made.numbers()] == [state.id for state in reversed(states)]
    last = made.current()
    assert last == 1 + LIVES + len(repos)
    gone = [str(n) for n in range(1, last) if n not in made.numbers()]
    assert sweep.names("publication") == gone
    # And of the pool goes what only these showed.
    shown = {Path(file).name for n in made.numbers() for file in made.pool_files(n, {})}
    ends = (".dsc", ".tar.xz", "_all.deb")
    every = {f"foo_{repo.version}{end}" for repo in repos for end in ends}
    assert {Path(name).name for name in sweep.names("file")} == every - shown
    assert len(shown) < len(every)
    checked = place.cli("fsck", "--full")
    assert checked.code == 0, checked.text


def test_control_clients_of_plain_reprepro_do_fail(key: GpgSigner, tmp_path: Path) -> None:
    """The same crowd, with reprepro writing what clients read: it finds what it looks for."""
    root = tmp_path / "plain"
    (root / "conf").mkdir(parents=True)
    architecture = debs.machine_architecture()
    (root / "conf/distributions").write_text(
        f"Codename: dev\nSuite: dev\nOrigin: Example\nLabel: Example\nComponents: main\n"
        f"Architectures: {architecture} source\nSignWith: {key.key}\n"
    )

    def publish(number: int) -> None:
        run(
            ["reprepro", "-b", root, "include", "dev", upload(tmp_path / "in", number)],
            env={"GNUPGHOME": str(key.gnupghome)},
        )

    publish(1)
    with serving(root.parent) as web:
        sources = stanza.sources(web.uri + "plain", "dev", ["main"], key.public_key())
        crowd = Crowd(clients=clients(tmp_path, sources), enough=lambda runs: runs >= RUNS)
        crowd.enough = lambda runs: runs >= RUNS or bool(crowd.failures)
        for apt in crowd.clients:  # nothing is wrong with it as long as nobody publishes
            apt.update()
            apt.download("foo")
        crowd.while_running(lambda number: publish(number + 1))
    assert crowd.failures, f"{crowd.runs} runs and none failed: the crowd is blind"
    assert re.search("unexpected size|Hash Sum mismatch|404", crowd.failures[0])

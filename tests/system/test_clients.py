"""APT clients in a loop while publications come one after another: not one fails, ever."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from invirtibuilder import files
from invirtibuilder.apt import stanza
from invirtibuilder.apt.publications import Publications
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.apt.signer import GpgSigner
from invirtibuilder.run import ProcessFault, run
from tests.support import debs
from tests.support.aptclient import AptClient, serving

PUBLICATIONS = 200
RUNS = 1000
CLIENTS = 4


@pytest.fixture(scope="module")
def key() -> Iterator[GpgSigner]:
    with debs.signing_key() as made:
        yield made


@dataclass(kw_only=True)
class Crowd:
    """Clients, every other with wiped lists, that update and download until they have had enough.

    `enough` is asked between two runs; `failures` is what APT said when it failed.
    """

    clients: list[AptClient]
    enough: Callable[[int], bool]
    runs: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def while_running(self, publish: Callable[[int], None]) -> None:
        """Run them all while `publish` is called with rising numbers, until all have ended."""
        threads = [threading.Thread(target=self._loop, args=(n,)) for n in range(len(self.clients))]
        for thread in threads:
            thread.start()
        number = 1
        try:
            while any(thread.is_alive() for thread in threads):
                publish(number)
                number += 1
        finally:
            self.enough = lambda _: True
            for thread in threads:
                thread.join()

    def _loop(self, index: int) -> None:
        apt = self.clients[index]
        while not self.enough(self.runs):
            if index % 2:
                shutil.rmtree(apt.folder / "state/lists")
                (apt.folder / "state/lists/partial").mkdir(parents=True)
            try:
                apt.update()
                apt.download("foo")
            except ProcessFault as fault:
                with self.lock:
                    self.failures.append(f"client {index}: {fault}")
            with self.lock:
                self.runs += 1


def clients(folder: Path, sources: str) -> list[AptClient]:
    made = [AptClient(folder=folder / f"client-{n}") for n in range(CLIENTS)]
    for apt in made:
        apt.configure(sources)
    return made


def upload(work: Path, number: int) -> Path:
    return debs.upload(work / str(number), "foo", str(number))


def test_no_client_fails_while_publications_come(key: GpgSigner, tmp_path: Path) -> None:
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
    # As many dates as there will be publications, none of them ahead of the clock.
    start = datetime.now(UTC) - timedelta(hours=12)

    def publish(number: int) -> None:
        changes = upload(tmp_path / "in", number)
        with files.locked(archive.lock, inheritable=True) as fd:
            archive.begin()
            debs.exchange(archive, changes, lock_fd=fd)
            archive.export(lock_fd=fd)
            date = publications.next_date(start)
            publications.stage(number, date=date, valid_for=None, sign=key.sign)
            publications.switch(number)
            archive.commit()
        publications.prune(start)

    publish(1)
    last = 1
    with serving(root.parent) as web:
        sources = stanza.sources(web.uri + "dev", "dev", ["main"], key.public_key())

        def enough(runs: int) -> bool:
            return runs >= RUNS and last > PUBLICATIONS

        crowd = Crowd(clients=clients(tmp_path, sources), enough=enough)

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

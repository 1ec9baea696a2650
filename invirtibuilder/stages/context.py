"""What every stage is given: the site, its adapters, and the words by which a stage stops."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from invirtibuilder import keptbases
from invirtibuilder.apt.mirror import machine_sources, stanza
from invirtibuilder.apt.publications import Publications
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.apt.signer import GpgSigner, Signer
from invirtibuilder.apt.signerclient import SocketSigner
from invirtibuilder.engine import Engine
from invirtibuilder.errors import NotFound
from invirtibuilder.gitrepo import Repository
from invirtibuilder.hooks import Events
from invirtibuilder.jobs import Job, Jobs
from invirtibuilder.order import PocketSource, Room
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.superproject import Superproject

LABEL = "invirtibuilder"


class Wait(Exception):
    """A stage cannot go on now: the job waits, until `wake` if it says so, and says why."""

    def __init__(self, why: str, wake: datetime | None) -> None:
        super().__init__(why)
        self.wake = wake


class Stopping(Exception):
    """The daemon ends; the job goes on with the next one."""


class Places(Protocol):
    """The builders' places in each trust domain; a job has at most one."""

    def enter(self, job: Job, domain: str) -> None:
        """Give the job a place unless it has one. Raises Wait, without a time, when none is free:
        then the job goes on once it has one."""
        ...

    def leave(self, job: Job) -> None:
        """Give the place back; no error when it has none."""
        ...


class Unlimited:
    """Places for whoever runs one job by itself."""

    def enter(self, job: Job, domain: str) -> None:
        pass

    def leave(self, job: Job) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Archive:
    """The APT side of one pocket."""

    reprepro: Reprepro
    publications: Publications


class ReadyJobs:
    """The jobs that wait for the lock of their pocket to be published, of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Any]] = {}

    @contextmanager
    def put(self, pocket: str, ready: Any) -> Iterator[None]:
        """Put one down as ready, for as long as this lasts."""
        with self._lock:
            self._waiting.setdefault(pocket, []).append(ready)
        try:
            yield
        finally:
            with self._lock:
                self._waiting[pocket].remove(ready)

    def of(self, pocket: str) -> list[Any]:
        """All that are ready now."""
        with self._lock:
            return list(self._waiting.get(pocket, ()))


@dataclass(frozen=True, kw_only=True)
class Context:
    """One daemon's hands."""

    site: Site
    jobs: Jobs
    events: Events
    engines: Mapping[str, Engine]
    clock: Callable[[], datetime]
    stopping: Callable[[], bool]
    ready: ReadyJobs = field(default_factory=ReadyJobs)
    tell: Callable[[Job], None] = lambda job: None
    """Tells the daemon that a job is new, or is to be looked at again."""
    places: Places = field(default_factory=Unlimited)

    @property
    def superproject(self) -> Superproject:
        return Superproject(self.site.superproject)

    def signer(self, pocket: Pocket) -> Signer:
        """What signs the pocket's publications."""
        return signer(self.site, pocket)

    def repository(self, package: str) -> Repository:
        return Repository(self.site.package_repository(package))

    def pocket(self, job: Job) -> Pocket:
        """The job's pocket as it is configured now. Raises NotFound when it is no more."""
        pocket = self.site.pockets.get(job.pocket)
        if pocket is None:
            raise NotFound(f"no such pocket: {job.pocket}", code="no-pocket")
        return pocket

    def archive(self, pocket: Pocket) -> Archive:
        return archive(self.site, pocket)

    def room(self, pocket: Pocket, *, own_packages: bool, package: str = "") -> Room:
        """What an order for this pocket, and package in it, asks of its environment."""
        source = None
        known = keptbases.needed(self.site)
        keep = None if known is None else tuple(sorted(known.get(pocket.domain, ())))
        publications = self.archive(pocket).publications
        number = publications.current()
        if own_packages and number is not None:
            source = PocketSource(
                directory=str(publications.root),
                publication=str(publications.path(number).relative_to(publications.root)),
                codename=pocket.codename,
                components=pocket.components[:1],
                key=public_key(self.site, pocket).read_text(),
            )
        return Room(
            suite=pocket.suite,
            architecture=pocket.architectures[0],
            sources=mirror_sources(pocket),
            extra_sources="\n".join(
                stanza(e.uri, e.suites, e.components, e.key.read_text())
                for e in pocket.extra_sources
            ),
            pocket=source,
            isolation=pocket.isolation,
            emulation=pocket.emulation,
            qemubuilder=str(pocket.qemubuilder or ""),
            profiles=pocket.profiles,
            options=pocket.options,
            limits=pocket.limits_of(package),
            cache_size=self.site.domains[pocket.domain].cache_size,
            layers_size=self.site.domains[pocket.domain].layers_size,
            keep=keep,
            bases_size=self.site.domains[pocket.domain].bases_size,
        )


def mirror_sources(pocket: Pocket) -> str:
    """The APT sources of a pocket's base, as deb822."""
    if pocket.mirror:
        return stanza(pocket.mirror, [pocket.suite], pocket.components)
    return machine_sources(pocket.suite, pocket.components)


def signer(site: Site, pocket: Pocket) -> Signer:
    """What signs the pocket's publications: this process, or the signer's."""
    keys = pocket.signing
    if site.signer is None:
        return gpg_signer(pocket)
    return SocketSigner(path=site.signer, pocket=pocket.name, keys=(keys.key, *keys.also))


def gpg_signer(pocket: Pocket) -> GpgSigner:
    """The pocket's keys in their home, for who can read that."""
    keys = pocket.signing
    return GpgSigner(gnupghome=keys.home, key=keys.key, also=keys.also)


def public_key(site: Site, pocket: Pocket) -> Path:
    """Where a pocket's public key is for everybody, armoured, served with the archive."""
    return site.archive / pocket.name / "key.asc"


def kept_keys(site: Site, pocket: Pocket) -> Path:
    """Where all public keys are that have signed for a pocket, also those that no longer do."""
    return site.archive / pocket.name / "keys.asc"


def archive(site: Site, pocket: Pocket) -> Archive:
    """The reprepro base and the publications of a pocket."""
    root = site.archive / pocket.name
    return Archive(
        reprepro=Reprepro(
            root=root,
            codename=pocket.codename,
            components=pocket.components[:1],
            architectures=pocket.architectures,
            origin=site.name,
            label=LABEL,
            suite=pocket.name,
            description=pocket.description,
        ),
        publications=Publications(root=root, codename=pocket.codename),
    )

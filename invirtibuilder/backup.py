"""Backups of a running site, each a whole directory of its own, and a site made of one.

A backup is consistent: the last look at what publications change is under the locks of all
pockets, and nothing that was accepted is missing. What is made anew elsewhere is not in it: bases,
layers, and what is only remembered.

    TARGET/YYYYMMDDTHHMMSSZ/backup.json          there when all of it is
    TARGET/YYYYMMDDTHHMMSSZ/invirtibuilder.yaml  the configuration
    TARGET/YYYYMMDDTHHMMSSZ/site/                what the site's directory has
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from invirtibuilder import __version__, accounts, files, hosting, model
from invirtibuilder.errors import Denied, MachineFault, Malformed, NotFound
from invirtibuilder.run import quoted
from invirtibuilder.settings import Site
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.transaction import all_settled
from invirtibuilder.stages.validity import renew
from invirtibuilder.treecopy import Copier

MARK = "backup.json"
CONFIGURATION = "invirtibuilder.yaml"
SITE = "site"
RUN = "run"
WORK = "work"
KEPT_OF_RUN = ("paused.json",)
TRIES = 10
REFS_FIRST = {"refs": -2, "packed-refs": -1, "pack": 1}
"""A ref is copied before its objects; what is loose before the pack that it may go to."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A backup that was made; `lacking` is what could not be read, in words."""

    path: Path
    copied: int
    linked: int
    seconds: float  # for which publications waited
    lacking: tuple[str, ...]


def save(context: Context, target: Path) -> Saved:
    """Make a backup below `target`, beside earlier ones. Raises Wait, Malformed, Denied."""
    site = context.site
    if target.resolve().is_relative_to(site.directory.resolve()):
        raise Malformed(f"{target} is in the site itself", code="backup-inside")
    _ensure_ours(target)
    now = context.clock()
    with files.locked(target / ".lock"):
        files.remove_tree(target / ".new")
        new = target / ".new"
        new.mkdir(mode=0o700)
        before = latest(target)
        copier = Copier(
            before=before / SITE if before else None,
            since=_since(before) if before else 0.0,
            order=lambda name: REFS_FIRST.get(name, 0),
        )
        over = _bulk(context, copier, new / SITE)
        began = context.clock()
        with all_settled(context):
            _all(context, copier, new / SITE, over)
        waited = (context.clock() - began).total_seconds()
        shutil.copy2(site.file, new / CONFIGURATION)
        value = {"v": 1, "time": model.iso(now), "version": __version__, "site": site.name}
        files.write_json(new / MARK, value)
        os.sync()  # once, rather than each of a million files
        path = _named(target, now)
        new.rename(path)
        files.sync_directory(target)
    return Saved(
        path=path,
        copied=copier.copied,
        linked=copier.linked,
        seconds=waited,
        lacking=tuple(dict.fromkeys([*copier.unread, *_keys_elsewhere(site)])),
    )


def _ensure_ours(target: Path) -> None:
    """Make the directory. Raises Denied, which says how root makes it for who may not."""
    with suppress(PermissionError):
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(target, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        who = accounts.named(os.geteuid())
        make = quoted(["install", "-d", "-o", who, "-m", "700", str(target)])
        raise Denied(
            f"{who} may not write in {target}",
            hint=f"a backup is made as the site's own account; as root: `{make}`",
            code="backup-denied",
        )


def _named(target: Path, now: datetime) -> Path:
    """A name of its own, also for the second backup of a second."""
    while (path := target / model.stamp(now)).exists():
        now += timedelta(seconds=1)
    return path


def latest(target: Path) -> Path | None:
    """The last whole backup below `target`."""
    return max((path.parent for path in target.glob(f"*/{MARK}")), default=None)


def _since(backup: Path) -> float:
    time = datetime.fromisoformat(str(files.read_json(backup / MARK)["time"]))
    return time.timestamp()


def _keys_elsewhere(site: Site) -> Iterator[str]:
    """Keys are another account's where there is a signer, and have to be saved by that."""
    homes = {site.signing.home, *(pocket.signing.home for pocket in site.pockets.values())}
    for home in sorted(homes):
        if site.signer or not home.is_relative_to(site.directory):
            yield f"the signing keys in {home}: save them by themselves, and as secrets"


def _parts(site: Site) -> list[str]:
    """What of the site's directory is saved, in an order in which nothing falls in between.

    A request is a job before it has left the queue; a job's objects are held before it is one; an
    event is queued before the state that it tells.
    """
    first = ("queue", "jobs", "events")
    others = sorted(
        path.name
        for path in site.directory.iterdir()
        if path.is_dir() and path.name not in (*first, RUN, WORK, "packages")
    )
    return [name for name in (*first, *others, "packages") if (site.directory / name).is_dir()]


def _bulk(context: Context, copier: Copier, target: Path) -> set[str]:
    """Most of it, while publications go on; the jobs that were over before."""
    over = {job.id for job in context.jobs.all() if job.status.final}
    for name in _parts(context.site):
        if name == "jobs":
            _jobs(context, copier, target / name, over, bulk=True)
        else:
            copier.copy(context.site.directory / name, target / name, inside=f"/{name}")
    return over


def _all(context: Context, copier: Copier, target: Path, over: set[str]) -> None:
    """What has changed since. Jobs that were over have not."""
    site = context.site
    for name in _parts(site):
        if name == "jobs":
            _jobs(context, copier, target / name, over)
        else:
            copier.copy(site.directory / name, target / name, inside=f"/{name}")
    (target / RUN).mkdir(exist_ok=True)
    for path in (*site.directory.iterdir(), *(site.directory / RUN / n for n in KEPT_OF_RUN)):
        if path.is_file() and not path.is_symlink():
            shutil.copy2(path, target / path.relative_to(site.directory))


def _jobs(
    context: Context, copier: Copier, target: Path, over: set[str], *, bulk: bool = False
) -> None:
    """The jobs that may have changed; in `bulk`, all of them."""
    jobs = context.jobs
    for name in jobs.names():
        if name in over and not bulk:
            continue
        copier.remember = name not in over
        for _ in range(TRIES):
            before = _facts(jobs.directory / name)
            copier.copy(jobs.directory / name, target / name, inside=f"/jobs/{name}")
            # A state that comes after its facts would be one of a job that has lost them.
            if _facts(jobs.directory / name) == before:
                break
    copier.remember = True
    aliases = jobs.directory / "aliases"
    if aliases.is_dir():
        copier.copy(aliases, target / "aliases", inside="/jobs/aliases")


def _facts(job: Path) -> list[tuple[str, int, int]]:
    """What tells that a job has gone on."""
    found = []
    for path in job.glob("*.json"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((path.name, status.st_ino, status.st_mtime_ns))
    return sorted(found)


def restore(context: Context, backup: Path) -> Iterator[str]:
    """Make the configuration's site, where there is none, of a backup; what is done, in words.

    Safe to repeat when it was cut off. Raises Fault.
    """
    site = context.site
    if not (backup / MARK).is_file():
        raise NotFound(f"{backup} is no whole backup: it has no {MARK}", code="no-backup")
    if not site.restoring.exists() and any(p.exists() for p in (site.jobs, site.archive)):
        raise Malformed(
            f"{site.directory} has a site already",
            hint="restore into a directory with nothing but the configuration and keys",
            code="not-empty",
        )
    site.restoring.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(site.restoring, f"{backup}\n")
    _copy_back(backup / SITE, site)
    yield f"copied from {backup}"
    hosting.ensure_site(site)
    for package in hosting.package_names(site):
        hosting.create_package(site, package)
    for pocket in site.pockets.values():
        # Clients may have seen a later state than this one: they take what has a newer date.
        if renew(context, pocket, lost=True):
            yield f"{pocket.name}: published again, with the date of now"
        hosting.ensure_pocket(context, pocket)
    site.restoring.unlink()


def _copy_back(source: Path, site: Site) -> None:
    """Everything that is not there yet; keys and configuration may have been put there before."""
    ours = {path.name for path in (site.queue, site.jobs, site.events, site.archive)}
    ours |= {path.name for path in (site.origs, site.packages, site.superproject)}
    copier = Copier()
    for path in sorted(source.iterdir()):
        target = site.directory / path.name
        if path.is_dir() and path.name != RUN:
            if path.name in ours or not target.exists():
                copier.copy(path, target, inside=f"/{path.name}")
        elif path.is_file() and not target.exists():
            shutil.copy2(path, target)
    for path in (source / RUN).iterdir():
        shutil.copy2(path, site.directory / RUN / path.name)
    if copier.unread:
        raise MachineFault(f"cannot be read: {', '.join(copier.unread[:5])}", code="unread-backup")
    for name in sorted(ours):
        if (site.directory / name).is_dir():
            files.sync_tree(site.directory / name)

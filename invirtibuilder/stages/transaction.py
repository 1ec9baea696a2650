"""The transaction of a pocket: packages come, go or come back in one publication, or none does.

The commit point is one compare-and-swap of the superproject's branch, over one commit for each
package that changes. Everything before it can be undone, everything after it can be done again:
recovery asks only whether the branch has the last commit that the intent names.

Jobs of a pocket that are ready together share a publication: each is put down as ready, then
waits for the pocket's lock, and whoever gets it publishes all that are ready by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from invirtibuilder import files
from invirtibuilder.apt.exchange import Exchange
from invirtibuilder.apt.exported import Expected
from invirtibuilder.errors import Fault
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import changes, database, uploads
from invirtibuilder.stages.changes import Change
from invirtibuilder.stages.context import Archive, Context, Wait
from invirtibuilder.stages.finish import AGAIN, FACT, INTENT, finished, refs_of

MAX_PAUSE = 60.0
"""Seconds; a jump of the clock is not waited out with the pocket's lock."""

Prepare = Callable[[], Sequence[Change]]
"""Looks at the pocket as it is now, under its lock. Raises what is in the way."""


class Ready:
    """A job that is ready to be published: all its changes, or none."""

    def __init__(self, job: Job, prepare: Prepare) -> None:
        self.job = job
        self.prepare = prepare
        self.changes: Sequence[Change] = ()
        self.error: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether it was published, or cannot be."""
        return self.error is not None or self.job.fact(FACT) is not None


class _Culprit(Exception):
    """One of several cannot be published."""

    def __init__(self, ready: Ready, error: Exception) -> None:
        super().__init__(str(error))
        self.ready = ready
        self.error = error


def publish(context: Context, job: Job, prepare: Prepare) -> dict[str, Any]:
    """Publish a job's changes in its pocket, once, whatever happens in between; its facts.

    With it goes every other job of the pocket that is ready: N changes are N commits of the
    superproject, in order, and one publication. Raises what is wrong with this job alone.
    """
    pocket = context.pocket(job)
    archive = context.archive(pocket)
    own = Ready(job, prepare)
    with context.ready.put(pocket.name, own), _recovered(context, pocket, archive) as lock_fd:
        # Whoever finished the publication, be it a recovery, has written its facts.
        while not own.over:
            _publish(_Session(context, pocket, archive, lock_fd))
        # What was published stands, whatever came afterwards.
        if own.error and job.fact(FACT) is None:
            raise own.error
        return job.need(FACT)


def recover(context: Context, pocket: Pocket) -> str:
    """Finish or undo what a killed daemon has left; nothing to do is the normal case.

    Returns why it cannot be finished yet, if so: then the pocket's jobs wait, and others go on.
    """
    try:
        with _recovered(context, pocket, context.archive(pocket)):
            return ""
    except Wait as wait:
        return str(wait)


@contextmanager
def settled(context: Context, pocket: Pocket) -> Iterator[tuple[Archive, int]]:
    """The pocket's archive and its lock, which is held, with nothing half done. Raises Wait."""
    archive = context.archive(pocket)
    with _recovered(context, pocket, archive) as lock_fd:
        yield archive, lock_fd


@contextmanager
def all_settled(context: Context) -> Iterator[None]:
    """Every pocket's lock, held, with nothing half done: nobody publishes. Raises Wait."""
    with ExitStack() as stack:
        # Whoever takes several takes them in this order.
        for name in sorted(context.site.pockets):
            stack.enter_context(settled(context, context.site.pockets[name]))
        yield


@contextmanager
def _recovered(context: Context, pocket: Pocket, archive: Archive) -> Iterator[int]:
    """The pocket's lock, with no half-done publication; children inherit the descriptor."""
    archive.reprepro.create()
    with files.locked(archive.reprepro.lock, inheritable=True) as lock_fd:
        path = archive.reprepro.private / INTENT
        intent = files.read_json(path, limit=64 << 20) if path.exists() else None
        if intent and context.superproject.contains(pocket.branch, intent["commit"]):
            finished(context, archive, pocket, intent)
        else:
            _undo(archive, intent)
        yield lock_fd


@dataclass(frozen=True)
class _Session:
    """A pocket whose lock is held."""

    context: Context
    pocket: Pocket
    archive: Archive
    lock_fd: int


def _publish(session: _Session) -> None:
    """Publish what is ready; of two jobs that change one package, the first only."""
    taken: set[str] = set()
    together = []
    waiting = session.context.ready.of(session.pocket.name)
    for ready in sorted(waiting, key=lambda r: r.job.id):
        if ready.over:
            continue
        try:
            ready.changes = _prepared(session, ready)
        except Exception as error:
            ready.error = error
            continue
        names = {change.package for change in ready.changes}
        if session.pocket.allow_takeover:
            names |= {f"{n} (binary)" for c in ready.changes if c.upload for n in c.upload.packages}
        # Two of one package: the later one sees what the earlier has made of it.
        if not names & taken:
            together.append(ready)
            taken |= names
    _all_that_can(session, together)


def _prepared(session: _Session, ready: Ready) -> Sequence[Change]:
    """What a job changes, after what that takes from other sources."""
    coming = ready.prepare()
    lost = list(changes.losses(session.context, session.pocket, coming))
    for change in lost:
        ready.job.remark(change.subject)
    return [*lost, *coming]


def _all_that_can(session: _Session, together: Sequence[Ready]) -> None:
    """One publication for all of them; a bad one leaves, and does not take the others down."""
    if not together:
        return
    try:
        _transact_soundly(session, together)
    except _Culprit as found:
        found.ready.error = found.error
        _all_that_can(session, [r for r in together if r is not found.ready])
    except Exception as error:
        if isinstance(error, Wait) or len(together) == 1:
            for ready in together:
                ready.error = error
            return
        # Nobody knows whose fault it is.
        for ready in together:
            _all_that_can(session, [ready])


def _transact_soundly(session: _Session, together: Sequence[Ready]) -> None:
    """`_transact`; once more when the first failed on a damaged database, which is made anew."""
    try:
        _transact(session, together)
    except (Fault, _Culprit) as found:
        error = found.error if isinstance(found, _Culprit) else found
        if getattr(error, "code", "") not in database.SUSPECT or not database.mended(
            session.context, session.pocket, session.archive, lock_fd=session.lock_fd
        ):
            raise
        for ready in together:
            ready.job.remark(f"reprepro's database was damaged, and is made anew: {error}")
        _transact(session, together)


def _transact(session: _Session, together: Sequence[Ready]) -> None:
    context, pocket, archive = session.context, session.pocket, session.archive
    if (archive.reprepro.private / INTENT).exists():
        # Whoever takes the lock next finishes it, or undoes it.
        raise Wait(f"a publication of {pocket.name} is not finished", context.clock() + AGAIN)
    # Dates rise by a second at least, and APT takes none from the future.
    pause = archive.publications.pause(context.clock())
    if pause <= MAX_PAUSE:
        time.sleep(pause)
    number = max([0, *archive.publications.numbers()]) + 1
    names = {change.package for ready in together for change in ready.changes}
    date = archive.publications.next_date(context.clock())
    intent, exchange = _begun(session, together, number, date)
    try:
        files.write_json(archive.reprepro.private / INTENT, intent)
        expected = _fill(session, together, exchange, date)
        archive.publications.stage(
            number,
            date=date,
            valid_for=pocket.valid_for,
            commit=intent["commit"],
            sign=context.signer(pocket).sign,
            prove=expected.prove,
        )
        with changes.repositories_locked(context, names):
            # Another pocket may have published the same version meanwhile.
            there = {}
            for ready, units in zip(together, intent["jobs"], strict=True):
                with _blamed(ready):
                    for change in units["changes"]:
                        repository = context.repository(change["package"])
                        there[change["package"]] = seen = refs_of(repository)
                        changes.nothing_in_the_way(repository, change["refs"], seen)
                    for one in ready.changes:
                        uploads.keep_origs(context.site.origs, one.upload)
            context.superproject.move(pocket.branch, intent["commit"], intent["parent"])
            # The locks are held until the tags are there.
            finished(context, archive, pocket, intent, there)
    except BaseException as error:
        if not _committed(context, pocket, intent, error):
            _undo(archive, intent)
            raise
        if not isinstance(error, Exception):
            raise
        finished(context, archive, pocket, intent)


def _begun(
    session: _Session, together: Sequence[Ready], number: int, date: datetime
) -> tuple[dict[str, Any], Exchange]:
    """What is intended, and reprepro's open transaction, without what goes, made at the same time.

    Raises what is in the way, of git rather than of reprepro; then nothing was begun.
    """
    with ThreadPoolExecutor(max_workers=1) as beside:
        writing = beside.submit(_intent, session, together, number, date)
        try:
            exchange = _exchange(session, together)
            return writing.result(), exchange
        except BaseException:
            _undo(session.archive, None)
            writing.result()
            raise


def _committed(
    context: Context, pocket: Pocket, intent: Mapping[str, Any], error: BaseException
) -> bool:
    """Whether the commit point was passed. Raises Wait when git does not say it."""
    try:
        return context.superproject.contains(pocket.branch, intent["commit"])
    except Fault as fault:
        why = f"whether {pocket.name} was published is not known yet: {fault}"
        raise Wait(why, context.clock() + AGAIN) from error


@contextmanager
def _blamed(ready: Ready) -> Iterator[None]:
    """What goes wrong here is this one's."""
    try:
        yield
    except Exception as error:
        raise _Culprit(ready, error) from error


def _exchange(session: _Session, together: Sequence[Ready]) -> Exchange:
    """reprepro's part begins, on a saved database: what goes, or is replaced, is taken out."""
    session.archive.reprepro.begin()
    every = [change for ready in together for change in ready.changes if not change.loses]
    return Exchange(
        session.archive.reprepro,
        {change.package: change.upload.packages if change.upload else () for change in every},
        upgraded={change.package for change in every if _only_upgrades(session, change)},
        take_over=session.pocket.allow_takeover,
        lock_fd=session.lock_fd,
    )


def _only_upgrades(session: _Session, change: Change) -> bool:
    """Whether it is what happens most: a higher version of the same binary packages.

    Where packages may move, between sources or components, reprepro has to be asked first.
    """
    pocket = session.pocket
    moving = pocket.allow_takeover or len(session.archive.reprepro.components) > 1
    if change.upload is None or moving:
        return False
    record = session.context.superproject.record(pocket.branch, change.package)
    return record is not None and uploads.upgrades(change.upload, record)


def _fill(
    session: _Session, together: Sequence[Ready], exchange: Exchange, date: datetime
) -> Expected:
    """All that comes, and one export. Says what that may have changed."""
    for ready in together:
        with _blamed(ready):
            folder = ready.job.directory / "upload"
            for one in filter(None, (change.upload for change in ready.changes)):
                files.remove_tree(folder)
                try:
                    exchange.add(
                        uploads.gathered(one, folder, session.pocket.codename, date),
                        one.package,
                        one.version,
                    )
                finally:
                    files.remove_tree(folder)
    exchange.prove()
    session.archive.reprepro.export(lock_fd=session.lock_fd)
    return exchange.expected


# What is written down before, so that a redo makes the same.


def _intent(
    session: _Session, together: Sequence[Ready], number: int, date: datetime
) -> dict[str, Any]:
    """Objects without any ref yet: a chain of commits, and the refs that go with each."""
    context, pocket = session.context, session.pocket
    parent = context.superproject.tip(pocket.branch)
    jobs = []
    with context.superproject.chain(parent) as chain:
        for ready in together:
            intended: list[dict[str, Any]] = []
            with _blamed(ready):
                for change in ready.changes:
                    uploads.same_origs(context.site.origs, change.upload)
                    intended.append(
                        changes.written(
                            context, pocket, change, chain=chain, number=number, date=date
                        )
                    )
            jobs.append({"job": ready.job.id, "changes": intended})
    return {"publication": number, "commit": chain.tip, "parent": parent, "jobs": jobs}


def _undo(archive: Archive, intent: dict[str, Any] | None) -> None:
    """Before the commit point: as if nothing had been."""
    archive.reprepro.restore()
    if intent:
        archive.publications.drop(intent["publication"])
        (archive.reprepro.private / INTENT).unlink(missing_ok=True)
        files.sync_directory(archive.reprepro.private)


# Publications of no job.


def first_publication(context: Context, pocket: Pocket) -> None:
    """Publish an empty repository in a new pocket, so that its stanza works from the start."""
    archive = context.archive(pocket)
    if archive.publications.current() is not None:
        return
    with _recovered(context, pocket, archive) as lock_fd:
        archive.reprepro.begin()
        archive.reprepro.export(lock_fd=lock_fd)
        date = archive.publications.next_date(context.clock().astimezone(UTC))
        archive.publications.stage(
            1, date=date, valid_for=pocket.valid_for, sign=context.signer(pocket).sign
        )
        archive.publications.switch(1)
        archive.reprepro.commit()

"""All checks of a site, pocket by pocket, beside a running daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from invirtibuilder import files, maintenance
from invirtibuilder.errors import Fault
from invirtibuilder.fsck import content, indices, leftovers, repair, sources
from invirtibuilder.fsck.findings import Finding, Memory
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.finish import INTENT
from invirtibuilder.stages.transaction import recover

TRIES = 3
"""How often a pocket is looked at in which something is published meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found, in which pockets; `read` files were hashed and not remembered."""

    pockets: tuple[str, ...]
    packages: int
    findings: tuple[Finding, ...]
    read: int

    @property
    def drift(self) -> bool:
        """Whether git and the archive differ anywhere."""
        return any(finding.drift for finding in self.findings)

    @property
    def lines(self) -> list[str]:
        """Each finding, and at last what is to be thought of all; for a person."""
        what = "drift" if self.drift else "clean"
        pockets = ", ".join(self.pockets)
        end = f"{what}: {self.packages} packages in {pockets}; {self.read} files read"
        return [*(finding.text for finding in self.findings), end]

    def as_json(self) -> dict[str, Any]:
        return {
            "drift": self.drift,
            "pockets": list(self.pockets),
            "packages": self.packages,
            "files_read": self.read,
            "findings": [finding.as_json() for finding in self.findings],
        }


def check(
    context: Context,
    pockets: Sequence[Pocket],
    *,
    level: str,
    full: bool,
    mend: bool,
    go_on: Callable[[], None] = lambda: None,
) -> Report:
    """Check these pockets and what the site has in common; with `mend`, repair what is safe.

    Levels: `b`, everything but making sources anew; `c`, that as well. What was read before and
    has not changed on disk is not read again, unless `full`. `go_on` is called now and then, and
    may raise what is to end it.
    """
    site = context.site
    memory = Memory(site.directory / "run" / "fsck.json", full=full, go_on=go_on)
    states: dict[str, content.State] = {}
    found: list[Finding] = recovered(context, pockets) if mend else []
    for pocket in pockets:
        state, here = _pocket(context, pocket, memory, mend=mend)
        states[pocket.name] = state
        found += here
        if level == "c":
            found += sources.check(context, pocket, state, go_on)
    found += _common(context, pockets, states, memory, mend=mend)
    memory.save()
    report = Report(
        pockets=tuple(states),
        packages=sum(len(state.records) for state in states.values()),
        findings=tuple(found),
        read=memory.read,
    )
    maintenance.note(site, maintenance.FSCK, context.clock(), _noted(report, level))
    return report


def _noted(report: Report, level: str) -> dict[str, dict[str, object]]:
    """What is kept of it for each pocket; drift that belongs to none is each one's."""
    drift = [finding.pocket for finding in report.findings if finding.drift]
    everywhere = sum(pocket not in report.pockets for pocket in drift)
    return {
        pocket: {"level": level, "drift": drift.count(pocket) + everywhere}
        for pocket in report.pockets
    }


def _pocket(
    context: Context, pocket: Pocket, memory: Memory, *, mend: bool
) -> tuple[content.State, list[Finding]]:
    """A pocket while nothing is published in it: what was seen belongs together."""
    archive = context.archive(pocket)
    if not archive.reprepro.private.is_dir():
        message = f"{archive.reprepro.root} is not there"
        finding = Finding(
            kind="current-missing", pocket=pocket.name, what=pocket.name, message=message
        )
        return content.state_of(context, pocket), [finding]
    for _ in range(TRIES):
        state = content.state_of(context, pocket)
        _long(context, pocket, state, memory)
        with _locked(context, pocket) as lock_fd:
            # From here on nothing moves; what was read just now is remembered.
            if content.state_of(context, pocket).tip == state.tip:
                return _mended(context, pocket, state, memory, lock_fd, mend=mend)
    with _locked(context, pocket) as lock_fd:
        state = content.state_of(context, pocket)
        return _mended(context, pocket, state, memory, lock_fd, mend=mend)


@contextmanager
def _locked(context: Context, pocket: Pocket) -> Iterator[int]:
    with files.locked(context.archive(pocket).reprepro.lock, inheritable=True) as lock_fd:
        yield lock_fd


def _long(context: Context, pocket: Pocket, state: content.State, memory: Memory) -> list[Finding]:
    found = list(content.check(context, pocket, state, memory))
    told = {(finding.kind, finding.what) for finding in found}
    for finding in indices.check(context, pocket, state, memory):
        # Of a recorded file the record has told it.
        if (finding.kind, PurePath(finding.what).name) not in told:
            found.append(finding)
    return found


def _mended(
    context: Context,
    pocket: Pocket,
    state: content.State,
    memory: Memory,
    lock_fd: int,
    *,
    mend: bool,
) -> tuple[content.State, list[Finding]]:
    found = [
        *_unfinished(context, pocket),
        *_long(context, pocket, state, memory),
        *indices.database(context, pocket, state, lock_fd),
        *leftovers.check_pool(context, pocket, lock_fd),
    ]
    if mend:
        bench = repair.Workbench(context, pocket, state, memory, lock_fd)
        found = repair.all_of(bench, found)
    return state, found


def _unfinished(context: Context, pocket: Pocket) -> Iterator[Finding]:
    reprepro = context.archive(pocket).reprepro
    if (reprepro.private / INTENT).exists() or reprepro.is_open():
        message = "the next daemon, or `fsck --repair`, finishes or undoes it"
        yield Finding(kind="unfinished", pocket=pocket.name, what=INTENT, message=message)


def _common(
    context: Context,
    pockets: Sequence[Pocket],
    states: dict[str, content.State],
    memory: Memory,
    *,
    mend: bool,
) -> list[Finding]:
    """What belongs to no pocket alone."""
    found = list(leftovers.check_files(context))
    found += leftovers.check_refs(context)
    if mend and pockets:
        bench = repair.Workbench(context, pockets[0], states[pockets[0].name], memory)
        found = repair.all_of(bench, found)
    return found


def recovered(context: Context, pockets: Sequence[Pocket]) -> list[Finding]:
    """Finish or undo what a killed daemon has left, before anything is checked; what was done."""
    done = []
    for pocket in pockets:
        if not context.archive(pocket).reprepro.private.is_dir():
            continue
        for finding in list(_unfinished(context, pocket)):
            try:
                why = recover(context, pocket)
            except (Fault, OSError) as error:
                why = str(error)
            done.append(replace(finding, repaired="" if why else "finished or undone"))
    return done

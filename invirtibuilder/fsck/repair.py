"""Repairs that lose nothing: each puts back what git, a record or a kept copy says is so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from invirtibuilder import files
from invirtibuilder.errors import Fault
from invirtibuilder.fsck import content, indices
from invirtibuilder.fsck.content import Record, State, kept, kept_artifact
from invirtibuilder.fsck.findings import Finding, Memory
from invirtibuilder.fsck.leftovers import path_of
from invirtibuilder.gitrepo import JOBS
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import database
from invirtibuilder.stages.context import Context

Repair = Callable[["Workbench", Finding], str]


class Workbench:
    """A pocket whose lock is held, and what is known of it; -1 is the lock of none."""

    def __init__(
        self, context: Context, pocket: Pocket, state: State, memory: Memory, lock_fd: int = -1
    ) -> None:
        self.context = context
        self.pocket = pocket
        self.state = state
        self.memory = memory
        self.lock_fd = lock_fd
        self.database_done = ""

    def repair(self, finding: Finding) -> Finding:
        """The finding with what was done about it, or as it was when nothing safe can be."""
        if how := REPAIRS.get(finding.kind):
            try:
                return replace(finding, repaired=how(self, finding))
            except (Fault, OSError) as error:
                message = f"{finding.message}; not repaired: {error}"
                return replace(finding, message=message)
        return finding

    def record(self, finding: Finding) -> tuple[str, Record]:
        """The package that a finding is of, with its record; of a ref, that of its version."""
        package = finding.package
        if finding.what.startswith("refs/"):
            for name, record in content.older(self.context, self.pocket, self.state):
                if name == package and finding.what in self._refs(record):
                    return package, record
        return package, self.state.records[package]

    def _refs(self, record: Record) -> set[str]:
        return {*kept(self.pocket, record), f"refs/tags/{self.pocket.tag(str(record['version']))}"}


def all_of(bench: Workbench, findings: Iterable[Finding]) -> list[Finding]:
    """Every finding, repaired where that is safe."""
    return [bench.repair(finding) for finding in findings]


def _ref(bench: Workbench, finding: Finding) -> str:
    package, record = bench.record(finding)
    target = kept(bench.pocket, record)[finding.what]
    bench.context.repository(package).keep(finding.what, target)
    return f"made at {target}"


def _tag(bench: Workbench, finding: Finding) -> str:
    """The same tag object again, as long as the site's tagger is the same."""
    package, record = bench.record(finding)
    site, repository = bench.context.site, bench.context.repository(package)
    name = finding.what.removeprefix("refs/tags/")
    made = repository.tag_object(
        name,
        str(record["commit"]),
        f"{package} {record['version']} in {bench.pocket.name}\n\nJob: {record['job']}\n",
        site.tagger_name,
        site.tagger_mail,
        datetime.fromisoformat(str(record["published"])),
    )
    repository.set_ref(finding.what, made, None)
    return f"made at {record['commit']}"


def _pool_file(bench: Workbench, finding: Finding) -> str:
    """From the artifacts that are kept with the job, if they are still the recorded ones."""
    if not finding.package:
        return _named_file(bench, finding.what)
    _, record = bench.record(finding)
    sha256 = next(f["sha256"] for f in record["files"] if f["name"] == finding.what)
    source = kept_artifact(bench.context, record, finding.what)
    if source is None or bench.memory.sha256(source) != sha256:
        raise Fault("no kept copy has the recorded content")
    root = bench.context.site.archive / bench.pocket.name
    there = sorted((root / "pool").rglob(finding.what))
    target = there[0] if there else _place(bench, root, finding.what, sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    _copied(source, target)
    return f"{target.relative_to(root)} copied from job {record['job']}"


def _named_file(bench: Workbench, path: str) -> str:
    """What a kept publication names: from any pool or job that has the same content."""
    site, publications = bench.context.site, bench.context.archive(bench.pocket).publications
    wanted = {
        sha256
        for number in publications.numbers()
        for (_, sha256), there in indices.named(publications, number, bench.memory)
        if there == path
    }
    name = Path(path).name
    places = [*site.archive.glob(f"*/pool/**/{name}"), *site.jobs.glob(f"*/source/{name}")]
    for source in (*places, *site.jobs.glob(f"*/artifacts/{name}")):
        if not source.is_symlink() and {bench.memory.sha256(source)} == wanted:
            target = files.contained(publications.root, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copied(source, target)
            return f"copied from {source.relative_to(site.directory)}"
    raise Fault("no kept copy has the content that is named")


def _place(bench: Workbench, root: Path, name: str, sha256: str) -> Path:
    """Where a file of the pool belongs: where the newest publication says."""
    number = indices.newest(bench.context, bench.pocket, bench.state)
    if number is not None:
        listed = indices.listed(bench.context, bench.pocket, number)
        if path := listed.get((name, sha256)):
            return files.contained(root, path)
    raise Fault("no publication tells where it belongs")


def _copied(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.repair")
    shutil.copyfile(source, beside)
    beside.chmod(0o644)
    files.sync_file(beside)
    beside.replace(target)
    files.sync_directory(target.parent)


def _orig(bench: Workbench, finding: Finding) -> str:
    _, record = bench.record(finding)
    sha256 = next(f["sha256"] for f in record["files"] if f["name"] == finding.what)
    root = bench.context.site.archive / bench.pocket.name
    for path in sorted((root / "pool").rglob(finding.what)):
        if bench.memory.sha256(path) == sha256:
            bench.context.site.origs.mkdir(exist_ok=True)
            _copied(path, bench.context.site.origs / finding.what)
            return "copied from the pool"
    raise Fault("the pool does not have it")


def _by_hash(bench: Workbench, finding: Finding) -> str:
    """From an index of any kept publication with that hash."""
    publications = bench.context.archive(bench.pocket).publications
    sha256 = Path(finding.what).name
    store = publications.root / "by-hash" / "SHA256"
    for number in publications.numbers():
        for path in sorted((publications.path(number) / "dists").rglob("*")):
            if path.is_file() and not path.is_symlink() and bench.memory.sha256(path) == sha256:
                store.mkdir(parents=True, exist_ok=True)
                beside = store / ".repair"
                beside.unlink(missing_ok=True)
                shutil.copyfile(path, beside)
                beside.chmod(0o644)
                files.sync_file(beside)
                beside.replace(store / sha256)
                files.sync_directory(store)
                return f"copied from publication {number}"
    raise Fault("no publication has it")


def _index(bench: Workbench, finding: Finding) -> str:
    """From the store of indices by hash, if that still has what the Release names."""
    path = Path(finding.what)
    publications = bench.context.archive(bench.pocket).publications
    store = publications.root / "by-hash" / "SHA256"
    release = path
    # There is a Release for each architecture, too; only the one of all is signed.
    while not (release / "InRelease").is_file():
        release = release.parent
    name = str(path.relative_to(release))
    for line in (release / "Release").read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == name:
            if bench.memory.sha256(store / words[0]) != words[0]:
                break
            _copied(store / words[0], path)
            return "copied from the store by hash"
    raise Fault("the store of indices does not have it")


def _database(bench: Workbench, _finding: Finding) -> str:
    """All of it, from the records, once for everything that is wrong with it."""
    if not bench.database_done:
        archive = bench.context.archive(bench.pocket)
        if archive.reprepro.is_open():
            raise Fault("a publication is not finished")
        database.made_anew(bench.context, bench.pocket, archive, lock_fd=bench.lock_fd)
        bench.database_done = "made anew from the records"
    return bench.database_done


def _switch(bench: Workbench, _finding: Finding) -> str:
    """To the publication that belongs to the branch's newest commit."""
    number = indices.newest(bench.context, bench.pocket, bench.state)
    if number is None:
        raise Fault("no publication is of the branch's newest commit")
    bench.context.archive(bench.pocket).publications.switch(number)
    return f"clients see publication {number}"


def _leftover(bench: Workbench, finding: Finding) -> str:
    package, _, ref = finding.what.partition(" ")
    if ref.startswith(JOBS):
        bench.context.repository(package).unkeep(ref)
    else:
        path = path_of(bench.context, finding)
        if path.is_dir() and not path.is_symlink():
            # As the daemon's account; what is not its own stays.
            shutil.rmtree(path)
        else:
            path.unlink()
    return "removed"


REPAIRS: dict[str, Repair] = {
    "kept-ref-missing": _ref,
    "tag-missing": _tag,
    "file-missing": _pool_file,
    "file-differs": _pool_file,
    "orig-missing": _orig,
    "orig-differs": _orig,
    "by-hash-missing": _by_hash,
    "by-hash-differs": _by_hash,
    "index-missing": _index,
    "index-differs": _index,
    "database-differs": _database,
    "current-missing": _switch,
    "current-differs": _switch,
    "leftover": _leftover,
}
"""What can be repaired; `unfinished` is before, by the daemon's own recovery."""

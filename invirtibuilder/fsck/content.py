"""Pin = tag or kept ref = record = files in the pool, for each package of a pocket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invirtibuilder import debchanges, files, model
from invirtibuilder.errors import Fault, Malformed, NotFound
from invirtibuilder.fsck.findings import Finding, Memory
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Context
from invirtibuilder.superproject import Commit

MAX_CONTROL = 4 << 20
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class State:
    """A pocket at one moment: what its branch pins and records, and its history."""

    tip: str | None
    pins: Mapping[str, str]
    records: Mapping[str, Record]
    history: tuple[Commit, ...]


def state_of(context: Context, pocket: Pocket) -> State:
    """The pocket as the superproject has it now."""
    history = context.superproject.history(pocket.branch)
    tip = history[0].id if history else None
    pins, records = context.superproject.content(tip) if tip else ({}, {})
    return State(tip=tip, pins=pins, records=records, history=tuple(history))


def pool_files(root: Path) -> dict[str, list[Path]]:
    """Every file in a pocket's pool, by name."""
    found: dict[str, list[Path]] = {}
    for path in sorted((root / "pool").rglob("*")):
        if path.is_file():
            found.setdefault(path.name, []).append(path)
    return found


def check(context: Context, pocket: Pocket, state: State, memory: Memory) -> Iterator[Finding]:
    """Every package of the pocket: git, the pool, the build's own record."""
    pool = pool_files(context.site.archive / pocket.name)
    for package in sorted({*state.pins, *state.records}):
        checker = _Package(context, pocket, package, memory)
        record = state.records.get(package)
        if record is None:
            yield checker.found("pin-without-record", package, f"pinned at {state.pins[package]}")
            continue
        yield from checker.pinned(record, state.pins.get(package))
        yield from checker.trailers(record, state.history)
        yield from checker.refs(record)
        yield from checker.pool(record, pool)
        yield from checker.origs(record)
        yield from checker.buildinfo(record)
    for package, record in older(context, pocket, state):
        yield from _Package(context, pocket, package, memory).refs(record)


def older(context: Context, pocket: Pocket, state: State) -> Iterator[tuple[str, Record]]:
    """What the kept publications show besides the newest records: each version once."""
    publications, superproject = context.archive(pocket).publications, context.superproject
    made = {commit.id for commit in state.history}
    ids = set(superproject.record_ids(state.tip).items()) if state.tip else set()
    versions = {(package, record["version"]) for package, record in state.records.items()}
    for number in publications.numbers():
        try:
            commit = publications.commit(number)
        except (OSError, Fault, ValueError):
            # Another finding says so.
            continue
        fresh = set(superproject.record_ids(commit).items()) - ids if commit in made else set()
        ids |= fresh
        for package, _ in sorted(fresh):
            record = superproject.record_at(commit, package)
            if record and (package, record["version"]) not in versions:
                versions.add((package, record["version"]))
                yield package, record


@dataclass(frozen=True)
class _Package:
    """One package of a pocket."""

    context: Context
    pocket: Pocket
    name: str
    memory: Memory

    def found(self, kind: str, what: str, message: str) -> Finding:
        return Finding(
            kind=kind,
            pocket=self.pocket.name,
            package=self.name,
            what=what,
            message=f"{self.name}: {message}",
        )

    def pinned(self, record: Record, pin: str | None) -> Iterator[Finding]:
        if pin is None:
            yield self.found("record-without-pin", self.name, f"recorded at {record['commit']}")
        elif pin != record["commit"]:
            message = f"pinned at {pin}, recorded at {record['commit']}"
            yield self.found("pin-differs", self.name, message)

    def trailers(self, record: Record, history: tuple[Commit, ...]) -> Iterator[Finding]:
        """The commit that brought the record says the same in its trailers."""
        dsc = next((f["sha256"] for f in record["files"] if f["name"] == record["dsc"]), "")
        wanted = {"Version": record["version"], "Commit": record["commit"], "Dsc-Sha256": dsc}
        wanted["Job"] = record["job"]
        for commit in history:
            if all(commit.trailers.get(name) == value for name, value in wanted.items()):
                return
        message = f"no superproject commit of job {record['job']} says {record['version']}"
        yield self.found("record-differs", self.name, message)

    def refs(self, record: Record) -> Iterator[Finding]:
        """What holds the commit, and that the source came from its tree."""
        repository = self.context.repository(self.name)
        commit, version = str(record["commit"]), str(record["version"])
        if not (repository.path / "HEAD").exists():
            yield self.found("repository-missing", str(repository.path), "no repository")
            return
        try:
            tree = repository.tree(commit)
        except NotFound:
            yield self.found("commit-missing", commit, f"no commit {commit}")
            return
        if tree != record["tree"]:
            message = f"exported from {record['tree']}, the commit's tree is {tree}"
            yield self.found("tree-differs", commit, message)
        there = repository.refs("refs/")
        for name, target in kept(self.pocket, record).items():
            if name not in there:
                yield self.found("kept-ref-missing", name, f"{name} is missing")
            elif there[name] != target:
                yield self.found("kept-ref-differs", name, f"{name} is at {there[name]}")
        tag = f"refs/tags/{self.pocket.tag(version)}"
        if self.pocket.allow_backtracking or record.get("backtracking"):
            return
        if tag not in there:
            yield self.found("tag-missing", tag, f"{tag} is missing")
        elif (peeled := repository.peeled(tag)) != commit:
            yield self.found("tag-differs", tag, f"{tag} is at {peeled}, published is {commit}")

    def pool(self, record: Record, pool: Mapping[str, list[Path]]) -> Iterator[Finding]:
        """Each recorded file is in the pool with its SHA-256; the .dsc names only those."""
        for file in record["files"]:
            name = str(file["name"])
            if name.endswith(".buildinfo"):
                continue
            if name not in pool:
                yield self.found("file-missing", name, f"{name} is not in the pool")
            for path in pool.get(name, []):
                if (found := self.memory.sha256(path)) != file["sha256"]:
                    message = f"{path} has SHA-256 {found}, recorded is {file['sha256']}"
                    yield self.found("file-differs", name, message)
                elif name == record["dsc"]:
                    yield from self._dsc(record, path)

    def _dsc(self, record: Record, path: Path) -> Iterator[Finding]:
        recorded = {f["name"]: f["sha256"] for f in record["files"]}
        try:
            dsc = debchanges.parse_dsc(files.read_capped(path, limit=MAX_CONTROL))
            wrong = [f.name for f in dsc.files if recorded.get(f.name) != f.sha256]
        except Malformed as fault:
            wrong = [str(fault)]
        if wrong:
            message = f"{path.name} does not fit the record: {', '.join(wrong)}"
            yield self.found("source-differs", path.name, message)

    def origs(self, record: Record) -> Iterator[Finding]:
        """The site's store has the upstream tarballs that this version was published with."""
        prefix = f"{self.name}_{model.upstream_version(str(record['version']))}.orig"
        for file in record["files"]:
            if str(file["name"]).startswith(prefix):
                found = self.memory.sha256(self.context.site.origs / file["name"])
                if found != file["sha256"]:
                    kind = "orig-differs" if found else "orig-missing"
                    message = f"{file['name']} in the store: {found or 'none'}"
                    yield self.found(kind, str(file["name"]), message)

    def buildinfo(self, record: Record) -> Iterator[Finding]:
        """The kept .buildinfo is the recorded one and names each binary with its SHA-256."""
        name = str(record["buildinfo"])
        recorded = {f["name"]: f["sha256"] for f in record["files"]}
        path = kept_artifact(self.context, record, name)
        if path is None:
            message = f"{name} is not kept with its job any more"
            yield self.found("not-comparable", name, message)
            return
        if self.memory.sha256(path) != recorded[name]:
            yield self.found("buildinfo-differs", name, f"{path} is not the recorded one")
            return
        try:
            info = debchanges.parse_buildinfo(files.read_capped(path, limit=MAX_CONTROL))
            named = {f.name: f.sha256 for f in info.files}
        except Fault as fault:
            yield self.found("buildinfo-differs", name, f"{path}: {fault}")
            return
        for file, sha256 in recorded.items():
            if file.endswith((".deb", ".udeb")) and named.get(file) != sha256:
                yield self.found("buildinfo-differs", name, f"{name} does not name {file}")


def kept(pocket: Pocket, record: Record) -> dict[str, str]:
    """The refs of ours that hold what a record was made from."""
    name = pocket.kept_ref(str(record["version"]))
    found = {name: str(record["commit"])}
    if record.get("pristine_tar"):
        found[f"{name}-pristine-tar"] = str(record["pristine_tar"])
    if record.get("upstream_tag"):
        found[f"{name}-upstream-tag"] = str(record["upstream_tag"]["object"])
    return found


def kept_artifact(context: Context, record: Record, name: str) -> Path | None:
    """A recorded file as it is kept with the job that made it, or None."""
    for job in (record.get("built"), record.get("job"), record.get("reused")):
        for folder in ("artifacts", "source"):
            if job and model.JOB.fullmatch(str(job)):
                path = context.site.jobs / str(job) / folder / name
                if path.is_file() and not path.is_symlink():
                    return path
    return None
